"""One life of a node: the shell around the replication cores, as a server would do it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ringpost.cluster.view import ShardRecord
from ringpost.node.replication.core import LogEnd
from tests.simulation.control import Controller
from tests.simulation.disk import Disk
from tests.simulation.etcd import View
from tests.simulation.links import TICK_US, LinkWatch
from tests.simulation.net import Stream
from tests.simulation.replica import Hosted, parsed

if TYPE_CHECKING:
    from tests.simulation.world import World

RENEW_US = 2_000_000


class Died(Exception):  # noqa: N818
    """The process was killed in the middle of what it did."""


class Process:
    """A process. Everything it does is done by `run`: nothing after its death, later while it is frozen."""

    def __init__(self, world: World, node: str, disk: Disk) -> None:
        self.world = world
        self.rng = world.rng
        self.node = node
        self.disk = disk
        self.alive = True
        self.frozen = False
        self.fuse: tuple[str, int] | None = None
        self.session = 0
        self.lease_us = 0
        self.view: View | None = None
        self._unseen: View | None = None
        self.hosted: dict[int, Hosted] = {}
        self.refusing: set[str] = set()  # nodes whose process surely does not run
        self.controller: Controller | None = None
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._out: dict[str, Stream] = {}
        self._in: dict[str, Stream] = {}
        self._connecting: set[str] = set()
        self._queued: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        self._pumping: set[str] = set()
        self._syncing_since: int | None = None
        self._starting = False
        self._links = LinkWatch(self)
        disk.on_dirty = self._dirty
        self.post(0, self._register)
        self.post(int(self.rng.random() * TICK_US), self._tick)
        self.post(int(self.rng.random() * RENEW_US), self._renew)

    @property
    def now(self) -> int:
        return self.world.kernel.now

    def note(self, text: str, *args: Any) -> None:
        """For the trace."""
        if self.world.trace is not None:
            self.world.note(self.node, text.format(*args))

    def post(self, delay_us: int, call: Callable[..., None], *args: Any) -> None:
        """Does something later."""
        self.world.kernel.after(delay_us, self.run, call, args)

    def run(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Does something now, if it lives."""
        if not self.alive:
            return
        if self.frozen:
            self._backlog.append((call, args))
            return
        try:
            call(*args)
        except Died:
            self.world.kill(self.node, "some")

    def thaw(self) -> None:
        """Everything that happened meanwhile comes at once."""
        self.frozen = False
        backlog, self._backlog = self._backlog, []
        for call, args in backlog:
            self.run(call, args)

    def trip(self, point: str) -> None:
        """A point at which the process may be made to die."""
        if self.fuse is not None and self.fuse[0] == point:
            count = self.fuse[1]
            self.fuse = (point, count - 1) if count else None
            if not count:
                self.note("dies at {}", point)
                raise Died

    # -- membership -------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        if self.session or self._starting:
            return
        self._starting = True
        etcd, sent = self.world.etcd, self.now
        etcd.call(self, partial(etcd.register, self.node, self.disk.directory), partial(self._registered, sent))

    def _registered(self, sent_us: int, session: int | None, view: View | None) -> None:
        self._starting = False
        if session is None or view is None:
            self.post(300_000, self._register)
            return
        self.session = session
        self.lease_us = sent_us + self.world.etcd.ttl_us * 5 // 6
        self.note("has session {}", session)
        self.on_view(view)
        if self._unseen is not None:
            self.on_view(self._unseen)
        if self.view is not None:
            self._look_after_control(self.view)

    def _renew(self) -> None:
        self.post(RENEW_US, self._renew)
        stalled = self._syncing_since is not None and self._syncing_since + 3_000_000 < self.now
        if self.session and not stalled:
            etcd = self.world.etcd
            renew = partial(etcd.renew, self.node, self.session)
            etcd.call(self, renew, partial(self._renewed, self.now, self.session))

    def _renewed(self, sent_us: int, session: int, lives: bool | None, _: View | None) -> None:
        if session != self.session or lives is None:
            return
        if lives:
            self.lease_us = sent_us + self.world.etcd.ttl_us * 5 // 6
        else:
            self._session_lost()

    def _session_lost(self) -> None:
        self.note("has lost session {}", self.session)
        self.session = self.lease_us = 0
        self.controller = None
        for stream in list(self._out.values()):
            self.world.net.close(stream, self)
        self._register()

    def on_view(self, view: View) -> None:
        """Never goes back. Nothing is done before this process has a session of its own: an earlier one is not it."""
        if self.view is None and not self.session:
            self._unseen = view if self._unseen is None or view.revision > self._unseen.revision else self._unseen
            return
        if self.view is not None and view.revision <= self.view.revision:
            return
        self.view = view
        if self.session and view.sessions.get(self.node) != self.session and view.revision > self.session:
            self._session_lost()
        for record in view.records:
            self._host(record)
            hosted = self.hosted.get(record.shard)
            if hosted is not None:
                hosted.core.see(record, view.sessions, self.now)
        for replica_id in view.tombs.intersection(self.disk.logs):
            self.world.oracle.deleted(replica_id)
            log = self.disk.logs.pop(replica_id)
            if log.shard in self.hosted and self.hosted[log.shard].log is log:
                del self.hosted[log.shard]
        self._look_after_control(view)

    def _host(self, record: ShardRecord, *, create_first: bool = False) -> None:
        """Opens the replica that a record names here, and makes it when it may be empty."""
        for replica in record.replicas:
            if replica.node == self.node and replica.directory == self.disk.directory:
                break
        else:
            return
        hosted = self.hosted.get(record.shard)
        if hosted is not None and hosted.log.replica_id == replica.replica_id:
            return
        log = self.disk.logs.get(replica.replica_id)
        if log is None:
            if replica.replica_id in record.in_sync and not (create_first and record.epoch == 0):
                return
            log = self.disk.create(record.shard, replica.replica_id)
            self.note("makes replica {}", replica.replica_id)
        self.hosted[record.shard] = Hosted(self, log)

    def _look_after_control(self, view: View) -> None:
        mine = view.controller is not None and view.controller[0] == self.node
        if mine and view.controller is not None:
            if not view.may_control(self.node):
                self.controller = None
                depose = partial(self.world.etcd.depose, view.controller[1])
                self.world.etcd.call(self, depose, lambda _, view: None)
                return
            if self.controller is None or self.controller.term != view.controller[1]:
                self.controller = Controller(self, view.controller[1])
            return
        self.controller = None
        if view.controller is None and self.session:
            self.post(int(self.rng.random() * 100_000), self._campaign, 0)
        elif view.controller is not None and (
            view.controller[0] in self.refusing or not view.may_control(view.controller[0])
        ):
            self._campaign(view.controller[1])

    def _campaign(self, depose: int) -> None:
        view = self.view
        if view is None or not self.session or (view.controller is not None and view.controller[1] != depose):
            return
        if not view.may_control(self.node):
            return
        etcd = self.world.etcd
        etcd.call(self, partial(etcd.campaign, self.node, self.session, depose), lambda won, view: None)

    def fence(self, shard: int, replica_id: str, new_epoch: int, reply: Callable[[LogEnd], None]) -> None:
        """The controller asks."""
        if self.view is not None:
            self._host(self.view.records[shard], create_first=True)
        hosted = self.hosted.get(shard)
        if hosted is None or hosted.log.replica_id != replica_id:
            return
        if hosted.core.record is None and self.view is not None:
            hosted.core.see(self.view.records[shard], self.view.sessions, self.now)
        end = hosted.core.fence(new_epoch, self.now)
        self.note("shard {}: fenced at {}: {}", shard, new_epoch, end)
        if end is not None:
            reply(end)

    # -- time and the disk ------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.post(TICK_US, self._tick)
        now, world = self.now, self.world
        for node in [n for n in self.refusing if world.process(n) is not None and world.net.reaches(self.node, n)]:
            self.refusing.discard(node)
        for hosted in self.hosted.values():
            if hosted.core.restless:
                hosted.core.tick(now)
            hosted.deliver()
        if self.controller is not None:
            self.controller.tick()
        self._links.look()

    def _dirty(self) -> None:
        if self._syncing_since is None:
            self._syncing_since = self.now
            self.post(int(self.rng.random() * 300), self._fsync)

    def _fsync(self) -> None:
        self.trip("fsync")
        self.disk.fsync_begins()
        delay = 200 + int(self.rng.random() * 2_000)
        self.post(delay + int(self.rng.random() * self.world.slow_disk.get(self.node, 0)), self._fsynced)

    def _fsynced(self) -> None:
        self.trip("fsynced")
        self._syncing_since = None
        done = self.disk.fsync_ends()
        if self.disk.dirty:
            self._dirty()
        for log in done:
            hosted = self.hosted.get(log.shard)
            if hosted is not None and hosted.log is log:
                hosted.core.durable(self.now)

    # -- streams ----------------------------------------------------------------------------------------------------

    def send_up(self, node: str, kind: str, message: Any) -> None:
        """To a leader, by the stream that is opened for it when there is none."""
        stream = self._out.get(node)
        if stream is not None:
            self.world.net.send(stream, True, kind, message.SerializeToString())
            return
        if not self.session:
            return
        self._queued[node].append((kind, message.SerializeToString()))
        if node not in self._connecting:
            self._connecting.add(node)
            known = self.view.sessions.get(node, 0) if self.view is not None else 0
            self.world.net.connect(self, node, self.session, known)

    def connected(self, stream: Stream) -> None:
        """A stream is open."""
        node = stream.leader.node
        self._connecting.discard(node)
        self.refusing.discard(node)
        if stream.session != self.session or stream.broken:
            self.world.net.close(stream, self)
            self._lost_link(node)
            return
        self._out[node] = stream
        for kind, data in self._queued.pop(node, ()):
            self.world.net.send(stream, True, kind, data)

    def refused(self, node: str, session: int) -> None:
        """Nobody listens there."""
        self.unreachable(node)
        self.peer_refused(node, session)

    def peer_refused(self, node: str, session: int) -> None:
        """The process in which a node had that session surely does not run."""
        self.refusing.add(node)
        self.note("knows that {} does not run", node)
        for hosted in list(self.hosted.values()):
            hosted.core.node_lost(node, session, self.now)
        if self.view is not None:
            self._look_after_control(self.view)

    def unreachable(self, node: str) -> None:
        """A connection did not come about."""
        self._connecting.discard(node)
        self._queued.pop(node, None)
        self._lost_link(node)

    def accepted(self, stream: Stream) -> None:
        """A follower has opened a stream: it takes the place of an older one."""
        node = stream.follower.node
        self.refusing.discard(node)
        if node in self._in:
            self._lost_follower(node)
        self._in[node] = stream

    def stream_ended(self, stream: Stream) -> None:
        """This end has noticed that a stream is broken."""
        if stream.follower is self:
            stream.follower_open = False
            if self._out.get(stream.leader.node) is stream:
                del self._out[stream.leader.node]
                self._lost_link(stream.leader.node)
        else:
            stream.leader_open = False
            if self._in.get(stream.follower.node) is stream:
                del self._in[stream.follower.node]
                self._lost_follower(stream.follower.node)

    def _lost_link(self, node: str) -> None:
        for hosted in self.hosted.values():
            hosted.core.leader_link_lost(node, self.now)

    def _lost_follower(self, node: str) -> None:
        for hosted in self.hosted.values():
            hosted.core.follower_link_lost(node)

    def on_up(self, stream: Stream, kind: str, data: bytes) -> None:
        """From a follower; what comes by an older stream is sometimes still heard."""
        node = stream.follower.node
        if self._in.get(node) is not stream and self.rng.random() < 0.5:
            return
        message = parsed(kind, data)
        hosted = self.hosted.get(message.shard)
        if hosted is None:
            return
        if kind == "fetch":
            hosted.core.on_fetch(node, stream.session, message, self.now)
        else:
            hosted.core.on_ack(node, stream.session, message, self.now)

    def send_down(self, node: str, kind: str, message: Any) -> None:
        """To a follower, if there is a stream."""
        stream = self._in.get(node)
        if stream is not None:
            self.world.net.send(stream, False, kind, message.SerializeToString())

    def pump_soon(self, node: str) -> None:
        """There is data for a node."""
        if node not in self._pumping:
            self._pumping.add(node)
            self.post(int(self.rng.random() * 200), self._pump, node)

    def _pump(self, node: str) -> None:
        self._pumping.discard(node)
        for hosted in self.hosted.values():
            while (data := hosted.core.next_data(node)) is not None:
                self.send_down(node, "data", data)

    def on_down(self, stream: Stream, kind: str, data: bytes) -> None:
        """From a leader."""
        node = stream.leader.node
        if self._out.get(node) is not stream and self.rng.random() < 0.5:
            return
        message = parsed(kind, data)
        hosted = self.hosted.get(message.shard)
        if hosted is None:
            return
        if kind == "data":
            self.trip("data")
            hosted.core.on_data(node, message, self.now)
        elif kind == "diverged":
            self.note("shard {}: diverged after {} {}", hosted.shard, message.log_epoch, message.log_end)
            hosted.core.on_diverged(node, message, self.now)
        elif kind == "refused":
            hosted.core.on_refused(node, message, self.now)
        else:
            hosted.on_part(node, message)
