"""Stories of seeks and retention, also while changes are on their way to the log."""

import pytest

from ringpost.node.groups.changes import Ack, Lease, Nack
from tests.node.groups.actors import (
    ALREADY,
    ANN,
    BOB,
    DONE,
    END,
    EXPIRED,
    SECOND,
    UNKNOWN,
    commit,
    deliverable,
    failed,
    new_group,
    settle,
)


class TestMoves:
    def test_a_seek_back_delivers_again_as_if_never_delivered(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        commit(group, settle(group, ANN, Nack(), (3, 3)).change)
        commit(group, settle(group, ANN, Ack(), (0, 2), (5, 6)).change)
        group.seek(2)
        assert group.snapshot() == (2, [], [], 0)
        assert (group.in_flight, group.next_event_us(0)) == (0, None)
        assert settle(group, ANN, Ack(), (0, 20)).results == [(0, 1, ALREADY), (2, 9, EXPIRED), (10, 20, UNKNOWN)]
        assert group.take(BOB, 10, END, 0) == [Lease(2, 11, 1)]

    def test_a_seek_forward_settles_what_it_passes(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        group.seek(500)
        assert (group.settled_below, group.pending(END)) == (500, 500)
        assert group.take(ANN, 10, END, 0) == [Lease(500, 509, 1)]

    def test_an_ack_stored_behind_a_seek_takes_the_message_from_its_new_holder(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        change = settle(group, ANN, Ack(), (0, 0)).change
        group.seek(0)
        assert group.take(BOB, 1, 1, 0) == [Lease(0, 0, 1)]
        commit(group, change)
        assert (group.in_flight_of(BOB), group.in_flight, group.settled_below) == (0, 0, 1)
        assert settle(group, BOB, Ack(), (0, 0)) == ([(0, 0, ALREADY)], None)

    def test_retention_settles_and_ends_leases(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        commit(group, settle(group, ANN, Nack(), (1, 1), (8, 8)).change)
        group.trim(6)
        assert (group.settled_below, group.in_flight_of(ANN), group.to_redeliver) == (6, 3, 1)
        assert settle(group, ANN, Ack(), (0, 9)).results == [
            (0, 5, ALREADY),
            (6, 7, DONE),
            (8, 8, EXPIRED),
            (9, 9, DONE),
        ]
        group.trim(0)
        assert group.settled_below == 6

    def test_a_failure_stored_behind_the_trim_brings_nothing_back(self) -> None:
        group = new_group()
        group.take(ANN, 10, 10, 0)
        change = settle(group, ANN, Nack(), (0, 9)).change
        group.trim(6)
        commit(group, change)
        assert group.snapshot() == (6, [], [failed(6, 9, 1, 0)], 0)
        assert group.take(BOB, 10, 10, 0) == [Lease(6, 9, 2)]

    def test_a_due_failure_that_is_gone_is_not_deliverable(self) -> None:
        group = new_group()
        group.take(ANN, 2, 2, 0)
        commit(group, settle(group, ANN, Nack(), (0, 0)).change)
        assert deliverable(group, 2, 0)
        group.trim(1)
        assert not deliverable(group, 2, 0)


class TestFailuresStoredBehindASeek:
    """The delivery failed before the seek, its record lies behind it: it counts, and nobody loses a lease by it."""

    def test_an_ack_on_its_way_is_kept(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        old = settle(group, ANN, Nack(), (0, 0)).change
        group.seek(0)
        group.take(BOB, 1, 1, 0)
        new = settle(group, BOB, Ack(), (0, 0)).change
        commit(group, old)
        assert not deliverable(group, 1, 0)
        commit(group, new)
        assert group.snapshot() == (1, [], [], 0)

    def test_the_attempt_does_not_fall(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        commit(group, settle(group, ANN, Nack(), (0, 0)).change)
        group.take(ANN, 1, 1, 0)
        old = settle(group, ANN, Nack(), (0, 0)).change
        group.seek(0)
        assert group.take(BOB, 1, 1, 0) == [Lease(0, 0, 1)]
        commit(group, old)
        assert not deliverable(group, 1, 0), "bob still has it"
        commit(group, settle(group, BOB, Nack(), (0, 0)).change)
        assert group.take(BOB, 1, 1, 0) == [Lease(0, 0, 3)]

    @pytest.mark.parametrize("looked", [False, True])
    def test_the_later_record_says_how_long_to_wait(self, looked: bool) -> None:
        group = new_group()
        changes = []
        for delay in (0, 9 * SECOND):
            group.take(ANN, 1, 1, 0)
            changes.append(settle(group, ANN, Nack(delay), (0, 0)).change)
            group.seek(0)
        commit(group, changes[0])
        assert not looked or deliverable(group, 1, 0)
        commit(group, changes[1])
        assert not deliverable(group, 1, 9 * SECOND - 1)
        assert deliverable(group, 1, 9 * SECOND)
