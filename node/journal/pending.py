"""What is appended and not yet written: the border between the owner's thread and the writer's."""

import time
from collections import deque
from collections.abc import Callable
from threading import Lock

from ringpost.node.journal.frame import FRAME_OVERHEAD, HEADER_SIZE, TRAILER
from ringpost.node.journal.segment import GROUP_HEADER_SIZE, SEGMENT_HEADER_SIZE, address_of, offset_of, segment_of

_JOIN_BELOW = 2048
"""Bodies smaller than this are copied next to their header: one longer part is cheaper to write than three."""


class JournalFailed(Exception):  # noqa: N818
    """A write or an fsync failed before, or the journal is closed: nothing more is written."""


class Group:
    """Frames that one fdatasync will commit. `address` is the group header's, `length` the frames' bytes.

    `parts[0]` is left to the writer for the group header.
    """

    __slots__ = ("address", "count", "length", "limit", "parts")

    def __init__(self, address: int, limit: int) -> None:
        self.address = address
        self.limit = limit
        self.length = 0
        self.count = 0
        self.parts: list[bytes] = [b""]

    @property
    def end(self) -> int:
        return self.address + GROUP_HEADER_SIZE + self.length


class Pending:
    """Groups waiting for the writer, and the address at which the journal goes on.

    The owner calls `append`, the writer `take` and `seal`; `stop` and `fail` come from either.
    Invariant: behind every group its segment has room for one more group header, the seal.
    """

    def __init__(self, segment_bytes: int, group_bytes_max: int) -> None:
        self.end = 0
        self.appended_bytes = 0
        self.failure: Exception | None = None
        self.stopping = False
        self._segment_bytes = segment_bytes
        self._group_bytes_max = group_bytes_max
        self._capacity = segment_bytes
        self._lock = Lock()
        self._closed: deque[Group] = deque()
        self._open: Group | None = None
        self._idle = False
        self._wake = Lock()
        self._wake.acquire()

    def start(self, end: int, capacity: int) -> None:
        """The journal goes on at `end`, in a segment file of `capacity` bytes."""
        self.end = end
        self._capacity = capacity

    def append(self, header: bytes, body: bytes) -> int:
        """The frame's address. Raises `JournalFailed`."""
        size = FRAME_OVERHEAD + len(body)
        assert len(header) == HEADER_SIZE
        with self._lock:
            if self.failure is not None:
                raise JournalFailed("the journal takes no more frames") from self.failure
            group = self._open
            if group is None or group.length + size > group.limit:
                group = self._open_group(size)
            address = self.end
            self.end = address + size
            self.appended_bytes += size
            group.length += size
            group.count += 1
            if size < _JOIN_BELOW:
                group.parts.append(header + body + TRAILER)
            else:
                group.parts += (header, body, TRAILER)
            if self._idle:
                self._idle = False
                self._wake.release()
        return address

    def _open_group(self, size: int) -> Group:
        """A new open group that a frame of `size` bytes fits in. One larger than the cap is a group of its own."""
        room_at_most = self._segment_bytes - SEGMENT_HEADER_SIZE - 2 * GROUP_HEADER_SIZE
        assert size <= room_at_most, "a frame must fit into a segment"
        if self._open is not None:
            self._closed.append(self._open)
        room = self._capacity - offset_of(self.end) - 2 * GROUP_HEADER_SIZE
        if size > room:
            self.end = address_of(segment_of(self.end) + 1, SEGMENT_HEADER_SIZE)
            self._capacity = self._segment_bytes
            room = room_at_most
        self._open = Group(self.end, limit=min(room, max(size, self._group_bytes_max)))
        self.end += GROUP_HEADER_SIZE
        return self._open

    def take(self, timeout_s: float, linger_s: Callable[[bool], float]) -> Group | None:
        """The next group to write; None after `timeout_s` (-1: never) without one or, at once, when stopping.

        `linger_s` says how long a group that is not full may grow, given whether it was waited for.
        """
        with self._lock:
            wait = self._open is None
            if self._closed or self.stopping:
                return self._next()
            self._idle = wait
        woken = not wait or self._wake.acquire(timeout=timeout_s)
        if woken and not self.stopping and (pause := linger_s(wait)):
            time.sleep(pause)
        with self._lock:
            if self._idle:
                self._idle = False
            elif not woken:
                self._wake.acquire()
            return self._next()

    def _next(self) -> Group | None:
        if self._closed:
            return self._closed.popleft()
        group, self._open = self._open, None
        return group

    def waiting(self) -> bool:
        """Whether the writer has more to do at once."""
        return self._open is not None or bool(self._closed)

    def seal(self) -> Group | None:
        """An empty group at the end, or None when frames came meanwhile."""
        with self._lock:
            if self.waiting():
                return None
            group = Group(self.end, limit=0)
            self.end += GROUP_HEADER_SIZE
            return group

    def stop(self) -> None:
        """No more appends; what waits is still written."""
        with self._lock:
            self.stopping = True
            self.failure = self.failure or JournalFailed("the journal is closed")
            if self._idle:
                self._idle = False
                self._wake.release()

    def fail(self, error: Exception) -> None:
        """No more appends, and what waits is forgotten."""
        with self._lock:
            self.failure = error
            self._open = None
            self._closed.clear()
