"""What lease tokens can do: to the delivery that they name, and to nobody else's."""

import pytest

from ringpost.node.groups.changes import Ack, Action, Claim, Extend, Nack, Outcome, Reject
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore
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
    new_group,
    restarted,
    settle,
)

VERBS: list[Action] = [Ack(), Nack(), Extend(), Reject("bad")]
FINAL: list[Action] = [Ack(), Reject("bad")]
Results = list[tuple[int, int, Outcome]]


def claim(consumer: int, *ranges: tuple[int, int], attempt: int = 1, current: bool = True) -> Claim:
    return Claim(consumer, attempt, list(ranges), current)


def settled(group: GroupCore, action: Action, *claims: Claim, now: int = 0, end: int = END) -> Results:
    """The answer, when it is stored."""
    verdict = group.settle_claims(claims, action, end, now)
    if verdict.change is not None:
        group.apply(verdict.change)
    return verdict.results


def taken(messages: int = 10, consumer: int = ANN) -> GroupCore:
    group = new_group()
    group.take(consumer, messages, END, 0)
    return group


class TestWhileTheLeaseStands:
    def test_each_verb_does_what_it_does_on_the_stream(self) -> None:
        group = taken()
        assert settled(group, Ack(), claim(ANN, (0, 1))) == [(0, 1, DONE)]
        assert settled(group, Nack(5 * SECOND), claim(ANN, (2, 2))) == [(2, 2, DONE)]
        assert settled(group, Extend(90 * SECOND), claim(ANN, (3, 3))) == [(3, 3, DONE)]
        assert settled(group, Reject("bad"), claim(ANN, (4, 4))) == [(4, 4, DONE)]
        assert (group.settled_below, group.rejected, group.in_flight) == (2, 1, 6)
        commit(group, group.expire(30 * SECOND))
        assert group.in_flight == 1, "only the extended one"
        assert [one.attempt for one in group.take(BOB, 1, END, 30 * SECOND)] == [2]

    def test_a_late_answer_counts_until_the_lease_is_taken_back(self) -> None:
        assert settled(taken(), Ack(), claim(ANN, (0, 9)), now=60 * SECOND) == [(0, 9, DONE)]

    def test_an_ack_that_is_sent_again_waits_for_the_first(self) -> None:
        group = taken()
        first = group.settle_claims([claim(ANN, (0, 4))], Ack(), END, 0)
        again = group.settle_claims([claim(ANN, (0, 4))], Ack(), END, 0)
        assert first.results == again.results == [(0, 4, DONE)]
        assert again.change is not None
        group.abort(again.change)
        commit(group, first.change)
        assert settled(group, Ack(), claim(ANN, (0, 4))) == [(0, 4, ALREADY)]

    def test_several_tokens_are_answered_in_their_order(self) -> None:
        group = taken(4)
        group.take(BOB, 4, END, 0)
        results = settled(group, Ack(), claim(BOB, (4, 7)), claim(ANN, (0, 1)), claim(BOB, (1, 2)))
        assert results == [(4, 7, DONE), (0, 1, DONE), (1, 2, EXPIRED)]


