"""What must be true, checked where it could become false (the invariants V1 to V12 of ARCHITECTURE.md).

Of V7 only this is here: no leader gives a group messages after a later one has. The rest is in `group_oracle` and
`group_truth`, for worlds that have groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringpost.cluster.view import ShardRecord
from tests.simulation.disk import UNNUMBERED, Frame, SimLog
from tests.simulation.group_oracle import GroupOracle
from tests.simulation.kernel import Violation

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World


class ShardTruth:
    """What is committed in one shard. `chains[p]` stands for everything up to p."""

    def __init__(self) -> None:
        self.chains: list[int] = [0]
        self.frames: list[Frame] = []
        self.where: dict[tuple[int, int], int] = {}
        self.last: dict[int, int] = {}
        self.epoch = 0
        self.committers: dict[int, object] = {}
        self.delivering = 0  # the epoch of the last delivery to a group
        self.deliveries = 0
        self.acked = 0  # the last position that a client has been told of
        self.never: set[tuple[int, int]] = set()  # what clients were told is surely not stored

    @property
    def end(self) -> int:
        return len(self.frames)


class Oracle:
    """Knows everything, and complains by raising Violation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shards = [ShardTruth() for _ in range(world.plan.shards)]
        self.commits = 0
        self.groups = GroupOracle(world.plan.shards) if world.plan.groups is not None else None

    # -- commits ----------------------------------------------------------------------------------------------------

    def committed(self, log: SimLog, position: int, epoch: int, process: Process) -> None:
        """A leader has committed."""
        truth = self.shards[log.shard]
        if truth.committers.setdefault(epoch, process) is not process:
            raise Violation(f"V5: two processes commit in epoch {epoch}")
        self._same(log, min(position, truth.end), "V2")
        if position <= truth.end:
            return
        if epoch < truth.epoch:
            raise Violation(f"V5: epoch {epoch} commits {position} after epoch {truth.epoch}")
        truth.epoch = epoch
        self.commits += position - truth.end
        for frame in log.frames[truth.end + 1 - log.start : position + 1 - log.start]:
            self._append(truth, frame)
            if self.groups is not None:
                self.groups.truths[log.shard].commit(self.world.contents.of(log.shard, frame.chain))
        self.holders(log.shard)

    def _append(self, truth: ShardTruth, frame: Frame) -> None:
        truth.frames.append(frame)
        truth.chains.append(frame.chain)
        if frame.producer in UNNUMBERED:
            return
        key = frame.producer, frame.sequence
        if key in truth.where:
            raise Violation(f"V4: {key} is stored at {truth.where[key]} and at {frame.position}")
        if frame.sequence != truth.last.get(frame.producer, 0) + 1:
            raise Violation(f"V3: {frame} follows {truth.last.get(frame.producer, 0)}")
        if key in truth.never:
            raise Violation(f"V6: {frame} was surely not stored")
        truth.where[key] = frame.position
        truth.last[frame.producer] = frame.sequence

    def followed(self, log: SimLog, position: int) -> None:
        """A follower has heard what is committed, or has a snapshot."""
        if position > self.shards[log.shard].end:
            raise Violation(f"V2: {log.replica_id} believes that {position} is committed")
        self._same(log, position, "V2")

    def _same(self, log: SimLog, position: int, rule: str) -> None:
        if log.chain_at(position) not in (self.shards[log.shard].chains[position], None):
            raise Violation(f"{rule}: {log.replica_id} differs from what is committed, up to {position}")

    def delivered(self, shard: int, epoch: int) -> None:
        """V7: a leader gives a group messages; from then on no earlier one may, for it cannot know what is settled."""
        truth = self.shards[shard]
        if epoch < truth.delivering:
            raise Violation(f"V7: epoch {epoch} delivers after epoch {truth.delivering}")
        truth.delivering = epoch
        truth.deliveries += 1

    # -- records ----------------------------------------------------------------------------------------------------

    def recorded(self, old: ShardRecord, new: ShardRecord) -> None:
        """A shard's record was replaced."""
        world = self.world
        world.note("etcd", f"shard {new.shard}: {brief(new)}")
        if new.epoch not in (old.epoch, old.epoch + 1) or (new.leader != old.leader and new.epoch == old.epoch):
            raise Violation(f"V5: {new} follows {old}")
        for replica_id in set(new.in_sync) - set(old.in_sync):
            replica = new.replica(replica_id)
            assert replica is not None
            lives = world.etcd.view().sessions.get(replica.node, 0) > 0
            if replica_id in world.lost and not (lives and world.etcd.directory(replica.node) == replica.directory):
                raise Violation(f"V9: {replica_id} was lost, and is put in sync")
        self.holders(new.shard)

    def holders(self, shard: int) -> None:
        """V9: whoever is recorded as in sync has everything that is committed, on disk."""
        truth = self.shards[shard]
        end, chain = truth.end, truth.chains[-1]
        for replica_id in self.world.etcd.records[shard].in_sync:
            log = self.world.logs.get(replica_id)
            if log is None:
                if end and replica_id not in self.world.lost:
                    raise Violation(f"V9: {replica_id} is in sync and was never made")
            elif log.durable < end or log.chain_at(end) not in (chain, None):
                raise Violation(f"V9: {replica_id} is in sync, and has not all of {end} that are committed")

    def deleted(self, replica_id: str) -> None:
        """V11: a replica was deleted, with its tombstone."""
        if any(record.replica(replica_id) for record in self.world.etcd.records):
            raise Violation(f"V11: {replica_id} is deleted, and wanted")
        self.world.logs.pop(replica_id, None)
        self.world.lost.add(replica_id)

    # -- clients ----------------------------------------------------------------------------------------------------

    def answered(self, shard: int, producer: int, sequence: int, position: int) -> None:
        """V1: a publish is said to be stored at a position."""
        truth = self.shards[shard]
        if truth.where.get((producer, sequence)) != position:
            raise Violation(f"V1: {producer}/{sequence} is said to be at {position}, and is not")

    def told(self, shard: int, floor: int, position: int) -> None:
        """V3: a client hears of a position; `floor` had been told to somebody before the publish began."""
        truth = self.shards[shard]
        if position <= floor:
            raise Violation(f"V3: {position} was published after {floor} had been acknowledged")
        truth.acked = max(truth.acked, position)

    def surely_not(self, shard: int, producer: int, sequence: int) -> None:
        """V6: a client was told so, and has given up."""
        truth = self.shards[shard]
        if (producer, sequence) in truth.where:
            raise Violation(f"V6: {producer}/{sequence} is stored, and was said not to be")
        truth.never.add((producer, sequence))

    # -- the end ----------------------------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """V12: what is not yet as it should be when nothing happens any more; "" when all is."""
        return next((what for shard in range(len(self.shards)) if (what := self._unsettled(shard))), "")

    def _unsettled(self, shard: int) -> str:
        world = self.world
        record, truth = world.etcd.records[shard], self.shards[shard]
        leader = record.leader
        process = world.process(leader.node) if leader is not None else None
        if leader is None or process is None or shard not in process.hosted:
            return f"shard {shard} has no leader"
        leading = process.hosted[shard].core.leading
        if leading is None or leading.epoch != record.epoch or not process.hosted[shard].core.serving:
            return f"shard {shard} is not served"
        if leading.pending is not None or leading.frozen or record.transfer_to or process.hosted[shard].waiting:
            return f"shard {shard} has something pending"
        if not process.hosted[shard].core.may_deliver(world.kernel.now):
            return f"shard {shard} delivers nothing to groups"
        if {r.replica_id for r in record.replicas} != set(record.in_sync) or len(record.replicas) < world.plan.copies:
            return f"shard {shard} has not all in sync: {brief(record)}"
        for replica in record.replicas:
            log = world.logs[replica.replica_id]
            if not log.end == log.committed == truth.end or log.chain_at(truth.end) != truth.chains[-1]:
                return (
                    f"shard {shard}: {replica.replica_id} ends at {log.end}, {log.committed} committed, of {truth.end}"
                )
        return "" if self.groups is None else self.groups.unsettled(shard)


def brief(record: ShardRecord) -> str:
    """A record in a line."""
    replicas = " ".join(
        f"{r.replica_id}@{r.node}{'' if r.role.value == 'member' else '/' + r.role.value}" for r in record.replicas
    )
    leader = f"{record.leader.replica_id}@{record.leader.node}#{record.leader.session}" if record.leader else "nobody"
    to = f" to {record.transfer_to}" if record.transfer_to else ""
    return f"r{record.revision} epoch {record.epoch} {leader} in sync {','.join(record.in_sync)} of {replicas}{to}"
