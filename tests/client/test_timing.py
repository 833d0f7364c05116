"""Delays and times of delivery as the client says them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ringpost.client import Client
from ringpost.client.errors import InvalidRequest
from ringpost.client.timing import AT_ONCE, Timing, remaining_ms, timing_of
from tests.client.fake_broker import FakeBroker


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ((None, None), AT_ONCE),
        ((1.5, None), Timing(delay_ms=1_500)),
        ((0.0001, None), Timing(delay_ms=1)),
        ((0, None), AT_ONCE),
        ((timedelta(hours=1), None), Timing(delay_ms=3_600_000)),
        ((None, 7), Timing(deliver_time_us=7)),
        ((None, datetime(2026, 1, 1, tzinfo=UTC)), Timing(deliver_time_us=1_767_225_600_000_000)),
        ((None, None, 0.25), Timing(ttl_ms=250)),
    ],
)
def test_what_is_said_in_seconds_or_times_goes_out_in_milliseconds(how: tuple[Any, ...], expected: Timing) -> None:
    assert timing_of(*how) == expected


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ((1, 7), "delay: and deliver_at exclude"),
        ((-1, None), "delay: must be 0 to"),
        ((367 * 86_400, None), "delay: must be 0 to"),
        ((float("nan"), None), "delay: must be 0 to"),
        (("soon", None), "delay: must be seconds"),
        ((True, None), "delay: must be seconds"),
        ((None, datetime(2026, 1, 1)), "deliver_at: must be a datetime with a time zone"),  # noqa: DTZ001
        ((None, -1), "deliver_at: must be 0"),
        ((None, None, 0), "ttl: must be 0.001"),
    ],
)
def test_what_no_broker_would_take_is_refused_at_once(how: tuple[Any, ...], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        timing_of(*how)


def test_what_a_batch_has_waited_is_over_of_its_delay() -> None:
    assert remaining_ms(1_000, 0.4) == 600
    assert remaining_ms(1_000, 5) == 1
    assert remaining_ms(1_000, -1) == 1_000


async def test_messages_of_one_delay_travel_together_and_others_apart(mq: Client, broker: FakeBroker) -> None:
    pending = [mq.publish_nowait("orders", f"{n}", delay=delay) for n, delay in enumerate((60, 60, None, None, 5, 60))]
    for one in pending:
        await one
    assert [len(request.batch.messages) for request in broker.publishes] == [2, 2, 1, 1]
    delays = [request.delay_ms for request in broker.publishes]
    assert [delay > 0 for delay in delays] == [True, False, True, True]
    assert all(limit - 5_000 < delay <= limit for delay, limit in zip(delays, (60_000, 0, 5_000, 60_000), strict=True))
    assert broker.channels["orders"].payloads() == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_many_messages_have_one_time(mq: Client, broker: FakeBroker) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    await mq.publish_many("orders", ["a", "b"], deliver_at=at)
    await mq.publish("orders", "c", deliver_at=7)
    assert [request.deliver_time_us for request in broker.publishes] == [1_893_456_000_000_000, 7]


async def test_a_delay_and_an_expected_offset_exclude_each_other(mq: Client, broker: FakeBroker) -> None:
    for call in (
        mq.publish("orders", "a", expected_offset=0, delay=1),
        mq.publish_many("orders", ["a"], expected_offset=0, deliver_at=7),
    ):
        with pytest.raises(InvalidRequest, match="expected_offset: excludes delay"):
            await call
    assert broker.publishes == []


async def test_a_time_to_live_goes_with_every_way_to_publish(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "a", ttl=1.5)
    await mq.publish("orders", "b", ttl=timedelta(minutes=1), expected_offset=1)
    await mq.publish_many("orders", ["c"], ttl=2, delay=60)
    await mq.publish_nowait("orders", "d")
    assert [request.ttl_ms for request in broker.publishes] == [1_500, 60_000, 2_000, 0]
