"""Where a channel's frames are: one compact row per frame, in offset order.

A row is (base offset, address, frame length), three unsigned 64-bit numbers in one `array`. Offsets are gap-free: a
row ends where the next begins, and the last one at the channel's next offset, which its owner knows. A row without a
frame (address and length 0) stands for offsets whose messages are lost.
Row numbers count from the oldest row that is kept, so `drop_below` shifts them.

Memory, measured on CPython 3.11: 48 bytes for an empty index (no array is made), 152 bytes with one row, then
24 bytes a row and at most 1/16 of spare room; rows dropped from the front stay until they are as many as those kept.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, groupby
from operator import ge
from typing import NamedTuple

LOST = 0  # the address of no frame
_WIDTH = 3  # numbers in a row
ROW_BYTES = _WIDTH * 8
_CHUNK = 256  # rows looked at in one step
_UPPER = 1 if sys.byteorder == "little" else 0  # the half of an address that is its segment


class Row(NamedTuple):
    """One frame: the offset of its first message, its address in the journal, its length in bytes on disk."""

    base: int
    address: int
    length: int

    @property
    def lost(self) -> bool:
        """No frame: damage took these messages."""
        return self.address == LOST


class FrameIndex:
    """The rows of one channel. Invariant: base offsets rise strictly; addresses need not (frames are rewritten)."""

    __slots__ = ("_head", "_rows")

    def __init__(self) -> None:
        self._rows: array[int] | None = None
        self._head = 0  # rows at the front that are dropped but not yet cut away

    def __len__(self) -> int:
        """Rows kept."""
        return 0 if self._rows is None else len(self._rows) // _WIDTH - self._head

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + (0 if self._rows is None else sys.getsizeof(self._rows))

    def append(self, base_offset: int, address: int, length: int) -> None:
        """Adds the newest frame. All three are 0..2**64-1; `base_offset` must be above every earlier one."""
        rows = self._rows
        if rows is None:
            self._rows = array("Q", (base_offset, address, length))
            return
        assert base_offset > rows[-_WIDTH], "base offsets rise"
        rows.extend((base_offset, address, length))

    def find(self, offset: int) -> int:
        """The number of the row that contains `offset`, which must be below the channel's next offset.

        Raises LookupError when the index is empty or begins above `offset`.
        """
        rows = self._rows
        if rows is None or offset < rows[self._head * _WIDTH]:
            raise LookupError(f"offset {offset} is below the oldest frame")
        return self._after(rows, offset) - 1 - self._head

    def row(self, number: int) -> Row:
        """One row, 0 <= number < len; raises IndexError otherwise."""
        rows = self._rows
        if rows is None or not 0 <= number < len(self):
            raise IndexError(f"no row {number} among {len(self)}")
        at = (self._head + number) * _WIDTH
        return Row(rows[at], rows[at + 1], rows[at + 2])

    def rows(self, start: int, stop: int) -> list[Row]:
        """The rows start <= number < stop, as many as there are."""
        if self._rows is None:
            return []
        return _rows_of(self._rows, self._head + start, self._head + max(start, stop))

    def bytes_of_rows(self, start: int, stop: int) -> int:
        """Bytes of the frames of the rows start <= number < stop, as many as there are; some 6 ns a row."""
        if self._rows is None:
            return 0
        return sum(self._rows[(self._head + start) * _WIDTH + 2 : (self._head + max(start, stop)) * _WIDTH : _WIDTH])

    def rows_in_segment(self, segment: int) -> Iterator[list[Row]]:
        """The rows whose frames lie in a segment, by offset, in lists of 1 to 256. Other rows cost 10 to 60 ns.

        The index may change between two lists: rows appended since `next` was first called are not among them, rows
        dropped or moved since may be.
        """
        rows = self._rows
        if rows is not None:
            for start, stop, number in _runs(rows, self._head, len(rows) // _WIDTH):
                if number == segment:
                    yield _rows_of(rows, start, stop)

    def bytes_by_segment(self) -> dict[int, int]:
        """Bytes of all frames, by the segment that they lie in; what is lost lies in none."""
        return {} if self._rows is None else _totals(self._rows, self._head, len(self._rows) // _WIDTH)

    def rows_for_bytes(self, size: int, rows_max: int) -> int:
        """How many rows, from the oldest on, it takes for `size` bytes; at most `rows_max` or as many as there are."""
        rows = self._rows
        if rows is None or size <= 0:
            return 0
        count = min(len(self), rows_max)
        for start in range(0, count, _CHUNK):
            stop = min(start + _CHUNK, count)
            lengths = rows[(self._head + start) * _WIDTH + 2 : (self._head + stop) * _WIDTH : _WIDTH]
            total = sum(lengths)
            if total >= size:
                return start + bisect_left(list(accumulate(lengths)), size) + 1
            size -= total
        return count

    def drop_below(self, offset: int, end: int | None = None) -> dict[int, int]:
        """Drops the rows whose whole frame is below `offset` and returns how many bytes went, by segment.

        `end` is the channel's next offset; without it the last row, whose end is then unknown, always stays.
        """
        rows = self._rows
        if rows is None:
            return {}
        kept_from = len(rows) // _WIDTH
        if end is None or offset < end:
            kept_from = max(self._after(rows, offset) - 1, self._head)
        gone = _totals(rows, self._head, kept_from)
        self._head = kept_from
        self._cut(rows)
        return gone

    def move(self, base_offset: int, address: int) -> bool:
        """The frame that begins at `base_offset` now lies at `address`; False when it is not kept any more."""
        rows = self._rows
        if rows is None:
            return False
        at = (self._after(rows, base_offset) - 1) * _WIDTH
        if at < self._head * _WIDTH or rows[at] != base_offset:
            return False
        rows[at + 1] = address
        return True

    def lose(self, number: int) -> Row:
        """The frame of a row is lost; returns the row as it was."""
        row = self.row(number)
        assert self._rows is not None, "it has a row"
        at = (self._head + number) * _WIDTH
        self._rows[at + 1] = self._rows[at + 2] = LOST
        return row

    def lost_rows(self) -> Iterator[int]:
        """The numbers of the rows without a frame, the newest first."""
        if self._rows is not None:
            for start, stop, segment in reversed(list(_runs(self._rows, self._head, len(self._rows) // _WIDTH))):
                if segment == LOST:
                    lost = (row for row in range(stop - 1, start - 1, -1) if self._rows[row * _WIDTH + 1] == LOST)
                    yield from (row - self._head for row in lost)

    def to_bytes(self) -> bytes:
        """The kept rows, 24 bytes each: base offset, address, length as little-endian u64."""
        if self._rows is None:
            return b""
        return _little_endian(self._rows[self._head * _WIDTH :]).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "FrameIndex":
        """The inverse of `to_bytes`. Raises ValueError when the length is not of whole rows or bases do not rise."""
        if len(data) % ROW_BYTES:
            raise ValueError(f"{len(data)} bytes are not whole index rows of {ROW_BYTES}")
        index = cls()
        if data:
            rows = array("Q")
            rows.frombytes(data)
            rows = _little_endian(rows)
            bases = rows[::_WIDTH]
            if any(map(ge, bases, bases[1:])):
                raise ValueError("base offsets of index rows do not rise")
            index._rows = rows
        return index

    def _after(self, rows: "array[int]", offset: int) -> int:
        """The first row of the array, not of those kept, whose base is above `offset`; `_head` when all are."""
        count = len(rows) // _WIDTH
        if offset >= rows[-_WIDTH]:  # readers at the tail are the common case
            return count
        return bisect_right(range(count), offset, self._head, count, key=lambda number: rows[number * _WIDTH])

    def _cut(self, rows: "array[int]") -> None:
        """Frees dropped rows once they are at least as many as the kept: each kept row pays for one cut row."""
        count = len(rows) // _WIDTH
        if self._head == count:
            self._rows = None
            self._head = 0
        elif self._head * 2 >= count:
            # A fresh array has no spare room; deleting in place would keep the old block.
            self._rows = rows[self._head * _WIDTH :]
            self._head = 0


def live_bytes(rows: bytes) -> tuple[dict[int, int], bool]:
    """Bytes of the frames in encoded rows, of one channel or of several together, by the segment that they lie in.

    And whether some of the rows have no frame. `rows` is a whole number of them.
    """
    numbers = array("Q")
    numbers.frombytes(rows)
    numbers = _little_endian(numbers)
    return _totals(numbers, 0, len(numbers) // _WIDTH), LOST in numbers[1::_WIDTH]


def _rows_of(rows: "array[int]", start: int, stop: int) -> list[Row]:
    numbers = rows[start * _WIDTH : stop * _WIDTH].tolist()
    return list(map(Row, numbers[::_WIDTH], numbers[1::_WIDTH], numbers[2::_WIDTH]))


def _runs(rows: "array[int]", start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cuts start <= row < stop into (start, stop, segment): runs of at most 256 rows that lie in one segment.

    Nearly always a whole chunk lies in one; comparing two arrays costs far less than looking at each row.
    """
    for at in range(start, stop, _CHUNK):
        end = min(at + _CHUNK, stop)
        segments = array("I", rows[at * _WIDTH + 1 : end * _WIDTH : _WIDTH].tobytes())[_UPPER::2]
        if segments == segments[:1] * len(segments):
            yield at, end, segments[0]
            continue
        for segment, run in groupby(segments):
            end = at + len(list(run))
            yield at, end, segment
            at = end


def _totals(rows: "array[int]", start: int, stop: int) -> dict[int, int]:
    totals: dict[int, int] = {}
    for at, end, segment in _runs(rows, start, stop):
        totals[segment] = totals.get(segment, 0) + sum(rows[at * _WIDTH + 2 : end * _WIDTH : _WIDTH])
    if not totals.get(LOST, 1):
        del totals[LOST]
    return totals


def _little_endian(numbers: "array[int]") -> "array[int]":
    """Swaps the bytes in place on a big-endian machine."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
