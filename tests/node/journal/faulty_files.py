"""A disk in memory behind `Files` that keeps apart what is written and what is durable, and that fails on command.

* A power cut: `crash_states` gives disks as they may look afterwards. What was not synced is dropped, kept, kept up to
  some byte, or kept by 512-byte sectors in any order; directory entries that were not synced come and go one by one.
* A failure: `fail_call(n, errno)` lets the n-th call fail; a failed write leaves half of its bytes behind, bytes of a
  failed sync are never made durable by a later one.
* Bit rot: `flip`.
* A probe: called before and after every call that changes something, in the thread of the caller.
"""

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from ringpost.node.journal.files import DiskUsage

SECTOR = 512
CHANGES = frozenset({"create", "allocate", "write", "sync", "truncate", "rename", "unlink", "sync_directory"})


class Change(NamedTuple):
    """One change of a file that is not durable yet: bytes at an offset, or (`data` None) a new size."""

    offset: int
    data: bytes | None


class Inode:
    """A file: `now` is what a reader sees, `durable` what a power cut leaves for certain."""

    def __init__(self, content: bytes = b"") -> None:
        self.now = bytearray(content)
        self.durable = bytearray(content)
        self.pending: list[Change] = []
        self.orphans: list[Change] = []

    def change(self, change: Change) -> None:
        apply(self.now, change)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.durable, change)
        self.pending.clear()

    def forget(self) -> None:
        """A sync failed: the pending changes may reach the disk or not, whatever is called later."""
        self.orphans += self.pending
        self.pending.clear()

    def copy(self) -> "Inode":
        other = Inode()
        other.now, other.durable = bytearray(self.now), bytearray(self.durable)
        other.pending, other.orphans = list(self.pending), list(self.orphans)
        return other

    @property
    def uncertain(self) -> list[Change]:
        return self.orphans + self.pending

    def after_crash(self, rng: random.Random, how: str) -> bytes:
        """The content after a power cut; `how` is none, all, prefix or sectors."""
        content = bytearray(self.durable)
        changes: Iterable[Change] = self.uncertain
        if how == "none":
            changes = ()
        elif how == "prefix":
            changes = byte_prefix(self.uncertain, rng)
        elif how == "sectors":
            changes = some_sectors(self.uncertain, rng)
        for change in changes:
            apply(content, change)
        return bytes(content)


def apply(content: bytearray, change: Change) -> None:
    if change.data is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    if len(content) < change.offset:
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


def byte_prefix(changes: list[Change], rng: random.Random) -> Iterator[Change]:
    """The first changes, the last of them cut at any byte."""
    total = sum(len(change.data or b"") for change in changes)
    left = rng.choice((rng.randint(0, total), max(0, total - rng.randint(1, 40)), min(total, rng.randint(1, 150))))
    for change in changes:
        if change.data is None:
            yield change
            continue
        yield Change(change.offset, change.data[:left])
        left -= len(change.data)
        if left <= 0:
            return


def some_sectors(changes: list[Change], rng: random.Random) -> Iterator[Change]:
    """Any part of the changes' sectors; sizes are kept or not at random too."""
    pieces: list[Change] = []
    for change in changes:
        pieces += [change] if change.data is None else sectors_of(change.offset, change.data)
    count = len(pieces)
    shape = rng.randrange(4)
    if shape == 0 and count:
        missing = {rng.choice((0, count - 1, rng.randrange(count)))}
    elif shape == 1 and count:
        missing = set(range(count)) - {rng.randrange(count)}
    else:
        share = rng.random()
        missing = {number for number in range(count) if rng.random() < share}
    return (piece for number, piece in enumerate(pieces) if number not in missing)


def sectors_of(offset: int, data: bytes) -> list[Change]:
    pieces = []
    at = 0
    while at < len(data):
        size = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
        pieces.append(Change(offset + at, data[at : at + size]))
        at += size
    return pieces


class Entry(NamedTuple):
    """One change of a directory that is not durable yet: `gone` vanishes, `name` (if any) is then `inode`."""

    gone: str | None
    name: str | None
    inode: Inode | None


