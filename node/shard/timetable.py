"""When scheduled batches of one channel are due, and where they lie: columns of numbers, no object for each. Pure.

Entries come in the order of their numbers (positions in the shard's log) and leave in any order, mostly that of their
times. They stand in *pages* of up to 4,096: five arrays by number, and beside them the order by time, which is a heap
while the page is being filled and an array afterwards. So each step costs at most a page's sorting, however many there
are. Measured on CPython 3.11: 34 bytes an entry, 0.9 KB for a channel that has one.
"""

import heapq
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import compress, count
from operator import ge
from typing import NamedTuple

from ringpost.node.journal.segment import segment_of

_PAGE_BITS = 12
_PAGE = 1 << _PAGE_BITS
_INDEX = _PAGE - 1
_GONE = 0  # the address of no frame
_SWAPPED = sys.byteorder == "big"
_COLUMNS = "QQQII"  # numbers, times, addresses, lengths, counts
ENTRY_BYTES = sum(array(code).itemsize for code in _COLUMNS)


class Entry(NamedTuple):
    """A batch of `count` messages that is due at a time; its frame lies at an address."""

    number: int
    due_us: int
    address: int
    length: int
    count: int  # type: ignore[assignment]  # tuple has a method of this name


class _Page:
    """Entries by number; `waiting` and `order` hold those that nobody has taken, some of which may be gone.

    Invariant: `live` rows have an address. `order` None: all wait, and nobody has asked yet which is the first.
    """

    __slots__ = ("addresses", "counts", "dues", "lengths", "live", "numbers", "order", "taken", "waiting")

    def __init__(self) -> None:
        self.numbers: array[int] = array("Q")
        self.dues: array[int] = array("Q")
        self.addresses: array[int] = array("Q")
        self.lengths: array[int] = array("I")
        self.counts: array[int] = array("I")
        self.live = 0
        self.waiting: list[int] | None = []  # heap of time << 12 | row, while it is being filled
        self.order: array[int] | None = array("H")  # rows by time, from `taken` on, when it is full
        self.taken = 0

    def add(self, entry: Entry) -> None:
        assert self.waiting is not None, "it is not full"
        heapq.heappush(self.waiting, entry.due_us << _PAGE_BITS | len(self.numbers))
        self.numbers.append(entry.number)
        self.dues.append(entry.due_us)
        self.addresses.append(entry.address)
        self.lengths.append(entry.length)
        self.counts.append(entry.count)
        self.live += 1

    @classmethod
    def full(cls, columns: "list[array[int]]") -> "_Page":
        """One that takes no more, all of it waiting."""
        page = cls()
        page.numbers, page.dues, page.addresses, page.lengths, page.counts = columns
        page.live = len(page.numbers)
        page.order = page.waiting = None
        return page

    def by_time(self) -> "array[int]":
        """`order` of a full page."""
        if self.order is None:
            self.order = array("H", sorted(range(len(self.dues)), key=self.dues.__getitem__))
        return self.order

    def soonest(self) -> tuple[int, int] | None:
        """Time and number of one that is not behind the first; None when none waits."""
        if self.order is None:
            due = min(self.dues)
            return due, self.numbers[self.dues.index(due)]
        row = self.first()
        return None if row is None else (self.dues[row], self.numbers[row])

    def close(self) -> None:
        """It takes no more."""
        if self.waiting is not None:
            self.order = array("H", [key & _INDEX for key in sorted(self.waiting)])
            self.waiting, self.taken = None, 0

    def first(self) -> int | None:
        """The row that is due first, of those that wait."""
        if self.waiting is not None:
            while self.waiting and self.addresses[self.waiting[0] & _INDEX] == _GONE:
                heapq.heappop(self.waiting)
            return self.waiting[0] & _INDEX if self.waiting else None
        order = self.by_time()
        while self.taken < len(order) and self.addresses[order[self.taken]] == _GONE:
            self.taken += 1
        return order[self.taken] if self.taken < len(order) else None

    def take(self) -> None:
        """What `first` said waits no longer."""
        if self.waiting is not None:
            heapq.heappop(self.waiting)
        else:
            self.taken += 1

    def wait_again(self, rows: Iterable[int]) -> None:
        """The opposite."""
        if self.waiting is not None:
            for row in rows:
                heapq.heappush(self.waiting, self.dues[row] << _PAGE_BITS | row)
        else:
            all_rows = [*rows, *self.by_time()[self.taken :]]
            self.order, self.taken = array("H", sorted(all_rows, key=lambda one: (self.dues[one], one))), 0

    def entry(self, row: int) -> Entry:
        return Entry(self.numbers[row], self.dues[row], self.addresses[row], self.lengths[row], self.counts[row])

    def find(self, number: int) -> int | None:
        """The row with a number; None when there is none, or it is gone."""
        row = bisect_left(self.numbers, number)
        there = row < len(self.numbers) and self.numbers[row] == number and self.addresses[row] != _GONE
        return row if there else None

    def rows(self) -> list[int]:
        """Those that are not gone."""
        return [row for row, address in enumerate(self.addresses) if address != _GONE]

    def kept(self) -> "list[array[int]]":
        """The columns without what is gone."""
        columns = [self.numbers, self.dues, self.addresses, self.lengths, self.counts]
        if self.live == len(self.numbers):
            return columns
        return [array(column.typecode, compress(column, self.addresses)) for column in columns]  # 0 is gone

    def shrunk(self) -> "_Page":
        """A full page without what is gone."""
        places = {row: place for place, row in enumerate(self.rows())}
        page = _Page()
        page.numbers, page.dues, page.addresses, page.lengths, page.counts = self.kept()
        if self.order is not None:
            page.order = array("H", [places[row] for row in self.order[self.taken :] if row in places])
        else:
            page.order = None
        page.waiting, page.live = None, self.live
        return page


