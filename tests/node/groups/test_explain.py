"""Why a group does not deliver a message: each cause by itself, several together, and agreement with the model."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from ringpost.node.groups.changes import Ack, Extend, Failure, Nack, Reject
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.explain import Around, Cause, Consumer, Explanation, Letter, Place, explain
from ringpost.node.groups.policy import ENDED
from ringpost.node.groups.recent import Settler
from ringpost.node.groups.sentences import place_sentence, sentence
from tests.node.groups.actors import ANN, BOB, END, SECOND, commit, new_group, settle
from tests.node.groups.test_keyed import A, B, made
from tests.node.groups.test_keyed_model import KeyedMachine, KeyedModel
from tests.node.groups.test_model import GroupMachine

CONSUMERS = (Consumer(ANN, "ann"), Consumer(BOB, "bob"))


def around(now: int = 0, **facts: Any) -> Around:
    return Around(now, **{"max_in_flight": 100_000, "consumers": CONSUMERS} | facts)


def told(group: GroupCore, offset: int, now: int = 0, **facts: Any) -> tuple[Explanation, str]:
    """What is found, and the sentence."""
    where = around(now, **facts)
    found = explain(group, offset, where)
    return found, sentence(group, offset, where, found)


def test_a_leased_message_names_its_consumer_and_when_the_lease_ends() -> None:
    group = new_group()
    group.take(BOB, 2, END, SECOND)
    found, says = told(group, 1, 2 * SECOND)
    assert (found.causes, found.consumer, found.attempt, found.until_us) == ((Cause.LEASED,), "bob", 1, 31 * SECOND)
    assert says == "It is leased to bob (delivery 1) until 1970-01-01T00:00:31.000Z."
    settle(group, BOB, Extend(60 * SECOND), (1, 1), now=2 * SECOND)
    assert told(group, 1, 2 * SECOND)[0].until_us == 62 * SECOND
    assert "has ended and is being taken back" in told(group, 0, 31 * SECOND)[1]


def test_what_is_on_its_way_to_the_log_is_settling() -> None:
    group = new_group()
    group.take(ANN, 2, END, 0)
    settle(group, ANN, Ack(), (0, 0))
    settle(group, ANN, Nack(5 * SECOND), (1, 1))
    assert told(group, 0)[1] == "It was acked or rejected in delivery 1 to ann; that is on its way to the log."
    found, says = told(group, 1)
    assert (found.causes, found.attempt, found.acked) == ((Cause.SETTLING,), 1, False)
    assert says == "It has failed in delivery 1 to ann; that is on its way to the log."
    group.detach(ANN)
    assert "to a consumer that has left" in told(group, 0, consumers=CONSUMERS[1:])[1]


def test_a_failed_message_waits_for_its_time_and_tells_why() -> None:
    group = new_group()
    group.take(ANN, 1, END, 0)
    commit(group, settle(group, ANN, Nack(9 * SECOND, "no stock"), (0, 0), now=SECOND).change)
    found, says = told(group, 0, 2 * SECOND)
    assert (found.causes, found.attempt, found.until_us) == ((Cause.DELAYED,), 1, 10 * SECOND)
    assert says == "It waits until 1970-01-01T00:00:10.000Z because delivery 1 failed (no stock)."
    found, says = told(group, 0, 10 * SECOND)
    assert (found.causes, found.until_us) == ((Cause.IN_LINE,), 0)
    assert says == "It is next: delivery 1 failed (no stock), and its wait is over."
    group.take(BOB, 1, END, 10 * SECOND)
    found, says = told(group, 0, 11 * SECOND)
    assert [failure.reason for failure in found.failures] == ["no stock"]
    assert "(delivery 2; delivery 1 failed (no stock))" in says
    commit(group, group.expire(50 * SECOND))
    assert [f.reason for f in told(group, 0, 50 * SECOND)[0].failures] == ["no stock", ENDED]


def test_a_settled_message_says_what_is_not_remembered() -> None:
    group = new_group(settled_below=3)
    assert told(group, 1)[1] == (
        "It is settled, like all below offset 3: acked, or below the place where the group began or was moved to; "
        "which of these, by whom and when is not remembered."
    )
    group.take(ANN, 4, END, 0)
    commit(group, settle(group, ANN, Ack(), (5, 5)).change)
    assert told(group, 5)[1] == "It is settled: acked; by whom and when is not remembered."
    commit(group, settle(group, ANN, Reject("bad"), (6, 6)).change)
    assert (
        told(group, 6)[1]
        == "It is settled: acked, or rejected or given up as 1 were; by whom and when is not remembered."
    )


def test_a_message_is_parked_behind_the_first_of_its_key() -> None:
    group = made(A, A, B, B)
    ann = CONSUMERS[:1]
    group.take(ANN, 1, 4, 0)
    found, says = told(group, 1, consumers=ann)
    assert (found.causes, found.before) == ((Cause.PARKED,), 0)
    assert says == (
        "It is parked behind offset 0 of its key, which is leased to ann (delivery 1) until 1970-01-01T00:00:30.000Z."
    )
    commit(group, settle(group, ANN, Nack(9 * SECOND, "busy"), (0, 0)).change)
    assert "which waits until 1970-01-01T00:00:09.000Z because delivery 1 failed (busy)" in told(group, 1)[1]
    found, says = told(group, 3, consumers=ann, paused=True)
    assert found.causes == (Cause.PAUSED, Cause.PARKED)
    assert (
        says == "It is held back because the group is paused, and is parked behind offset 2 of its key, which is next."
    )
    assert told(group, 2, consumers=ann)[0] == Explanation((Cause.IN_LINE,))


def test_a_key_that_is_not_known_yet() -> None:
    group = made(A, look_ahead=1)
    found, says = told(group, 7)
    assert (found.causes, found.before) == ((Cause.KEY_UNKNOWN,), 1)
    assert says == "It is not looked at yet: the group knows the keys of what is below offset 1."
    group.detach(1)
    assert told(group, 0, consumers=())[0].causes == (Cause.NO_CONSUMERS,), "then none is known, and that is no cause"


def test_while_a_key_is_looked_at_again_nothing_goes_out() -> None:
    group = made(A, A, B, B)
    ann = CONSUMERS[:1]
    commit(group, settle(group, ANN, Ack(), *((o, o) for o, _, _ in group.take(ANN, 2, 4, 0))).change)
    group.reopen(0)
    assert group.take(ANN, 9, 4, 0) == []
    found, says = told(group, 0, consumers=ann)
    assert (found.causes, found.before) == ((Cause.KEY_UNKNOWN,), 0)
    assert (
        says
        == "It waits until the group has looked again at its key: a message came back, and nothing may overtake it."
    )
    for other in (1, 3):
        found, says = told(group, other, consumers=ann)
        assert (found.causes, found.before) == ((Cause.KEY_UNKNOWN,), 0), "nor does what is of another key"
        assert "looked again at the key of offset 0" in says
    group.learn(0, [A, A, B, B])
    assert told(group, 0, consumers=ann)[0].causes == (Cause.IN_LINE,)
    assert told(group, 1, consumers=ann)[0].causes == (Cause.PARKED,)


def test_what_came_back_is_parked_behind_a_later_one_that_is_out() -> None:
    group = made(A, A)
    ann = CONSUMERS[:1]
    group.take(ANN, 1, 2, 0)
    commit(group, settle(group, ANN, Ack(), (0, 0)).change)
    group.take(ANN, 1, 2, 0)
    group.reopen(0)
    group.learn(0, [A, A])
    assert group.take(ANN, 9, 2, 0) == []
    found, says = told(group, 0, consumers=ann)
    assert (found.causes, found.before) == ((Cause.PARKED,), 1)
    assert found.blocker is not None
    assert found.blocker.causes == (Cause.LEASED,)
    assert says.startswith("It is parked behind offset 1 of its key, which is leased to ann")
    commit(group, settle(group, ANN, Nack(9 * SECOND), (1, 1)).change)
    assert told(group, 0, consumers=ann)[0] == Explanation((Cause.IN_LINE,))


def test_what_holds_back_the_whole_group() -> None:
    group = new_group()
    spent = (Consumer(ANN, "ann", has_credit=False), Consumer(BOB, "bob", has_credit=False))
    assert told(group, 0, consumers=spent)[1] == "It waits for credit: none of the 2 consumers takes more for now."
    assert told(group, 0, consumers=(spent[0], CONSUMERS[1]))[0].causes == (Cause.IN_LINE,)
    assert told(group, 0, consumers=())[1] == "It waits for a consumer, of which the group has none."
    assert told(group, 0, moving=True, paused=True)[0].causes == (Cause.MOVING,)
    group.take(ANN, 2, END, 0)
    found, says = told(group, 2, max_in_flight=2, consumers=spent)
    assert found.causes == (Cause.MAX_IN_FLIGHT, Cause.NO_CREDIT)
    assert says.startswith(
        "It waits because 2 messages are out, and the group's max_in_flight is 2, and waits for credit"
    )


def test_in_failover_only_the_active_consumer_counts() -> None:
    pair = (Consumer(ANN, "ann", has_credit=False), Consumer(BOB, "bob", active=False))
    found, says = told(new_group(), 0, failover=True, consumers=pair)
    assert found.causes == (Cause.NO_CREDIT,)
    assert says == "It waits for credit: ann takes no more for now; the active consumer is ann."


def test_those_before_it_go_first() -> None:
    found, says = told(new_group(settled_below=4), 9)
    assert (found.causes, found.before) == ((Cause.IN_LINE,), 4)
    assert says == "It goes out in its turn; the first in line is offset 4."


def test_a_scattered_group_turns_to_its_gaps() -> None:
    group = new_group(fragments_max=2, settled=[(0, 0), (2, 2)])
    assert told(group, 1)[0].causes == (Cause.IN_LINE,)
    assert told(group, 3)[0].causes == (Cause.OUT_OF_REACH,)
    assert "too many pieces" in told(group, 3)[1]


@pytest.mark.parametrize("place", [place for place in Place if place not in {Place.STORED, Place.UNREADABLE}])
def test_where_there_is_no_message_nothing_else_matters(place: Place) -> None:
    found, says = told(new_group(settled_below=5), 3, place=place, paused=True)
    assert found == Explanation((Cause.NO_MESSAGE,))
    assert says.startswith("It ")


def test_each_place_has_a_sentence_of_its_own() -> None:
    said = {place_sentence(place, 5, 20) for place in Place}
    assert len(said) == len(Place)
    assert place_sentence(Place.REMOVED, 5, 20).endswith("what is below offset 5.")
    assert place_sentence(Place.NOT_PUBLISHED, 5, 20).endswith("gets offset 20.")


# -- against the model ------------------------------------------------------------------------------------------------


class Explaining(GroupMachine):
    """After every event each message is explained as the model would, by looking through all of them."""

    paused = False
    with_credit = frozenset[int]()

    @rule(paused=st.booleans(), credit=st.sets(st.integers(0, 2)))
    def circumstances_change(self, paused: bool, credit: set[int]) -> None:
        self.paused, self.with_credit = paused, frozenset(self.pick(choice) for choice in credit)

    @property
    def around(self) -> Around:
        members = sorted(self.model.handed_end)
        return Around(
            self.now,
            self.max_in_flight,
            paused=self.paused,
            consumers=[Consumer(n, f"c{n}", has_credit=n in self.with_credit) for n in members],
        )

    @invariant()
    def each_message_is_explained(self) -> None:
        free = {offset for offset, _ in self.model.available(self.now)}
        open_ = not self.paused and self.with_credit & self.model.handed_end.keys()
        room = self.model.count("in_flight") < self.max_in_flight
        for offset in range(self.end):
            found = explain(self.group, offset, self.around)
            assert list(found.causes) == sorted(set(found.causes))
            self.check(offset, found)
            in_line = bool(offset in free and open_ and room)
            assert (found.causes == (Cause.IN_LINE,)) == in_line, "nothing holds back exactly what may go out"
            assert sentence(self.group, offset, self.around, found).startswith("It ")

    def check(self, offset: int, found: Explanation) -> None:
        message = self.model.messages[offset]
        if message.settled:
            assert found == Explanation((Cause.SETTLED,))
        elif message.waits_for:
            assert (found.causes, found.attempt) == ((Cause.SETTLING,), message.attempt)
            assert found.acked == (message.waits_for[0].kind != "fail")
        elif message.holder is not None:
            assert (found.causes, found.consumer) == ((Cause.LEASED,), f"c{message.holder}")
            assert (found.attempt, found.until_us) == (message.attempt, message.deadline)
        else:
            delayed = message.failures > 0 and message.not_before > self.now
            assert (Cause.DELAYED in found.causes) == delayed
            assert found.until_us == (message.not_before if delayed else 0)
            assert found.attempt == message.failures
            assert (Cause.PAUSED in found.causes) == self.paused
            assert (Cause.MAX_IN_FLIGHT in found.causes) == (self.model.count("in_flight") >= self.max_in_flight)
            assert (Cause.NO_CREDIT in found.causes) == (not self.with_credit & self.model.handed_end.keys())
            self.check_order_of(offset, found)

    def check_order_of(self, offset: int, found: Explanation) -> None:
        fresh = [n for n, m in enumerate(self.model.messages) if not (m.settled or m.busy or m.failures)]
        first = fresh[0] if fresh and not self.model.messages[offset].failures and fresh[0] < offset else None
        assert found.before == first


class KeyedExplaining(Explaining, KeyedMachine):
    def check_order_of(self, offset: int, found: Explanation) -> None:
        model = self.model
        assert isinstance(model, KeyedModel)
        known = [n for n in range(model.known_end) if n not in model.reopened and not model.messages[n].settled]
        rivals = [n for n in model.others(offset) if n in known]
        out = [n for n in rivals if model.messages[n].busy]
        first = next((n for n in (*out, *rivals) if n < offset or n in out), None) if offset in known else None
        assert (Cause.PARKED in found.causes) == (first is not None)
        unknown = first is None and (bool(model.reopened) or offset not in known)
        assert (Cause.KEY_UNKNOWN in found.causes) == unknown
        if not unknown or model.reopened:
            assert found.before == (min(model.reopened) if unknown else first)
        assert (found.blocker is not None) == (Cause.PARKED in found.causes)


TestExplaining = Explaining.TestCase
TestExplaining.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestKeyedExplaining = KeyedExplaining.TestCase
TestKeyedExplaining.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_dead_letter_is_told_by_its_number() -> None:
    group = new_group(settled_below=3)
    letter = Letter(17, 5 * SECOND, 2, "no stock", (Failure(1, SECOND, "busy"),))
    found, says = told(group, 1, letter=letter, failover=True)
    assert (found.causes, found.letter, found.since_us, found.attempt) == ((Cause.DEAD_LETTER,), 17, 5 * SECOND, 2)
    assert found.failures == letter.failures
    assert says == (
        "It is dead letter 17 since 1970-01-01T00:00:05.000Z: given up after delivery 2 (no stock); a redrive brings "
        "it back."
    )
    by_stranger = told(group, 1, letter=letter._replace(attempts=0, reason=""))[1]
    assert "Z: rejected by somebody without its lease; a redrive" in by_stranger


def test_who_acked_is_told_where_it_is_remembered() -> None:
    group = new_group(settled_below=3)
    found, says = told(group, 1, settler=Settler(5 * SECOND, "ann", False))
    assert (found.causes, found.consumer, found.since_us) == ((Cause.SETTLED,), "ann", 5 * SECOND)
    assert says == "It is settled: acked by ann at 1970-01-01T00:00:05.000Z."
    assert "rejected by somebody without a stream at" in told(group, 1, settler=Settler(0, None, True))[1]
    unseen = told(group, 1, letters_unseen=True)[1]
    assert unseen.endswith("; there are dead letters that were not looked at, and it may be one of them.")


def test_what_has_expired_is_not_delivered_any_more() -> None:
    group = new_group()
    group.take(ANN, 1, END, 0)
    found, says = told(group, 5, expired=True, paused=True)
    assert found.causes == (Cause.EXPIRED, Cause.PAUSED)
    assert says.startswith("It has expired: its time to live is over, so it is settled undelivered")
    assert told(group, 5, expired=True)[0].causes == (Cause.EXPIRED,)
    assert told(group, 0, expired=True)[0].causes == (Cause.EXPIRED, Cause.LEASED), "its consumer may still ack it"
    settle(group, ANN, Ack(), (0, 0))
    assert told(group, 0, expired=True)[0].causes == (Cause.SETTLING,)


def test_an_offset_that_nobody_has_may_become_a_delayed_message() -> None:
    group = new_group()
    found, says = told(group, END, place=Place.NOT_PUBLISHED, next_due_us=90 * SECOND)
    assert (found.causes, found.until_us) == ((Cause.NO_MESSAGE, Cause.NOT_DUE), 90 * SECOND)
    assert says.endswith("delayed messages, the first of which is due at 1970-01-01T00:01:30.000Z.")
    assert told(group, END, place=Place.NOT_PUBLISHED)[0].causes == (Cause.NO_MESSAGE,)
    assert told(group, 0, next_due_us=90 * SECOND)[0].causes == (Cause.IN_LINE,)