class FaultyFiles:
    """See the module. Thread-safe; calls are numbered from 0 in `calls`, `trace` keeps their names."""

    def __init__(self, *, total: int = 1 << 40, free: int = 1 << 39) -> None:
        self.trace: list[str] = []
        self.changes = 0
        self.probe: Callable[[str], None] | None = None
        self.disk_usage = DiskUsage(total, free)
        self._mutex = RLock()
        self._failures: dict[int, int] = {}
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._entries: list[Entry] = []
        self._handles: dict[int, Inode] = {}
        self._next_handle = 1000
        self._unclosed = 0
        self._locked: dict[int, int] = {}

    # What tests do to the disk.

    @property
    def calls(self) -> int:
        return len(self.trace)

    @property
    def open_handles(self) -> int:
        """Handles not closed with success. One whose close failed counts, but closing it again is a bug."""
        return len(self._handles) + self._unclosed

    def fail_call(self, number: int, code: int = errno.EIO) -> None:
        """Lets call `number` (from 0, counted since the disk was made) fail with `code`."""
        self._failures[number] = code

    def content(self, path: Path | str) -> bytes:
        return bytes(self._names[str(path)].now)

    def put(self, path: Path | str, content: bytes) -> None:
        """Makes a file with durable content, whatever there was."""
        self._names[str(path)] = self._durable_names[str(path)] = Inode(content)

    def flip(self, path: Path | str, byte: int, bit: int) -> None:
        """Turns one bit over, durably."""
        inode = self._names[str(path)]
        inode.now[byte] ^= 1 << bit
        if byte < len(inode.durable):
            inode.durable[byte] ^= 1 << bit

    def paths(self) -> list[str]:
        return sorted(self._names)

    def snapshot(self) -> "FaultyFiles":
        """A copy with the same durable and pending state, without open handles, failures and probe."""
        with self._mutex:
            other = FaultyFiles(total=self.disk_usage.total, free=self.disk_usage.free)
            known: dict[int, Inode] = {}

            def twin(inode: Inode) -> Inode:
                return known.setdefault(id(inode), known.get(id(inode)) or inode.copy())

            other._names = {name: twin(inode) for name, inode in self._names.items()}
            other._durable_names = {name: twin(inode) for name, inode in self._durable_names.items()}
            other._entries = [Entry(e.gone, e.name, twin(e.inode) if e.inode else None) for e in self._entries]
            return other

    def crash_states(self, rng: random.Random, limit: int = 16) -> Iterator["FaultyFiles"]:
        """Up to `limit` different disks as a power cut now may leave them: nothing kept, all kept, then a sample."""
        seen: set[int] = set()
        for attempt in range(2 * limit):
            hows = {0: ("none",), 1: ("all",)}.get(attempt, ("none", "all", "prefix", "sectors", "sectors"))
            files = self._crashed(rng, hows, keep={0: 0.0, 1: 1.0}.get(attempt, rng.choice((0.0, 0.5, 1.0, 1.0))))
            mark = hash(tuple((name, bytes(inode.now)) for name, inode in sorted(files._names.items())))
            if mark not in seen:
                seen.add(mark)
                yield files
            if len(seen) == limit:
                return

    def _crashed(self, rng: random.Random, hows: Sequence[str], keep: float) -> "FaultyFiles":
        names = dict(self._durable_names)
        for entry in self._entries:
            if rng.random() < keep:
                link(names, entry)
        files = FaultyFiles(total=self.disk_usage.total, free=self.disk_usage.free)
        for name, inode in names.items():
            files.put(name, inode.after_crash(rng, rng.choice(hows)))
        return files

    # What `Files` promises.

    def create(self, path: Path) -> int:
        with self._call("create"):
            if str(path) in self._names:
                raise FileExistsError(errno.EEXIST, "exists", str(path))
            return self._handle(self._enter(Entry(None, str(path), Inode())))

    def open(self, path: Path) -> int:
        with self._call("open"):
            return self._handle(self._existing(path))

    def close(self, handle: int) -> None:
        with self._call("close", lambda: self._release(handle, closed=False)):
            self._release(handle, closed=True)

    def allocate(self, handle: int, size: int) -> None:
        with self._call("allocate"):
            inode = self._handles[handle]
            if size > len(inode.now):
                inode.change(Change(size, None))

    def write_at(self, handle: int, parts: Sequence[bytes], offset: int) -> None:
        data = b"".join(parts)
        with self._call("write", lambda: self._handles[handle].change(Change(offset, data[: len(data) // 2]))):
            self._handles[handle].change(Change(offset, data))

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        with self._call("read"):
            return bytes(self._handles[handle].now[offset : offset + size])

    def sync_data(self, handle: int) -> None:
        with self._call("sync", self._handles[handle].forget):
            self._handles[handle].sync()

    def truncate(self, handle: int, size: int) -> None:
        with self._call("truncate"):
            self._handles[handle].change(Change(size, None))

    def size(self, handle: int) -> int:
        with self._call("size"):
            return len(self._handles[handle].now)

    def rename(self, source: Path, target: Path) -> None:
        with self._call("rename"):
            self._enter(Entry(str(source), str(target), self._existing(source)))

    def unlink(self, path: Path) -> None:
        with self._call("unlink"):
            self._existing(path)
            self._enter(Entry(str(path), None, None))

    def sync_directory(self, path: Path) -> None:
        with self._call("sync_directory"):
            mine = [entry for entry in self._entries if Path(entry.name or entry.gone or "").parent == path]
            for entry in mine:
                link(self._durable_names, entry)
                self._entries.remove(entry)

    def list(self, path: Path) -> list[str]:
        with self._call("list"):
            return sorted(Path(name).name for name in self._names if Path(name).parent == path)

    def make_directory(self, path: Path) -> None:
        with self._call("make_directory"):
            return

    def exists(self, path: Path) -> bool:
        with self._call("exists"):
            return str(path) in self._names or any(Path(path) in Path(name).parents for name in self._names)

    def lock(self, handle: int) -> bool:
        with self._call("lock"):
            return self._locked.setdefault(id(self._handles[handle]), handle) == handle

    def usage(self, path: Path) -> DiskUsage:
        with self._call("usage"):
            return self.disk_usage

    def _call(self, name: str, half_done: Callable[[], None] | None = None) -> "_Call":
        return _Call(self, name, half_done)

    def _handle(self, inode: Inode) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = inode
        return self._next_handle

    def _release(self, handle: int, *, closed: bool) -> None:
        del self._handles[handle]
        self._unclosed += not closed
        self._locked = {inode: owner for inode, owner in self._locked.items() if owner != handle}

    def _existing(self, path: Path) -> Inode:
        if str(path) not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._names[str(path)]

    def _enter(self, entry: Entry) -> Inode:
        link(self._names, entry)
        self._entries.append(entry)
        return entry.inode or Inode()


def link(names: dict[str, Inode], entry: Entry) -> None:
    if entry.gone is not None:
        names.pop(entry.gone, None)
    if entry.name is not None and entry.inode is not None:
        names[entry.name] = entry.inode


class _Call:
    """Around every call: numbers it, fails it when told, probes before and after a change."""

    def __init__(self, files: FaultyFiles, name: str, half_done: Callable[[], None] | None) -> None:
        self._files, self._name, self._half_done = files, name, half_done

    def __enter__(self) -> None:
        files = self._files
        files._mutex.acquire()
        try:
            number = len(files.trace)
            files.trace.append(self._name)
            self._probe()
            code = files._failures.get(number)
            if code is not None:
                if self._half_done:
                    self._half_done()
                raise OSError(code, os.strerror(code))
            files.changes += self._name in CHANGES
        except BaseException:
            files._mutex.release()
            raise

    def __exit__(self, *problem: object) -> None:
        try:
            self._probe()
        finally:
            self._files._mutex.release()

    def _probe(self) -> None:
        if self._files.probe is not None and self._name in CHANGES:
            self._files.probe(self._name)
