"""Where the frames of a shard lie in the journal, by position: what a leader needs to send them to a replica. Pure.

Only shards of a cluster have one. It begins somewhere: what lies before is in snapshots.
"""

from array import array


class Positions:
    """Addresses and lengths of the frames from `start` to `end`, without a gap. Invariant: addresses rise."""

    __slots__ = ("_addresses", "_head", "_lengths", "start")

    def __init__(self, start: int = 1) -> None:
        self.start = start
        self._head = 0
        self._addresses = array("Q")
        self._lengths = array("I")

    @property
    def end(self) -> int:
        """The last position; start - 1 when there is none."""
        return self.start + len(self._addresses) - self._head - 1

    def append(self, address: int, length: int) -> None:
        """The frame behind `end`."""
        self._addresses.append(address)
        self._lengths.append(length)

    def rows(self, after: int, bytes_max: int) -> list[tuple[int, int]]:
        """(address, length) of the frames behind `after`, which is start - 1 or above: at least one if there is one."""
        assert after >= self.start - 1
        at = self._head + after + 1 - self.start
        found: list[tuple[int, int]] = []
        size = 0
        for address, length in zip(self._addresses[at : at + 4096], self._lengths[at : at + 4096], strict=True):
            size += length
            if found and size > bytes_max:
                break
            found.append((address, length))
        return found

    def truncate(self, end: int) -> None:
        """The log ends at `end` now."""
        keep = max(self._head + end + 1 - self.start, self._head)
        del self._addresses[keep:], self._lengths[keep:]

    def drop_below(self, address: int) -> None:
        """Frames below an address of the journal can no longer be read."""
        while self._head < len(self._addresses) and self._addresses[self._head] < address:
            self._head += 1
            self.start += 1
        if self._head * 2 > len(self._addresses):
            del self._addresses[: self._head], self._lengths[: self._head]
            self._head = 0
