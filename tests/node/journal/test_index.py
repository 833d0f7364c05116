"""A channel's rows: found by offset, dropped from the front, moved, and small."""

import sys
from bisect import bisect_right
from itertools import accumulate, chain, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringpost.node.journal.index import FrameIndex, Row
from ringpost.node.journal.segment import address_of


def index_of(*rows: tuple[int, int, int]) -> FrameIndex:
    index = FrameIndex()
    for row in rows:
        index.append(*row)
    return index


def test_an_offset_is_found_in_the_frame_that_contains_it() -> None:
    index = index_of((0, 1000, 50), (10, 2000, 60), (11, 3000, 70))
    assert [index.find(offset) for offset in (0, 9, 10, 11, 12, 500)] == [0, 0, 1, 2, 2, 2]
    assert index.row(1) == Row(10, 2000, 60)
    assert index.rows(1, 9) == [Row(10, 2000, 60), Row(11, 3000, 70)]


def test_an_offset_below_the_oldest_frame_is_not_found() -> None:
    with pytest.raises(LookupError, match="4 is below"):
        index_of((5, 1, 1)).find(4)
    with pytest.raises(LookupError):
        FrameIndex().find(0)


@pytest.mark.parametrize("number", [-1, 2])
def test_there_is_no_row_outside(number: int) -> None:
    with pytest.raises(IndexError, match="among 2"):
        index_of((0, 1, 1), (1, 2, 1)).row(number)


def test_a_frame_is_dropped_only_when_all_of_it_is_below() -> None:
    index = index_of((0, 1000, 50), (10, 2000, 60), (20, 3000, 70))
    assert index.drop_below(19, end=30) == {0: 50}
    assert index.drop_below(20, end=30) == {0: 60}
    assert index.drop_below(29, end=30) == {}
    assert index.drop_below(30) == {}  # the end is not told, so the last frame may reach beyond
    assert index.drop_below(30, end=30) == {0: 70}
    assert index.drop_below(30, end=30) == {}
    assert len(index) == 0


def test_a_row_number_counts_from_the_oldest_row_kept() -> None:
    index = index_of((0, 1000, 50), (10, 2000, 60), (20, 3000, 70))
    index.drop_below(10)
    assert index.find(10) == 0
    assert index.row(0).address == 2000


def test_bytes_of_a_stretch_of_rows() -> None:
    index = index_of((0, 1000, 50), (10, 2000, 60), (20, 3000, 70))
    assert [index.bytes_of_rows(*pair) for pair in ((0, 3), (1, 2), (1, 9), (2, 2), (2, 1))] == [180, 60, 130, 0, 0]
    index.drop_below(10)
    assert index.bytes_of_rows(0, 1) == 60
    assert FrameIndex().bytes_of_rows(0, 5) == 0


def test_a_rewritten_frame_is_found_at_its_new_address() -> None:
    index = index_of((0, 1000, 50), (10, 2000, 60), (20, 3000, 70))
    index.drop_below(10)
    assert index.move(10, 9000)
    assert index.row(0) == Row(10, 9000, 60)
    assert not index.move(0, 9000), "trimmed while it was rewritten"
    assert not index.move(11, 9000), "no frame begins there"
    assert not FrameIndex().move(0, 9000)


def in_segments(*runs: tuple[int, int]) -> FrameIndex:
    """`(segment, rows)` after each other; the row with base n is of n % 7 + 100 bytes."""
    segments = chain.from_iterable([segment] * count for segment, count in runs)
    return index_of(*((n, address_of(segment, 64 + n), n % 7 + 100) for n, segment in enumerate(segments)))


def totals(rows: list[Row]) -> dict[int, int]:
    found: dict[int, int] = {}
    for row in rows:
        found[row.address >> 32] = found.get(row.address >> 32, 0) + row.length
    return found


RUNS = st.lists(st.tuples(st.sampled_from((1, 2, 300, 2**32 - 1)), st.integers(1, 600)), max_size=6)


@given(RUNS, st.integers(0, 2000))
@settings(deadline=None)
def test_bytes_and_rows_of_segments_are_told_also_where_rewritten_frames_break_the_order(
    runs: list[tuple[int, int]], offset: int
) -> None:
    index = in_segments(*runs)
    end = len(index)
    rows = index.rows(0, end)
    assert index.bytes_by_segment() == totals(rows)
    assert index.drop_below(offset, end=end) == totals(rows[:offset])
    assert index.bytes_by_segment() == totals(rows[offset:])
    for segment in (0, 1, 2, 300, 2**32 - 1):
        expected = [row for row in rows[offset:] if row.address >> 32 == segment]
        assert list(chain.from_iterable(index.rows_in_segment(segment))) == expected


