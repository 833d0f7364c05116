"""The cache of epochs knows up to where two logs can be the same."""

import pytest

from ringpost.node.replication.epochs import EPOCHS_MAX, EpochCache


def test_an_empty_log_ends_at_nothing() -> None:
    assert EpochCache().end_of(7, 0) == (0, 0)
    assert EpochCache().last == 0


@pytest.mark.parametrize(
    ("epoch", "found"),
    [(1, (0, 0)), (2, (2, 4)), (3, (2, 4)), (5, (5, 9)), (6, (5, 9)), (8, (8, 12)), (99, (8, 12))],
)
def test_it_finds_the_epoch_or_the_one_before_and_where_that_ends(epoch: int, found: tuple[int, int]) -> None:
    assert EpochCache([(2, 1), (5, 5), (8, 10)]).end_of(epoch, 12) == found


def test_frames_of_one_epoch_are_one_entry() -> None:
    cache = EpochCache()
    for position, epoch in enumerate((1, 1, 3, 3, 4), start=1):
        cache.note(epoch, position)
    assert list(cache) == [(1, 1), (3, 3), (4, 5)]


@pytest.mark.parametrize(("end", "left"), [(9, [(1, 1), (3, 5)]), (5, [(1, 1), (3, 5)]), (4, [(1, 1)]), (0, [])])
def test_a_cut_forgets_epochs_that_are_gone(end: int, left: list[tuple[int, int]]) -> None:
    cache = EpochCache([(1, 1), (3, 5), (4, 10)])
    cache.truncate(end)
    assert list(cache) == left


def test_what_is_too_old_is_not_known_any_more() -> None:
    cache = EpochCache((epoch, epoch) for epoch in range(1, EPOCHS_MAX + 3))
    assert cache.end_of(2, EPOCHS_MAX + 2) is None
    assert cache.end_of(3, EPOCHS_MAX + 2) == (3, 3)


def test_epochs_and_positions_only_rise() -> None:
    cache = EpochCache([(3, 5)])
    with pytest.raises(AssertionError):
        cache.note(2, 9)
    with pytest.raises(AssertionError):
        cache.note(4, 5)