class TestWhenItHasEnded:
    @pytest.mark.parametrize("action", FINAL)
    def test_finished_work_counts_after_its_stream_ended(self, action: Action) -> None:
        group = taken()
        group.detach(ANN)
        assert settled(group, action, claim(ANN, (0, 9))) == [(0, 9, DONE)]
        assert (group.settled_below, group.rejected) == (10, 10 if isinstance(action, Reject) else 0)

    @pytest.mark.parametrize("action", FINAL)
    def test_and_after_a_restart_or_with_another_leader(self, action: Action) -> None:
        group = restarted(taken())
        assert settled(group, action, claim(7, (0, 9))) == [(0, 9, DONE)]

    @pytest.mark.parametrize("action", [Nack(), Extend()])
    def test_there_is_nothing_to_give_back_or_extend(self, action: Action) -> None:
        group = taken()
        group.detach(ANN)
        assert settled(group, action, claim(ANN, (0, 9))) == [(0, 9, EXPIRED)]
        assert [(one.first, one.last, one.attempt) for one in group.take(BOB, 20, 10, 0)] == [(0, 9, 1)]

    @pytest.mark.parametrize("action", VERBS)
    def test_what_somebody_else_has_now_is_his(self, action: Action) -> None:
        group = taken()
        group.detach(ANN)
        group.take(BOB, 4, END, 0)
        assert settled(group, action, claim(ANN, (0, 3))) == [(0, 3, EXPIRED)]
        assert group.in_flight_of(BOB) == 4
        assert settle(group, BOB, Ack(), (0, 3)).results == [(0, 3, DONE)]

    @pytest.mark.parametrize("action", VERBS)
    def test_an_expired_delivery_is_over(self, action: Action) -> None:
        """Also where nobody has the message yet: whoever gets it next is told that this delivery failed."""
        group = taken()
        commit(group, group.expire(30 * SECOND))
        assert settled(group, action, claim(ANN, (0, 9)), now=30 * SECOND) == [(0, 9, EXPIRED)]
        group.take(ANN, 5, END, 30 * SECOND)
        assert settled(group, action, claim(ANN, (0, 9)), now=30 * SECOND) == [(0, 9, EXPIRED)]
        assert settled(group, Ack(), claim(ANN, (0, 4), attempt=2), now=30 * SECOND) == [(0, 4, DONE)]

    @pytest.mark.parametrize("action", VERBS)
    def test_so_is_one_that_was_given_back(self, action: Action) -> None:
        group = taken()
        settled(group, Nack(SECOND), claim(ANN, (2, 2)))
        assert settled(group, action, claim(ANN, (2, 2))) == [(2, 2, EXPIRED)]
        assert restarted(group).settle_claims([claim(ANN, (2, 2))], action, END, 0).results == [(2, 2, EXPIRED)]

    @pytest.mark.parametrize("action", VERBS)
    def test_after_a_seek_or_a_redrive_only_leases_that_stand_count(self, action: Action) -> None:
        group = taken()
        group.detach(ANN)
        group.take(BOB, 3, END, 0)
        assert settled(group, action, claim(BOB, (0, 2), current=False)) == [(0, 2, DONE)]
        assert settled(group, action, claim(ANN, (5, 9), current=False)) == [(5, 9, EXPIRED)]

    @pytest.mark.parametrize("action", VERBS)
    def test_what_is_settled_is_and_what_is_not_there_is_not(self, action: Action) -> None:
        group = taken()
        commit(group, settle(group, ANN, Ack(), (0, 4)).change)
        assert settled(group, action, claim(ANN, (0, 4), (10, 12)), end=10) == [(0, 4, ALREADY), (10, 12, UNKNOWN)]

    def test_an_ack_does_not_overtake_a_nack_on_its_way(self) -> None:
        group = taken()
        nack = settle(group, ANN, Nack(), (0, 0)).change
        assert settled(group, Ack(), claim(ANN, (0, 0))) == [(0, 0, EXPIRED)]
        commit(group, nack)
        assert group.pending(1) == 1


class TestBounds:
    def test_a_group_in_too_many_pieces_gets_no_more_of_them(self) -> None:
        group = new_group(fragments_max=2)
        group.take(ANN, 10, END, 0)
        group.detach(ANN)
        settled(group, Ack(), claim(ANN, (2, 2)))
        settled(group, Ack(), claim(ANN, (4, 4)))
        assert settled(group, Ack(), claim(ANN, (6, 6))) == [(6, 6, EXPIRED)]

    def test_a_forged_token_takes_nothing_from_anybody(self) -> None:
        group = taken()
        forged = [claim(consumer, (0, END + 5), attempt=attempt) for consumer in (BOB, 77) for attempt in (1, 2, 9)]
        for action in (Nack(), Extend()):
            assert {one for _, _, one in settled(group, action, *forged)} == {EXPIRED, UNKNOWN}
        assert group.in_flight_of(ANN) == 10

    def test_the_next_of_a_key_goes_out_when_a_token_has_settled_the_one_before(self) -> None:
        group = KeyedCore(settled_below=0, ack_deadline_us=30 * SECOND, max_in_flight=100)
        group.attach(ANN)
        group.learn(0, [5, 5, 6])
        group.take(ANN, 10, 3, 0)
        group.detach(ANN)
        group.attach(BOB)
        group.learn(0, [5, 5, 6])
        assert settled(group, Ack(), claim(ANN, (0, 0)), end=3) == [(0, 0, DONE)]
        assert [(one.first, one.last) for one in group.take(BOB, 10, 3, 0)] == [(1, 2)]
