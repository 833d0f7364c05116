"""One replication core on a log in memory, and everything that it says."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ringpost.cluster.view import Leader, Replica, ShardRecord
from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused
from ringpost.node.replication.core import ReplicaCore
from ringpost.node.replication.ports import Limits
from tests.simulation.disk import FRAME, Disk, SimLog, chained

SECOND = 1_000_000
SESSIONS = {"a": 11, "b": 12, "c": 13}


class Rig:
    """Replica "ra" of node "a", in a shard with copies "ra", "rb", "rc" on nodes of these names; min_isr is 2."""

    def __init__(self, *epochs: int, **changes: Any) -> None:
        """`epochs` of the frames that the log has, all fsynced. `changes` of the first record, see `record`."""
        self.said: list[tuple[str, Any]] = []
        self.now = 0
        self.sessions = dict(SESSIONS)
        self.disk = Disk("d", random.Random(0))
        self.disk.misses = 0.0
        self.log = self.disk.create(0, "ra")
        for epoch in epochs:
            self.log.append(epoch, 0, 0)
        self.disk.fsync_begins()
        self.disk.fsync_ends()
        self.core = ReplicaCore(0, self.log, self, Limits(), node="a", replica_id="ra")
        self.shown = record(**changes)

    # -- Link

    def fetch(self, node: str, message: Fetch) -> None:
        self.said.append(("fetch", message))

    def ack(self, node: str, message: FollowerAck) -> None:
        self.said += [("ack", message.end), ("word", message.asked_us)]

    def diverged(self, node: str, message: Diverged) -> None:
        self.said.append(("diverged", (message.fetch_id, message.log_epoch, message.log_end)))

    def refuse(self, node: str, message: Refused) -> None:
        self.said.append(("refuse", (node, message.fetch_id)))

    def ready(self, node: str) -> None:
        pass

    def committed(self) -> None:
        self.core.appended(self.now)

    def snapshot(self, node: str, fetch: Fetch) -> None:
        self.said.append(("snapshot", node))

    def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        self.said.append(("propose", (record, dict(sessions))))

    def refresh(self, token: int) -> None:
        self.said.append(("refresh", token))

    def changed(self) -> None:
        self.said.append(("changed", (self.core.role.value, self.core.serving)))

    def alarm(self, what: str) -> None:
        self.said.append(("alarm", what))

    # -- what happens

    def heard(self, kind: str) -> list[Any]:
        """What was said of that kind since the last time it was asked."""
        found = [what for which, what in self.said if which == kind]
        self.said = [entry for entry in self.said if entry[0] != kind]
        return found

    def see(self, token: int = 0, **changes: Any) -> ShardRecord:
        """The core sees the record, changed; with a new revision when it is."""
        if changes:
            self.shown = replace(self.shown, **{"revision": self.shown.revision + 1, **changes})
        self.core.see(self.shown, dict(self.sessions), self.now, token=token)
        return self.shown

    def lead(self, **changes: Any) -> "Rig":
        """The core is elected, and its EPOCH_START is fsynced."""
        self.see(epoch=self.shown.epoch + 1, leader=Leader("a", "ra", self.sessions["a"]), **changes)
        self.see(token=self.heard("refresh")[-1])
        self.fsync()
        return self

    def fsync(self) -> None:
        self.disk.fsync_begins()
        self.finish_fsync()

    def finish_fsync(self) -> None:
        for _ in self.disk.fsync_ends():
            self.core.durable(self.now)

    def append(self, count: int = 1) -> int:
        """The leader's shell appends and fsyncs; the end."""
        for _ in range(count):
            self.log.append(self.core.leading.epoch, 0, 0)
        self.core.appended(self.now)
        self.fsync()
        return self.log.end

    def pass_time(self, seconds: float) -> None:
        """In steps of a tick."""
        for _ in range(int(seconds * 10)):
            self.now += SECOND // 10
            self.core.tick(self.now)

    def fetched(self, node: str, fetch_id: int, end: int, last_epoch: int, **changes: Any) -> None:
        """A follower's fetch comes."""
        fields = {"shard": 0, "epoch": self.shown.epoch, "replica_id": f"r{node}", "window_bytes": 1 << 20}
        message = Fetch(**{**fields, "fetch_id": fetch_id, "end": end, "last_epoch": last_epoch, **changes})
        self.core.on_fetch(node, self.sessions[node], message, self.now)

    def acked(self, node: str, fetch_id: int, end: int, epoch: int | None = None, asked_us: int = 0) -> None:
        """A follower has fsynced."""
        epoch = self.shown.epoch if epoch is None else epoch
        message = FollowerAck(shard=0, epoch=epoch, fetch_id=fetch_id, end=end, asked_us=asked_us)
        self.core.on_ack(node, self.sessions[node], message, self.now)

    def follows(self, node: str, fetch_id: int = 1) -> None:
        """A follower has everything, and says so."""
        self.fetched(node, fetch_id, 0, 0)
        self.catches_up(node, fetch_id)

    def catches_up(self, node: str, fetch_id: int = 1) -> None:
        while self.core.next_data(node) is not None:
            pass
        self.acked(node, fetch_id, self.log.end)

    def data(self, fetch_id: int, after: int, epoch: int, count: int, **changes: Any) -> None:
        """Frames of an epoch come from the leader "b"."""
        chain, frames = self.log.chain_at(after) or 0, b""
        for position in range(after + 1, after + count + 1):
            frame = chained(chain, epoch, position, 0, 0)
            chain, frames = frame.chain, frames + FRAME.pack(*frame)
        fields = {"shard": 0, "epoch": self.shown.epoch, "fetch_id": fetch_id, "after": after, "frames": frames}
        self.core.on_data("b", Data(**{**fields, **changes}), self.now)


def record(**changes: Any) -> ShardRecord:
    """Epoch 1, led by "b" unless told otherwise."""
    replicas = tuple(Replica(node, f"r{node}") for node in "abc")
    usual = ShardRecord(0, 1, Leader("b", "rb", 12), ("ra", "rb", "rc"), replicas, 2, 1)
    return replace(usual, **changes)


__all__ = ["SECOND", "Rig", "SimLog", "record"]
