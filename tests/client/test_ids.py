"""Message ids through the client, on a real node: a message is stored once, however it is batched the next time."""

import asyncio
from typing import Any

import pytest

from ringpost.client import AlreadyExists, BatchReceipt, Client, Options, OutMessage, connect
from ringpost.v1.channel_pb2 import ChannelConfig

WINDOW = ChannelConfig(dedup_window_ms=3_600_000)


async def ids_in(mq: Client, channel: str) -> list[str]:
    end = (await mq.channels.get(channel)).end_offset
    return [stored.message.message_id for stored in await mq.messages.get(channel, 0, end)]


def places(receipts: list[BatchReceipt]) -> list[tuple[int, bool]]:
    return [(r.first_offset + n, r.duplicate) for r in receipts for n in range(r.count)]


async def test_a_program_that_begins_again_doubles_nothing(ringpost_session_broker: Any) -> None:
    channel = "ids.program"
    async with connect(ringpost_session_broker.address) as mq:
        await mq.channels.add(channel, WINDOW)
        assert [(await mq.publish(channel, "x", message_id=f"{n}")).offset for n in range(5)] == list(range(5))
    async with connect(ringpost_session_broker.address) as mq:  # another producer id
        receipts = await asyncio.gather(*(mq.publish(channel, "x", message_id=f"{n}") for n in range(10)))
        assert [(r.offset, r.duplicate) for r in receipts] == [(n, n < 5) for n in range(10)]
        assert (await mq.publish(channel, "y")).offset == 10
        assert await ids_in(mq, channel) == [*map(str, range(10)), ""]


async def test_a_mixture_is_taken_apart(ringpost_session_broker: Any) -> None:
    channel = "ids.mixed"
    async with connect(ringpost_session_broker.address) as mq:
        await mq.channels.add(channel, WINDOW)
        for one in "dba":
            await mq.publish(channel, "x", message_id=one)
        receipts = await mq.publish_many(channel, [OutMessage("x", message_id=one) for one in "abcdeff"])
        expected = [(2, True), (1, True), (3, False), (0, True), (4, False), (5, False), (5, True)]
        assert places(receipts) == expected
        assert await ids_in(mq, channel) == list("dbacef")


async def test_what_must_stay_whole_is_refused(ringpost_session_broker: Any) -> None:
    channel = "ids.whole"
    async with connect(ringpost_session_broker.address) as mq:
        await mq.channels.add(channel, WINDOW)
        await mq.publish(channel, "x", message_id="a")
        with pytest.raises(AlreadyExists) as caught:
            await mq.publish_many(channel, [OutMessage("x", message_id=one) for one in "ba"], expected_offset=1)
        assert (caught.value.reason, caught.value.metadata["index"]) == ("DUPLICATE_IDS", "1")
        assert (await mq.publish(channel, "x", message_id="b", expected_offset=1)).offset == 1
        again = await mq.publish(channel, "x", message_id="b", expected_offset=1)
        assert (again.offset, again.duplicate) == (1, True)


async def test_ids_outlive_a_killed_node(ringpost_broker: Any) -> None:
    async with connect(ringpost_broker.address, options=Options(max_batch_messages=7)) as mq:
        await mq.channels.add("ids.kill", WINDOW)
        messages = [OutMessage("x", message_id=f"{n}") for n in range(50)]
        await mq.publish_many("ids.kill", messages)
        ringpost_broker.kill()
        ringpost_broker.restart()
        receipts = await mq.publish_many("ids.kill", messages[::-1])
        assert sorted(places(receipts)) == [(n, True) for n in range(50)]
        assert (await mq.publish("ids.kill", "x", message_id="50")).offset == 50
