"""Changes that wait together become one frame."""

from ringpost.node.groups.changes import Ack, Nack, Outcome, Reject, Retry, SettleChange, join
from ringpost.node.groups.core import GroupCore
from ringpost.v1.subscribe_pb2 import Outcome as ProtoOutcome
from tests.node.groups.actors import failed


def test_outcomes_have_the_numbers_of_the_api() -> None:
    assert {f"OUTCOME_{outcome.name}": int(outcome) for outcome in Outcome}.items() <= dict(
        ProtoOutcome.items()
    ).items()


def test_single_acks_become_one_range() -> None:
    changes = [SettleChange(acked=[(n, n)], tickets=(n,)) for n in (3, 1, 2, 9)]
    assert join(changes) == [SettleChange(acked=[(1, 3), (9, 9)], tickets=(3, 1, 2, 9))]


def test_retries_join_only_with_the_same_attempt_and_time() -> None:
    retries = [Retry(4, 4, 1, 50), Retry(0, 1, 1, 50), Retry(2, 3, 1, 50), Retry(5, 5, 2, 50), Retry(6, 6, 2, 51)]
    (joined,) = join(SettleChange(retries=[retry]) for retry in retries)
    assert joined.retries == [Retry(0, 4, 1, 50), Retry(5, 5, 2, 50), Retry(6, 6, 2, 51)]


def test_different_reasons_stay_apart_in_order() -> None:
    reasons = ["a", "a", "b", "a"]
    changes = [SettleChange(rejected=[(n, n)], reject_reason=reason) for n, reason in enumerate(reasons)]
    changes.insert(1, SettleChange(acked=[(7, 7)]))
    joined = join(changes)
    assert [(change.reject_reason, change.rejected) for change in joined] == [
        ("a", [(0, 1)]),
        ("b", [(2, 2)]),
        ("a", [(3, 3)]),
    ]
    assert joined[0].acked == [(7, 7)]
    assert join([]) == []


def test_of_an_ack_and_a_reject_the_first_counts() -> None:
    ack, reject = SettleChange(acked=[(0, 5)]), SettleChange(rejected=[(4, 8)], reject_reason="x")
    assert join([ack, reject]) == [SettleChange(acked=[(0, 5)], rejected=[(6, 8)], reject_reason="x")]
    assert join([reject, ack]) == [SettleChange(acked=[(0, 3)], rejected=[(4, 8)], reject_reason="x")]


def test_a_joined_change_ends_all_that_it_carries() -> None:
    group = GroupCore(settled_below=0, ack_deadline_us=1_000, max_in_flight=10)
    group.attach(1)
    group.take(1, 3, 3, 0)
    verdicts = [group.settle(1, action, [(n, n)], False, 0) for n, action in enumerate([Ack(), Nack(), Reject("x")])]
    (change,) = join(verdict.change for verdict in verdicts if verdict.change)
    group.apply(change)
    assert group.in_flight == 0
    assert group.snapshot() == (1, [(2, 2)], [failed(1, 1, 1, 0)], 1)
