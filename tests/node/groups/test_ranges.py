"""Sets and maps of ranges behave like sets and dicts of integers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.groups.ranges import RangeMap, RangeSet, append_range, flatten, pairs

HIGH = 30
spans = st.tuples(st.integers(0, HIGH), st.integers(0, HIGH)).map(lambda pair: (min(pair), max(pair)))


def integers(ranges: list[tuple[int, int]]) -> list[int]:
    return [offset for first, last in ranges for offset in range(first, last + 1)]


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    """The maximal runs of a set, worked out integer by integer."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        append_range(found, number, number)
    return found


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), spans), max_size=30), spans, st.integers(0, HIGH))
def test_a_range_set_is_a_set(steps: list[tuple[str, tuple[int, int]]], query: tuple[int, int], limit: int) -> None:
    ranges = RangeSet()
    model: set[int] = set()
    for verb, (first, last) in steps:
        getattr(ranges, verb)(first, last)
        model = model | set(range(first, last + 1)) if verb == "add" else model - set(range(first, last + 1))
        assert list(ranges) == runs(model)
        assert ranges.count == len(model)
    first, last = query
    window = set(range(first, last + 1))
    assert ranges.intersect(first, last) == runs(model & window)
    assert ranges.gaps(first, last) == runs(window - model)
    assert integers(ranges.gaps(first, last, limit)) == sorted(window - model)[:limit]
    assert integers(ranges.head(limit)) == sorted(model)[:limit]
    assert ranges.first_gap(first) == next(n for n in range(first, HIGH + 2) if n not in model)
    assert ranges.contains(first) == (first in model)
    assert ranges.end == max(model, default=-1) + 1
    assert RangeSet.from_flat(ranges.flat()).flat() == ranges.flat()


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b"]), spans), max_size=30), spans)
def test_a_range_map_is_a_dict(steps: list[tuple[str | None, tuple[int, int]]], query: tuple[int, int]) -> None:
    ranges: RangeMap[str] = RangeMap()
    model: dict[int, str] = {}
    for value, (first, last) in steps:
        for offset in range(first, last + 1):
            model.pop(offset, None)
        if value is None:
            ranges.remove(first, last)
        else:
            ranges.assign(first, last, value)
            model.update(dict.fromkeys(range(first, last + 1), value))
        assert {n: value for low, high, value in ranges for n in range(low, high + 1)} == model
        assert ranges.count == len(model)
    for (_, last_a, a), (first_b, _, b) in zip(list(ranges), list(ranges)[1:], strict=False):
        assert last_a + 1 < first_b or (last_a < first_b and a != b), "disjoint, sorted, and no needless cut"
    first, last = query
    pieces = ranges.pieces(first, last)
    assert integers([(low, high) for low, high, _ in pieces]) == list(range(first, last + 1))
    assert all(model.get(n) == value for low, high, value in pieces for n in range(low, high + 1))
    assert list(ranges.items(first, last)) == [piece for piece in pieces if piece[2] is not None]


def test_a_query_that_is_turned_round_is_empty() -> None:
    ranges, values = RangeSet([(5, 20)]), RangeMap[str]()
    values.assign(5, 20, "a")
    assert ranges.intersect(10, 8) == ranges.gaps(3, 2) == []
    assert values.pieces(10, 8) == list(values.items(10, 8)) == []
    ranges.remove(10, 8)
    values.remove(10, 8)
    assert (list(ranges), list(values)) == ([(5, 20)], [(5, 20, "a")])


def test_the_size_of_the_numbers_does_not_matter() -> None:
    ranges = RangeSet([(0, 10**15), (10**15 + 2, 2**63)])
    ranges.remove(10**6, 10**12)
    assert ranges.flat() == [0, 10**6 - 1, 10**12 + 1, 10**15, 10**15 + 2, 2**63]
    assert ranges.gaps(0, 2**63) == [(10**6, 10**12), (10**15 + 1, 10**15 + 1)]


def test_pairs_refuse_what_is_not_ranges() -> None:
    assert pairs(flatten([(1, 2), (4, 4)])) == [(1, 2), (4, 4)]
    for flat in ([1], [1, 2, 3], [5, 4], [-1, 3]):
        with pytest.raises(ValueError):
            pairs(flat)
