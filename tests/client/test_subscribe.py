"""Subscriptions: iterating, groups, credit, resuming, and a broker that misbehaves."""

import asyncio
from datetime import UTC, datetime

import grpc
import pytest

from ringpost.client import (
    Client,
    DataCorrupted,
    Exhausted,
    InvalidRequest,
    LeaseLost,
    NotFound,
    Precondition,
    RingpostError,
    Subscription,
    connect,
)
from ringpost.client import subscription as subscription_module
from ringpost.v1.common_pb2 import GroupMode
from tests.client.clock import Clock
from tests.client.fake_broker import FakeBroker, failure


def payloads(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]


async def read(subscription, count: int) -> list:
    found = []
    async for message in subscription:
        found.append(message)
        if len(found) == count:
            break
    return found


async def test_every_field_of_a_message_arrives(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "hello", key="42", headers={"source": "web"}, message_id="m-1")
    (message,) = await read(mq.subscription("orders", start="earliest"), 1)

    assert (message.channel, message.offset, message.data, message.key) == ("orders", 0, b"hello", b"42")
    assert (dict(message.headers), message.message_id, message.text()) == ({"source": "web"}, "m-1", "hello")
    assert (message.append_time_us, message.producer_time_us, message.attempt) == (1_000_000, 0, 0)


async def test_messages_come_in_order_within_the_credit(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(1_000))
    async with mq.subscription("orders", start="earliest", prefetch=100) as subscription:
        messages = await read(subscription, 1_000)

    assert [message.offset for message in messages] == list(range(1_000))
    totals = [grant.credit.messages for grant in broker.credits]
    assert totals == sorted(totals)
    assert broker.opens[0].credit.messages == 100
    assert all(later - earlier <= 100 for earlier, later in zip([100, *totals], totals, strict=False))


async def test_who_does_not_read_is_sent_no_more_than_the_window(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(1_000))
    async with mq.subscription("orders", start="earliest", prefetch=50) as subscription:
        await read(subscription, 1)
        assert broker._subscriptions[0].sent_messages == 50
        by_bytes = mq.subscription("orders", start="earliest", prefetch_bytes=1_000)
        await read(by_bytes, 1)
        assert broker._subscriptions[1].sent_messages == 500  # one message of the broker, cut at 500


@pytest.mark.parametrize(
    ("start", "first"),
    [("earliest", 0), (3, 3), ("latest", 5)],
)
async def test_where_reading_begins(mq: Client, broker: FakeBroker, start, first: int) -> None:
    broker.put("orders", *payloads(5))
    async with mq.subscription("orders", start=start) as subscription:
        assert await subscription.opened() == first
        broker.put("orders", b"new")
        (message,) = await read(subscription, 1)
    assert message.offset == first


async def test_a_time_is_sent_in_microseconds_and_must_have_a_zone(mq: Client, broker: FakeBroker) -> None:
    async with mq.subscription("orders", start=datetime(2020, 1, 1, tzinfo=UTC)):
        assert broker.opens[0].start.time_us == 1_577_836_800_000_000
    with pytest.raises(ValueError, match="start"):
        mq.subscription("orders", start=datetime(2020, 1, 1))  # noqa: DTZ001


async def test_an_ephemeral_subscription_resumes_behind_what_it_got(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(10))
    async with mq.subscription("orders", start="earliest") as subscription:
        first = await read(subscription, 5)
        broker.cut()
        await broker.until(lambda: len(broker.opens) == 2)
        broker.put("orders", b"10", b"11")
        rest = await read(subscription, 7)

    assert [message.offset for message in first + rest] == list(range(12))
    assert broker.opens[1].start.offset == 10


async def test_an_ephemeral_subscription_from_latest_misses_nothing_while_away(mq: Client, broker: FakeBroker) -> None:
    async with mq.subscription("orders") as subscription:
        await broker.stop()
        broker.channel("orders")
        broker.put("orders", *payloads(3))
        await broker.start()
        messages = await read(subscription, 3)
    assert [message.offset for message in messages] == [0, 1, 2]


