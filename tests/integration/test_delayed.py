"""Delayed publishing on a real node: what it answers, what it refuses, what a kill does."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from ringpost.client import connect
from ringpost.v1.channel_pb2 import ChannelInfo, DeleteChannelRequest, GetChannelRequest
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig
from ringpost.v1.message_pb2 import (
    Cause,
    ExplainMessageRequest,
    ExplainMessageResponse,
    GetMessagesRequest,
    StoredMessage,
)
from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import Client, Node, batch_of, until

YEAR_MS = 366 * 24 * 3600 * 1000


def now_us() -> int:
    return time.time_ns() // 1000


async def info(client: Client) -> ChannelInfo:
    return (await client.channels.GetChannel(GetChannelRequest(name="orders"))).channel


async def messages(client: Client) -> list[StoredMessage]:
    channel = await info(client)
    if channel.end_offset == channel.first_offset:
        return []
    request = GetMessagesRequest(channel="orders", offset=channel.first_offset, max_messages=1_000)
    return list((await client.messages.GetMessages(request)).messages)


async def test_a_delayed_message_survives_a_kill_and_comes_once_and_not_before_its_time(tmp_path: Path) -> None:
    with Node(tmp_path / "n") as node:
        due = now_us() + 8_000_000
        async with Client(node.address) as client:
            for number in range(8):
                answer = await client.publisher.Publish(
                    PublishRequest(
                        channel="orders",
                        batch=batch_of(str(number).encode()),
                        deliver_time_us=due + number,
                        producer_id=5,
                        first_sequence=number,
                    )
                )
                assert (answer.scheduled_time_us, answer.first_offset) == (due + number, 0)
                assert answer.durability == Durability.DURABILITY_QUORUM
            await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"soon"), delay_ms=1))

            async def one() -> bool:
                return (await info(client)).end_offset == 1

            await until(one, "the one of a millisecond")
            shown = await info(client)
            assert (shown.scheduled, shown.next_scheduled_time_us) == (8, due)
        node.kill()
        node.start()
        async with Client(node.address) as client:

            async def all_there() -> bool:
                return (await info(client)).scheduled == 0

            await until(all_there, "all were due")
            found = await messages(client)
            assert [one.message.data for one in found] == [b"soon", *(str(n).encode() for n in range(8))]
            assert all(one.append_time_us >= due + n for n, one in enumerate(found[1:]))
            repeat = await client.publisher.Publish(
                PublishRequest(channel="orders", batch=batch_of(b"3"), delay_ms=5, producer_id=5, first_sequence=3)
            )
            assert (repeat.duplicate, repeat.scheduled_time_us) == (True, due + 3)
            metrics = await asyncio.to_thread(node.metrics)
            assert metrics["ringpost_released_messages_total"] == 8
            assert metrics["ringpost_scheduled_batches"] == 0
            assert metrics["ringpost_release_lateness_seconds_total"] > 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"delay_ms": 1, "deliver_time_us": 7}, "delay_ms: and deliver_time_us exclude each other"),
    ({"delay_ms": YEAR_MS + 1}, "delay_ms: is 31622400001, allowed are 1 to 31622400000"),
    ({"deliver_time_us": 1 << 62}, "deliver_time_us: is 4611686018427387904, allowed is at most"),
    ({"deliver_time_us": -1}, "deliver_time_us: is -1"),
    ({"delay_ms": 1_000, "expected_offset": 0}, "expected_offset: excludes delay_ms"),
]


async def test_wrong_times_are_refused_and_too_many_too(tmp_path: Path) -> None:
    with Node(tmp_path / "n", "--max-scheduled-batches", "2") as node:
        async with Client(node.address) as client:

            async def refused(**how: Any) -> grpc.aio.AioRpcError:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"x"), **how))
                return caught.value

            for how, why in WRONG:
                error = await refused(**how)
                assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert why in (error.details() or "")
            past = await client.publisher.Publish(
                PublishRequest(channel="orders", batch=batch_of(b"past"), deliver_time_us=1, expected_offset=0)
            )
            assert (past.first_offset, past.scheduled_time_us) == (0, 0), "a time that has passed is now"
            later = PublishRequest(channel="orders", batch=batch_of(b"x", b"y"), delay_ms=YEAR_MS)
            await asyncio.gather(*(client.publisher.Publish(later) for _ in range(2)))
            error = await refused(delay_ms=1_000)
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_scheduled_batches" in (error.details() or "")
            assert (await info(client)).scheduled == 4
            await client.channels.DeleteChannel(DeleteChannelRequest(name="orders"))
            await client.publisher.Publish(later)
            assert (await info(client)).scheduled == 2


async def test_messages_have_their_time_to_live(tmp_path: Path) -> None:
    with Node(tmp_path / "n") as node:
        async with Client(node.address) as client:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.publisher.Publish(
                    PublishRequest(channel="orders", batch=batch_of(b"x"), ttl_ms=YEAR_MS + 1)
                )
            assert "ttl_ms: is 31622400001, allowed are 1 to 31622400000" in (caught.value.details() or "")
            config = GroupConfig(expired_to_dead_letters=True)
            await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"short"), ttl_ms=1))
            await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"long"), ttl_ms=YEAR_MS))
            added = await client.groups.AddGroup(AddGroupRequest(channel="orders", name="g", config=config))
            assert added.group.config.expired_to_dead_letters

            async def explained() -> ExplainMessageResponse:
                return await client.messages.ExplainMessage(ExplainMessageRequest(channel="orders", offset=0))

            async def over() -> bool:
                return "was over" in (await explained()).sentence

            await until(over, "its time is over")
            await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"x"), delay_ms=YEAR_MS))
            coming = await client.messages.ExplainMessage(ExplainMessageRequest(channel="orders", offset=2))
            assert "not due yet: 1, the first at" in coming.sentence
            assert list(coming.groups[0].also) == [Cause.CAUSE_NOT_DUE]
            assert coming.groups[0].until_time_us == (await info(client)).next_scheduled_time_us
            (told,) = (await explained()).groups
            assert (told.cause, list(told.also)) == (Cause.CAUSE_EXPIRED, [Cause.CAUSE_NO_CONSUMERS])
        node.kill()
        node.start()
        async with Client(node.address) as client, connect(node.address) as mq:
            async with mq.subscription("orders", group="g") as group:
                async for message in group:
                    assert message.data == b"long"
                    await message.ack()
                    break

            async def buried() -> bool:
                shown = await client.groups.GetGroup(GetGroupRequest(channel="orders", name="g"))
                return shown.group.dead_letters == 1

            await until(buried, "the other one is a dead letter")
            missing: list[tuple[int, int]] = []
            plain = mq.subscription("orders", start="earliest", on_gap=lambda *gap: missing.append(gap))
            async for message in plain:
                assert (message.data, message.offset) == (b"long", 1)
                break
            assert missing == [(0, 0)]
            assert len(await messages(client)) == 2, "they stay in the channel"
            metrics = await asyncio.to_thread(node.metrics)
            assert metrics["ringpost_expired_messages_total"] == 2
