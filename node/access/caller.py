"""Who calls, what that principal may do, and how much of its quota is left. Pure: the clock is an argument."""

from itertools import count

from ringpost.cluster.names import CHANNEL_BYTES_MAX
from ringpost.node.access.grants import CHANNEL_VERBS, Grants, Quota, Verb
from ringpost.node.errors import Exhausted, PermissionDenied

KNOWN_MAX = 100_000  # on the node, whoever asked: at most some 60 MB
_NO_NAME = "\0"  # one token that is no channel's name
_serials = count()


class Bucket:
    """A rate with a second's worth of burst. What is taken may exceed what is there: the debt must be waited for."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at = 0.0

    def take(self, amount: int, now: float) -> None:
        """Something was used."""
        self._left = min(self._rate, self._left + max(0.0, now - self._at) * self._rate) - amount
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until the debt is paid; 0.0 when there is none."""
        return max(0.0, -self._left / self._rate - (now - self._at))


class Usage:
    """What one principal uses of its quota on this node."""

    __slots__ = ("_bytes", "_messages", "name", "quota", "streams")

    def __init__(self, name: str, quota: Quota) -> None:
        self.name = name
        self.streams = 0
        self.limit(quota)

    def limit(self, quota: Quota) -> None:
        """Another quota from now on; what is open stays open."""
        self.quota = quota
        self._messages = Bucket(quota.messages_per_s) if quota.messages_per_s else None
        self._bytes = Bucket(quota.bytes_per_s) if quota.bytes_per_s else None

    @property
    def limited(self) -> bool:
        """Whether publishing has a bound."""
        return self._messages is not None or self._bytes is not None

    def open_stream(self) -> None:
        """One more stream. Raises Exhausted."""
        if self.quota.streams and self.streams >= self.quota.streams:
            raise Exhausted(
                f"{self.name} has its {self.quota.streams} streams on this node (quota.streams); end one first",
                reason="QUOTA_STREAMS",
                retry_after_ms=1_000,
            )
        self.streams += 1

    def close_stream(self) -> None:
        """A stream that was opened is over."""
        self.streams -= 1

    def publish(self, messages: int, size: int, now: float) -> None:
        """Messages and bytes were taken."""
        if self._messages is not None:
            self._messages.take(messages, now)
        if self._bytes is not None:
            self._bytes.take(size, now)

    def wait_s(self, now: float) -> float:
        """How long nothing more should be published."""
        waits = [bucket.wait_s(now) for bucket in (self._messages, self._bytes) if bucket is not None]
        return max(waits, default=0.0)

    def check_rate(self, now: float) -> None:
        """Raises Exhausted while the rate is used up."""
        if wait := self.wait_s(now):
            raise Exhausted(
                f"{self.name} has published as much as it may (quota.messages_per_s, quota.bytes_per_s); "
                "nothing was appended",
                reason="QUOTA_RATE",
                retry_after_ms=max(1, round(wait * 1000)),
            )


Known = dict[tuple[int, Verb, str], bool]
"""What callers were found to be permitted, by their serial numbers; one for all callers of a node, hence bounded."""


class Caller:
    """A principal as one token shows it. `token` is passed on to the owner of a channel, which looks at it again.

    `expires_at`: seconds since 1970; None: does not expire. `generation`: of the policy that the grants are from.
    """

    __slots__ = ("_grants", "_known", "_seen", "_serial", "expires_at", "generation", "name", "token", "usage")

    def __init__(
        self,
        name: str,
        grants: Grants | None,
        usage: Usage,
        *,
        token: str = "",
        expires_at: float | None = None,
        generation: int = 0,
        known: Known | None = None,
    ) -> None:
        """`grants` None: everything is permitted. `known` is shared by all callers of a node; None: its own."""
        self.name = name
        self.usage = usage
        self.token = token
        self.expires_at = expires_at
        self.generation = generation
        self._grants = grants
        self._seen = None if grants is None else grants.on_any
        self._known: Known = {} if known is None else known
        self._serial = next(_serials)

    def may(self, verb: Verb, channel: str = "") -> bool:
        """Whether it may, on the channel or on the cluster.

        "" is no channel: who may do it everywhere, or on all names of one token, may go on and is told that the field
        is wrong; all others are told nothing. There is no channel with a longer name than is allowed, and matching one
        of megabytes takes long: its beginning decides.
        """
        if self._grants is None:
            return True
        if len(channel) > CHANNEL_BYTES_MAX:
            channel = channel[:CHANNEL_BYTES_MAX].rstrip(".") or "."
        key = (self._serial, verb, channel)
        known = self._known.get(key)
        if known is None:
            grants = self._grants
            known = grants.on_channel(verb, channel or _NO_NAME) if verb in CHANNEL_VERBS else grants.on_cluster(verb)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = known
        return known

    def may_see(self, channel: str) -> bool:
        """Whether it may do anything with the channel. One look, and nothing remembered: lists ask it of every name."""
        return self._seen is None or self._seen.match(channel or _NO_NAME)

    @property
    def sees_none(self) -> bool:
        """Whether there is no channel that it may do anything with."""
        return self._seen is not None and not self._seen

    def require(self, verb: Verb, channel: str = "") -> None:
        """Raises PermissionDenied."""
        if not self.may(verb, channel):
            raise self.denial(verb, channel)

    def denial(self, verb: str, channel: str = "") -> PermissionDenied:
        """The error that says so."""
        where = f" on channel {channel[:CHANNEL_BYTES_MAX]!r}" if channel else ""
        facts = {"principal": self.name, "verb": str(verb)}
        if channel:
            facts["channel"] = channel[:CHANNEL_BYTES_MAX]
        return PermissionDenied(f"{self.name} lacks the permission {verb!s}{where}", metadata=facts)


ANYONE = Caller("anyone", None, Usage("anyone", Quota()))
