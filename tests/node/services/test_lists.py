"""Lists of very many channels and groups: complete, in order, and never for long at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ringpost.cluster.patterns import Patterns
from ringpost.node.access.caller import Caller, Usage
from ringpost.node.access.grants import Grants, Quota, Verb
from ringpost.node.access.guard import _caller
from ringpost.node.server import Server
from ringpost.node.services.channels import Channels
from ringpost.node.services.groups import Groups
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1 import channel_pb2, group_pb2
from tests.node.routing.cluster import running

COUNT = 12_000
NAMES = [f"a.{number:05}" for number in range(COUNT)]
Answer = TypeVar("Answer")
Context: Any = None


def ignore(error: object) -> None:
    """Nobody waits."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(tmp_path, ("n1",)) as nodes:
        server = nodes.servers["n1"]
        store = server.storage.store
        for name in [*NAMES, "b.last"]:
            store.add(name, store.limits.new_channel, ignore)
        for name in ("a.00000", "a.06000", "b.last"):
            found = store.find(name)
            for group in ("g1", "g2"):
                add_group(found, group, GroupSettings.of(group_pb2.GroupConfig()), 0, ignore)
        yield server


def caller_of(*patterns: str) -> None:
    """Who makes the calls of this test."""
    grants = Grants({Verb.CONSUME: Patterns(patterns)})
    _caller.set(Caller("somebody", grants, Usage("somebody", Quota())))


async def turns_during(call: Awaitable[Answer]) -> tuple[Answer, int]:
    """What it answers, and how often others had their turn meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(others())
    await asyncio.sleep(0)
    turns = 0
    answer = await call
    working.cancel()
    return answer, turns


@pytest.mark.parametrize("page_size", [1, 1_000])
async def test_a_list_of_channels_lets_others_have_their_turn(server: Server, page_size: int) -> None:
    caller_of("b.*", *(f"team{number}.>" for number in range(20)))
    channels = Channels(server.storage.store, node="n1")
    request = channel_pb2.ListChannelsRequest(page_size=page_size)
    answer, turns = await turns_during(channels.ListChannels(request, Context))
    assert [one.name for one in answer.channels] == ["b.last"]
    assert turns >= COUNT // 1_000
    caller_of()
    assert not (await channels.ListChannels(request, Context)).channels


async def test_a_list_of_groups_lets_others_have_their_turn(server: Server) -> None:
    for name in NAMES:
        add_group(server.storage.store.find(name), "all", GroupSettings.of(group_pb2.GroupConfig()), 0, ignore)
    caller_of("b.*")
    groups = Groups(server.storage.store, server.storage.reading)
    answer, turns = await turns_during(groups.ListGroups(group_pb2.ListGroupsRequest(), Context))
    assert [(one.channel, one.name) for one in answer.groups] == [("b.last", "g1"), ("b.last", "g2")]
    assert turns >= COUNT // 1_000


@pytest.mark.parametrize("page_size", [1, 3, 4, 100])
async def test_pages_of_a_list_follow_each_other_without_a_gap(server: Server, page_size: int) -> None:
    caller_of(">")
    store = server.storage.store
    groups, told, token = Groups(store, server.storage.reading), [], ""
    while True:
        request = group_pb2.ListGroupsRequest(page_size=page_size, page_token=token)
        answer = await groups.ListGroups(request, Context)
        told += [(one.channel, one.name) for one in answer.groups]
        if not (token := answer.next_page_token):
            break
    assert told == [(channel, group) for channel in ("a.00000", "a.06000", "b.last") for group in ("g1", "g2")]


async def test_pages_of_channels_have_each_that_may_be_seen_once(server: Server) -> None:
    caller_of("a.*")
    channels, told, token = Channels(server.storage.store, node="n1"), [], ""
    while True:
        request = channel_pb2.ListChannelsRequest(page_size=700, page_token=token, prefix="a.")
        answer = await channels.ListChannels(request, Context)
        told += [one.name for one in answer.channels]
        if not (token := answer.next_page_token):
            break
    assert told == NAMES
