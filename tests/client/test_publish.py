"""Publishing through the client, against a broker that behaves and one that does not."""

import asyncio
import logging
from datetime import UTC, datetime

import grpc
import pytest

from ringpost.client import (
    BufferFull,
    Client,
    Closed,
    Exhausted,
    InvalidRequest,
    Options,
    OutMessage,
    Timeout,
    Unavailable,
    connect,
    publisher,
)
from tests.client.clock import Clock
from tests.client.fake_broker import FakeBroker, failure


async def test_a_publish_returns_where_the_message_is_and_how_safe(mq: Client, broker: FakeBroker) -> None:
    first = await mq.publish("orders", "hello", key="42", headers={"source": "web"}, message_id="m-1")
    second = await mq.publish("orders", b"\x00\xff", durability="leader")

    assert (first.channel, first.offset, first.durability, first.replicas) == ("orders", 0, "quorum", ("fake-1",))
    assert (first.owner, first.duplicate, second.offset, second.durability) == ("fake-1", False, 1, "leader")
    message = broker.channels["orders"].messages[0]
    assert (message.data, message.key, dict(message.headers), message.message_id) == (
        b"hello",
        b"42",
        {"source": "web"},
        "m-1",
    )
    assert broker.channels["orders"].payloads() == [b"hello", b"\x00\xff"]


async def test_a_producer_may_say_when_it_made_a_message(mq: Client, broker: FakeBroker) -> None:
    made = datetime(2026, 1, 31, 12, tzinfo=UTC)
    await mq.publish("orders", "a", time=made)
    await mq.publish_nowait("orders", "b", time=1_769_860_800_000_001)
    await mq.publish("orders", "c")
    times = [message.producer_time_us for message in broker.channels["orders"].messages]
    assert times == [1_769_860_800_000_000, 1_769_860_800_000_001, 0]
    async with mq.subscription("orders", start="earliest") as subscription:
        async for message in subscription:
            assert message.producer_time_us == 1_769_860_800_000_000
            break


async def test_messages_published_together_travel_together(mq: Client, broker: FakeBroker) -> None:
    receipts = await asyncio.gather(*(mq.publish("orders", f"{n}") for n in range(500)))

    assert [receipt.offset for receipt in receipts] == list(range(500))
    assert broker.channels["orders"].payloads() == [str(n).encode() for n in range(500)]
    assert len(broker.publishes) <= 3


async def test_what_arrives_while_a_write_is_in_flight_joins_the_next_frame(mq: Client, broker: FakeBroker) -> None:
    broker.answering.clear()
    pending = []
    for n in range(300):
        pending.append(mq.publish_nowait("orders", f"{n}"))
        await asyncio.sleep(0)
    broker.answering.set()
    receipts = [await one for one in pending]

    assert [receipt.offset for receipt in receipts] == list(range(300))
    assert len(broker.publishes) < 300


async def test_publish_many_cuts_batches_at_both_bounds(broker: FakeBroker) -> None:
    options = Options(max_batch_messages=100, max_batch_bytes=2_000)
    async with connect(broker.address, options=options) as mq:
        small = await mq.publish_many("a", [b"x"] * 250)
        large = await mq.publish_many("b", [b"y" * 500] * 10)
        mixed = await mq.publish_many("c", [b"1", "2", ("key", "3"), OutMessage("4", headers={"h": "v"})])

    assert [(receipt.first_offset, receipt.count) for receipt in small] == [(0, 100), (100, 100), (200, 50)]
    assert [receipt.count for receipt in large] == [3, 3, 3, 1]
    assert (mixed[0].first_offset, mixed[0].last_offset, mixed[0].durability) == (0, 3, "quorum")
    stored = broker.channels["c"].messages
    assert [m.data for m in stored] == [b"1", b"2", b"3", b"4"]
    assert (stored[2].key, dict(stored[3].headers)) == (b"key", {"h": "v"})


async def test_single_and_many_keep_one_order(mq: Client, broker: FakeBroker) -> None:
    mq.publish_nowait("orders", "0")
    many = mq.publish_many("orders", ["1", "2"])
    task = asyncio.create_task(many)
    await asyncio.sleep(0)
    mq.publish_nowait("orders", "3")
    await task
    await mq.flush()

    assert broker.channels["orders"].payloads() == [b"0", b"1", b"2", b"3"]