async def test_acks_are_gathered_into_ranges_and_confirmed(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(100))
    async with mq.subscription("orders", group="billing") as subscription:
        messages = await read(subscription, 100)
        settlements = [message.ack() for message in messages if message.offset != 50]
        for settlement in settlements:
            await settlement
        assert broker.channels["orders"].groups["billing"].settled_below == 50
        await messages[50].ack()

    assert broker.channels["orders"].groups["billing"].settled_below == 100
    assert [len(settle.ranges) for settle in broker.settles] == [2, 1]


async def test_a_cumulative_ack_takes_all_that_was_given_below(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(10))
    async with mq.subscription("orders", group="billing") as subscription:
        first, second, third, fourth, *_ = await read(subscription, 6)
        await third.ack(cumulative=True)
        group = broker.channels["orders"].groups["billing"]
        assert group.settled_below == 3
        assert (first.settled, second.settled, third.settled, fourth.settled) == (False, False, True, False)
        await first.ack()  # it is settled already: no error
        await fourth.batch.ack(cumulative=True)
        assert group.settled_below == 10
    settles = [(s.cumulative, [(r.first, r.last) for r in s.ranges]) for s in broker.settles]
    assert (True, [(2, 2)]) in settles


async def test_batches_are_acked_as_one_range(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(1_000))
    seen: list[bytes] = []
    async with mq.subscription("orders", group="billing") as subscription:
        async for batch in subscription.batches():
            seen += batch.payloads()
            await batch.ack()
            if len(seen) == 1_000:
                break

    assert seen == payloads(1_000)
    assert broker.channels["orders"].groups["billing"].settled_below == 1_000
    assert all(len(settle.ranges) == 1 for settle in broker.settles)


