"""`Coordination` over a coordination store: the session of one node, and the view that it follows."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from ringpost.cluster.coordination import Coordination, CoordinationError, Proposal
from ringpost.cluster.joining import DirectoryFacts, Founding, Joining, NameTakenError
from ringpost.cluster.kv import (
    Change,
    Compare,
    Delete,
    Field,
    Kv,
    KvError,
    OutcomeUnknown,
    Picture,
    Put,
    StoreChanged,
    Watch,
)
from ringpost.cluster.levels import OWN, Levels
from ringpost.cluster.records import Keys, RecordError, Records, encode_node, encode_shard, node_ref
from ringpost.cluster.shared_read import SharedRead
from ringpost.cluster.tombs import removals
from ringpost.cluster.view import Desired, NodeRef, ShardRecord, Tombstone, View
from ringpost.internal.v1 import cluster_pb2

_LOG = logging.getLogger("ringpost.cluster")
_RETRY_S = 0.3
_CLOSE_TIMEOUT_S = 2.5
_REMEMBER_INTERVAL_S = 10.0
_TRIES = 10


def _forget(_: int) -> None:
    """Nothing is remembered."""


_Step = tuple[Sequence[Compare], Sequence[Put | Delete]]


class KvCoordination(Coordination):
    """Keeps one node a member of the cluster below `prefix`.

    The session is a key under a lease of `ttl_s`, renewed every third of it as long as `healthy` says so. A session
    that was lost is replaced by a new one. `remember` is told revisions to persist for the next start: at the start,
    at most every 10 s, and at the end; it must not raise. `clock` is the loop's when None. `close` closes `kv` too.
    """

    def __init__(
        self,
        kv: Kv,
        prefix: str,
        *,
        facts: DirectoryFacts,
        founding: Founding,
        version: str = "",
        ttl_s: int = 6,
        healthy: Callable[[], bool] = lambda: True,
        remember: Callable[[int], None] = _forget,
        clock: Callable[[], float] | None = None,
        start_timeout_s: float = 30.0,
        levels: Levels = OWN,
    ) -> None:
        self.kv = kv
        self.keys = Keys(prefix)
        self._facts = facts
        self._founding = founding
        self._version = version
        self._ttl_s = ttl_s
        self._healthy = healthy
        self._remember = remember
        self._clock = clock or asyncio.get_running_loop().time
        self._start_timeout_s = start_timeout_s
        self._levels = levels
        self._records = Records(self.keys)
        self._joining: Joining | None = None
        self._view: View | None = None
        self._session = 0
        self._lease = 0
        self._lease_until = 0.0
        self._problem = ""
        self._watchers: dict[object, Callable[[View], None]] = {}
        self._store_watch: Watch | None = None
        self._task: asyncio.Task[None] | None = None
        self._read = SharedRead(self._read_all)  # brings the records up to now; raises KvError
        self._changed = asyncio.Event()  # the records did
        self._publishing = False
        self._remembered = (0, 0.0)
        self._told: dict[str, str] = {}
        self._closed = False

    # -- what the node sees -----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.kv.name

    @property
    def store_id(self) -> str:
        """Which store it is, "" where that cannot be told."""
        return self.kv.store_id

    @property
    def view(self) -> View:
        if self._view is None:
            raise CoordinationError("not started")
        return self._view

    @property
    def session(self) -> int:
        if self._view is None:
            raise CoordinationError("not started")
        return self._session

    @property
    def lease(self) -> int:
        """The lease of the session, for keys that shall vanish with it; another one after a lost session."""
        return self._lease

    @property
    def boot(self) -> int:
        """The boot counter of this start; a directory that knows a smaller one was rolled back and takes this one."""
        return self._join.boot

    @property
    def problem(self) -> str:
        """Why this node is not a member now, for people; "" while it is."""
        return "" if self.lease_s > 0 else self._problem

    @property
    def lease_s(self) -> float:
        """Seconds that the session surely still lives."""
        live = self._records.lives.get(self._joining.member.node) if self._joining else None
        if self._closed or live is None or live.lease != self._lease or live.create_revision != self._session:
            return 0.0
        # Clocks may run apart by a little; so much the lease surely lives.
        return max(0.0, self._lease_until - self._clock() - self._ttl_s / 6)

    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]:
        key = object()
        self._watchers[key] = callback

        def end() -> None:
            self._watchers.pop(key, None)

        return end

    # -- start and end ----------------------------------------------------------------------------------------------

    async def start(self, member: NodeRef) -> View:
        if self._joining is not None:
            raise CoordinationError("started already")
        self._joining = Joining(member, self._facts, self._version, self._levels)
        begin = self._clock()
        try:
            while True:
                try:
                    await self._register()
                    break
                except NameTakenError:
                    # A node whose volume was just replaced meets its own last session.
                    if self._clock() - begin > 1.5 * self._ttl_s:
                        raise
                except StoreChanged as error:
                    raise CoordinationError(f"{self.name}: {error}") from error
                except KvError as error:
                    if self._clock() - begin > self._start_timeout_s:
                        raise CoordinationError(f"the coordination store cannot be used: {error}") from error
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            await self.close()
            raise
        self._publish()
        self._task = asyncio.create_task(self._stay())
        return self.view

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._watchers.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._lease:
            with suppress(KvError, TimeoutError):
                await asyncio.wait_for(self.kv.revoke(self._lease), _CLOSE_TIMEOUT_S)
        if self._store_watch is not None:
            await self._store_watch.close()
        if self._view is not None and self._records.revision > self._remembered[0]:
            self._remember(self._records.revision)
        await self.kv.close()
        await self._read.settle()

    # -- the session ------------------------------------------------------------------------------------------------

    @property
    def _join(self) -> Joining:
        assert self._joining is not None, "not started"
        return self._joining

    async def _register(self) -> None:
        """Makes a new session. Raises KvError, CoordinationError."""
        join = self._join
        if self._store_watch is None:
            self._store_watch = await self.kv.watch(self.keys.prefix, self._take_picture, self._take_change)
        sent = self._clock()
        self._lease = lease = await self.kv.grant(self._ttl_s)
        self._lease_until = sent + self._ttl_s
        while True:
            await self._read()
            live = self._records.lives.get(join.member.node)
            if live is not None and live.lease == lease:
                self._problem = ""
                return
            if not join.check_cluster(self._records, self.kv.store_id):
                step: _Step = join.found(self._records, self._founding)
            elif live is not None:
                join.check_live(live)
                await self._end_earlier(live.lease, live.create_revision)
                continue
            else:
                step = join.register(self._records, lease)
            with suppress(OutcomeUnknown):  # reading tells; the same transaction cannot be done twice
                await self.kv.txn(*step)

    async def _end_earlier(self, lease: int, create_revision: int) -> None:
        if lease:
            await self.kv.revoke(lease)  # with it goes whatever else that session holds
        else:
            live = self.keys.live(self._join.member.node)
            await self.kv.txn([Compare(live, Field.CREATE, create_revision)], [Delete(live)])

    async def _stay(self) -> None:
        while True:
            await self._keep()
            _LOG.warning("%s: the session of %s is lost; making a new one", self.name, self._join.member.node)
            self._lease_until = 0.0
            await self._come_back()

    async def _keep(self) -> None:
        """Renews the lease until it is lost, or must be given up."""
        pause = self._ttl_s / 3
        while True:
            await self._wait_for_loss(pause)
            if self._session_gone():
                return
            if not self._healthy():
                self._problem = "this node is not healthy enough to hold a lease"
                self._lease_until = 0.0
                with suppress(KvError):
                    await self.kv.revoke(self._lease)
                    return
                continue
            try:
                seconds = await self.kv.keep_alive(self._lease)
            except KvError as error:
                self._problem = str(error)
                pause = min(_RETRY_S, self._ttl_s / 6)
                continue
            if seconds <= 0:
                return
            self._problem = ""
            self._lease_until = self._clock() + seconds
            pause = self._ttl_s / 3

    def _session_gone(self) -> bool:
        live = self._records.lives.get(self._join.member.node)
        return live is None or live.lease != self._lease

    async def _wait_for_loss(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._session_gone():
                    self._changed.clear()
                    await self._changed.wait()

    async def _come_back(self) -> None:
        while True:
            if self._healthy():
                try:
                    await self._register()
                    self._publish()
                    return
                except (KvError, CoordinationError) as error:
                    if self._problem != str(error):
                        self._problem = str(error)
                        _LOG.warning("%s: no new session yet: %s", self.name, error)
            await asyncio.sleep(_RETRY_S)

    # -- the view ---------------------------------------------------------------------------------------------------

    def _take_picture(self, picture: Picture) -> None:
        if self._records.reset(picture):
            self._note_change()

    def _take_change(self, change: Change) -> None:
        if self._records.apply(change):
            self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        # Several revisions that come in one turn of the loop make one view.
        if not self._publishing and self._view is not None:
            self._publishing = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        """Makes the view newer, and calls back."""
        self._publishing = False
        if self._closed or (self._view is not None and self._records.revision <= self._view.revision):
            return
        if self._records.problems != self._told:
            self._told = dict(self._records.problems)
            _LOG.error("%s: records that make no sense: %s", self.name, self._told)
        try:
            view = self._records.view()
        except RecordError as error:
            self._problem = str(error)
            _LOG.error("%s: %s", self.name, error)
            return
        live = self._records.lives.get(self._join.member.node)
        if live is not None and live.lease == self._lease:
            self._session = live.create_revision
        self._view = view
        now = self._clock()
        if not self._remembered[0] or now - self._remembered[1] >= _REMEMBER_INTERVAL_S:
            self._remembered = view.revision, now
            self._remember(view.revision)
        for callback in tuple(self._watchers.values()):
            callback(view)

    async def _read_all(self) -> None:
        self._take_picture(await self.kv.range(self.keys.prefix))

    async def refresh(self) -> View:
        try:
            await self._read()
        except KvError as error:
            raise CoordinationError(f"{self.name}: {error}") from error
        self._publish()
        return self.view

    # -- changes ----------------------------------------------------------------------------------------------------

    async def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> Proposal:
        key = self.keys.shard(record.shard)
        compares = [Compare(key, Field.MOD, record.revision)]
        compares += [Compare(self.keys.live(node), Field.CREATE, session) for node, session in sessions.items()]
        try:
            done = await self.kv.txn(compares, [Put(key, encode_shard(record))])
        except KvError:
            return Proposal.UNKNOWN  # also where it surely was not done: trying again is right then, too
        return Proposal.ACCEPTED if done.succeeded else Proposal.CONFLICT

    async def report_lost(self, shards: frozenset[int]) -> None:
        self._join.lost_shards = shards
        await self._tell_live()

    async def report_unreachable(self, nodes: frozenset[str]) -> None:
        self._join.unreachable = nodes
        await self._tell_live()

    async def remove_tombs(self, tombs: Sequence[Tombstone]) -> None:
        try:
            for some in removals(self.keys, tombs):
                if not (await self.kv.txn(*some)).succeeded:
                    for one in zip(*some, strict=True):
                        await self.kv.txn([one[0]], [one[1]])
        except KvError as error:
            raise CoordinationError(f"{self.name}: {error}") from error

    async def _tell_live(self) -> None:
        """Brings the live key to what this node says of itself."""
        join = self._join
        key = self.keys.live(join.member.node)

        def plan() -> _Step | None:
            live = self._records.lives.get(join.member.node)
            # Without a session nothing is written now: the next one begins with it.
            if self._session_gone() or live is None or live.record == join.live_record():
                return None
            return [Compare(key, Field.MOD, live.mod_revision)], [Put(key, join.live_value(), self._lease)]

        await self._carry_out(plan)

    async def raise_level(self, level: int, term: int) -> None:
        """As the controller of a term: what all nodes speak from now on. Raises CoordinationError."""
        meta = self._records.meta
        if meta is None or (meta.record.level or 1) >= level:
            return
        record = cluster_pb2.ClusterRecord()
        record.CopyFrom(meta.record)
        record.level = level
        compares = [
            Compare(self.keys.controller, Field.CREATE, term),
            Compare(self.keys.meta, Field.MOD, meta.mod_revision),
        ]
        value = record.SerializeToString(deterministic=True)
        try:
            if (await self.kv.txn(compares, [Put(self.keys.meta, value)])).succeeded:
                _LOG.warning("the cluster is at level %d now; versions that do not know it are refused", level)
        except KvError as error:
            raise CoordinationError(f"{self.name}: {error}") from error

    async def set_desired(self, node: str, desired: Desired) -> None:
        key = self.keys.node(node)

        def plan() -> _Step | None:
            stored = self._records.nodes.get(node)
            if stored is None:
                raise KeyError(node)
            known = node_ref(node, stored.record, None, 0)
            if known.desired is desired:
                return None
            value = encode_node(replace(known, desired=desired), stored.record.boot)
            return [Compare(key, Field.MOD, stored.mod_revision)], [Put(key, value)]

        await self._carry_out(plan)

    async def remove_node(self, node: str) -> None:
        known = False

        def plan() -> _Step | None:
            nonlocal known
            stored = self._records.nodes.get(node)
            if stored is None:
                if known:
                    return None
                raise KeyError(node)
            known = True
            if node in self._records.lives:
                raise ValueError(f"{node} is alive")
            held = [record.shard for record in self._records.shards.values() if record.replica_on(node)]
            if held:
                raise ValueError(f"{node} still holds replicas of {len(held)} shards")
            key, live = self.keys.node(node), self.keys.live(node)
            compares = [Compare(key, Field.MOD, stored.mod_revision), Compare(live, Field.CREATE, 0)]
            return compares, [Delete(key)]

        await self._carry_out(plan)

    async def _carry_out(self, plan: Callable[[], _Step | None]) -> None:
        """Reads, plans and writes until the plan says None: it is so. Raises CoordinationError."""
        try:
            for _ in range(_TRIES):
                await self._read()
                step = plan()
                if step is None:
                    self._publish()
                    return
                with suppress(OutcomeUnknown):
                    await self.kv.txn(*step)
        except KvError as error:
            raise CoordinationError(f"{self.name}: {error}") from error
        raise CoordinationError(f"{self.name}: others keep changing the same record")
