"""Publishing at an expected offset through the client."""

import asyncio

import grpc
import pytest

from ringpost.client import Client, InvalidRequest, OffsetMismatch, Options, OutMessage, Precondition, connect
from tests.client.fake_broker import FakeBroker, failure


async def test_a_message_gets_the_place_that_it_expects_or_none(mq: Client, broker: FakeBroker) -> None:
    first = await mq.publish("orders", "a", key="k", message_id="m", time=7, expected_offset=0)
    assert (first.channel, first.offset, first.owner, first.duplicate) == ("orders", 0, "fake-1", False)
    message = broker.channels["orders"].messages[0]
    assert (message.data, message.key, message.message_id, message.producer_time_us) == (b"a", b"k", "m", 7)

    with pytest.raises(OffsetMismatch) as caught:
        await mq.publish("orders", "late", expected_offset=0)
    assert (caught.value.next_offset, caught.value.outcome_open) == (1, False)
    assert isinstance(caught.value, Precondition)
    assert (await mq.publish("orders", "b", expected_offset=caught.value.next_offset)).offset == 1
    assert broker.channels["orders"].payloads() == [b"a", b"b"]


async def test_it_travels_alone_and_in_its_turn(mq: Client, broker: FakeBroker) -> None:
    before = mq.publish_nowait("orders", "before")
    expected = asyncio.create_task(mq.publish("orders", "expected", expected_offset=1))
    await asyncio.sleep(0)
    after = mq.publish_nowait("orders", "after")
    assert [(await one).offset for one in (before, expected, after)] == [0, 1, 2]
    assert [len(request.batch.messages) for request in broker.publishes] == [1, 1, 1]
    assert [request.HasField("expected_offset") for request in broker.publishes] == [False, True, False]


async def test_what_is_behind_a_refused_one_is_stored_all_the_same(mq: Client, broker: FakeBroker) -> None:
    expected = asyncio.create_task(mq.publish("orders", "x", expected_offset=5))
    await asyncio.sleep(0)
    behind = [mq.publish_nowait("orders", str(n)) for n in range(20)]
    with pytest.raises(OffsetMismatch):
        await expected
    assert [(await one).offset for one in behind] == list(range(20))
    assert broker.channels["orders"].payloads() == [str(n).encode() for n in range(20)]


async def test_several_messages_are_one_batch_or_nothing(mq: Client, broker: FakeBroker) -> None:
    (receipt,) = await mq.publish_many("orders", ["a", ("key", "b"), OutMessage("c")], expected_offset=0)
    assert (receipt.first_offset, receipt.count) == (0, 3)
    with pytest.raises(OffsetMismatch):
        await mq.publish_many("orders", ["d", "e"], expected_offset=1)
    assert broker.channels["orders"].payloads() == [b"a", b"b", b"c"]


async def test_a_refused_batch_is_not_cut(mq: Client, broker: FakeBroker) -> None:
    broker.refuse = lambda request: (
        failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") if len(request.batch.messages) > 1 else None
    )
    with pytest.raises(InvalidRequest):
        await mq.publish_many("orders", ["a", "b"], expected_offset=0)
    assert [len(request.batch.messages) for request in broker.publishes] == [2]


async def test_what_is_too_much_for_one_batch_is_refused_here(broker: FakeBroker) -> None:
    async with connect(broker.address, options=Options(max_batch_messages=2)) as mq:
        for messages in (["a", "b", "c"], []):
            with pytest.raises(InvalidRequest) as caught:
                await mq.publish_many("orders", messages, expected_offset=0)
            assert [violation.field for violation in caught.value.violations] == ["messages"]
        with pytest.raises(InvalidRequest):
            await mq.publish("orders", "a", expected_offset=-1)
    assert broker.publishes == []


async def test_a_lost_answer_is_no_mismatch(mq: Client, broker: FakeBroker) -> None:
    await mq.publish("orders", "a", expected_offset=0)
    cut = iter([True])

    def swallow(request: object) -> None:
        if next(cut, False):
            broker.channel("orders").append(broker.publishes[-1])  # stored, and then nobody says so
            broker.cut()

    broker.refuse = swallow
    stored = await mq.publish("orders", "b", expected_offset=1)
    assert (stored.offset, stored.duplicate) == (1, True)
    assert broker.channels["orders"].payloads() == [b"a", b"b"]
