"""Delayed publishing and times to live through a node that does not own the channel."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from ringpost.v1.channel_pb2 import ChannelInfo, GetChannelRequest
from ringpost.v1.common_pb2 import Start
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Credit, OpenSubscription, SubscribeRequest
from tests.integration.broker import Client, batch_of, until
from tests.node.routing.cluster import Nodes, running

HOUR_MS = 3_600_000


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def info(client: Client, channel: str) -> ChannelInfo:
    return (await client.channels.GetChannel(GetChannelRequest(name=channel))).channel


async def test_the_owner_keeps_the_time_whichever_node_is_asked(nodes: Nodes) -> None:
    channel, entry = nodes.channel("n2"), nodes.clients["n1"]
    soon = PublishRequest(channel=channel, batch=batch_of(b"soon"), delay_ms=100, producer_id=3)
    later = PublishRequest(channel=channel, batch=batch_of(b"a", b"b"), delay_ms=HOUR_MS)
    answer = await entry.publisher.Publish(soon)
    assert (answer.owner, answer.first_offset) == ("n2", 0)
    assert answer.scheduled_time_us == answer.append_time_us + 100_000
    first = (await entry.publisher.Publish(later)).scheduled_time_us

    async def released() -> bool:
        return (await info(entry, channel)).end_offset == 1

    await until(released, "the first one is due")
    for client in nodes.clients.values():
        shown = await info(client, channel)
        assert (shown.scheduled, shown.next_scheduled_time_us) == (2, first)
        assert [m.message.data async for m in client.read(channel, 0, 1)] == [b"soon"]
        repeat = await client.publisher.Publish(soon)
        assert (repeat.duplicate, repeat.scheduled_time_us) == (True, answer.scheduled_time_us)


async def test_a_gap_of_expired_messages_comes_through_another_node(nodes: Nodes) -> None:
    channel, entry = nodes.channel("n2"), nodes.clients["n1"]
    await entry.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"a", b"b"), ttl_ms=1))
    await entry.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"c"), ttl_ms=HOUR_MS))
    stored = nodes.servers["n2"].storage.store.find(channel)

    async def over() -> bool:
        return stored.shard.log.clock() > stored.shard.last_time_us + 1_000

    await until(over, "the time to live is over")
    stream = entry.subscriber.Subscribe()
    credit = Credit(messages=10, bytes=1 << 20)
    start = Start(earliest=True)
    await stream.write(
        SubscribeRequest(open=OpenSubscription(subscription_id=1, channel=channel, start=start, credit=credit))
    )
    told = [await stream.read() for _ in range(3)]
    stream.cancel()
    assert [one.WhichOneof("event") for one in told] == ["opened", "gap", "deliver"]
    assert (told[1].gap.missing.first, told[1].gap.missing.last) == (0, 1)
    assert told[2].deliver.batches[0].first_offset == 2
