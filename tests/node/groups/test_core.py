"""Stories of one durable group: who gets what, when it comes back, and what is remembered."""

import pytest

from ringpost.node.groups.changes import Ack, Extend, Lease, Nack, Reject, SettleChange
from ringpost.node.groups.core import EXPIRE_RANGES_MAX, GroupCore
from ringpost.node.groups.policy import ENDED
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
    restarted,
    settle,
)


class TestDelivery:
    def test_consumers_share_the_messages_in_order(self) -> None:
        group = new_group()
        assert group.take(ANN, 10, END, 0) == [Lease(0, 9, 1)]
        assert group.take(BOB, 10, END, 0) == [Lease(10, 19, 1)]
        assert group.take(ANN, 10, 25, 0) == [Lease(20, 24, 1)]
        assert not deliverable(group, 25, 0)
        assert group.take(BOB, 10, 25, 0) == []
        assert (group.in_flight, group.in_flight_of(ANN), group.in_flight_of(BOB)) == (25, 15, 10)

    def test_no_more_than_max_in_flight_are_out(self) -> None:
        group = new_group(max_in_flight=10)
        group.take(ANN, 8, END, 0)
        assert group.take(BOB, 8, END, 0) == [Lease(8, 9, 1)]
        assert not deliverable(group, END, 0)
        change = settle(group, ANN, Ack(), (0, 2)).change
        assert not deliverable(group, END, 0), "what is settling counts until it is stored"
        commit(group, change)
        assert group.take(BOB, 8, END, 0) == [Lease(10, 12, 1)]

    def test_failed_messages_come_before_fresh_ones_lowest_first(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        commit(group, settle(group, ANN, Nack(), (7, 7), (2, 3)).change)
        assert group.take(BOB, 4, END, 0) == [Lease(2, 3, 2), Lease(7, 7, 2), Lease(10, 10, 1)]

    def test_a_leaving_consumer_gives_back_without_an_attempt(self) -> None:
        group = new_group()
        group.take(ANN, 3, END, 0)
        commit(group, settle(group, ANN, Nack(), (1, 1)).change)
        group.take(ANN, 1, END, 0)
        assert group.detach(ANN)
        assert group.take(BOB, 3, END, 0) == [Lease(1, 1, 2), Lease(0, 0, 1), Lease(2, 2, 1)]

    def test_a_leaving_consumer_without_leases_changes_nothing(self) -> None:
        group = new_group()
        group.take(ANN, 1, END, 0)
        commit(group, settle(group, ANN, Ack(), (0, 0)).change)
        assert not group.detach(ANN)

    def test_a_consumer_that_is_not_attached_is_a_bug(self) -> None:
        group = new_group()
        group.detach(ANN)
        with pytest.raises(AssertionError):
            group.take(ANN, 1, END, 0)
        with pytest.raises(KeyError):
            settle(group, ANN, Ack(), (0, 0))
        assert group.take(BOB, 1, END, 0) == [Lease(0, 0, 1)]


class TestAck:
    def test_an_acked_message_is_done_for_ever(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        verdict = settle(group, ANN, Ack(), (0, 4), (6, 6))
        assert verdict.results == [(0, 4, DONE), (6, 6, DONE)]
        assert verdict.change is not None
        assert (verdict.change.acked, verdict.change.retries) == ([(0, 4), (6, 6)], [])
        assert group.settled_below == 0, "nothing is settled before it is stored"
        group.apply(verdict.change)
        assert (group.settled_below, group.pending(END)) == (5, END - 6)
        assert group.snapshot().settled == [(6, 6)]
        commit(group, settle(group, ANN, Ack(), (5, 5)).change)
        assert (group.settled_below, group.snapshot().settled) == (7, [])

    def test_a_cumulative_ack_takes_all_own_leases_below(self) -> None:
        group = new_group()
        for consumer in (ANN, BOB, ANN, BOB, ANN):
            group.take(consumer, 2, END, 0)
        verdict = settle(group, ANN, Ack(), (5, 5), cumulative=True)
        assert verdict.results == [(0, 1, DONE), (4, 5, DONE)]
        commit(group, verdict.change)
        assert (group.in_flight_of(ANN), group.in_flight_of(BOB)) == (2, 4)

    def test_a_second_ack_waits_for_the_first_and_then_is_already(self) -> None:
        group = new_group()
        group.take(ANN, 3, END, 0)
        first = settle(group, ANN, Ack(), (0, 2)).change
        second = settle(group, ANN, Ack(), (1, 1))
        assert second.results == [(1, 1, DONE)]
        commit(group, first)
        assert settle(group, ANN, Ack(), (1, 1)) == ([(1, 1, ALREADY)], None)
        commit(group, second.change)
        assert group.settled_below == 3

    def test_a_repeated_ack_holds_although_the_first_could_not_be_stored(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        first, second = (settle(group, ANN, Ack(), (0, 0)).change for _ in range(2))
        assert first is not None
        group.abort(first)
        assert not deliverable(group, 1, 0)
        commit(group, second)
        assert group.settled_below == 1

    def test_each_message_is_answered_for_what_it_is(self) -> None:
        group = new_group()
        group.take(ANN, 4, END, 0)
        group.take(BOB, 4, END, 0)
        group.take(ANN, 2, END, 0)
        commit(group, settle(group, ANN, Ack(), (1, 1)).change)
        commit(group, settle(group, BOB, Ack(), (5, 5)).change)
        commit(group, settle(group, ANN, Nack(), (2, 2)).change)
        results = [(0, 0, DONE), (1, 1, ALREADY), (2, 2, EXPIRED), (3, 3, DONE), (4, 4, EXPIRED), (5, 5, ALREADY)]
        results += [(6, 7, EXPIRED), (8, 9, DONE), (10, 2**63, UNKNOWN)]
        assert settle(group, ANN, Ack(), (0, 2**63)).results == results

    def test_overlapping_ranges_are_answered_once(self) -> None:
        group = new_group()
        group.take(ANN, 10, END, 0)
        assert settle(group, ANN, Ack(), (4, 6), (0, 5), (5, 9)).results == [(0, 9, DONE)]

    def test_bobs_ack_for_anns_message_does_nothing(self) -> None:
        group = new_group()
        group.take(ANN, 2, END, 0)
        assert settle(group, BOB, Ack(), (0, 1)) == ([(0, 1, UNKNOWN)], None)
        group.take(BOB, 2, END, 0)
        assert settle(group, BOB, Ack(), (0, 1)) == ([(0, 1, EXPIRED)], None)
        assert group.in_flight_of(ANN) == 2

    def test_bobs_ack_on_its_way_does_not_answer_for_ann(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        commit(group, group.expire(30 * SECOND))
        group.take(BOB, 1, 1, 30 * SECOND)
        change = settle(group, BOB, Ack(), (0, 0)).change
        assert settle(group, ANN, Ack(), (0, 0)) == ([(0, 0, EXPIRED)], None)
        commit(group, change)
        assert settle(group, ANN, Ack(), (0, 0)) == ([(0, 0, ALREADY)], None)

    def test_the_first_ack_holds_although_its_repetition_could_not_be_stored(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        first, second = (settle(group, ANN, Ack(), (0, 0)).change for _ in range(2))
        assert second is not None
        group.abort(second)
        assert not group.detach(ANN)
        assert not deliverable(group, 1, 0)
        commit(group, first)
        assert group.settled_below == 1

    def test_a_change_that_could_not_be_written_leaves_the_lease(self) -> None:
        group = new_group()
        group.take(ANN, 2, 2, 0)
        change = settle(group, ANN, Ack(), (0, 1)).change
        assert change is not None
        group.abort(change)
        assert not deliverable(group, 2, 0)
        assert settle(group, ANN, Ack(), (0, 1)).results == [(0, 1, DONE)]

    def test_and_the_lease_still_ends(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        for change in (settle(group, ANN, Ack(), (0, 0)).change, group.expire(30 * SECOND)):
            group.abort(change or SettleChange())
        for now in (31 * SECOND, 32 * SECOND):
            ended = group.expire(now)
            assert ended is not None
            assert ended.retries == [failed(0, 0, 1, now, now, ENDED)]
            group.abort(ended)

    def test_and_without_its_consumer_the_message_is_free(self) -> None:
        group = new_group()
        group.take(ANN, 2, 2, 0)
        change = settle(group, ANN, Ack(), (0, 1)).change
        assert change is not None
        assert not group.detach(ANN)
        assert not deliverable(group, 2, 0)
        group.abort(change)
        assert group.take(BOB, 2, 2, 0) == [Lease(0, 1, 1)]


class TestFailure:
    def test_a_nacked_message_waits_and_counts(self) -> None:
        group = new_group()
        group.take(ANN, 2, 2, 0)
        verdict = settle(group, ANN, Nack(5 * SECOND), (0, 0), now=SECOND)
        assert verdict.change is not None
        assert verdict.change.retries == [failed(0, 0, 1, 6 * SECOND, SECOND)]
        group.apply(verdict.change)
        assert (group.to_redeliver, group.in_flight, group.next_event_us(SECOND)) == (1, 1, 6 * SECOND)
        assert not deliverable(group, 2, 6 * SECOND - 1)
        assert deliverable(group, 2, 6 * SECOND)
        assert group.take(BOB, 5, 2, 6 * SECOND) == [Lease(0, 0, 2)]
        assert group.to_redeliver == 0

    def test_a_nack_ends_the_lease(self) -> None:
        group = new_group()
        group.take(ANN, 1, 1, 0)
        change = settle(group, ANN, Nack(), (0, 0)).change
        for action in (Ack(), Nack(), Extend(), Reject()):
            assert settle(group, ANN, action, (0, 0)) == ([(0, 0, EXPIRED)], None)
        commit(group, change)
        for action in (Ack(), Nack(), Extend(), Reject()):
            assert settle(group, ANN, action, (0, 0)) == ([(0, 0, EXPIRED)], None)

    def test_an_overdue_lease_counts_and_comes_back_at_once(self) -> None:
        group = new_group()
        group.take(ANN, 3, END, 0)
        assert group.next_event_us(0) == 30 * SECOND
        assert group.expire(30 * SECOND - 1) is None
        change = group.expire(30 * SECOND)
        assert change is not None
        assert change.retries == [failed(0, 2, 1, 30 * SECOND, 30 * SECOND, ENDED)]
        assert not deliverable(group, 3, 30 * SECOND), "not before the attempt is recorded"
        group.apply(change)
        assert group.take(BOB, 3, 3, 30 * SECOND) == [Lease(0, 2, 2)]
        assert settle(group, ANN, Ack(), (0, 2)) == ([(0, 2, EXPIRED)], None)

    def test_a_late_ack_counts_while_nobody_took_the_lease(self) -> None:
        group = new_group()
        group.take(ANN, 1, END, 0)
        assert settle(group, ANN, Ack(), (0, 0), now=99 * SECOND).results == [(0, 0, DONE)]
        assert group.expire(99 * SECOND) is None

    def test_extending_moves_the_deadline_and_stores_nothing(self) -> None:
        group = new_group()
        group.take(ANN, 3, END, 0)
        assert settle(group, ANN, Extend(60 * SECOND), (1, 1), now=10 * SECOND) == ([(1, 1, DONE)], None)
        assert settle(group, ANN, Extend(), (2, 2), now=10 * SECOND) == ([(2, 2, DONE)], None)
        ended = []
        for _ in range(3):
            now = group.next_event_us(0)
            assert now is not None
            change = group.expire(now)
            assert change is not None
            ended.append((now, change.retries[0][:2]))
        assert ended == [(30 * SECOND, (0, 0)), (40 * SECOND, (2, 2)), (70 * SECOND, (1, 1))]

    def test_many_overdue_ranges_come_in_several_changes(self) -> None:
        group = new_group()
        for _ in range(EXPIRE_RANGES_MAX + 10):
            group.take(ANN, 1, 2**40, 0)
            group.take(BOB, 1, 2**40, 1)
        ended = []
        while change := group.expire(60 * SECOND):
            ended.append(sum(retry.last - retry.first + 1 for retry in change.retries))
            group.apply(change)
        assert ended == [EXPIRE_RANGES_MAX, EXPIRE_RANGES_MAX, 20]
        assert (group.to_redeliver, group.in_flight) == (sum(ended), 0)

    def test_a_rejected_message_is_settled_and_counted_once(self) -> None:
        group = new_group()
        group.take(ANN, 5, END, 0)
        first = settle(group, ANN, Reject("no such account"), (0, 2)).change
        second = settle(group, ANN, Reject("no such account"), (1, 3)).change
        assert first is not None
        assert (first.rejected, first.reject_reason) == ([(0, 2)], "no such account")
        commit(group, first)
        commit(group, second)
        assert (group.rejected, group.settled_below) == (4, 4)

    def test_deadlines_of_settled_messages_do_not_pile_up(self) -> None:
        group = new_group()
        for now in range(20_000):
            (lease,) = group.take(ANN, 1, 2**40, now)
            commit(group, settle(group, ANN, Ack(), lease[:2], now=now).change)
        assert len(group._leases._deadlines) <= 1024
        assert group.next_event_us(20_000) is None


class TestRestart:
    def test_confirmed_acks_stay_and_all_else_comes_again(self) -> None:
        group = new_group()
        group.take(ANN, 10, 10, 0)
        commit(group, settle(group, ANN, Ack(), (2, 4)).change)
        commit(group, settle(group, ANN, Nack(9 * SECOND), (6, 6)).change)
        settle(group, ANN, Ack(), (0, 1))  # never stored
        again = restarted(group)
        assert again.take(ANN, 10, 10, 0) == [Lease(0, 1, 1), Lease(5, 5, 1), Lease(7, 9, 1)]
        assert again.take(ANN, 10, 10, 9 * SECOND) == [Lease(6, 6, 2)]

    def test_a_replay_ends_where_the_live_group_was(self) -> None:
        group = new_group()
        before = restarted(group)
        group.take(ANN, 10, 10, 0)
        changes = [settle(group, ANN, Reject("x"), (1, 1)).change, settle(group, ANN, Nack(7), (3, 5)).change]
        for change in changes:
            commit(group, change)
        assert restarted(before, filter(None, changes)).snapshot() == group.snapshot()
        assert group.snapshot() == (0, [(1, 1)], [failed(3, 5, 1, 7)], 1)

    def test_attempts_add_up_over_restarts(self) -> None:
        group = new_group()
        for attempt in (1, 2, 3):
            assert group.take(ANN, 1, 1, 0) == [Lease(0, 0, attempt)]
            commit(group, settle(group, ANN, Nack(), (0, 0)).change)
            group = restarted(group)


class TestBounds:
    def test_too_many_fragments_hold_back_fresh_messages_until_they_are_fewer(self) -> None:
        group = new_group(fragments_max=5)
        group.take(ANN, 10, END, 0)
        commit(group, settle(group, ANN, Nack(SECOND), *((n, n) for n in range(0, 10, 2))).change)
        assert not deliverable(group, END, 0)
        assert group.take(BOB, 10, END, 0) == []
        assert group.take(BOB, 10, END, SECOND) == [Lease(n, n, 2) for n in range(0, 10, 2)]
        commit(group, settle(group, BOB, Ack(), (0, 9)).change)
        commit(group, settle(group, ANN, Ack(), (0, 9)).change)
        assert group.take(BOB, 10, END, SECOND) == [Lease(10, 19, 1)]

    def test_gaps_are_delivered_however_many_fragments_there_are(self) -> None:
        settled = [(n, n) for n in range(1, 20, 2)]
        group = GroupCore(settled_below=0, ack_deadline_us=1, max_in_flight=99, settled=settled, fragments_max=3)
        group.attach(ANN)
        assert group.take(ANN, 99, END, 0) == [Lease(n, n, 1) for n in range(0, 20, 2)]
        assert not deliverable(group, END, 0)
        commit(group, settle(group, ANN, Ack(), (0, 18)).change)
        assert deliverable(group, END, 0)
