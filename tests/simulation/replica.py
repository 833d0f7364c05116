"""A replica in a process: the core's `Link`, and what clients get from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import ShardRecord
from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused, SnapshotPart
from ringpost.node.replication.core import ReplicaCore
from tests.simulation.disk import SimLog
from tests.simulation.etcd import View
from tests.simulation.kernel import Violation
from tests.simulation.machine import Machine
from tests.simulation.oracle import brief

if TYPE_CHECKING:
    from tests.simulation.process import Process

Answer = Callable[[str, int], None]
"""With what became of a publish ("stored", or "refused" for certain) and its position."""


class Hosted:
    """One replica. `waiting` are publishes that were appended and not answered."""

    def __init__(self, process: Process, log: SimLog) -> None:
        self.process = process
        self.shard = log.shard
        self.log = log
        self.waiting: list[tuple[int, int, int, Answer]] = []
        self._partial: bytes | None = None
        world = process.world
        log.on_commit, log.on_miss = self._on_commit, self._on_miss
        plan = world.plan.groups
        self.machine = Machine(self, plan) if plan is not None else None
        self.core = ReplicaCore(log.shard, log, self, world.plan.limits, node=process.node, replica_id=log.replica_id)

    # -- Link -------------------------------------------------------------------------------------------------------

    def fetch(self, node: str, message: Fetch) -> None:
        self.process.send_up(node, "fetch", message)

    def ack(self, node: str, message: FollowerAck) -> None:
        self.process.trip("ack")
        self.process.send_up(node, "ack", message)

    def diverged(self, node: str, message: Diverged) -> None:
        self.process.send_down(node, "diverged", message)

    def refuse(self, node: str, message: Refused) -> None:
        self.process.send_down(node, "refused", message)

    def ready(self, node: str) -> None:
        self.process.pump_soon(node)

    def committed(self) -> None:
        self.core.appended(self.process.now)

    def snapshot(self, node: str, fetch: Fetch) -> None:
        head = {"shard": self.shard, "epoch": fetch.epoch, "fetch_id": fetch.fetch_id}
        self.process.note("snapshot for {} at {}", node, self.log.committed)
        self.process.send_down(node, "part", SnapshotPart(**head, number=0, begin=self.log.snapshot()))
        self.process.send_down(node, "part", SnapshotPart(**head, number=1, end_frame_count=0))
        self.process.post(1_000, self.core.snapshot_sent, node, fetch.fetch_id)

    def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        etcd = self.process.world.etcd
        self.process.trip("propose")
        self.process.note("proposes {} if {}", brief(record), sessions)
        etcd.sent(record)
        etcd.call(self.process, partial(etcd.propose, record, sessions), partial(self._proposed, record))

    def _proposed(self, record: ShardRecord, outcome: Proposal | None, view: View | None) -> None:
        self.process.trip("proposed")
        outcome = outcome or Proposal.UNKNOWN
        self.process.note("shard {}: proposal on {} is {}", self.shard, record.revision, outcome.value)
        if view is not None and self.process.rng.random() < 0.5:
            self.process.on_view(view)
        self.core.proposed(record, outcome)

    def refresh(self, token: int) -> None:
        self.process.world.etcd.call(self.process, lambda: None, partial(self._refreshed, token))

    def _refreshed(self, token: int, _: None, view: View | None) -> None:
        if view is None:
            return
        self.process.on_view(view)
        newest = self.process.view
        assert newest is not None
        self.core.see(newest.records[self.shard], newest.sessions, self.process.now, token=token)

    def changed(self) -> None:
        leading = self.core.leading
        self.process.note("shard {}: {} serving={}", self.shard, self.core.role.value, self.core.serving)
        if leading is None:
            self.waiting.clear()
        if self.machine is not None:
            self.machine.changed()

    def alarm(self, what: str) -> None:
        raise Violation(f"V10: alarm of {self.log.replica_id}: {what}")

    # -- the log ----------------------------------------------------------------------------------------------------

    def _on_commit(self, log: SimLog, old: int, position: int) -> None:
        oracle = self.process.world.oracle
        leading = self.core.leading
        if leading is None:
            oracle.followed(log, position)
        else:
            oracle.committed(log, position, leading.epoch, self.process)
        if self.machine is not None and position > old:
            self.machine.commit(position)
        if leading is None:
            return
        self.process.note("shard {}: commits {} in epoch {}", self.shard, position, leading.epoch)
        done = [waiter for waiter in self.waiting if waiter[0] <= position]
        if done:
            self.waiting = [waiter for waiter in self.waiting if waiter[0] > position]
            for at, producer, sequence, answer in done:
                oracle.answered(self.shard, producer, sequence, at)
                answer("stored", at)

    def _on_miss(self, log: SimLog, node: str) -> None:
        self.process.post(int(self.process.rng.random() * 3_000), self.core.readable, node)

    def on_part(self, node: str, message: SnapshotPart) -> None:
        """Of a snapshot. It is installed at once, and durable some time later."""
        if not self.core.on_snapshot(node, message.epoch, message.fetch_id):
            return  # late, or twice: it says nothing about the one that is under way
        if message.number == 0:
            self._partial = message.begin
        elif self._partial is not None:
            partial_, self._partial = self._partial, None
            self.log.install(partial_)
            self.process.note("shard {}: has a snapshot to {}", self.shard, self.log.end)
            self.core.snapshot_installed(self.process.now)

    # -- clients ----------------------------------------------------------------------------------------------------

    def publish(self, producer: int, sequence: int, answer: Answer) -> None:
        """Appends, if this leads and serves; a known sequence gets the answer of the first time."""
        self.deliver()
        if not self.core.serving:
            answer("refused", 0)
            return
        log = self.log
        known = log.last.get(producer, 0)
        if sequence > known + 1:
            answer("refused", 0)
            return
        if sequence <= known:
            position = log.where[producer, sequence]
            if position <= log.committed:
                self.process.world.oracle.answered(self.shard, producer, sequence, position)
                answer("stored", position)
                return
        else:
            assert self.core.leading is not None
            if self.machine is None:
                position = log.append(self.core.leading.epoch, producer, sequence)
            elif self.machine.serving:
                position = self.machine.publish(producer, sequence)
            else:
                answer("refused", 0)
                return
            self.process.trip("append")
            self.core.appended(self.process.now)
        self.waiting.append((position, producer, sequence, answer))

    def deliver(self) -> None:
        """Gives a group something, if it may."""
        if self.core.leading is not None and self.core.may_deliver(self.process.now):
            self.delivers()

    def delivers(self) -> None:
        """A group is given something."""
        assert self.core.leading is not None
        self.process.world.oracle.delivered(self.shard, self.core.leading.epoch)

    def visible_end(self, epoch: int) -> tuple[int, int] | None:
        """Epoch and the last position that a reader may know of, who has heard of an epoch; None: ask elsewhere."""
        record, leading = self.core.record, self.core.leading
        if record is None or leading is None or record.epoch < epoch or not self.core.serving:
            return None
        return (leading.epoch, self.log.committed) if self.process.lease_us > self.process.now else None


def parsed(kind: str, data: bytes) -> Any:
    """The message that was sent."""
    return _TYPES[kind].FromString(data)


_TYPES: dict[str, Any] = {
    "fetch": Fetch,
    "ack": FollowerAck,
    "data": Data,
    "diverged": Diverged,
    "refused": Refused,
    "part": SnapshotPart,
}
