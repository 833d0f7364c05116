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
from ringpost.v1.group_pb2 import AddGroupRequest, GroupInfo, ListGroupsRequest
from ringpost.v1.message_pb2 import GetMessagesRequest
from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import Client, batch_of, told_by_status
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
