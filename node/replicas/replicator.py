"""All replicas of this node: connects each core with its shard, the journal, the peers, and the cluster's view."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ringpost.cluster.coordination import Coordination, CoordinationError, Proposal
from ringpost.cluster.view import ShardRecord, View
from ringpost.internal.v1.peer_pb2 import Diverged, Fetch, FollowerAck, Refused, SnapshotPart
from ringpost.node import log
from ringpost.node.journal.reader import ColdReader
from ringpost.node.replicas.copies import Copies
from ringpost.node.replicas.damage import Damage
from ringpost.node.replicas.outbox import ToFollower, ToLeader
from ringpost.node.replicas.snapshots import Snapshots
from ringpost.node.replication.core import LogEnd, ReplicaCore
from ringpost.node.replication.ports import Frames, Limits
from ringpost.node.shard.leadership import pause_serving, start_serving, stop_leading
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store
from ringpost.node.tracing import OFF, Tracing

TICK_S = 0.1
MARK_S = 0.02  # how long the news of a commit may wait for data to travel with


@dataclass
class Counters:
    """Since the start."""

    leaderships: int = 0


class Boxes(Protocol):
    """Where messages for peers are put."""

    def to_leader(self, node: str) -> ToLeader:
        """The box for a node that is followed."""

    def to_follower(self, node: str) -> ToFollower:
        """The box for a node that follows."""


class Replicator:
    """One a node, in the loop's thread. `clock` gives microseconds that never fall."""

    def __init__(
        self,
        store: Store,
        coordination: Coordination,
        reader: ColdReader,
        clock: Callable[[], int],
        *,
        node: str,
        directory: str,
        limits: Limits | None = None,
        serving_changed: Callable[[bool], None] = lambda _: None,
        made_whole: Callable[[], None] = lambda: None,
        tracing: Tracing | None = None,
    ) -> None:
        """`serving_changed(stepped down)`: this node serves, or no longer serves, a shard.

        `made_whole`: of the copies here none is lost any more.
        """
        self.store = store
        self.coordination = coordination
        self.reader = reader
        self.clock = clock
        self.node = node
        self.boxes: Boxes | None = None
        self.tracing = tracing or OFF
        self.cores: dict[int, ReplicaCore] = {}
        self.counters = Counters()
        self._directory = directory
        self._limits = limits or Limits()
        self._serving_changed = serving_changed
        self._view: View | None = None
        self._sessions: Mapping[str, int] = {}
        self._seen: dict[int, tuple[int, int]] = {}  # shard → revision of its record, and of the sessions
        self._sessions_version = 0
        self._touched: dict[int, None] = {}
        self._restless: set[int] = set()
        self._marks: set[int] = set()
        self._mark_soon = False
        self._leading: set[int] = set()
        self._tokens: dict[int, int] = {}
        self._refreshing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.snapshots = Snapshots(self, store, reader, clock, self.spawn)
        self.copies = Copies(
            store, coordination, node=node, spawn=self.spawn, found=self._see_again, made_whole=made_whole
        )
        self.damage = Damage(
            store,
            self.cores,
            self.copies,
            detach=self._detach,
            propose=lambda record: self.spawn(self._ask_hand_over(record)),
        )

    # -- life -------------------------------------------------------------------------------------------------------

    def start(self, view: View) -> None:
        """Takes part from now on."""
        self.copies.start(view)
        self._unwatch = self.coordination.watch(self.on_view)
        self.spawn(self._ticks())
        self.on_view(view)

    async def close(self) -> None:
        """Takes part no more."""
        self._closed = True
        self._unwatch()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine that handles its own errors; not once this is closed, which ends all of them."""
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.damage.give_up()
            self.snapshots.prune()
            now = self.clock()
            for number in tuple(self._restless):
                core = self.cores.get(number)
                if core is None or not core.restless:
                    self._restless.discard(number)
                    continue
                core.tick(now)

    @property
    def leads_any(self) -> bool:
        """Whether this node leads a shard."""
        return bool(self._leading)

    def may_deliver(self, number: int) -> bool:
        """Whether surely no other node gives a shard's messages to groups; see ReplicaCore.may_deliver."""
        core = self.cores.get(number)
        return core is not None and core.may_deliver(self.clock())

    # -- the view ---------------------------------------------------------------------------------------------------

    def on_view(self, view: View, tokens: Mapping[int, int] | None = None) -> None:
        """A newer view; with `tokens` (by shard) one that was read linearizably."""
        if self._closed or (self._view is not None and view.revision < self._view.revision):
            return
        self._view = view
        sessions = {node: ref.session for node, ref in view.nodes.items() if ref.session}
        if sessions != self._sessions:
            self._sessions = sessions
            self._sessions_version += 1
        now = self.clock()
        for record in view.shards:
            token = (tokens or {}).get(record.shard, 0)
            key = (record.revision, self._sessions_version)
            if token or self._seen.get(record.shard) != key:
                self._seen[record.shard] = key
                self._see(record, now, token)
        self.copies.bury(view)

    def _see_again(self, number: int) -> None:
        if self._view is not None:
            self._see(self._view.shards[number], self.clock(), 0)

    def _see(self, record: ShardRecord, now: int, token: int) -> None:
        shard = self.store.shards[record.shard]
        replica = record.replica_on(self.node)
        if replica is None or replica.directory != self._directory:
            self._leave(shard)
            self.copies.not_lost(shard)  # nobody counts on it
            return
        if self.damage.is_behind(shard, record):
            return
        local = shard.replicated
        if local is None or local.replica_id != replica.replica_id:
            if replica.replica_id in record.in_sync and record.epoch > 0:
                self.copies.miss(shard, replica.replica_id)
                return
            self._detach(shard)
            self.copies.make(shard, replica.replica_id)
        if not self.copies.sound(shard):
            return
        core = self.cores.get(record.shard)
        if core is None:
            core = self._make_core(shard)
        log_ = shard.replicated
        assert log_ is not None
        log_.holders = record.in_sync_nodes
        self._restless.add(record.shard)
        core.see(record, self._sessions, now, token=token)

    def _leave(self, shard: Shard) -> None:
        """The record names no copy here. What there is stays on the disk until there is a tombstone for it."""
        if (core := self.cores.get(shard.number)) is not None:
            log.info("replica.left", shard=shard.number, replica=core.replica_id)
            self._detach(shard)

    def _detach(self, shard: Shard) -> None:
        """The copy takes part no more."""
        self.cores.pop(shard.number, None)
        self.snapshots.forget(shard.number)
        if shard.number in self._leading:
            self._leading.discard(shard.number)
            stop_leading(self.store, shard, "")
            self._serving_changed(True)

    def _make_core(self, shard: Shard, fetch_id: int = 1) -> ReplicaCore:
        log_ = shard.replicated
        assert log_ is not None
        log_.touched = self._on_touched
        log_.appended_here = self._on_appended
        log_.read_for = self._read_for
        link = ShardLink(self, shard)
        core = ReplicaCore(
            shard.number,
            log_,
            link,
            self._limits,
            node=self.node,
            replica_id=log_.replica_id,
            fetch_id=fetch_id,
        )
        self.cores[shard.number] = core
        return core

    # -- the journal ------------------------------------------------------------------------------------------------

    def _on_touched(self, log_: ReplicatedLog) -> None:
        self._touched[log_.shard.number] = None

    def _on_appended(self, log_: ReplicatedLog) -> None:
        core = self.cores.get(log_.shard.number)
        if core is not None:
            core.appended(self.clock())
            self._restless.add(core.shard)

    def durable(self) -> None:
        """The journal has fsynced: to be called once, after all frames of it have been told of."""
        touched, self._touched = self._touched, {}
        now = self.clock()
        for number in touched:
            core = self.cores.get(number)
            if core is not None:
                core.durable(now)
            if self.tracing.on and (log_ := self.store.shards[number].replicated) is not None:
                self.tracing.followed(number, log_.durable)

    def committed(self, number: int) -> None:
        """A leader has committed more; its followers hear of it soon, with data if there are some."""
        self._marks.add(number)
        if not self._mark_soon:
            self._mark_soon = True
            asyncio.get_running_loop().call_later(MARK_S, self._send_marks)

    def _send_marks(self) -> None:
        self._mark_soon = False
        marks, self._marks = self._marks, set()
        now = self.clock()
        for number in marks:
            core = self.cores.get(number)
            if core is not None:
                core.appended(now)

    def _read_for(self, log_: ReplicatedLog, node: str, after: int, rows: Sequence[tuple[int, int]]) -> None:
        self.spawn(self._read(log_, node, after, rows))

    async def _read(self, log_: ReplicatedLog, node: str, after: int, rows: Sequence[tuple[int, int]]) -> None:
        try:
            log_.have_read(node, after, Frames(await self.reader.read_raw(rows), after + len(rows)))
        except Exception as error:  # gone meanwhile, or unreadable: the follower gets a snapshot in its place
            log.warning("replica.frames_unreadable", shard=log_.shard.number, error=str(error))
            log_.positions.drop_below(rows[-1][0] + 1)
        core = self.cores.get(log_.shard.number)
        if core is not None and log_.shard.replicated is log_:
            core.readable(node)

    # -- what cores want --------------------------------------------------------------------------------------------

    def refresh(self, shard: int, token: int) -> None:
        """Reads the view for a shard; many at the same time are one read."""
        self._tokens[shard] = token
        if not self._refreshing:
            self._refreshing = True
            self.spawn(self._refresh())

    async def _refresh(self) -> None:
        await asyncio.sleep(0)  # others of this turn join
        while self._tokens and not self._closed:
            tokens, self._tokens = self._tokens, {}
            try:
                view = await self.coordination.refresh()
            except CoordinationError as error:
                log.warning("view.not_refreshed", error=str(error))
                self._tokens = tokens | self._tokens
                await asyncio.sleep(0.2)
                continue
            self.on_view(view, tokens)
        self._refreshing = False

    def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        """Asks for a change of a record."""
        self.spawn(self._propose(record, sessions))

    async def _propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        try:
            outcome = await self.coordination.propose(record, sessions)
        except CoordinationError:
            outcome = Proposal.UNKNOWN
        core = self.cores.get(record.shard)
        if core is not None:
            core.proposed(record, outcome)

    async def _ask_hand_over(self, record: ShardRecord) -> None:
        try:
            await self.coordination.propose(record, {})
        except CoordinationError as error:
            log.warning("replica.hand_over_not_asked", shard=record.shard, error=str(error))

    def serving(self, shard: Shard) -> None:
        """A core's role may be another one."""
        core = self.cores.get(shard.number)
        log_ = shard.replicated
        if core is None or log_ is None:
            return
        if core.leading is not None:
            self._leading.add(shard.number)
            if core.serving and not log_.serving:
                self.counters.leaderships += 1
                log.info("shard.serving", shard=shard.number, epoch=core.leading.epoch)
                start_serving(self.store, shard)
            elif not core.serving and log_.serving:
                pause_serving(shard)
        elif shard.number in self._leading:
            self._leading.discard(shard.number)
            leader = core.record.leader.node if core.record is not None and core.record.leader is not None else ""
            log.info("shard.left", shard=shard.number, leader=leader)
            stop_leading(self.store, shard, leader)
            self._serving_changed(True)
        self._restless.add(shard.number)
        self._serving_changed(False)

    def box_for(self, node: str) -> ToFollower | None:
        """Where messages for a follower are put."""
        return self.boxes.to_follower(node) if self.boxes is not None else None

    def installed(self, shard: Shard, next_fetch_id: int) -> None:
        """The shard is what a snapshot has made it."""
        core = self._make_core(shard, next_fetch_id)
        self._see_again(shard.number)
        self._restless.add(core.shard)

    def damaged(self, shard: Shard, what: str) -> bool:
        """A stored frame of the shard is damaged: whether another copy takes over."""
        return self.damage.found(shard, what)

    # -- what peers say ---------------------------------------------------------------------------------------------

    def look_after(self, number: int) -> None:
        """A replica heard something, and may have to do something about it by and by: ticks, as long as it must."""
        self._restless.add(number)

    def on_snapshot(self, node: str, part: SnapshotPart) -> None:
        """A part of a snapshot from the leader."""
        self.snapshots.take(node, part)

    def fence(self, shard: int, replica_id: str, new_epoch: int) -> LogEnd | None:
        """For an election."""
        core = self.cores.get(shard)
        if core is None or core.replica_id != replica_id:
            return None
        self._restless.add(shard)
        return core.fence(new_epoch, self.clock())

    def leader_link_lost(self, node: str) -> None:
        """The stream to a node that leads broke."""
        now = self.clock()
        for core in self.cores.values():
            core.leader_link_lost(node, now)
            self._restless.add(core.shard)

    def follower_link_lost(self, node: str) -> None:
        """The stream of a follower broke, or has just been replaced."""
        for core in self.cores.values():
            core.follower_link_lost(node)
            self._restless.add(core.shard)

    def node_lost(self, node: str, session: int) -> None:
        """The process in which a node had that session is surely not running."""
        now = self.clock()
        for core in self.cores.values():
            core.node_lost(node, session, now)
            if core.leading is not None:
                self._restless.add(core.shard)


