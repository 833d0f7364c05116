"""Open segment files for readers in any thread."""

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from ringpost.node.journal.files import Files
from ringpost.node.journal.segment import segment_path


class _Entry:
    """An open file; closed when it is `stale` and nobody uses it."""

    __slots__ = ("handle", "stale", "users")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0
        self.stale = False


class SegmentReaders:
    """Reads segments through a bounded number of open files, the longest unused closed first. Thread-safe."""

    def __init__(self, directory: Path, files: Files, handles_max: int) -> None:
        self._directory = directory
        self._files = files
        self._handles_max = handles_max
        self._lock = Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def read(self, number: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file. Raises `OSError`, `FileNotFoundError` among them."""
        entry = self._borrow(number)
        try:
            return self._files.read_at(entry.handle, length, offset)
        finally:
            self._give_back(entry)

    def forget(self, number: int) -> None:
        """Closes the file of a segment that is going away, once its last reader is done."""
        with self._lock:
            entry = self._entries.pop(number, None)
            if entry is not None:
                self._retire(entry)

    def close(self) -> None:
        with self._lock:
            while self._entries:
                self._retire(self._entries.popitem()[1])

    def _borrow(self, number: int) -> _Entry:
        with self._lock:
            entry = self._entries.get(number)
            if entry is None:
                entry = self._entries[number] = _Entry(self._files.open(segment_path(self._directory, number)))
                if len(self._entries) > self._handles_max:
                    self._retire(self._entries.popitem(last=False)[1])
            else:
                self._entries.move_to_end(number)
            entry.users += 1
            return entry

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            if entry.stale and not entry.users:
                self._files.close(entry.handle)

    def _retire(self, entry: _Entry) -> None:
        entry.stale = True
        if not entry.users:
            self._files.close(entry.handle)
