"""The newest frames of a node, in memory, so that subscribers who keep up never touch the disk.

First in, first out over all channels: what was written last is what is read next. A frame larger than the whole cache
is not taken. Only the event loop's thread uses it.
"""

from collections import deque
from typing import NamedTuple

# Memory beyond the frame's own bytes: tuple, numbers, slots of dict and queues. Measured on CPython 3.11: 365.
ENTRY_OVERHEAD_BYTES = 384


class CachedFrame(NamedTuple):
    """What delivery needs of a DATA frame. `body` holds the batch bytes as the producer sent them."""

    base_offset: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    time_us: int
    body_crc: int
    body: bytes
    producer: int
    base_sequence: int
    ttl_ms: int = 0


class TailCache:
    """Frames by address. Invariant: 0 <= bytes <= max_bytes; a frame costs its length and a fixed overhead."""

    __slots__ = ("_charges", "_entries", "_order", "bytes", "hits", "max_bytes", "misses")

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` >= 0; 0 caches nothing."""
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: dict[int, CachedFrame] = {}
        # Popping the oldest key of a dict scans over all keys popped before it, so the order is kept beside it.
        self._order: deque[int] = deque()
        self._charges: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, address: int, entry_bytes_length: int, entry: CachedFrame) -> None:
        """Takes a frame of `entry_bytes_length` bytes and drops the oldest ones that no longer fit.

        An address names the same bytes for ever, so putting it again changes nothing.
        """
        charge = entry_bytes_length + ENTRY_OVERHEAD_BYTES
        if charge > self.max_bytes or address in self._entries:
            return
        self._entries[address] = entry
        self._order.append(address)
        self._charges.append(charge)
        self.bytes += charge
        while self.bytes > self.max_bytes:
            del self._entries[self._order.popleft()]
            self.bytes -= self._charges.popleft()

    def get(self, address: int) -> CachedFrame | None:
        """The frame at an address, or None; either is counted."""
        entry = self._entries.get(address)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
        return entry
