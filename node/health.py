"""How the node is: parts that are well or not, and the health services that follow from them.

A service is SERVING when all of its parts are well; the drain ends all but `live` and `storage`. Kubernetes asks
three of them: `startup` (once), `ready` (take traffic off), `live` (restart; the weakest: it is SERVING as long as
the loop answers at all). Pure; belongs to the loop's thread. `node.services.health` tells it over gRPC.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Parts, each with the services that need it. A quarantined shard, a full disk or an access file that cannot be taken up
# (the rules before go on) is for `storage` alone: the rest works.
PARTS: Mapping[str, frozenset[str]] = {
    "recovery": frozenset({"startup", "ready", "storage"}),
    "journal": frozenset({"ready", "storage"}),
    "frames": frozenset({"storage"}),
    "disk": frozenset({"storage"}),
    "access": frozenset({"storage"}),
    "shards": frozenset({"storage"}),
    "coordination": frozenset({"ready"}),
    "loop": frozenset({"ready"}),
}

# Services that are what `ready` is; "" is what a load balancer asks for.
AS_READY = (
    "",
    "ringpost.v1.PublisherService",
    "ringpost.v1.SubscriberService",
    "ringpost.v1.ChannelService",
    "ringpost.v1.GroupService",
    "ringpost.v1.DeadLetterService",
    "ringpost.v1.MessageService",
    "ringpost.v1.ClusterService",
)
SERVICES = ("live", "startup", "ready", "storage", *AS_READY)

_NOT_STARTED = "not started yet"


@dataclass(frozen=True, slots=True)
class Part:
    """One part's state; `why` is one sentence, empty when it is well."""

    ok: bool
    why: str


class Health:
    """The node's parts. Every part begins as not well. `listeners` are called after each change of any service."""

    def __init__(self) -> None:
        self._parts = {name: Part(False, _NOT_STARTED) for name in PARTS}
        self._started = False
        self._draining = False
        self._listeners: dict[object, Callable[[], None]] = {}

    def set_part(self, name: str, ok: bool, why: str = "") -> None:
        """Says how a part is. `name` is one of PARTS; not well needs a `why`."""
        assert name in PARTS, f"no part {name}"
        assert ok or why, "why is it not well?"
        part = Part(ok, "" if ok else why)
        if self._parts[name] == part:
            return
        before = self._all()
        self._parts[name] = part
        # Startup is over once; a later fault is not a start that failed.
        self._started = self._started or all(self._parts[name].ok for name in PARTS if "startup" in PARTS[name])
        self._tell(before)

    def drain(self) -> None:
        """The node is going to stop: for good, `ready` and all that follows it are not serving."""
        before = self._all()
        self._draining = True
        self._tell(before)

    def serving(self, service: str) -> bool | None:
        """Whether a service is serving; None when there is no such service."""
        if service in AS_READY:
            service = "ready"
        match service:
            case "live":
                return True
            case "startup":
                return self._started
            case "ready":
                return not self._draining and self._well("ready")
            case "storage":
                return self._well("storage")
        return None

    def report(self, service: str) -> dict[str, Any]:
        """A service's state and its parts, for JSON. `service` is one of SERVICES."""
        parts = {
            name: {"ok": part.ok} if part.ok else {"ok": False, "why": part.why}
            for name, part in self._parts.items()
            if service in PARTS[name]
        }
        status = "SERVING" if self.serving(service) else "NOT_SERVING"
        return {"service": service, "status": status, "draining": self._draining, "parts": parts}

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls back after changes; the result ends that. A listener must not raise and must not wait."""
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    def _well(self, service: str) -> bool:
        return all(part.ok for name, part in self._parts.items() if service in PARTS[name])

    def _all(self) -> list[bool | None]:
        return [self.serving(service) for service in SERVICES]

    def _tell(self, before: list[bool | None]) -> None:
        if self._all() != before:
            for listener in tuple(self._listeners.values()):
                listener()