class Timetable:
    """The entries of one channel. `messages` and `bytes` are those of all entries, taken ones included.

    Invariant: each full page in which an entry waits has a mark in `_marks` that is not behind its first one.
    """

    __slots__ = ("_count", "_marks", "_pages", "_serial", "bytes", "messages")

    def __init__(self) -> None:
        self._pages: list[_Page] = []
        self._marks: list[tuple[int, int, int, _Page]] = []  # heap of time, number, a number to tell them apart, page
        self._serial = count()
        self._count = 0
        self.messages = 0
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry) -> None:
        """Puts an entry in; its number must be above every earlier one."""
        assert not self._pages or entry.number > self._pages[-1].numbers[-1], "numbers rise"
        assert entry.address != _GONE
        if not self._pages or self._pages[-1].waiting is None:
            self._pages.append(_Page())
        page = self._pages[-1]
        page.add(entry)
        if len(page.numbers) == _PAGE:
            page.close()
            self._mark(page)
            self._tidy(page)
        self._count += 1
        self.messages += entry.count
        self.bytes += entry.length

    def find(self, number: int) -> Entry | None:
        """The entry with a number, taken or not."""
        page = self._page_of(number)
        row = None if page is None else page.find(number)
        return None if page is None or row is None else page.entry(row)

    def drop(self, number: int) -> Entry | None:
        """Removes an entry, taken or not; None when there is no such one."""
        page = self._page_of(number)
        row = None if page is None else page.find(number)
        if page is None or row is None:
            return None
        entry = page.entry(row)
        page.addresses[row] = _GONE
        page.live -= 1
        self._count -= 1
        self.messages -= entry.count
        self.bytes -= entry.length
        self._tidy(page)
        return entry

    def move(self, number: int, address: int) -> int | None:
        """The frame now lies at another address; the one before, or None when there is no such entry."""
        page = self._page_of(number)
        row = None if page is None else page.find(number)
        if page is None or row is None:
            return None
        before = page.addresses[row]
        page.addresses[row] = address
        return before

    # -- by time ----------------------------------------------------------------------------------------------------

    @property
    def next_due_us(self) -> int | None:
        """When the first one is due, of those that nobody has taken."""
        page = self._first_page()
        if page is None:
            return None
        row = page.first()
        assert row is not None
        due: int = page.dues[row]
        return due

    def take(self, now_us: int, entries_max: int, bytes_max: int) -> list[Entry]:
        """Takes entries that are due, by time and then number; at least one if there is one. They stay in the table."""
        found: list[Entry] = []
        size = 0
        while len(found) < entries_max and (page := self._first_page()) is not None:
            row = page.first()
            assert row is not None
            if page.dues[row] > now_us or (found and size + page.lengths[row] > bytes_max):
                break
            page.take()
            found.append(page.entry(row))
            size += page.lengths[row]
        return found

    def give_back(self, entries: Iterable[Entry]) -> None:
        """What was taken waits again; what is gone meanwhile is passed over."""
        found: dict[_Page, list[int]] = {}
        for entry in entries:
            page = self._page_of(entry.number)
            row = None if page is None else page.find(entry.number)
            if page is not None and row is not None:
                found.setdefault(page, []).append(row)
        for page, rows in found.items():
            page.wait_again(rows)
            self._mark(page)

    def _mark(self, page: _Page) -> None:
        if page.waiting is None and (soonest := page.soonest()) is not None:
            heapq.heappush(self._marks, (*soonest, next(self._serial), page))

    def _first_page(self) -> _Page | None:
        """The page of the entry that is due first."""
        full = self._first_full_page()
        last = self._pages[-1] if self._pages else None
        if last is None or last.waiting is None or (row := last.first()) is None:
            return full
        if full is None or (last.dues[row], last.numbers[row]) < self._marks[0][:2]:
            return last
        return full

    def _first_full_page(self) -> _Page | None:
        """Brings the marks up to date on the way."""
        marks = self._marks
        while marks:
            due, number, serial, page = marks[0]
            row = page.first()
            if row is None:
                heapq.heappop(marks)
            elif (page.dues[row], page.numbers[row]) == (due, number):
                return page
            else:
                heapq.heapreplace(marks, (page.dues[row], page.numbers[row], serial, page))
        return None

    # -- by number --------------------------------------------------------------------------------------------------

    def entries(self, after: int = 0) -> Iterator[list[Entry]]:
        """All entries with numbers above `after`, in their order, in lists of up to a page; it may change between."""
        while (place := self._place_after(after)) < len(self._pages):
            page = self._pages[place]
            rows = [row for row in page.rows() if page.numbers[row] > after]
            found = [page.entry(row) for row in rows]
            after = page.numbers[-1]
            if found:
                yield found

    def bytes_by_segment(self) -> dict[int, int]:
        """Bytes of all frames, by the segment that they lie in."""
        totals: dict[int, int] = {}
        for page in self._pages:
            segment = segment_of(min(page.addresses))
            if page.live == len(page.addresses) and segment == segment_of(max(page.addresses)):
                totals[segment] = totals.get(segment, 0) + sum(page.lengths)
                continue
            for address, length in zip(page.addresses, page.lengths, strict=True):
                if address != _GONE:
                    totals[segment_of(address)] = totals.get(segment_of(address), 0) + length
        return totals

    def to_bytes(self) -> bytearray:
        """All entries: number, time, address, length and count, little endian, one column behind the other."""
        data = bytearray(self._count * ENTRY_BYTES)
        kept = [page.kept() for page in self._pages]
        at = 0
        for number, code in enumerate(_COLUMNS):
            end = at + self._count * array(code).itemsize
            part, row = memoryview(data)[at:end], 0
            target = part.cast("Q") if code == "Q" else part.cast("I")
            for columns in kept:
                column = columns[number]
                target[row : row + len(column)] = memoryview(_little_endian(column[:]) if _SWAPPED else column)
                row += len(column)
            at = end
        return data

    @classmethod
    def from_bytes(cls, data: bytes | bytearray) -> "Timetable":
        """The inverse. Raises ValueError for what `to_bytes` cannot have made."""
        if len(data) % ENTRY_BYTES:
            raise ValueError(f"{len(data)} bytes are not whole entries of {ENTRY_BYTES}")
        rows, at = len(data) // ENTRY_BYTES, 0
        columns = []
        for code in _COLUMNS:
            column = array(code)
            column.frombytes(data[at : at + rows * column.itemsize])
            at += rows * column.itemsize
            columns.append(_little_endian(column))
        numbers, _, addresses, lengths, counts = columns
        if any(map(ge, numbers, numbers[1:])) or _GONE in addresses:
            raise ValueError("entries of a schedule are out of order, or lie nowhere")
        table = cls()
        table._count, table.messages, table.bytes = rows, sum(counts), sum(lengths)
        for start in range(0, rows, _PAGE):
            page = _Page.full([column[start : start + _PAGE] for column in columns])
            table._pages.append(page)
            table._mark(page)
        return table

    def _place_after(self, number: int) -> int:
        """Of the first page that may have a number above this one."""
        return bisect_right(self._pages, number, key=lambda page: page.numbers[-1])

    def _page_of(self, number: int) -> _Page | None:
        place = bisect_left(self._pages, number, key=lambda page: page.numbers[-1])
        return self._pages[place] if place < len(self._pages) else None

    def _tidy(self, page: _Page) -> None:
        """Drops a full page that is empty; one of which little is left becomes smaller."""
        if page.waiting is not None or page.live * 4 > len(page.numbers):
            return
        place = bisect_left(self._pages, page.numbers[-1], key=lambda one: one.numbers[-1])
        if not page.live:
            del self._pages[place]
            page.order = array("H")  # its marks, if any, lead nowhere
            return
        self._pages[place] = page.shrunk()
        page.order = array("H")
        self._mark(self._pages[place])


def _little_endian(column: "array[int]") -> "array[int]":
    """Swaps the bytes in place on a big-endian machine."""
    if _SWAPPED:
        column.byteswap()
    return column
