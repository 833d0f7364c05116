"""Messages that cannot be published: who is told, how often, and that nobody else suffers."""

import asyncio
import logging
import traceback

import grpc
import pytest

from ringpost.client import Client, Closed, InvalidRequest, Options, RingpostError, Unavailable, connect
from ringpost.client.pipe import Pipe
from ringpost.v1 import common_pb2, publish_pb2
from tests.client.fake_broker import FakeBroker, failure


@pytest.fixture
def picky(broker: FakeBroker) -> FakeBroker:
    """Refuses a batch that holds a message that begins with "bad", as a node does: all of it, naming the message."""

    def refuse(request: publish_pb2.PublishRequest) -> common_pb2.Failure | None:
        for n, message in enumerate(request.batch.messages):
            if message.data.startswith(b"bad"):
                refused = failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
                refused.violations.add(field=f"batch.messages[{n}]", description="is bad")
                return refused
        return None

    broker.refuse = refuse
    return broker


async def test_a_bad_message_fails_alone_in_its_batch(mq: Client, picky: FakeBroker) -> None:
    names = [f"bad{n}" if n in (0, 41, 99) else f"ok{n}" for n in range(100)]
    outcomes = await asyncio.gather(*(mq.publish("orders", name) for name in names), return_exceptions=True)

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, InvalidRequest)] == [0, 41, 99]
    good = [name for name in names if name.startswith("ok")]
    assert picky.channels["orders"].payloads() == [name.encode() for name in good]
    assert [outcome.offset for outcome in outcomes if not isinstance(outcome, Exception)] == list(range(97))


async def test_publish_many_stores_the_rest_and_raises(mq: Client, picky: FakeBroker) -> None:
    with pytest.raises(InvalidRequest):
        await mq.publish_many("orders", [b"a", b"bad", b"c"])
    assert picky.channels["orders"].payloads() == [b"a", b"c"]


async def test_a_message_that_no_stream_could_carry_is_refused_at_once(broker: FakeBroker) -> None:
    broker.max_batch_bytes = 1_000
    async with connect(broker.address) as mq:
        largest = await mq.publish("orders", b"x" * 994)
        for publish in (mq.publish("orders", b"x" * 995), mq.publish_many("orders", [b"x" * 995])):
            with pytest.raises(InvalidRequest, match="at most 1,000") as caught:
                await publish
            assert (caught.value.reason, caught.value.metadata) == ("MESSAGE_TOO_LARGE", {"limit": "1000"})
        with pytest.raises(InvalidRequest):
            mq.publish_nowait("orders", b"x" * 2_000)
    assert largest.offset == 0
    assert len(broker.publishes) == 1


async def test_what_waits_is_cut_for_a_node_that_takes_less(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "before")
    (pipe,) = mq._publishing()._pipes.values()
    session = pipe.session
    await broker.stop()
    while pipe.session is session:  # what it sent would be open, and then never cut
        await asyncio.sleep(0)
    pending = [mq.publish_nowait("orders", b"%d" % n * 300) for n in range(5)]
    large = mq.publish_nowait("orders", b"x" * 2_000)
    broker.max_batch_bytes = 1_000
    await broker.start()

    assert [(await one).offset for one in pending] == [1, 2, 3, 4, 5]
    with pytest.raises(InvalidRequest, match="at most 1,000"):
        await large
    assert max(request.batch.ByteSize() for request in broker.publishes) <= 1_000


async def test_flush_reports_what_nobody_awaited_though_its_batch_was(mq: Client, picky: FakeBroker) -> None:
    good = mq.publish_nowait("orders", "a")
    mq.publish_nowait("orders", "bad")
    assert (await good).offset == 0
    with pytest.raises(InvalidRequest):
        await mq.flush()
    await mq.flush()


async def test_flush_does_not_report_what_was_awaited_after_it_had_failed(mq: Client, picky: FakeBroker) -> None:
    pending = mq.publish_nowait("orders", "bad")
    watched = mq.publish_nowait("other", "after")
    await watched
    while not pending.done():
        await asyncio.sleep(0)
    with pytest.raises(InvalidRequest):
        await pending
    await mq.flush()


async def test_every_waiter_of_a_failed_batch_gets_its_own_exception(mq: Client, broker: FakeBroker) -> None:
    broker.refuse = lambda _: failure(grpc.StatusCode.DATA_LOSS, "SHARD_QUARANTINED")
    outcomes = await asyncio.gather(*(mq.publish("orders", f"{n}") for n in range(100)), return_exceptions=True)

    errors = [outcome for outcome in outcomes if isinstance(outcome, RingpostError)]
    assert len({id(error) for error in errors}) == 100
    assert max(len(traceback.format_exception(error)) for error in errors) < 20


async def test_a_failure_of_many_channels_finds_each_one_s_own_messages(mq: Client, broker: FakeBroker) -> None:
    broker.refuse = lambda request: (
        failure(grpc.StatusCode.NOT_FOUND, "CHANNEL_NOT_FOUND") if request.channel.endswith("7") else None
    )
    outcomes = await asyncio.gather(*(mq.publish(f"c{n}", "x") for n in range(100)), return_exceptions=True)
    assert [n for n, one in enumerate(outcomes) if isinstance(one, RingpostError)] == list(range(7, 100, 10))


async def test_publish_many_takes_a_generator_as_it_goes(broker: FakeBroker) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield b"x"

    async with connect(broker.address, options=Options(max_pending_messages=100, max_batch_messages=50)) as mq:
        broker.answering.clear()
        task = asyncio.create_task(mq.publish_many("orders", endless()))
        await broker.until(lambda: broker.publishes)
        assert taken <= 200
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        broker.answering.set()


async def test_closing_raises_for_what_it_gives_up(broker: FakeBroker) -> None:
    mq = await connect(broker.address, options=Options(close_timeout=0.2))
    await mq.publish("orders", "a")
    await broker.stop()
    mq.publish_nowait("orders", "lost")
    with pytest.raises(Closed, match="before the answer"):
        await mq.close()
    await mq.close()  # told once


async def test_closing_does_not_hide_what_the_body_raised(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with connect(broker.address, options=Options(close_timeout=0.2)) as mq:
            await broker.stop()
            mq.publish_nowait("orders", "lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR):
        await body()
    assert "closing the client" in caplog.records[-1].getMessage()


async def test_a_bug_in_reading_an_answer_ends_the_stream_and_not_the_client(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = mq._publishing()
    real = publisher.answered

    def broken(pipe: Pipe, result: publish_pb2.PublishResult, now: float) -> None:
        monkeypatch.setattr(publisher, "answered", real)
        raise ZeroDivisionError

    monkeypatch.setattr(publisher, "answered", broken)
    receipt = await asyncio.wait_for(mq.publish("orders", "a"), 10)
    assert (receipt.offset, receipt.duplicate, broker.publish_streams) == (0, True, 2)


async def test_a_connection_that_never_was_leaves_nothing_open(broker: FakeBroker) -> None:
    await broker.stop()
    with pytest.raises(Unavailable) as caught:
        await connect(broker.address, options=Options(connect_timeout=0.3))
    assert not caught.value.outcome_open