async def test_linger_waits_for_company(broker: FakeBroker) -> None:
    async with connect(broker.address, options=Options(linger_ms=50)) as mq:
        pending = [mq.publish_nowait("orders", "a")]
        await asyncio.sleep(0.005)
        pending.append(mq.publish_nowait("orders", "b"))
        assert [(await one).offset for one in pending] == [0, 1]

    assert len(broker.publishes) == 1


async def test_a_broken_stream_loses_and_doubles_nothing(mq: Client, broker: FakeBroker) -> None:
    broker.answering.clear()
    pending = [mq.publish_nowait("orders", f"{n}") for n in range(10)]
    await broker.until(lambda: broker.publishes)
    broker.cut()
    broker.answering.set()
    receipts = [await one for one in pending]

    assert [receipt.offset for receipt in receipts] == list(range(10))
    assert broker.channels["orders"].payloads() == [str(n).encode() for n in range(10)]
    assert any(receipt.duplicate for receipt in receipts)
    assert broker.publish_streams == 2


async def test_publishing_goes_on_over_a_restart(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "before")
    await broker.stop()
    pending = mq.publish_nowait("orders", "meanwhile")
    await asyncio.sleep(0.1)
    await broker.start()

    assert (await pending).offset == 1
    assert broker.channels["orders"].payloads() == [b"before", b"meanwhile"]


async def test_the_next_address_takes_over() -> None:
    first, second = FakeBroker(), FakeBroker()
    await first.start()
    second.channels = first.channels  # one cluster
    await second.start()
    async with connect([first.address, second.address]) as mq:
        await mq.publish("orders", "to the first")
        await first.stop()
        await mq.publish("orders", "to the second")
    await second.stop()

    assert second.channels["orders"].payloads() == [b"to the first", b"to the second"]
    assert len(second.publishes) == 1


async def test_a_draining_node_answers_what_it_has_and_is_left(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "a")
    broker.drain()
    await asyncio.sleep(0.01)
    receipt = await mq.publish("orders", "b")

    assert receipt.offset == 1
    assert broker.publish_streams == 2
    assert broker.channels["orders"].payloads() == [b"a", b"b"]


