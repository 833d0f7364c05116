"""The coordination store: linearizable, with leases and watches, and a network between it and the nodes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import ShardRecord
from tests.simulation.kernel import Kernel

if TYPE_CHECKING:
    from tests.simulation.oracle import Oracle
    from tests.simulation.process import Process

TIMEOUT_US = 2_000_000


class View(NamedTuple):
    """Everything as of one revision."""

    revision: int
    sessions: Mapping[str, int]
    directories: Mapping[str, str]  # of the latest session of each node
    records: tuple[ShardRecord, ...]
    controller: tuple[str, int] | None  # node and term
    tombs: frozenset[str]
    unreachable: Mapping[str, frozenset[str]]  # what the nodes that live say of their links

    def linked(self, one: str, other: str) -> bool:
        """Whether neither says that it cannot reach the other."""
        none: frozenset[str] = frozenset()
        return other not in self.unreachable.get(one, none) and one not in self.unreachable.get(other, none)

    def isolated(self, node: str) -> bool:
        """Whether a node reaches less than half of the others."""
        others = [other for other in self.sessions if other != node]
        return 2 * sum(not self.linked(node, other) for other in others) > len(others)

    def may_control(self, node: str) -> bool:
        """Whether a node could hold elections, or nobody could better."""
        return not self.isolated(node) or all(self.isolated(other) for other in self.sessions)


class Host(Protocol):
    """What the store needs of the world."""

    kernel: Kernel
    rng: random.Random
    oracle: Oracle

    def processes(self) -> list[Process]:
        """All that run."""


class Etcd:
    """The store. `late`, `lost`: how often a request is applied late, and an answer lost."""

    def __init__(self, host: Host, records: list[ShardRecord], ttl_us: int) -> None:
        self.records = records
        self.ttl_us = ttl_us
        self.down = False
        self.cut: set[str] = set()
        self.late = 0.0
        self.lost = 0.0
        self.slow_watch: dict[str, int] = {}
        self.stalled: dict[str, int] = {}  # node -> when what it sends comes through again
        self.revision = 1
        self._host = host
        self._live: dict[str, tuple[int, int]] = {}  # node -> session, when the lease ends
        self._directories: dict[str, str] = {}
        self._unreachable: dict[str, frozenset[str]] = {}
        self._controller: tuple[str, int] | None = None
        self._tombs: frozenset[str] = frozenset()
        self._view: View | None = None
        self._watching: set[Process] = set()
        self._sent: dict[int, list[ShardRecord]] = {}

    # -- state ------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """What a linearizable read says."""
        if self._view is None:
            sessions = {node: session for node, (session, _) in self._live.items()}
            self._view = View(
                self.revision,
                sessions,
                dict(self._directories),
                tuple(self.records),
                self._controller,
                self._tombs,
                dict(self._unreachable),
            )
        return self._view

    def _changed(self) -> int:
        self.revision += 1
        self._view = None
        for process in self._host.processes():
            self._tell(process)
        return self.revision

    def register(self, node: str, directory: str) -> int:
        """A new session, in place of an older one."""
        self._end_session(node)
        session = self._changed()
        self._live[node] = (session, self._host.kernel.now + self.ttl_us)
        self._directories[node] = directory
        self._host.kernel.after(self.ttl_us, self._expire, node, session)
        return session

    def renew(self, node: str, session: int) -> bool:
        """Keeps the lease alive; False: it is gone."""
        live = self._live.get(node)
        if live is None or live[0] != session:
            return False
        self._live[node] = (session, self._host.kernel.now + self.ttl_us)
        self._host.kernel.after(self.ttl_us, self._expire, node, session)
        return True

    def _expire(self, node: str, session: int) -> None:
        live = self._live.get(node)
        if live is None or live[0] != session or live[1] > self._host.kernel.now:
            return
        if self.down:
            # A store that comes back gives every lease its time again.
            self._live[node] = (session, self._host.kernel.now + self.ttl_us)
            self._host.kernel.after(self.ttl_us, self._expire, node, session)
            return
        self.revoke(node)

    def revoke(self, node: str) -> None:
        """The lease is gone."""
        if node in self._live:
            self._end_session(node)
            self._changed()

    def _end_session(self, node: str) -> None:
        self._live.pop(node, None)
        self._unreachable.pop(node, None)
        if self._controller is not None and self._controller[0] == node:
            self._controller = None

    def report(self, node: str, session: int, unreachable: frozenset[str]) -> None:
        """A node says whom it cannot reach."""
        live = self._live.get(node)
        if live is not None and live[0] == session and self._unreachable.get(node, frozenset()) != unreachable:
            self._unreachable[node] = unreachable
            self._changed()

    def depose(self, term: int) -> None:
        """The controller of this term is so no more."""
        if self._controller is not None and self._controller[1] == term:
            self._controller = None
            self._changed()

    def campaign(self, node: str, session: int, depose: int = 0) -> bool:
        """Becomes the controller, if there is none or the one of the term `depose`."""
        if self._controller is not None and self._controller[1] != depose:
            return False
        live = self._live.get(node)
        if live is None or live[0] != session:
            return False
        self._controller = (node, self._changed())
        self._view = None
        return True

    def propose(
        self, record: ShardRecord, sessions: Mapping[str, int], term: int = 0, tombs: frozenset[str] = frozenset()
    ) -> Proposal:
        """One transaction; `term` of the controller, 0 for a leader."""
        current = self.records[record.shard]
        if current.revision != record.revision or (term and (self._controller or ("", 0))[1] != term):
            return Proposal.CONFLICT
        if not self.sessions_hold(sessions):
            return Proposal.CONFLICT
        new = replace(record, revision=self.revision + 1)
        self.records[record.shard] = new
        self._tombs |= tombs
        self._changed()
        self._host.oracle.recorded(current, new)
        return Proposal.ACCEPTED

    def directory(self, node: str) -> str:
        """Of the node's latest session."""
        return self._directories.get(node, "")

    def proposed_sets(self, current: ShardRecord) -> list[tuple[str, ...]]:
        """In-sync sets that may yet be recorded in place of those of `current`."""
        sent = self._sent.get(current.shard, ())
        return [record.in_sync for record in sent if record.revision == current.revision]

    def sent(self, record: ShardRecord) -> None:
        """A proposal is on its way."""
        self._sent[record.shard] = [*self._sent.get(record.shard, ())[-20:], record]

    def sessions_hold(self, sessions: Mapping[str, int]) -> bool:
        """The compares of a proposal besides the revision. 0 is the session of who does not live."""
        return all(self._live.get(node, (0, 0))[0] == session for node, session in sessions.items())

    def prolong(self) -> None:
        """After an outage: leases begin anew."""
        for node, (session, _) in list(self._live.items()):
            self.renew(node, session)

    # -- requests ---------------------------------------------------------------------------------------------------

    def call(self, process: Process, apply: Callable[[], Any], done: Callable[[Any, View | None], None]) -> None:
        """`done` gets what `apply` said and a view, or None and None when that is not known."""
        host = self._host
        open_: list[Any] = [done]
        delay = self._delay()
        if self.late and host.rng.random() < self.late:
            delay += int(host.rng.random() * 5_000_000)
        stall = self.stalled.get(process.node, 0) - host.kernel.now
        if stall > 0:
            delay += stall + int(host.rng.random() * 300_000)
        host.kernel.after(delay, self._arrive, process, apply, open_)
        refused = self.down and host.rng.random() < 0.5
        process.post(self._delay() if refused else TIMEOUT_US, self._answer, open_, None, None)

    def _delay(self) -> int:
        usual = 300 + int(self._host.rng.random() * 2_000)
        return usual if self._host.rng.random() < 0.95 else usual + int(self._host.rng.random() * 200_000)

    def reaches(self, node: str) -> bool:
        """Whether requests of a node come through."""
        return not self.down and node not in self.cut

    def _arrive(self, process: Process, apply: Callable[[], Any], open_: list[Any]) -> None:
        if not self.reaches(process.node):
            return
        result = apply()
        if self.lost and self._host.rng.random() < self.lost:
            return
        process.post(self._delay(), self._answer_if_reached, process, open_, result, self.view())

    def _answer_if_reached(self, process: Process, open_: list[Any], result: Any, view: View) -> None:
        if self.reaches(process.node):
            self._answer(open_, result, view)

    def _answer(self, open_: list[Any], result: Any, view: View | None) -> None:
        if open_:
            open_.pop()(result, view)

    # -- watches ----------------------------------------------------------------------------------------------------

    def _tell(self, process: Process) -> None:
        """Changes come late; those between are often left out."""
        if process in self._watching:
            return
        self._watching.add(process)
        rng = self._host.rng
        delay = 300 + int(rng.random() * 3_000) if rng.random() < 0.9 else int(rng.random() * 500_000)
        slow = self.slow_watch.get(process.node, 0)
        self._host.kernel.after(delay + int(rng.random() * slow), self._deliver, process)

    def _deliver(self, process: Process) -> None:
        """Sometimes the picture is an old one already when it comes."""
        if not process.alive:
            self._watching.discard(process)
        elif not self.reaches(process.node):
            self._host.kernel.after(200_000, self._deliver, process)
        else:
            self._watching.discard(process)
            rng = self._host.rng
            process.post(int(rng.random() * 20_000) if rng.random() < 0.3 else 0, process.on_view, self.view())
