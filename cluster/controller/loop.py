"""The controller's shell: every node runs it, one of them at a time is the controller.

Safety does not rest on there being only one: each write compares the writer's term, and each record's revision.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from ringpost.cluster.controller import transactions
from ringpost.cluster.controller.core import Core
from ringpost.cluster.controller.decisions import Change, End, Fence, FenceRequest, NewId, Reach, Settings
from ringpost.cluster.controller.election import Ballot
from ringpost.cluster.controller.links import fit_to_control
from ringpost.cluster.controller.recovery import accept_loss
from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.kv import Kv, KvError, OutcomeUnknown
from ringpost.cluster.levels import raised
from ringpost.cluster.records import Keys
from ringpost.cluster.view import Tombstone, View

_LOG = logging.getLogger("ringpost.cluster")

FENCE_TIMEOUT_S = 0.3
_TICK_S = 1.0
_RETRY_S = 0.3
# Views that come faster are looked at together; so are more, where planning takes long.
_PAUSE_S = 0.02
_PAUSE_MAX_S = 0.2
_TRIES = 5

AskFence = Callable[[str, FenceRequest], Awaitable[Sequence[End] | None]]
"""Sends a request to a node's peer port, this node's included. None: no answer."""


class Membership(Protocol):
    """What the controller needs of its node's membership; `KvCoordination` is one."""

    @property
    def kv(self) -> Kv: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def view(self) -> View: ...
    @property
    def session(self) -> int: ...
    @property
    def lease(self) -> int: ...
    async def refresh(self) -> View: ...
    async def remove_tombs(self, tombs: Sequence[Tombstone]) -> None: ...
    async def raise_level(self, level: int, term: int) -> None: ...
    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]: ...