async def test_a_busy_broker_is_asked_again_in_order(mq: Client, broker: FakeBroker) -> None:
    refusals = iter([failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", 20)] * 3)
    broker.refuse = lambda _: next(refusals, None)
    receipts = await mq.publish_many("orders", [str(n) for n in range(5_000)])

    assert [receipt.first_offset for receipt in receipts] == [0, 1000, 2000, 3000, 4000]
    assert broker.channels["orders"].payloads() == [str(n).encode() for n in range(5_000)]


async def test_a_refused_batch_fails_alone(mq: Client, broker: FakeBroker) -> None:
    def refuse(request):
        bad = any(message.data == b"bad" for message in request.batch.messages)
        return failure(grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE") if bad else None

    broker.refuse = refuse
    await mq.publish("orders", "first")
    outcomes = await asyncio.gather(
        mq.publish("orders", "a", durability="leader"),
        mq.publish("orders", "bad", durability="memory"),
        mq.publish("orders", "b", durability="leader"),
        mq.publish("other", "c"),
        return_exceptions=True,
    )

    assert isinstance(outcomes[1], InvalidRequest)
    assert (outcomes[1].reason, outcomes[1].outcome_open) == ("MESSAGE_TOO_LARGE", False)
    assert broker.channels["orders"].payloads() == [b"first", b"a", b"b"]
    assert outcomes[2].offset == 2
    assert (await mq.publish("orders", "d")).offset == 3


async def test_a_forgotten_producer_begins_a_new_session(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "a")
    broker.channels["orders"].producers.clear()

    assert (await mq.publish("orders", "b")).offset == 1
    assert broker.publishes[0].producer_id != broker.publishes[-1].producer_id


async def test_a_full_disk_until_the_timeout_is_a_definite_error(broker: FakeBroker) -> None:
    # So seldom that no answer is outstanding when the time is up, which would leave the outcome open.
    broker.refuse = lambda _: failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", 1_000)
    async with connect(broker.address, options=Options(publish_timeout=1.5)) as mq:
        with pytest.raises(Exhausted) as caught:
            await mq.publish("orders", "a")

    assert (caught.value.reason, caught.value.outcome_open) == ("DISK_FULL", False)


async def test_no_answer_until_the_timeout_leaves_the_outcome_open(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(publisher, "monotonic", clock)
    await mq.publish("orders", "a")
    broker.answering.clear()
    unanswered = asyncio.create_task(mq.publish("orders", "b"))
    await broker.until(lambda: len(broker.publishes) == 2)
    clock.ahead += mq.options.publish_timeout + 1
    with pytest.raises(Timeout) as caught:
        await unanswered
    assert caught.value.outcome_open
    broker.answering.set()
    assert (await mq.publish("orders", "c")).offset == 2


async def test_back_pressure_in_count_and_bytes(broker: FakeBroker) -> None:
    async with connect(broker.address, options=Options(max_pending_messages=2, max_pending_bytes=10_000)) as mq:
        broker.answering.clear()
        mq.publish_nowait("orders", "a")
        mq.publish_nowait("orders", "b")
        with pytest.raises(BufferFull):
            mq.publish_nowait("orders", "c")
        waiting = asyncio.create_task(mq.publish("orders", "d"))
        await broker.until(lambda: broker.publishes)
        assert not waiting.done()
        broker.answering.set()
        assert (await waiting).offset == 2
        broker.answering.clear()
        mq.publish_nowait("orders", b"x" * 9_990)
        with pytest.raises(BufferFull):
            mq.publish_nowait("orders", b"y" * 100)
        broker.answering.set()


async def test_flush_reports_a_failure_that_nobody_awaited(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.refuse = lambda _: failure(grpc.StatusCode.INVALID_ARGUMENT, "BAD")
    mq.publish_nowait("orders", "a")
    with caplog.at_level(logging.ERROR), pytest.raises(InvalidRequest):
        await mq.flush()
    await mq.flush()


async def test_a_cancelled_waiter_does_not_disturb_the_others(mq: Client, broker: FakeBroker) -> None:
    broker.answering.clear()
    tasks = [asyncio.create_task(mq.publish("orders", f"{n}")) for n in range(3)]
    await broker.until(lambda: broker.publishes)
    tasks[1].cancel()
    broker.answering.set()

    assert [(await tasks[n]).offset for n in (0, 2)] == [0, 2]


async def test_done_callbacks_share_the_batch(mq: Client, broker: FakeBroker) -> None:
    done: list[int] = []
    for n in range(5):
        mq.publish_nowait("orders", f"{n}").add_done_callback(lambda one: done.append(one.result().offset))
    await mq.flush()
    await asyncio.sleep(0)

    assert done == [0, 1, 2, 3, 4]


async def test_closing_flushes_and_then_refuses(broker: FakeBroker) -> None:
    mq = await connect(broker.address)
    mq.publish_nowait("orders", "last words")
    await mq.close()
    await mq.close()

    assert broker.channels["orders"].payloads() == [b"last words"]
    with pytest.raises(Closed):
        await mq.publish("orders", "too late")


async def test_the_token_goes_with_every_call_and_a_refusal_is_final(broker: FakeBroker) -> None:
    broker.required_token = "secret"
    async with connect(broker.address, token="secret") as mq:
        await mq.publish("orders", "a")
        broker.required_token = "changed"
        broker.cut()
        with pytest.raises(Exception, match="token") as caught:
            await mq.publish("orders", "b")
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_nobody_there(broker: FakeBroker) -> None:
    await broker.stop()
    with pytest.raises(Unavailable):
        await connect(broker.address, options=Options(connect_timeout=0.3))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"key": "k" * 1025}, "key"),
        ({"headers": {"h": "v" * 16_384}}, "headers"),
        ({"message_id": "m" * 256}, "message_id"),
    ],
)
async def test_a_field_beyond_its_limit_is_named_before_anything_is_sent(
    mq: Client, broker: FakeBroker, arguments: dict, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        await mq.publish("orders", "a", **arguments)
    assert caught.value.violations[0].field == field
    assert broker.publishes == []
