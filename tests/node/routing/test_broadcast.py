"""A broadcast group through three nodes: every consumer gets every message, and has a place of its own."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.common_pb2 import GroupMode, OffsetRange, Start
from ringpost.v1.group_pb2 import (
    AddGroupRequest,
    DeleteConsumerRequest,
    GetGroupRequest,
    GroupConfig,
    GroupInfo,
    ListGroupsRequest,
    SeekGroupRequest,
    SetGroupRequest,
    SettleMessagesRequest,
)
from ringpost.v1.message_pb2 import CAUSE_LEASED, CAUSE_NO_CONSUMERS, CAUSE_SETTLED, ExplainMessageRequest
from ringpost.v1.subscribe_pb2 import Ack, Nack, Outcome
from tests.integration.broker import Client, Told, next_event, open_subscription, told_by_failure, told_by_status
from tests.node.routing.cluster import Nodes, running
from tests.node.routing.test_subscribe import Subscriber, fill

BROADCAST = GroupMode.GROUP_MODE_BROADCAST
DONE = Outcome.OUTCOME_DONE


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def consumer(client: Client, channel: str, name: str, messages: int, **fields: Any) -> Subscriber:
    """One that has come, and has got so many messages."""
    made = Subscriber(client, channel, group="g", mode=BROADCAST, consumer=name, **fields)
    await made.open()
    await made.take(messages)
    return made


async def shown(client: Client, channel: str) -> GroupInfo:
    return (await client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"), timeout=30)).group


def places(info: GroupInfo) -> list[tuple[str, int, int, int]]:
    return [(one.consumer, one.settled_below, one.pending, one.subscriptions) for one in info.consumers]


async def refused(call: Any) -> Told:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told_by_status(caught.value)


async def test_every_consumer_gets_everything_through_any_node_and_goes_on_where_it_was(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 10)
    ann = await consumer(nodes.clients["n1"], channel, "ann", 10)
    bob = await consumer(nodes.clients["n2"], channel, "bob", 10)
    assert ann.texts == bob.texts == list(range(10))
    assert await ann.settle((0, 6)) == [(0, 6, DONE)]
    assert await bob.settle((0, 1)) == [(0, 1, DONE)]
    assert await bob.settle((2, 2), nack=Nack(delay_ms=3_600_000)) == [(2, 2, DONE)]
    await ann.end()
    again = await consumer(nodes.clients["n3"], channel, "ann", 3)
    assert (again.texts, set(again.attempts)) == ([7, 8, 9], {1})

    info = await shown(nodes.clients["n1"], channel)
    assert places(info) == [("ann", 7, 3, 1), ("bob", 2, 8, 1)]
    assert (info.settled_below, info.pending, info.in_flight, info.to_redeliver) == (2, 8, 10, 1)
    assert [member.consumer for member in info.members] == ["ann", "bob"]
    listed = (await nodes.clients["n3"].groups.ListGroups(ListGroupsRequest(channel=channel))).groups
    assert [(one.name, one.pending, list(one.consumers)) for one in listed] == [("g", 8, [])]


async def test_a_name_is_needed_and_the_mode_is_one(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 2)
    await nodes.clients["n1"].groups.AddGroup(
        AddGroupRequest(channel=channel, name="g", config=GroupConfig(mode=BROADCAST, max_consumers=1))
    )
    wrong: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "open.consumer: is empty; group 'g' is in mode BROADCAST"),
        ({"consumer": "ann", "mode": GroupMode.GROUP_MODE_SHARED}, grpc.StatusCode.FAILED_PRECONDITION, "open.mode"),
        ({"consumer": "b.c"}, grpc.StatusCode.INVALID_ARGUMENT, "open.consumer"),
        ({"consumer": "bob"}, grpc.StatusCode.RESOURCE_EXHAUSTED, "open.consumer: group 'g' has its 1 consumers"),
    ]
    await consumer(nodes.clients["n3"], channel, "ann", 2)
    for fields, code, says in wrong:
        stream = nodes.clients["n1"].subscribe(60)
        await stream.write(open_subscription(channel, group="g", **fields))
        told = told_by_failure((await next_event(stream, "closed")).failure)
        assert (told.code, told.message[: len(says)]) == (code, says)
        stream.cancel()
    groups = nodes.clients["n3"].groups
    bad: list[tuple[GroupConfig, str]] = [
        (GroupConfig(mode=BROADCAST, dead_letters=True), "config.dead_letters"),
        (GroupConfig(mode=BROADCAST, max_consumers=0), "config.max_consumers"),
        (GroupConfig(mode=BROADCAST, consumer_expiry_ms=5), "config.consumer_expiry_ms"),
        (GroupConfig(max_consumers=5), "config.max_consumers"),
    ]
    for config, field in bad:
        told = await refused(groups.AddGroup(AddGroupRequest(channel=channel, name="h", config=config)))
        assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, (field,))
    letters = SetGroupRequest(channel=channel, name="g", config=GroupConfig(dead_letters=True))
    assert (await refused(groups.SetGroup(letters))).fields == ("config.dead_letters",)


async def test_work_is_settled_for_a_consumer_by_offset_or_token(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 4)
    ann = await consumer(nodes.clients["n1"], channel, "ann", 4)
    stream = nodes.clients["n3"].subscribe(60)
    await stream.write(open_subscription(channel, credit=4, group="g", consumer="bob", lease_tokens=True))
    await next_event(stream, "opened")
    token = (await next_event(stream, "deliver")).batches[0].lease_token
    groups = nodes.clients["n3"].groups
    on = {"channel": channel, "group": "g", "ack": Ack()}
    one = [OffsetRange(first=0, last=0)]
    (result,) = (await groups.Settle(SettleMessagesRequest(**on, ranges=one, consumer="ann"))).results
    assert result.outcome == DONE
    (result,) = (await groups.Settle(SettleMessagesRequest(**on, lease_tokens=[token]))).results
    assert (result.range.first, result.range.last, result.outcome) == (0, 3, DONE)
    assert places(await shown(nodes.clients["n1"], channel)) == [("ann", 1, 3, 1), ("bob", 4, 0, 1)]

    told = await refused(groups.Settle(SettleMessagesRequest(**on, ranges=one)))
    assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("consumer",))
    told = await refused(groups.Settle(SettleMessagesRequest(**on, ranges=one, consumer="eve")))
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "CONSUMER_NOT_FOUND")
    told = await refused(groups.Settle(SettleMessagesRequest(**on, lease_tokens=[token], consumer="ann")))
    assert "is of another group than 'g/ann'" in told.message
    await ann.end()
    stream.cancel()


async def test_a_consumer_is_moved_explained_and_deleted(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 4)
    ann = await consumer(nodes.clients["n1"], channel, "ann", 4)
    assert await ann.settle((0, 3)) == [(0, 3, DONE)]
    bob = await consumer(nodes.clients["n3"], channel, "bob", 4)
    client = nodes.clients["n1"]
    answer = await client.messages.ExplainMessage(ExplainMessageRequest(channel=channel, offset=1))
    assert [(one.group, one.cause) for one in answer.groups] == [("g/ann", CAUSE_SETTLED), ("g/bob", CAUSE_LEASED)]
    request = ExplainMessageRequest(channel=channel, offset=1, group="g/bob")
    (one,) = (await client.messages.ExplainMessage(request)).groups
    assert (one.group, one.consumer) == ("g/bob", "bob")
    await bob.end()

    to = Start(offset=2)
    await client.groups.SeekGroup(SeekGroupRequest(channel=channel, name="g", consumer="ann", to=to))
    info = await shown(client, channel)
    assert [(name, below, pending) for name, below, pending, _ in places(info)] == [("ann", 2, 2), ("bob", 0, 4)]
    again = await consumer(nodes.clients["n2"], channel, "ann", 2)
    assert again.texts == [2, 3]

    delete = DeleteConsumerRequest(channel=channel, group="g", consumer="ann")
    await client.groups.DeleteConsumer(delete)
    closed = told_by_failure((await next_event(again.stream, "closed")).failure)
    assert (closed.code, closed.reason) == (grpc.StatusCode.NOT_FOUND, "GROUP_DELETED")
    assert (await refused(client.groups.DeleteConsumer(delete))).reason == "CONSUMER_NOT_FOUND"
    assert [name for name, *_ in places(await shown(client, channel))] == ["bob"]
    anew = await consumer(nodes.clients["n2"], channel, "ann", 4)
    assert anew.texts == [0, 1, 2, 3], "it begins where the group does"
    await client.groups.AddGroup(AddGroupRequest(channel=channel, name="s"))
    told = await refused(client.groups.DeleteConsumer(DeleteConsumerRequest(channel=channel, group="s", consumer="x")))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_MODE")
    answer = await client.messages.ExplainMessage(ExplainMessageRequest(channel=channel, offset=1, group="s"))
    assert answer.groups[0].cause == CAUSE_NO_CONSUMERS