class ControllerLoop:
    """One node's part in controlling the cluster.

    `reachability` says how the other nodes answer this one; `wake` is to be called when that changes, and also by
    itself the loop looks every second. `clock` is the loop's when None.
    """

    def __init__(
        self,
        membership: Membership,
        node: str,
        *,
        fence: AskFence,
        reachability: Callable[[], Mapping[str, Reach]],
        new_id: NewId,
        settings: Settings | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._membership = membership
        self._node = node
        self._fence = fence
        self._reachability = reachability
        self._new_id = new_id
        self._clock = clock or asyncio.get_running_loop().time
        # Every node watches, so that whoever becomes the controller knows how long others have been away.
        self._core = Core(settings or Settings(), new_id)
        self._term = 0
        self._woken = asyncio.Event()
        self._planned: tuple[int, frozenset[tuple[str, Reach]]] | None = None
        self._wake_at = 0.0
        self._pause = _PAUSE_S
        self._problem = ""
        self.offline: tuple[int, ...] = ()

    @property
    def term(self) -> int:
        """The term in which this node is the controller by its newest view; 0 when it is not."""
        return self._term if self._is_mine(self._membership.view) else 0

    def wake(self) -> None:
        """Makes it look now."""
        self._woken.set()

    async def run(self) -> None:
        """Takes part until cancelled. The membership has been started."""
        end = self._membership.watch(lambda _view: self.wake())
        try:
            while True:
                self._woken.clear()
                begin = self._clock()
                await self._wait(await self._try_turn())
                await asyncio.sleep(begin + self._pause - self._clock())
        finally:
            end()

    async def resign(self) -> None:
        """Ends this node's term, so that another begins at once; to be called after `run` has ended. Never raises."""
        if self._term:
            try:
                await self._membership.kv.txn(*transactions.depose(self._membership.keys, self._term))
            except KvError:
                _LOG.info("the controller could not resign; its lease ends it")

    async def accept_loss(self, shard: int, node: str) -> None:
        """Carries out what a person has decided, on any node. Raises LossRefused, CoordinationError."""
        count = -1
        for _ in range(_TRIES):
            view = await self._membership.refresh()
            if not view.shards:
                raise CoordinationError("the cluster has no shards yet")
            if 0 <= count < view.shards[shard].unclean_count:
                return  # the answer was lost, not the transaction
            change = accept_loss(view, shard, node, self._new_id)
            try:
                written = await self._membership.kv.txn(*transactions.write(self._membership.keys, [change], 0))
            except OutcomeUnknown:
                count = view.shards[shard].unclean_count
                continue
            except KvError as error:
                raise CoordinationError(str(error)) from error
            if written.succeeded:
                return
        raise CoordinationError(f"shard {shard} keeps changing")

    # -- one look ---------------------------------------------------------------------------------------------------

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _try_turn(self) -> float:
        try:
            pause = await self._turn()
            self._problem = ""
            return pause
        except (KvError, CoordinationError) as error:
            # What was written is unknown; the next look sees what it led to.
            self._planned = None
            if str(error) != self._problem:
                self._problem = str(error)
                _LOG.warning("the controller on %s cannot work: %s", self._node, error)
            return _RETRY_S

    async def _turn(self) -> float:
        """Does what is due. Returns for how long there is nothing, if nothing changes."""
        view, reach, now = self._membership.view, self._reachability(), self._clock()
        seen = (view.revision, frozenset(reach.items()))
        if seen != self._planned or now >= self._wake_at:
            self._core.observe(view, reach, now)
        if not self._is_mine(view):
            self._planned = None
            self.offline = ()
            return await self._campaign(view, reach)
        if not fit_to_control(view.nodes, self._node):
            return await self._step_aside()
        if seen != self._planned or now >= self._wake_at:
            self._planned = seen
            if not await self._act(view):
                self._planned = None
                return _RETRY_S
        return min(_TICK_S, self._wake_at - now)

    def _is_mine(self, view: View) -> bool:
        return 0 != self._term == view.controller_term and view.controller == self._node

    async def _campaign(self, view: View, reach: Mapping[str, Reach]) -> float:
        """Becomes the controller when there is none, when nobody listens where it was, or when nobody reaches it."""
        kv, keys = self._membership.kv, self._membership.keys
        own = view.nodes.get(self._node)
        if own is None or not own.alive or own.session != self._membership.session:
            return _TICK_S
        if not fit_to_control(view.nodes, self._node):
            return _TICK_S
        if view.revision < self._term:
            return _RETRY_S  # won, and not yet seen
        self._term = 0
        if view.controller:
            # Our own name with a term that we do not know is an earlier life, or an answer that was lost.
            lives = reach.get(view.controller) != "refused" and fit_to_control(view.nodes, view.controller)
            if view.controller != self._node and lives:
                return _TICK_S
            _LOG.warning("%s deposes the controller on %s", self._node, view.controller)
            await kv.txn(*transactions.depose(keys, view.controller_term))
        won = await kv.txn(*transactions.campaign(keys, self._node, own.session, self._membership.lease))
        if won.succeeded:
            self._term = won.revision
            _LOG.info("%s is the controller, term %d", self._node, self._term)
        await self._membership.refresh()
        return 0.0 if won.succeeded else _RETRY_S

    async def _step_aside(self) -> float:
        """Ends this node's term: it reaches too few others, and one of those may reach more."""
        _LOG.warning("%s is cut off from most others, and is the controller no more", self._node)
        await self._membership.kv.txn(*transactions.depose(self._membership.keys, self._term))
        await self._membership.refresh()
        return _RETRY_S

    # -- as the controller ------------------------------------------------------------------------------------------

    async def _act(self, view: View) -> bool:
        """Elections first, then one round of everything else. False: there is more to do than was done."""
        ballot = self._core.call_election()
        self._tell_offline(ballot)
        elected = self._core.count_votes(ballot, await self._ask_all(view, ballot)) if ballot.records else []
        whole = await self._write(elected) and len(elected) == len(ballot.records)
        begin = self._clock()
        plan = self._core.plan()
        self._pause = min(_PAUSE_MAX_S, max(_PAUSE_S, 10 * (self._clock() - begin)))
        self._wake_at = plan.wake_at
        await self._membership.remove_tombs(plan.stale_tombs)
        level = raised(view.level, (ref.levels if ref.alive else None for ref in view.nodes.values()))
        if level > view.level:
            await self._membership.raise_level(level, self._term)
        return await self._write(plan.changes) and whole

    def _tell_offline(self, ballot: Ballot) -> None:
        if ballot.offline and ballot.offline != self.offline:
            _LOG.error("no copy of these shards can be reached: %s", ", ".join(map(str, ballot.offline)))
        self.offline = ballot.offline

    async def _ask_all(self, view: View, ballot: Ballot) -> dict[str, Sequence[End]]:
        async def ask(node: str, fences: tuple[Fence, ...]) -> Sequence[End] | None:
            try:
                async with asyncio.timeout(FENCE_TIMEOUT_S):
                    return await self._fence(node, FenceRequest(view.cluster_id, self._term, fences))
            except TimeoutError:
                return None

        answers = await asyncio.gather(*(ask(node, fences) for node, fences in ballot.asks.items()))
        return {node: given for node, given in zip(ballot.asks, answers, strict=True) if given is not None}

    async def _write(self, changes: Sequence[Change]) -> bool:
        """Whether all were written. Raises KvError, CoordinationError."""
        whole = True
        for batch in transactions.batches(changes):
            whole = await self._write_batch(batch) and whole
        return whole

    async def _write_batch(self, batch: Sequence[Change]) -> bool:
        """When one cannot be written any more, the others of its batch still are."""
        if not batch:
            return True
        written = await self._membership.kv.txn(*transactions.write(self._membership.keys, batch, self._term))
        if written.succeeded:
            for change in batch:
                _LOG.debug("shard %d: %s", change.record.shard, change.why)
            return True
        view = await self._membership.refresh()
        if not self._is_mine(view):
            return False
        rest = [change for change in batch if transactions.still_holds(view, change)]
        if len(rest) < len(batch):
            await self._write_batch(rest)
        elif len(rest) > 1:
            half = len(rest) // 2
            await self._write_batch(rest[:half])
            await self._write_batch(rest[half:])
        return False
