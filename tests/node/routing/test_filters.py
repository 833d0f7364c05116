"""Filters through nodes that do not lead the channel: what is shared, what moves along, how they are refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest_asyncio

from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig, SetGroupRequest
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.subscribe_pb2 import Credit, OpenSubscription, SubscribeRequest
from tests.integration.broker import Client, next_event, told_by_failure, told_by_status, until
from tests.node.routing.cluster import Nodes, running
from tests.node.routing.test_subscribe import EARLIEST, Subscriber, sharing

EVEN, ODD = 'headers.odd == "0"', 'headers.odd == "1"'


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def fill(client: Client, channel: str, first: int, end: int) -> None:
    """Messages that are their numbers, with a header that says whether that is odd, ten a batch."""
    for at in range(first, end, 10):
        numbers = range(at, min(at + 10, end))
        messages = [Message(data=b"%d " % n, headers={"odd": str(n % 2)}) for n in numbers]
        await client.publisher.Publish(PublishRequest(channel=channel, batch=Batch(messages=messages)))


async def test_those_with_one_filter_share_an_upstream_and_those_with_another_do_not(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    wanted = [EVEN, EVEN, ODD, ODD, "", ""]
    subscribers = [Subscriber(nodes.clients["n1"], channel, number=n, filter=f) for n, f in enumerate(wanted, 1)]
    for subscriber in subscribers:
        await subscriber.open()
    await sharing(nodes, "n1", 3)
    await fill(nodes.clients["n3"], channel, 0, 100)
    expected = {EVEN: list(range(0, 100, 2)), ODD: list(range(1, 100, 2)), "": list(range(100))}
    for subscriber, text in zip(subscribers, wanted, strict=True):
        assert await subscriber.take(len(expected[text])) == expected[text]
        assert subscriber.offsets == expected[text]
    assert nodes.servers["n2"].hub.reading.sieve.filtered["subscription"] == 100, "once for each upstream, at the owner"
    assert nodes.servers["n1"].hub.reading.sieve.filtered["subscription"] == 0
    for subscriber in subscribers:
        await subscriber.end()
    await sharing(nodes, "n1", 0)


async def test_a_subscription_with_a_filter_goes_along_with_the_leader(nodes: Nodes) -> None:
    """Through an entry node, through the old leader, through the new one: each message once, in order."""
    channel = nodes.channel("n1")
    subscribers = [Subscriber(client, channel, filter=EVEN) for client in nodes.clients.values()]
    for subscriber in subscribers:
        await subscriber.open()
    end = 0
    for to in ("n2", "n3", "n1"):
        await fill(nodes.clients["n3"], channel, end, end + 30)
        await nodes.hand_over(nodes.shard(channel), to)
        await fill(nodes.clients["n2"], channel, end + 30, end + 40)
        end += 40
    for subscriber in subscribers:
        assert await subscriber.take(end // 2) == list(range(0, end, 2))
        assert subscriber.others == []


async def test_a_group_with_a_filter_works_through_any_node(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n3"], channel, 0, 20)
    one = Subscriber(nodes.clients["n1"], channel, group="g", filter=EVEN)
    await one.open()
    assert await one.take(10) == list(range(0, 20, 2))
    assert await one.settle((0, 18), cumulative=True) == [(n, n, 1 + 2 * (n % 2)) for n in range(19)]
    groups = nodes.clients["n3"].groups

    async def done() -> bool:
        info = (await groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group
        return (info.pending, info.filtered, info.settled_below) == (0, 10, 20)

    await until(done, "all is settled")
    other = Subscriber(nodes.clients["n3"], channel, group="g", filter=ODD)
    await other.stream.write(other._open)
    told = told_by_failure((await next_event(other.stream, "closed")).failure)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_FILTER")
    changed = SetGroupRequest(channel=channel, name="g", config=GroupConfig(filter=ODD))
    assert (await groups.SetGroup(changed)).group.config.filter == ODD
    told = told_by_failure((await next_event(one.stream, "closed")).failure)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "GROUP_MOVED")


async def test_a_wrong_filter_is_refused_by_the_first_node_that_hears_of_it(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    wrong = Subscriber(nodes.clients["n1"], channel, filter="headers.x ==", start=EARLIEST)
    await wrong.stream.write(wrong._open)
    told = told_by_failure((await next_event(wrong.stream, "closed")).failure)
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT
    assert told.message == "open.filter: goes wrong at line 1, column 13: expected a value, found the end"
    assert told.fields == ("open.filter",)
    try:
        await nodes.clients["n1"].groups.AddGroup(
            AddGroupRequest(channel=channel, name="g", config=GroupConfig(filter="\nsize == 'a'"))
        )
    except grpc.aio.AioRpcError as error:
        told = told_by_status(error)
    assert told.message.startswith("config.filter: goes wrong at line 2, column 6: == compares what has one type")


async def test_a_pattern_with_a_filter_has_what_it_lets_through_of_every_channel(nodes: Nodes) -> None:
    names = ["sieved.a", "sieved.b", "sieved.c"]
    for name in names:
        await fill(nodes.clients["n3"], name, 0, 20)
    stream = nodes.clients["n1"].subscribe(60)
    credit = Credit(messages=1_000, bytes=1 << 30)
    command = OpenSubscription(subscription_id=1, pattern="sieved.*", filter=EVEN, start=EARLIEST, credit=credit)
    await stream.write(SubscribeRequest(open=command))
    found: dict[str, list[int]] = {}
    async with asyncio.timeout(30):
        while sum(len(numbers) for numbers in found.values()) < 30:
            for batch in (await stream.read()).deliver.batches:
                numbers = found.setdefault(batch.channel, [])
                numbers += [int(message.data) for message in batch.batch.messages]
    assert found == {name: list(range(0, 20, 2)) for name in names}


async def test_each_consumer_of_a_broadcast_group_has_what_its_filter_lets_through(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n3"], channel, 0, 20)
    how = {"group": "b", "mode": GroupMode.GROUP_MODE_BROADCAST, "filter": EVEN}
    members = [Subscriber(nodes.clients["n1"], channel, consumer=name, **how) for name in ("one", "two")]
    for member in members:
        await member.open()
        assert await member.take(10) == list(range(0, 20, 2))
    groups = nodes.clients["n3"].groups
    await groups.SetGroup(SetGroupRequest(channel=channel, name="b", config=GroupConfig(filter=ODD)))
    for member in members:
        told = told_by_failure((await next_event(member.stream, "closed")).failure)
        assert told.reason == "GROUP_MOVED"
    await fill(nodes.clients["n3"], channel, 20, 30)
    again = Subscriber(nodes.clients["n1"], channel, consumer="one", group="b")
    await again.open()
    assert await again.take(5) == list(range(21, 30, 2)), "the odd ones before were filtered out by the first filter"
