"""How long a failed message waits, and when it is given up."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.groups.changes import Failure, Lease, Nack
from ringpost.node.groups.policy import DELAY_US_MAX, ENDED, REASON_BYTES_KEPT, Backoff, RetryPolicy, cut, spread
from ringpost.node.groups.retries import FAILURES_KEPT
from ringpost.v1 import group_pb2
from tests.node.groups.actors import ANN, SECOND, commit, deliverable, failed, new_group, restarted, settle

S = SECOND
policies = st.builds(
    RetryPolicy,
    st.sampled_from(list(Backoff)[1:]),
    st.integers(1, DELAY_US_MAX),
    st.integers(1, DELAY_US_MAX),
    st.floats(0, 1),
)


def test_the_shapes_have_the_numbers_of_the_api() -> None:
    assert [int(one) for one in Backoff] == sorted(group_pb2.Backoff.values())


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (RetryPolicy(Backoff.CONSTANT, 3 * S), [3, 3, 3, 3]),
        (RetryPolicy(Backoff.LINEAR, 3 * S, 10 * S), [3, 6, 9, 10]),
        (RetryPolicy(Backoff.EXPONENTIAL, 3 * S, 13 * S), [3, 6, 12, 13]),
        (RetryPolicy(Backoff.CONSTANT, 3 * S, S), [1, 1, 1, 1]),
    ],
)
def test_a_delay_grows_up_to_its_bound(policy: RetryPolicy, delays: list[int]) -> None:
    assert [policy.delay(attempt, 0.9) for attempt in (1, 2, 3, 4)] == [delay * S for delay in delays]


@given(policies, st.integers(1, 2**32 - 1), st.floats(0, 1, exclude_max=True))
def test_whatever_the_policy_a_delay_keeps_its_bounds(policy: RetryPolicy, attempt: int, chance: float) -> None:
    longest = policy.delay(attempt, 0.0)
    delay = policy.delay(attempt, chance)
    assert 0 <= delay <= longest <= min(policy.max_delay_us, DELAY_US_MAX)
    assert delay >= longest * (1 - policy.jitter) - 1
    assert policy.delay(attempt + 1, 0.0) >= longest


def test_one_number_is_enough_for_a_row_that_is_spread_out() -> None:
    row = sorted(spread(0.9, number) for number in range(1_000))
    assert row[0] >= 0.0
    assert row[-1] < 1.0
    assert max(after - before for before, after in pairwise(row)) < 0.004


@given(st.text(max_size=400))
def test_of_a_long_reason_the_beginning_is_kept(reason: str) -> None:
    kept = cut(reason)
    assert reason.startswith(kept)
    assert len(kept.encode()) <= REASON_BYTES_KEPT
    assert kept == reason or len(kept.encode()) > REASON_BYTES_KEPT - 4


def test_leases_that_end_together_come_back_spread_out() -> None:
    group = new_group(policy=RetryPolicy(Backoff.CONSTANT, 10 * S, jitter=1.0))
    for _ in range(100):
        group.take(ANN, 1, 1_000, 0)
    change = group.expire(30 * S, chance=0.5)
    assert change is not None
    dues = {retry.not_before_us for retry in change.retries}
    assert len(dues) > 50
    assert min(dues) < 31 * S
    assert max(dues) > 39 * S


def test_the_policy_counts_for_nacks_without_a_delay_of_their_own() -> None:
    group = new_group(policy=RetryPolicy(Backoff.LINEAR, S))
    group.take(ANN, 2, 2, 0)
    commit(group, settle(group, ANN, Nack(0, "busy", fallback_us=9 * S), (0, 0)).change)
    commit(group, settle(group, ANN, Nack(5 * S), (1, 1)).change)
    assert group.snapshot().retries == [failed(0, 0, 1, S, reason="busy"), failed(1, 1, 1, 5 * S)]


def test_without_a_policy_the_nack_may_say_what_then() -> None:
    group = new_group()
    group.take(ANN, 1, 1, 0)
    commit(group, settle(group, ANN, Nack(fallback_us=S), (0, 0)).change)
    assert group.next_event_us(0) == S


def test_the_last_of_its_attempts_settles_a_message() -> None:
    group = new_group(policy=RetryPolicy(max_attempts=2))
    assert group.take(ANN, 2, 2, 0) == [Lease(0, 1, 1)]
    commit(group, settle(group, ANN, Nack(), (0, 1)).change)
    assert group.take(ANN, 2, 2, 0) == [Lease(0, 1, 2)]
    commit(group, settle(group, ANN, Nack(reason="broken"), (0, 0)).change)
    assert (group.rejected, group.pending(2)) == (1, 1)
    commit(group, group.expire(30 * S))
    assert (group.rejected, group.pending(2), deliverable(group, 2, 99 * S)) == (2, 0, False)


def test_who_gets_a_message_next_is_told_why_it_failed() -> None:
    group = new_group()
    group.take(ANN, 3, 3, 0)
    commit(group, settle(group, ANN, Nack(reason="a"), (0, 1)).change)
    commit(group, group.expire(30 * S))
    assert group.last_failure(0, 2) == (1, "a")
    assert group.last_failure(2, 2) == (2, ENDED)
    assert group.last_failure(7, 9) == (9, "")


def test_the_latest_failures_are_remembered_over_a_restart() -> None:
    group = new_group()
    for attempt in range(1, 12):
        group.take(ANN, 1, 1, attempt)
        commit(group, settle(group, ANN, Nack(reason=f"r{attempt}"), (0, 0), now=attempt).change)
    (retry,) = restarted(group).snapshot().retries
    assert (retry.attempt, len(retry.failures)) == (11, FAILURES_KEPT)
    assert retry.failures[-1] == Failure(11, 11, "r11")


def test_what_is_configured_counts_from_then_on() -> None:
    group = new_group()
    group.take(ANN, 1, 1, 0)
    group.configure(10 * S, 1, RetryPolicy(max_attempts=1))
    assert group.take(ANN, 1, 2, 0) == []
    commit(group, settle(group, ANN, Nack(), (0, 0)).change)
    assert group.rejected == 1
    group.take(ANN, 1, 2, 0)
    assert group.next_event_us(0) == 10 * S
