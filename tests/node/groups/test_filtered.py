"""What a core does with messages that its group's filter keeps back."""

import pytest

from ringpost.node.groups.changes import Ack, Lease, Outcome, SettleChange, join
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore


def core(kind: type[GroupCore] = GroupCore) -> GroupCore:
    group = kind(settled_below=0, ack_deadline_us=1_000, max_in_flight=100)
    group.attach(1)
    return group


def test_what_is_kept_back_is_not_handed_out_and_settled_once_it_is_stored() -> None:
    group = core()
    assert group.keep_back(2, 3) == [(2, 3)]
    assert group.keep_back(0, 5) == [(0, 1), (4, 5)], "only what is fresh"
    assert group.take(1, 10, 8, 0) == [Lease(6, 7, 1)]
    assert (group.pending(8), group.filtered) == (8, 0)
    group.apply(SettleChange(filtered=[(0, 5)]))
    assert (group.settled_below, group.pending(8), group.filtered, group.rejected) == (6, 2, 6, 0)
    group.apply(SettleChange(filtered=[(0, 5)]))
    assert group.filtered == 6, "each counts once"


@pytest.mark.parametrize("kind", [GroupCore, KeyedCore])
def test_what_could_not_be_stored_is_fresh_again(kind: type[GroupCore]) -> None:
    group = core(kind)
    group.keep_back(1, 3)
    group.apply(SettleChange(acked=[(2, 2)]))
    if isinstance(group, KeyedCore):
        group.learn(0, [7, 7, 7, 7, 7])
        assert group.take(1, 10, 5, 0) == [Lease(0, 0, 1)]
    group.abort(SettleChange(filtered=[(1, 3)]))
    assert group.filtered == 0
    if isinstance(group, KeyedCore):
        assert group.stalled
        assert group.unknown(5) == 1
        group.learn(1, [7, 7, 7])
        group.apply(SettleChange(acked=[(0, 0)]))
        assert group.take(1, 10, 5, 0) == [Lease(1, 1, 1)]
    else:
        assert group.take(1, 10, 5, 0) == [Lease(0, 1, 1), Lease(3, 4, 1)]


def test_an_ack_of_what_is_kept_back_has_nothing_to_do() -> None:
    group = core()
    group.keep_back(1, 1)
    group.take(1, 10, 3, 0)
    verdict = group.settle(1, Ack(), [(0, 2)], False, 0)
    assert verdict.results == [(0, 0, Outcome.DONE), (1, 1, Outcome.ALREADY), (2, 2, Outcome.DONE)]


def test_a_seek_makes_what_was_kept_back_fresh() -> None:
    group = core()
    group.keep_back(0, 3)
    group.seek(1)
    assert group.take(1, 10, 4, 0) == [Lease(1, 3, 1)]


def test_kept_back_messages_park_nothing_and_known_ones_stay() -> None:
    group = core(KeyedCore)
    assert isinstance(group, KeyedCore)
    group.learn(0, [7])
    assert group.keep_back(0, 2) == [(1, 2)], "the first one's key is known: it was let through"
    group.learn(1, [0, 0, 7])
    assert group.take(1, 10, 4, 0) == [Lease(0, 0, 1)]
    group.apply(SettleChange(acked=[(0, 0)]))
    assert group.take(1, 10, 4, 0) == [Lease(3, 3, 1)]


def test_after_forgetting_what_is_settling_is_not_handed_out_and_holds_its_key() -> None:
    group = core(KeyedCore)
    assert isinstance(group, KeyedCore)
    group.learn(0, [7, 7])
    group.take(1, 10, 2, 0)
    change = group.settle(1, Ack(), [(0, 0)], False, 0).change
    assert change is not None
    group.detach(1)
    group.forget()
    group.attach(2)
    group.learn(0, [7, 7])
    assert group.take(2, 10, 2, 0) == []
    group.abort(change)
    assert group.take(2, 10, 2, 0) == [Lease(0, 0, 1)]


def test_changes_are_joined_with_what_was_filtered_out() -> None:
    one, two = SettleChange(acked=[(0, 0)], filtered=[(1, 2)]), SettleChange(filtered=[(3, 4), (8, 8)])
    assert join([one, two]) == [SettleChange(acked=[(0, 0)], filtered=[(1, 4), (8, 8)])]
