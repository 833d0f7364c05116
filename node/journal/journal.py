"""The journal of a data directory, as its owner sees it: append, learn what is durable, read, drop old segments."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from ringpost.node.journal.files import Files
from ringpost.node.journal.handles import SegmentReaders
from ringpost.node.journal.pending import JournalFailed, Pending
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    address_of,
    create_segment,
    list_segments,
    offset_of,
    segment_of,
    segment_path,
)
from ringpost.node.journal.writer import Counters, JournalOptions, Writer, with_space

__all__ = ["Journal", "JournalFailed", "JournalOptions", "SegmentInfo"]


class SegmentInfo(NamedTuple):
    """A segment file and the disk space it takes, used or not."""

    number: int
    size_bytes: int


class Journal:
    """Owned by one thread, usually the event loop's; has a writer thread of its own.

    `post` runs a callable in the owner's thread later. Through it come `on_durable(address)`, once per fsync: every
    frame at a lower address is on disk; and `on_failure(error)`, at most once: the disk failed, nothing more is
    written.
    """

    def __init__(
        self,
        directory: Path,
        files: Files,
        options: JournalOptions,
        *,
        directory_id: bytes,
        post: Callable[[Callable[[], None]], object],
        on_durable: Callable[[int], None],
        on_failure: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` exists and `recover` has been over it; `directory_id` has 16 bytes."""
        assert len(directory_id) == 16
        self.durable = 0
        self._directory = directory
        self._files = files
        self._options = options
        self._directory_id = directory_id
        self._on_durable = on_durable
        self._durable_bytes = 0
        self._sizes: dict[int, int] = {}
        self._sizes_lock = Lock()
        self._readers = SegmentReaders(directory, files, options.read_handles_max)
        self._pending = Pending(options.segment_bytes, options.group_bytes_max)
        self._writer = Writer(
            directory,
            files,
            options,
            directory_id,
            self._pending,
            committed=lambda address, size: post(partial(self._committed, address, size)),
            created=self._created,
            failed=lambda error: post(partial(on_failure, error)),
            clock=clock,
        )
        self.append = self._pending.append
        """`append(header, body) -> address`, at once: puts the frame into the next group. Raises `JournalFailed`.

        The body must have the length and checksum that the header names, and may not change afterwards.
        """

    def start(self, end: int | None) -> None:
        """Goes on at `end`, the address from recovery (0 or None: a new journal). Blocks. Raises `OSError`."""
        number = segment_of(end) if end else 1
        for old in list_segments(self._directory, self._files):
            self._created(old, self._size_of(old))
        if number not in self._sizes:
            end = address_of(number, SEGMENT_HEADER_SIZE)
            self._files.close(self._create(number))
        assert end
        handle, capacity = self._open_full_size(number)
        self._created(number, capacity)
        self._pending.start(end, capacity)
        self.durable = end
        unsealed = SEGMENT_HEADER_SIZE < offset_of(end) <= capacity - GROUP_HEADER_SIZE
        self._writer.start(handle, number, capacity, unsealed=unsealed)

    def close(self) -> None:
        """Writes what waits, seals, ends the writer thread. Blocks for an fsync or two; a failed journal closes too."""
        self._pending.stop()
        self._writer.join()
        self._readers.close()

    @property
    def end(self) -> int:
        """Where the next group may begin; the writer moves it too. What a restart may rely on is `durable`."""
        return self._pending.end

    @property
    def pending_bytes(self) -> int:
        """Bytes of frames appended and not known to be durable."""
        return self._pending.appended_bytes - self._durable_bytes

    @property
    def counters(self) -> Counters:
        return self._writer.counters

    @property
    def size_bytes(self) -> int:
        """Disk space of all segments."""
        return sum(segment.size_bytes for segment in self.segments())

    def read(self, address: int, length: int) -> bytes:
        """Bytes from `address` on, at most to the end of its segment. Any thread; blocks.

        Only what is durable may be read. Raises `OSError`; `FileNotFoundError` when the segment was dropped.
        """
        return self._readers.read(segment_of(address), length, offset_of(address))

    def segments(self) -> list[SegmentInfo]:
        """All segments, the oldest first; one after the last frame's may lie prepared."""
        with self._sizes_lock:
            return [SegmentInfo(number, size) for number, size in sorted(self._sizes.items())]

    def drop_segment(self, number: int) -> None:
        """Removes a segment for good. Any thread; blocks. Raises `OSError`."""
        assert number < segment_of(self.durable), "the active segment stays"
        self._files.unlink(segment_path(self._directory, number))
        self._readers.forget(number)
        with self._sizes_lock:
            del self._sizes[number]
        self._files.sync_directory(self._directory)

    def _committed(self, address: int, size: int) -> None:
        self.durable = address
        self._durable_bytes += size
        self._on_durable(address)

    def _created(self, number: int, size: int) -> None:
        with self._sizes_lock:
            self._sizes[number] = size

    def _size_of(self, number: int) -> int:
        handle = self._files.open(segment_path(self._directory, number))
        try:
            return self._files.size(handle)
        finally:
            self._files.close(handle)

    def _create(self, number: int) -> int:
        handles: list[int] = []
        arguments = (self._directory, self._files, self._directory_id, number, self._options.segment_bytes)
        with_space(lambda: handles.append(create_segment(*arguments)), self._options.on_no_space)
        return handles[0]

    def _open_full_size(self, number: int) -> tuple[int, int]:
        """Handle and size of the segment to go on in, given back the full size that cutting a torn end took from it."""
        handle = self._files.open(segment_path(self._directory, number))
        try:
            with_space(lambda: self._files.allocate(handle, self._options.segment_bytes), self._options.on_no_space)
            self._files.sync_data(handle)
            return handle, self._files.size(handle)
        except OSError:
            self._files.close(handle)
            raise