async def test_what_is_not_acked_comes_again_with_the_next_attempt(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a", b"b")
    async with mq.subscription("orders", group="billing") as subscription:
        first, second = await read(subscription, 2)
        await first.nack()
        await second.reject("nonsense")
        (again,) = await read(subscription, 1)
        assert (first.attempt, again.offset, again.attempt) == (1, 0, 2)
        await again.extend(60)
        await again.ack()

    assert broker.settled_actions() == {"nack": 1, "reject": 1, "extend": 1, "ack": 1}
    assert [settle.reject.reason for settle in broker.settles if settle.HasField("reject")] == ["nonsense"]


async def test_an_expired_lease_is_told_to_whoever_settles(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    async with mq.subscription("orders", group="billing") as subscription:
        (message,) = await read(subscription, 1)
        other = mq.subscription("orders", group="billing")
        await other.opened()
        broker._subscriptions[0].request.credit.messages = 0
        broker.expire_leases("orders", "billing")
        (theirs,) = await read(other, 1)
        with pytest.raises(LeaseLost):
            await message.ack()
        await theirs.ack()


async def test_messages_of_a_broken_stream_are_lost_and_come_again(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(3))
    async with mq.subscription("orders", group="billing") as subscription:
        (message,) = await read(subscription, 1)
        broker.answering.clear()
        waiting = asyncio.ensure_future(_wait_for(message.ack()))
        await broker.until(lambda: broker.settles)
        broker.cut()
        with pytest.raises(LeaseLost):
            await waiting
        broker.answering.set()
        with pytest.raises(LeaseLost):
            await message.extend()
        again = await read(subscription, 3)
        assert [one.offset for one in again] == [0, 1, 2]
        for one in again:
            one.ack()
    assert broker.channels["orders"].groups["billing"].settled_below == 3


async def _wait_for(settlement) -> None:
    await settlement


async def test_closing_sends_the_acks_that_nobody_awaited(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(10))
    subscription = mq.subscription("orders", group="billing")
    for message in await read(subscription, 10):
        message.ack()
    await subscription.close()

    assert broker.channels["orders"].groups["billing"].settled_below == 10
    assert broker.closes == 1
    assert [message async for message in subscription] == []


async def test_closing_releases_leases_without_an_attempt(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    async with mq.subscription("orders", group="billing") as subscription:
        await read(subscription, 1)
    (again,) = await read(mq.subscription("orders", group="billing"), 1)
    assert again.attempt == 1


async def test_a_start_with_a_group_counts_only_when_it_makes_the_group(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(5))
    for _ in range(2):
        async with mq.subscription("orders", group="billing", start=3) as subscription:
            (message,) = await read(subscription, 1)
            assert message.offset == 3


async def test_a_refused_subscription_raises(mq: Client, broker: FakeBroker) -> None:
    broker.refuse_open = lambda _: failure(grpc.StatusCode.NOT_FOUND, "CHANNEL_NOT_FOUND")
    subscription = mq.subscription("orders")
    with pytest.raises(NotFound, match="CHANNEL_NOT_FOUND"):
        await subscription.opened()
    with pytest.raises(NotFound):
        await read(subscription, 1)


async def test_a_subscription_refused_for_now_is_opened_again(mq: Client, broker: FakeBroker) -> None:
    refusals = iter([failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", 10)])
    broker.refuse_open = lambda _: next(refusals, None)
    broker.put("orders", b"a")
    assert len(await read(mq.subscription("orders", start="earliest"), 1)) == 1


async def test_a_mode_goes_with_the_opening_and_with_the_group_that_is_made_for_a_start(
    mq: Client, broker: FakeBroker
) -> None:
    broker.put("orders", *payloads(5))
    async with mq.subscription("orders", group="billing", mode="key_ordered", start=3) as subscription:
        assert (await read(subscription, 1))[0].offset == 3
    assert broker.opens[-1].mode == GroupMode.GROUP_MODE_KEY_ORDERED
    async with mq.subscription("orders", group="billing"):
        assert broker.opens[-1].mode == GroupMode.GROUP_MODE_UNSPECIFIED
    for wrong in ({"group": "billing", "mode": "random"}, {"mode": "shared"}):
        with pytest.raises(InvalidRequest, match="mode"):
            mq.subscription("orders", **wrong)


async def test_a_filter_goes_with_every_opening_and_with_the_group_that_is_made_for_a_start(
    mq: Client, broker: FakeBroker
) -> None:
    broker.put("orders", *payloads(5))
    wanted = 'headers.region == "eu"'
    async with mq.subscription("orders", filter=wanted, start="earliest") as subscription:
        await read(subscription, 5)
        broker.cut()
        broker.put("orders", b"more")
        await read(subscription, 1)
    assert len(broker.opens) == 2
    assert {opened.filter for opened in broker.opens} == {wanted}
    async with mq.subscription("orders", group="billing", filter=wanted, start=3) as subscription:
        assert (await read(subscription, 1))[0].offset == 3
    assert broker.opens[-1].filter == wanted
    pool = await mq.subscribe("orders", print, group="billing", filter=wanted)
    assert broker.opens[-1].filter == wanted
    await pool.close()


async def test_a_newcomer_to_an_exclusive_group_is_told_and_its_consumer_comes_back(
    mq: Client, broker: FakeBroker
) -> None:
    occupied = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "GROUP_OCCUPIED", 10)
    broker.put("orders", b"a")
    async with mq.subscription("orders", group="billing", mode="exclusive") as subscription:
        assert len(await read(subscription, 1)) == 1
        refusals = iter([occupied, occupied])
        broker.refuse_open = lambda _: next(refusals, None)
        broker.cut()
        assert len(await read(subscription, 1)) == 1, "its own broken stream was in the way"
    broker.refuse_open = lambda _: occupied
    with pytest.raises(Exhausted, match="GROUP_OCCUPIED"):
        await mq.subscription("orders", group="billing", mode="exclusive").opened()


async def test_damaged_bytes_are_never_delivered(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    broker.corrupt_crc = True
    with pytest.raises(DataCorrupted, match="CRC"):
        await read(mq.subscription("orders", start="earliest"), 1)


async def test_removed_offsets_are_counted_and_told(mq: Client, broker: FakeBroker) -> None:
    gaps: list[tuple[int, int]] = []
    async with mq.subscription("orders", on_gap=lambda first, last: gaps.append((first, last))) as subscription:
        broker.gap("orders", 0, 9)
        broker.put("orders", b"a")
        await read(subscription, 1)
    assert (gaps, subscription.gaps) == ([(0, 9)], 10)


async def test_a_drained_subscription_moves_on(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(2))
    async with (
        mq.subscription("orders", start="earliest") as plain,
        mq.subscription("orders", group="billing") as shared,
    ):
        await read(plain, 2)
        (message, _) = await read(shared, 2)
        broker.drain(grace_ms=200)
        await message.ack()  # still in its grace
        await broker.until(lambda: len(broker.opens) == 4)
        broker.put("orders", b"2")
        assert [one.offset for one in await read(plain, 1)] == [2]
        assert [one.offset for one in await read(shared, 2)] == [1, 2]


async def test_a_silent_node_is_left(mq: Client, broker: FakeBroker) -> None:
    broker.heartbeats = False
    async with mq.subscription("orders", heartbeat_interval=1):
        await broker.until(lambda: len(broker.opens) == 2)


async def test_leases_of_what_waits_here_are_extended(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(600))
    await mq.groups.add("orders", "billing")
    broker.channels["orders"].groups["billing"].ack_deadline_ms = 100
    async with mq.subscription("orders", group="billing") as subscription:
        await read(subscription, 1)
        await broker.until(lambda: broker.settled_actions().get("extend", 0) >= 1_200)

    extended = [settle for settle in broker.settles if settle.HasField("extend")]
    assert [(r.first, r.last) for r in extended[0].ranges] == [(0, 599)]


async def test_without_a_group_nothing_is_settled(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    (message,) = await read(mq.subscription("orders", start="earliest"), 1)
    with pytest.raises(Precondition):
        message.ack()


async def test_a_client_that_closes_ends_the_loops(broker: FakeBroker) -> None:
    async with connect(broker.address) as mq:
        subscription = mq.subscription("orders")
        reader = asyncio.create_task(read(subscription, 1))
        await subscription.opened()
    assert await reader == []


async def test_a_group_that_was_moved_is_read_from_its_new_place(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(5))
    async with mq.subscription("orders", group="billing") as subscription:
        old = await read(subscription, 2)
        await mq.groups.seek("orders", "billing", 3)
        broker.end_subscriptions("GROUP_MOVED")
        await broker.until(lambda: len(broker.opens) == 2)
        moved = await read(subscription, 2)
        assert [message.offset for message in moved] == [3, 4]
        for message in old:
            with pytest.raises(LeaseLost):
                await message.ack()
        for message in moved:
            await message.ack()
    assert broker.channels["orders"].groups["billing"].settled_below == 5


def extends(broker: FakeBroker) -> int:
    return sum(settle.WhichOneof("action") == "extend" for settle in broker.settles)


async def short_leases(mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> tuple[Subscription, Clock]:
    """A subscription whose leases are extended every 50 ms, and the clock by which its reader stands still."""
    clock = Clock()
    monkeypatch.setattr(subscription_module, "monotonic", clock)
    await mq.groups.add("orders", "billing")
    broker.channels["orders"].groups["billing"].ack_deadline_ms = 100
    return mq.subscription("orders", group="billing"), clock


async def test_a_loop_that_was_left_does_not_hold_its_messages_for_ever(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("orders", *payloads(10))
    subscription, clock = await short_leases(mq, broker, monkeypatch)
    (message,) = await read(subscription, 1)
    await broker.until(lambda: extends(broker) >= 3)
    clock.ahead += mq.options.max_lease
    async with asyncio.timeout(10):
        while "nobody has read" not in caplog.text:
            await asyncio.sleep(0.01)
    await message.ack()  # behind every extension that is on its way
    before = extends(broker)
    await asyncio.sleep(0.2)
    assert extends(broker) == before


async def test_a_reader_that_moves_keeps_its_leases(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("orders", *payloads(100))
    subscription, clock = await short_leases(mq, broker, monkeypatch)
    for _ in range(6):
        await read(subscription, 1)
        before = extends(broker)
        await broker.until(lambda before=before: extends(broker) >= before + 2)
        clock.ahead += mq.options.max_lease / 2
    assert "nobody has read" not in caplog.text


async def test_a_half_read_batch_counts_in_the_next_stream_s_window(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(100))
    async with mq.subscription("orders", start="earliest", prefetch=40) as subscription:
        await read(subscription, 1)
        broker.cut()
        await broker.until(lambda: len(broker.opens) == 2)
        assert broker.opens[1].credit.messages == 0
        assert [message.offset for message in await read(subscription, 99)] == list(range(1, 100))


async def test_a_bug_in_reading_an_event_is_told_to_the_reader(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with mq.subscription("orders") as subscription:

        def bug(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(subscription._consumer, "_on_batch", bug)
        broker.put("orders", b"a")
        with pytest.raises(RingpostError, match="bug in the client"):
            await asyncio.wait_for(read(subscription, 1), 10)