class ShardLink:
    """The `Link` of one shard's core."""

    def __init__(self, owner: Replicator, shard: Shard) -> None:
        self._owner = owner
        self._shard = shard

    def fetch(self, node: str, message: Fetch) -> None:
        if self._owner.boxes is not None:
            self._owner.boxes.to_leader(node).fetch(message)

    def ack(self, node: str, message: FollowerAck) -> None:
        if self._owner.boxes is not None:
            self._owner.boxes.to_leader(node).ack(message)

    def diverged(self, node: str, message: Diverged) -> None:
        if self._owner.boxes is not None:
            self._owner.boxes.to_follower(node).diverged(message)

    def refuse(self, node: str, message: Refused) -> None:
        if self._owner.boxes is not None:
            self._owner.boxes.to_follower(node).refuse(message)

    def ready(self, node: str) -> None:
        if self._owner.boxes is not None:
            self._owner.boxes.to_follower(node).ready(self._shard.number)

    def snapshot(self, node: str, fetch: Fetch) -> None:
        self._owner.snapshots.send(self._shard, node, fetch)

    def committed(self) -> None:
        self._owner.committed(self._shard.number)

    def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        self._owner.propose(record, sessions)

    def refresh(self, token: int) -> None:
        self._owner.refresh(self._shard.number, token)

    def changed(self) -> None:
        self._owner.serving(self._shard)

    def alarm(self, what: str) -> None:
        self._owner.damage.alarm(self._shard.number, what)
