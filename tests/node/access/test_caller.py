"""A caller: what it may do, and its quota. The clock is the test's."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.patterns import Patterns
from ringpost.node.access.caller import ANYONE, Bucket, Caller, Known, Usage
from ringpost.node.access.grants import Grants, Quota, Verb
from ringpost.node.errors import Exhausted, PermissionDenied


def caller(**quota: int) -> Caller:
    grants = Grants({Verb.PUBLISH: Patterns(["orders.>"])}, frozenset({Verb.VIEW}))
    return Caller("shop", grants, Usage("shop", Quota(**quota)))


def test_what_is_not_granted_is_denied_with_who_and_what() -> None:
    shop = caller()
    shop.require(Verb.PUBLISH, "orders.eu")
    shop.require(Verb.VIEW)
    with pytest.raises(PermissionDenied) as raised:
        shop.require(Verb.CONSUME, "orders.eu")
    assert raised.value.metadata == {"principal": "shop", "verb": "consume", "channel": "orders.eu"}
    assert not shop.may(Verb.ADMIN)
    assert (shop.may_see("orders.eu"), shop.may_see("other")) == (True, False)


LONG = "orders" + ".a" * 2_000_000


@pytest.mark.parametrize("name", [LONG, LONG + ".", "orders." + "x" * 4_000_000, "orders." + "é" * 2_000_000])
def test_of_a_name_of_megabytes_no_more_is_matched_than_a_channel_may_have(name: str) -> None:
    shop = caller()
    begun = time.thread_time()
    assert shop.may(Verb.PUBLISH, name), "who may publish to what begins like that is told that the name is wrong"
    assert not shop.may(Verb.CONSUME, name)
    assert not shop.may(Verb.PUBLISH, "." * 4_000_000)
    assert not shop.may(Verb.PUBLISH, f"x{name}")
    assert time.thread_time() - begun < 0.05
    assert sum(len(key[2]) for key in shop._known) < 2_000


def test_all_callers_of_a_node_together_remember_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.node.access.caller.KNOWN_MAX", 50)
    known: Known = {}
    grants = Grants({Verb.PUBLISH: Patterns(["orders.>"])})
    callers = [Caller(f"c{n}", grants, Usage("c", Quota()), known=known) for n in range(20)]
    nobody = Caller("nobody", Grants(), Usage("nobody", Quota()), known=known)
    for number in range(20):
        name = f"orders.{number}"
        assert all(one.may(Verb.PUBLISH, name) for one in callers)
        assert not nobody.may(Verb.PUBLISH, name), "what one may is not what another may"
        assert len(known) <= 50


def test_where_access_is_not_restricted_anyone_may_do_everything() -> None:
    assert ANYONE.may(Verb.ADMIN)
    assert ANYONE.may(Verb.MANAGE, "x")
    assert ANYONE.usage.wait_s(0.0) == 0.0


def test_streams_above_the_quota_are_refused_and_one_that_ends_makes_room() -> None:
    usage = Usage("shop", Quota(streams=2))
    usage.open_stream()
    usage.open_stream()
    with pytest.raises(Exhausted) as raised:
        usage.open_stream()
    assert (raised.value.reason, raised.value.retry_after_ms > 0) == ("QUOTA_STREAMS", True)
    usage.close_stream()
    usage.open_stream()


def test_what_was_published_above_the_rate_is_waited_for() -> None:
    usage = Usage("shop", Quota(messages_per_s=100, bytes_per_s=1_000))
    usage.publish(50, 500, 10.0)
    assert usage.wait_s(10.0) == 0.0
    usage.publish(300, 0, 10.0)
    assert usage.wait_s(10.0) == pytest.approx(2.5)
    with pytest.raises(Exhausted) as raised:
        usage.check_rate(11.0)
    assert (raised.value.reason, raised.value.retry_after_ms) == ("QUOTA_RATE", 1_500)
    usage.check_rate(12.6)


def test_a_quota_that_changes_counts_at_once_and_keeps_what_is_open() -> None:
    usage = Usage("shop", Quota(streams=5, messages_per_s=1))
    usage.open_stream()
    usage.publish(100, 0, 1.0)
    usage.limit(Quota(streams=1))
    assert (usage.wait_s(1.0), usage.limited) == (0.0, False)
    with pytest.raises(Exhausted):
        usage.open_stream()


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 3)), min_size=5, max_size=60))
def test_over_a_long_time_no_more_passes_than_the_rate_a_seconds_burst_and_the_last_batch(
    batches: list[tuple[int, float]],
) -> None:
    rate, bucket, now, passed, greatest = 100, Bucket(100), 0.0, 0, 0
    for amount, pause in batches:
        now += pause
        now += bucket.wait_s(now)
        bucket.take(amount, now)
        passed += amount
        greatest = max(greatest, amount)
        assert passed <= rate * (now + 1) + greatest + 1e-6