def test_rows_of_a_segment_are_found_while_the_index_changes() -> None:
    index = in_segments((1, 1000), (2, 10))
    lists = index.rows_in_segment(1)
    first = next(lists)
    assert len(first) <= 256
    index.append(5000, address_of(3, 64), 100)
    index.drop_below(1005)
    assert [row.base for row in chain(first, *lists)] == list(range(1000))
    assert [row.base for row in chain(*index.rows_in_segment(2))] == list(range(1005, 1010))


@given(st.integers(0, 700), st.integers(0, 300), st.integers(-5, 80_000), st.integers(0, 800))
@settings(deadline=None)
def test_the_oldest_rows_that_make_up_so_many_bytes(count: int, dropped: int, size: int, rows_max: int) -> None:
    index = in_segments((1, count))
    index.drop_below(dropped, end=count)
    lengths = [row.length for row in index.rows(0, len(index))]
    enough = [number for number, total in enumerate(accumulate(lengths, initial=0)) if total >= size]
    assert index.rows_for_bytes(size, rows_max) == min([*enough[:1], len(lengths), rows_max])


def test_bases_rise() -> None:
    with pytest.raises(AssertionError):
        index_of((5, 1, 1), (5, 2, 1))
    with pytest.raises(ValueError, match="do not rise"):
        FrameIndex.from_bytes(index_of((5, 1, 1)).to_bytes() * 2)


def test_the_bytes_are_little_endian_triples() -> None:
    index = index_of((1, 2 << 32, 3))
    assert index.to_bytes() == b"".join(number.to_bytes(8, "little") for number in (1, 2 << 32, 3))
    with pytest.raises(ValueError, match="whole index rows"):
        FrameIndex.from_bytes(bytes(25))


def test_memory_is_what_the_module_promises() -> None:
    assert sys.getsizeof(FrameIndex()) <= 48
    assert sys.getsizeof(index_of((10**9, 10**12, 500))) <= 152
    many = index_of(*((n * 10, n << 20, 500) for n in range(10_000)))
    assert sys.getsizeof(many) <= 10_000 * 24 * 17 // 16 + 300
    many.drop_below(99_000)
    assert sys.getsizeof(many) <= 1_000 * 24 * 2 + 300
    many.drop_below(100_000, end=100_000)
    assert sys.getsizeof(many) <= 48


class IndexModel(RuleBasedStateMachine):
    """The index against a plain list of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.index = FrameIndex()
        self.rows: list[tuple[int, int, int]] = []
        self.end = 0

    @rule(counts=st.lists(st.integers(1, 5), min_size=1, max_size=8), address=st.integers(0, 2**64 - 1))
    def append(self, counts: list[int], address: int) -> None:
        for count in counts:
            row = (self.end, address, count * 100)
            self.index.append(*row)
            self.rows.append(row)
            self.end += count

    @rule(data=st.data(), told=st.booleans())
    def drop(self, data: Any, told: bool) -> None:
        offset = data.draw(st.integers(0, self.end + 2))
        ends = [row[0] for row in self.rows[1:]] + [self.end if told else offset + 1]
        gone = sum(end <= offset for end in ends[: len(self.rows)])
        dropped = self.index.drop_below(offset, self.end if told else None)
        assert dropped == totals([Row(*row) for row in self.rows[:gone]])
        del self.rows[:gone]

    @rule(data=st.data(), address=st.integers(0, 2**64 - 1))
    def move(self, data: Any, address: int) -> None:
        base = data.draw(st.integers(0, self.end + 2))
        bases = [row[0] for row in self.rows]
        assert self.index.move(base, address) == (base in bases)
        if base in bases:
            at = bases.index(base)
            self.rows[at] = (base, address, self.rows[at][2])

    @rule()
    def restart(self) -> None:
        self.index = FrameIndex.from_bytes(self.index.to_bytes())

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.rows)
        assert self.index.rows(0, len(self.rows)) == self.rows
        assert [self.index.row(number) for number in range(len(self.rows))] == self.rows
        bases = [row[0] for row in self.rows]
        assert all(a < b for a, b in pairwise(bases))
        if bases:
            for offset in range(bases[0], min(self.end, bases[0] + 40)):
                assert self.index.find(offset) == bisect_right(bases, offset) - 1


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
