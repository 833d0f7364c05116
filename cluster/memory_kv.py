"""A coordination store inside this process, for several nodes in it and for tests.

All nodes share one `MemoryStore`; each has its own `MemoryKv`, so that one can be closed or cut off alone.

A store with a file keeps its permanent keys there: the whole content is written to a temporary file, fsynced, and
renamed over the old one before a transaction is answered *or seen by anybody*, so a crash leaves the old content or the
new, and nobody has acted on what is lost. Keys under a lease are not kept: whoever held them ended with this process.
Revisions still rise over a restart, because the file reserves a range of them: a store begins at the end of the range
that its file names. With `in_thread` the event loop goes on meanwhile, and all transactions that wait are one write: an
election makes hundreds.
"""

import asyncio
import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from ringpost.cluster.kv import (
    Change,
    Compare,
    Delete,
    Field,
    Item,
    Kv,
    KvError,
    Picture,
    Put,
    StoreChanged,
    TxnResult,
    Watch,
)

FORMAT = 1
REVISIONS_RESERVED = 10_000
_SWEEP_S = 1.0


class Timer(Protocol):
    """A call that waits."""

    def cancel(self) -> None:
        """It is not made."""


class Timers(Protocol):
    """The part of an event loop that a store needs: time in seconds, and calls later."""

    def time(self) -> float:
        """Now."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Calls at that time."""

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Calls after what runs now, in order."""


class _State(NamedTuple):
    """All keys as of one revision; the dict is never changed."""

    revision: int
    items: dict[str, Item]


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    timer: Timer
    keys: set[str] = field(default_factory=set)


class _Watcher(Watch):
    """Gets changes in order, each in a turn of its own."""

    def __init__(self, store: "MemoryStore", prefix: str, change: Callable[[Change], None]) -> None:
        self._store = store
        self.prefix = prefix
        self._change = change
        self._closed = False

    def tell(self, change: Change) -> None:
        if not self._closed:
            self._change(change)

    async def close(self) -> None:
        self._closed = True
        self._store.forget(self)


class MemoryStore:
    """What all the nodes' `MemoryKv` share. `timers` None: the running loop. `path` None: nothing is kept.

    `revision` and `_items` are what is decided; `_shown` is what is on the disk, too, and so may be seen.
    Raises OSError when the file cannot be read, ValueError when it is not one of ours.
    """

    def __init__(self, timers: Timers | None = None, path: Path | None = None, *, in_thread: bool = False) -> None:
        self._timers: Timers = timers or asyncio.get_running_loop()
        self._path = path
        self._in_thread = in_thread and path is not None
        self._items: dict[str, Item] = {}
        self._leases: dict[int, _Lease] = {}
        self._watchers: list[_Watcher] = []
        self._last_lease = 0
        self._reserved = 0
        self.revision = 1
        if path is not None and path.exists():
            self._load(path)
        self._shown = _State(self.revision, self._items)
        self._unshown: list[Change] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    @property
    def shown_revision(self) -> int:
        """The newest revision that anybody can see."""
        return self._shown.revision

    def range(self, prefix: str) -> Picture:
        """All keys below a prefix, sorted."""
        revision, items = self._shown
        found = sorted(key for key in items if key.startswith(prefix))
        return Picture(revision, tuple(items[key] for key in found))

    async def commit(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        """As `txn`; returns when what it saw and what it did is on the disk."""
        result = self.txn(compares, then)
        if result.revision > self._shown.revision:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((result.revision, done))
            await done
        return result

    def txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        """Raises KvError for an unknown lease or a key named twice, OSError when the file cannot be written.

        With `in_thread` it is only decided, not shown: use `commit`.
        """
        if not all(map(self._holds, compares)):
            return TxnResult(False, self.revision)
        if len({operation.key for operation in then}) < len(then):
            raise KvError("a transaction names a key twice")
        leases = [operation.lease for operation in then if isinstance(operation, Put) and operation.lease]
        if any(lease not in self._leases for lease in leases):
            raise KvError("there is no such lease")
        self._change(then)
        return TxnResult(True, self.revision)

    def grant(self, ttl_s: int) -> int:
        """A new lease, which begins to run."""
        # Leases of an earlier process are never named again: numbers go on from the revisions, which always rise.
        self._last_lease = lease = max(self._last_lease + 1, self.revision)
        self._leases[lease] = _Lease(ttl_s, self._timer(lease, ttl_s))
        return lease

    def keep_alive(self, lease: int) -> float:
        """Seconds that it now lives; 0.0: there is no such lease."""
        found = self._leases.get(lease)
        if found is None:
            return 0.0
        found.timer.cancel()
        found.timer = self._timer(lease, found.ttl_s)
        return float(found.ttl_s)

    def revoke(self, lease: int) -> None:
        """Ends it and deletes its keys, in one revision."""
        found = self._leases.pop(lease, None)
        if found is not None:
            found.timer.cancel()
            self._change([Delete(key) for key in sorted(found.keys)])

    def watch(self, prefix: str, picture: Callable[[Picture], None], change: Callable[[Change], None]) -> Watch:
        """Gives the picture at once and changes later."""
        watcher = _Watcher(self, prefix, change)
        self._watchers.append(watcher)
        picture(self.range(prefix))
        return watcher

    def forget(self, watcher: Watch) -> None:
        """Ends a watch."""
        self._watchers = [known for known in self._watchers if known is not watcher]

    def wipe(self) -> None:
        """For tests: everything is gone, also the revisions. Watchers hear nothing, as with a wiped etcd."""
        for lease in self._leases.values():
            lease.timer.cancel()
        self._items = {}
        self._leases.clear()
        self._watchers.clear()
        self._unshown.clear()
        self.revision = 1
        self._shown = _State(1, self._items)

    def _timer(self, lease: int, ttl_s: int) -> Timer:
        return self._timers.call_at(self._timers.time() + ttl_s, lambda: self.revoke(lease))

    def _holds(self, compare: Compare) -> bool:
        item = self._items.get(compare.key)
        if item is None:
            return compare.revision == 0
        return compare.revision == (item.mod_revision if compare.field is Field.MOD else item.create_revision)

    def _change(self, operations: Sequence[Put | Delete]) -> None:
        done = [op for op in operations if isinstance(op, Put) or op.key in self._items]
        if not done:
            return
        revision = self.revision + 1
        after = dict(self._items)
        for op in done:
            before = after.pop(op.key, None)
            if isinstance(op, Put):
                created = before.create_revision if before else revision
                after[op.key] = Item(op.key, op.value, created, revision, op.lease)
        permanent = any(_kept(self._items.get(op.key)) or _kept(after.get(op.key)) for op in done)
        to_write = permanent or revision >= self._reserved
        if to_write and not self._in_thread:
            self._save(_State(revision, after))
        for op in done:
            self._move_lease(op.key, self._items.get(op.key), after.get(op.key))
        self.revision, self._items = revision, after
        self._unshown.append(Change(revision, tuple((op.key, after.get(op.key)) for op in done)))
        if self._in_thread and (to_write or self._writer is not None):
            if self._writer is None:
                self._writer = asyncio.get_running_loop().create_task(self._write_all())
        else:
            self._show(_State(revision, after))

    def _show(self, state: "_State") -> None:
        """Everything up to this state is on the disk, as far as it need be."""
        self._shown = state
        news = [change for change in self._unshown if change.revision <= state.revision]
        del self._unshown[: len(news)]
        for change in news:
            for watcher in self._watchers:
                mine = tuple(pair for pair in change.items if pair[0].startswith(watcher.prefix))
                if mine:
                    self._tell(watcher, Change(change.revision, mine))
        while self._waiting and self._waiting[0][0] <= state.revision:
            self._answer(self._waiting.pop(0)[1], None)

    @staticmethod
    def _answer(waiting: "asyncio.Future[None]", error: OSError | None) -> None:
        if waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    async def _write_all(self) -> None:
        """Writes in a thread until everything that is decided is shown."""
        try:
            await asyncio.sleep(0)  # others of this turn join
            while self._shown.revision < self.revision:
                state = _State(self.revision, self._items)
                try:
                    await asyncio.to_thread(self._save, state)
                except OSError as error:
                    self._undo(error)
                    return
                self._show(state)
        finally:
            self._writer = None

    def _undo(self, error: OSError) -> None:
        """Nothing of what is not shown has happened."""
        self.revision, self._items = self._shown
        self._unshown.clear()
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            self._answer(done, error)
        for lease in self._leases.values():
            lease.keys.clear()
        for item in self._items.values():
            if item.lease in self._leases:
                self._leases[item.lease].keys.add(item.key)
        # Leases that ended meanwhile have ended; their keys go a little later.
        self._timers.call_at(self._timers.time() + _SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        orphans = sorted(key for key, item in self._items.items() if item.lease and item.lease not in self._leases)
        self._change([Delete(key) for key in orphans])

    def _tell(self, watcher: _Watcher, change: Change) -> None:
        self._timers.call_soon(lambda: watcher.tell(change))

    def _move_lease(self, key: str, before: Item | None, after: Item | None) -> None:
        if before is not None and before.lease in self._leases:
            self._leases[before.lease].keys.discard(key)
        if after is not None and after.lease:
            self._leases[after.lease].keys.add(key)

    # -- the file ---------------------------------------------------------------------------------------------------

    def _save(self, state: "_State") -> None:
        """Blocks."""
        reserved = state.revision + REVISIONS_RESERVED
        if self._path is not None:
            kept = [
                [item.key, base64.b64encode(item.value).decode(), item.create_revision, item.mod_revision]
                for item in state.items.values()
                if _kept(item)
            ]
            content = json.dumps({"format": FORMAT, "reserved": reserved, "items": kept})
            _replace(self._path, content.encode())
        self._reserved = reserved

    def _load(self, path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"{path}: unknown format {content['format']!r}")
            for key, value, created, modified in content["items"]:
                self._items[key] = Item(key, base64.b64decode(value, validate=True), created, modified, 0)
            self.revision = int(content["reserved"])
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: is not the file of a coordination store: {error}") from error


class MemoryKv(Kv):
    """One node's access to a shared store. `cut` True: the node cannot reach it, and hears nothing."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._watches: list[Watch] = []
        self._floor = 0
        self._closed = False
        self._behind: list[Callable[[], None]] = []
        self._cut = False

    @property
    def name(self) -> str:
        return "memory"

    @property
    def cut(self) -> bool:
        """Whether the node is cut off."""
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        if not cut:
            waiting, self._behind = self._behind, []
            for tell in waiting:
                tell()

    async def range(self, prefix: str) -> Picture:
        self._reach()
        return self._store.range(prefix)

    async def txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        self._reach()
        try:
            return await self._store.commit(compares, then)
        except OSError as error:
            raise KvError(f"the coordination store's file cannot be written: {error}") from error

    async def grant(self, ttl_s: int) -> int:
        self._reach()
        return self._store.grant(ttl_s)

    async def keep_alive(self, lease: int) -> float:
        self._reach()
        return self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        self._reach()
        self._store.revoke(lease)

    async def watch(self, prefix: str, picture: Callable[[Picture], None], change: Callable[[Change], None]) -> Watch:
        self._reach()

        def tell(later: Change) -> None:
            if self._cut:
                self._behind.append(lambda: change(later))
            elif not self._closed:
                change(later)

        watch = self._store.watch(prefix, picture, tell)
        self._watches.append(watch)
        return watch

    async def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            await watch.close()

    def _reach(self) -> None:
        if self._closed or self._cut:
            raise KvError("the coordination store cannot be reached")
        revision = self._store.shown_revision
        if revision < self._floor:
            raise StoreChanged(f"the store's revision fell from {self._floor} to {revision}")
        self._floor = revision


def _kept(item: Item | None) -> bool:
    return item is not None and not item.lease


def _replace(path: Path, content: bytes) -> None:
    """Durably replaces a file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
