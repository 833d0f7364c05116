"""Unary calls through nodes that do not lead the channel, and lists that several nodes make together."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.channel_pb2 import (
    AddChannelRequest,
    ChannelConfig,
    DeleteChannelRequest,
    GetChannelRequest,
    ListChannelsRequest,
    SetChannelRequest,
)
from ringpost.v1.cluster_pb2 import GetRoutesRequest
from ringpost.v1.common_pb2 import Start
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupInfo, ListGroupsRequest, PauseGroupRequest
from ringpost.v1.message_pb2 import (
    CAUSE_LEASED,
    CAUSE_NO_CREDIT,
    CAUSE_PAUSED,
    MESSAGE_STATE_STORED,
    ExplainMessageRequest,
    GetMessagesRequest,
)
from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import (
    Client,
    batch_of,
    next_event,
    open_subscription,
    told_by_failure,
    told_by_status,
)
from tests.node.routing.cluster import Nodes, running


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def test_a_channel_is_looked_after_through_any_node(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    one, two, three = nodes.clients.values()
    made = (await one.channels.AddChannel(AddChannelRequest(name=channel))).channel
    assert (made.owner, made.epoch, made.shard) == ("n2", 1, nodes.shard(channel))
    config = ChannelConfig(retention_messages=100)
    await three.channels.SetChannel(SetChannelRequest(name=channel, config=config))
    shown = [
        (await client.channels.GetChannel(GetChannelRequest(name=channel))).channel for client in (one, two, three)
    ]
    assert shown[0] == shown[1] == shown[2]
    assert shown[0].config.retention_messages == 100
    await one.channels.DeleteChannel(DeleteChannelRequest(name=channel))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await three.messages.GetMessages(GetMessagesRequest(channel=channel))
    assert told_by_status(error.value).reason == "CHANNEL_NOT_FOUND"


async def test_the_owner_explains_a_message_through_any_node(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    one, three = nodes.clients["n1"], nodes.clients["n3"]
    await one.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"a", b"b")))
    stream = one.subscribe()
    await stream.write(open_subscription(channel, credit=1, group="g", consumer="ann"))
    await next_event(stream, "deliver")
    await one.groups.PauseGroup(PauseGroupRequest(channel=channel, name="g"))
    told = await three.messages.ExplainMessage(ExplainMessageRequest(channel=channel, offset=0, group="g"))
    assert (told.state, told.owner, told.in_sync) == (MESSAGE_STATE_STORED, "n2", ["n2"])
    assert [(group.cause, group.consumer) for group in told.groups] == [(CAUSE_LEASED, "ann")]
    told = await three.messages.ExplainMessage(ExplainMessageRequest(channel=channel, offset=1))
    assert [(group.cause, list(group.also)) for group in told.groups] == [(CAUSE_PAUSED, [CAUSE_NO_CREDIT])]
    assert (await three.groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group.paused
    stream.cancel()


async def filled(nodes: Nodes) -> list[str]:
    """Channels of all nodes, each with a group or two."""
    names = sorted(nodes.world.channel(shard, n) for shard in range(nodes.world.shard_count) for n in (0, 1))
    client = nodes.clients["n1"]
    for n, name in enumerate(names):
        await client.publisher.Publish(PublishRequest(channel=name, batch=batch_of(b"x")))
        for group in ("a", "b")[: 1 + n % 2]:
            await client.groups.AddGroup(AddGroupRequest(channel=name, name=group))
    return names


async def all_groups(client: Client, page_size: int) -> list[GroupInfo]:
    found: list[GroupInfo] = []
    token = ""
    while True:
        page = await client.groups.ListGroups(ListGroupsRequest(page_size=page_size, page_token=token))
        found += page.groups
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("page_size", [1, 5, 12, 1_000])
async def test_a_list_is_everybody_s_in_order(nodes: Nodes, page_size: int) -> None:
    names = await filled(nodes)
    for client in nodes.clients.values():
        channels = await client.all_channels(page_size)
        assert [channel.name for channel in channels] == names
        assert {channel.owner for channel in channels} == set(nodes.clients)
        groups = [(group.channel, group.name) for group in await all_groups(client, page_size)]
        assert groups == [(name, group) for n, name in enumerate(names) for group in ("a", "b")[: 1 + n % 2]]


async def test_a_list_names_no_channel_twice_and_none_of_an_old_leader(nodes: Nodes) -> None:
    names = await filled(nodes)
    for shard in (0, 1, 2):
        await nodes.hand_over(shard, "n3")
    for client in nodes.clients.values():
        channels = await client.all_channels(7)
        assert [channel.name for channel in channels] == names
        assert {c.owner for c in channels if c.shard in (0, 1, 2)} == {"n3"}
        assert len(await all_groups(client, 1_000)) == 36


async def test_a_prefix_reaches_every_node(nodes: Nodes) -> None:
    await filled(nodes)
    every = [channel.name for channel in await nodes.clients["n2"].all_channels()]
    prefix = every[5][:2]
    page = await nodes.clients["n1"].channels.ListChannels(ListChannelsRequest(prefix=prefix))
    assert [channel.name for channel in page.channels] == [name for name in every if name.startswith(prefix)]


async def test_a_call_waits_for_a_leader(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    nodes.world.assign({nodes.shard(channel): None})
    call = asyncio.ensure_future(nodes.clients["n1"].channels.AddChannel(AddChannelRequest(name=channel)))
    listing = asyncio.ensure_future(nodes.clients["n3"].all_channels())
    await asyncio.sleep(0.2)
    assert not call.done()
    assert not listing.done()
    nodes.world.assign({nodes.shard(channel): "n3"})
    assert (await call).channel.owner == "n3"
    await listing


async def test_a_call_through_a_node_that_looks_away_is_repeated(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    nodes.world.coordinations["n1"].blind = True
    nodes.world.assign({nodes.shard(channel): "n3"})
    call = asyncio.ensure_future(nodes.clients["n1"].channels.AddChannel(AddChannelRequest(name=channel)))
    await asyncio.sleep(0.2)
    assert not call.done(), "the old leader refuses"
    nodes.world.coordinations["n1"].blind = False
    nodes.world.coordinations["n1"].look()
    assert (await call).channel.owner == "n3"


async def test_waiting_ends_within_the_deadline_and_the_patience(tmp_path: Path) -> None:
    async with running(tmp_path, ("n1", "n2"), forward_patience_ms=200) as nodes:
        channel = nodes.channel("n2")
        nodes.world.assign({nodes.shard(channel): None})
        client = nodes.clients["n1"]
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await client.channels.GetChannel(GetChannelRequest(name=channel))
        with pytest.raises(grpc.aio.AioRpcError) as listing:
            await client.channels.ListChannels(ListChannelsRequest())
        with pytest.raises(grpc.aio.AioRpcError) as sooner:
            await client.channels.GetChannel(GetChannelRequest(name=channel), timeout=0.05)
    for error in (late, listing):
        told = told_by_status(error.value)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
        assert told.retry_after_ms > 0
    assert sooner.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)


async def test_a_node_that_is_gone_is_waited_for(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await nodes.clients["n1"].channels.AddChannel(AddChannelRequest(name=channel))
    await nodes.kill("n2")
    call = asyncio.ensure_future(nodes.clients["n1"].channels.GetChannel(GetChannelRequest(name=channel)))
    await asyncio.sleep(0.2)
    await nodes.start("n2")
    nodes.world.assign({nodes.shard(channel): "n2"})
    assert (await call).channel.name == channel


async def test_routes_tell_who_and_where(nodes: Nodes) -> None:
    await nodes.kill("n3")
    nodes.world.nodes["n3"] = nodes.world.nodes["n3"].__class__("n3", "127.0.0.1:1", zone="z3")
    nodes.world.changed()
    routes = await nodes.clients["n1"].cluster.GetRoutes(GetRoutesRequest())
    assert {(node.node, node.zone, node.alive) for node in routes.nodes} == {
        ("n1", "", True),
        ("n2", "", True),
        ("n3", "z3", False),
    }
    assert [(route.owner, list(route.replicas)) for route in routes.shards[:2]] == [("n1", ["n1"]), ("n2", ["n2"])]


@pytest.mark.parametrize("asked", ["n1", "n3"])
async def test_how_far_something_is_says_only_who_surely_leads(nodes: Nodes, asked: str) -> None:
    """An owner that was frozen does not answer with less than its clients have seen; once it is sure again it does."""
    channel = nodes.channel("n1")
    client = nodes.clients[asked]
    await client.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"x")))
    await client.groups.AddGroup(AddGroupRequest(channel=channel, name="g"))
    routing = nodes.servers["n1"].routing
    assert routing is not None
    router, sure = routing.router, False
    router.sure = lambda shard: sure or shard != nodes.shard(channel)
    asks = [
        lambda: client.channels.GetChannel(GetChannelRequest(name=channel), timeout=1.5),
        lambda: client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"), timeout=1.5),
        lambda: client.messages.GetMessages(GetMessagesRequest(channel=channel), timeout=1.5),
    ]
    for ask in asks:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask()
        assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    waiting = [asyncio.ensure_future(ask()) for ask in asks]
    await asyncio.sleep(0.2)
    assert not any(one.done() for one in waiting)
    sure = True
    assert (await waiting[0]).channel.end_offset == 1
    assert (await waiting[1]).group.pending == 1
    assert len((await waiting[2]).messages) == 1


async def test_an_offset_beyond_the_end_is_refused_only_by_who_surely_leads(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    client, hub = nodes.clients["n1"], nodes.servers["n1"].hub
    await client.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"x")))
    told = []
    for sure in (False, True):
        hub.may_deliver = lambda _, sure=sure: sure
        call = client.subscriber.Subscribe(timeout=20)
        await call.write(open_subscription(channel, start=Start(offset=99)))
        told.append(told_by_failure((await next_event(call, "closed")).failure).code)
        call.cancel()
    assert told == [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE]
