"""Groups on patterns: one of that name on each channel, in every mode."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from ringpost.v1.common_pb2 import GroupMode, Start
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig, ListGroupsRequest
from ringpost.v1.subscribe_pb2 import Nack, Outcome
from tests.node.routing.cluster import Nodes, running
from tests.node.routing.pattern_reader import PatternReader, fill

CHANNELS = [f"orders.c{number}" for number in range(12)]


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def test_a_group_of_a_pattern_is_one_on_each_channel_and_settles_by_channel_and_offset(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 10)
    await client.groups.AddGroup(AddGroupRequest(channel=CHANNELS[0], name="g", start=Start(offset=5)))
    ann = PatternReader(nodes.clients["n2"], "orders.*", group="g", mode=GroupMode.GROUP_MODE_SHARED)
    assert (await ann.open()).opened.ack_deadline_ms == 30_000
    await fill(client, "orders.later", 0, 3)
    await ann.take(5 + 10 * 11 + 3)
    assert (ann.got[CHANNELS[0]], ann.got[CHANNELS[5]]) == (list(range(5, 10)), list(range(10)))
    for channel in CHANNELS:
        done = [(5, 9, Outcome.OUTCOME_DONE)]
        assert await ann.settle(channel, (5, 9)) == done
    assert await ann.settle(CHANNELS[1], (4, 4), nack=Nack()) == [(4, 4, Outcome.OUTCOME_DONE)]
    await ann.take(1)
    assert (ann.got[CHANNELS[1]][-1], ann.attempts[CHANNELS[1]][-1]) == (4, 2)
    assert await ann.settle("orders.unknown", (0, 3)) == [(0, 3, Outcome.OUTCOME_UNKNOWN)]
    failure = await ann.settle("", (0, 3))
    assert (failure.code, failure.violations[0].field) == (3, "settle.channel")
    group = (await client.groups.GetGroup(GetGroupRequest(channel=CHANNELS[3], name="g"))).group
    assert (group.settled_below, group.in_flight) == (0, 5)
    groups = await client.groups.ListGroups(ListGroupsRequest(page_size=100))
    assert {(one.channel, one.name) for one in groups.groups} == {(name, "g") for name in (*CHANNELS, "orders.later")}


async def test_two_members_share_each_channel_and_one_that_leaves_gives_all_back(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 10)
    ann = PatternReader(nodes.clients["n2"], "orders.*", group="g", credit=60)
    bob = PatternReader(nodes.clients["n3"], "orders.*", group="g", credit=0)
    await ann.open()
    await ann.take(60)
    await bob.open()
    await bob.grant(1_000)
    await bob.take(60)
    assert sum(map(len, ann.got.values())) + sum(map(len, bob.got.values())) == 120
    ann.stream.cancel()
    await bob.take(60)
    assert {channel: sorted(texts) for channel, texts in bob.got.items()} == {key: list(range(10)) for key in CHANNELS}
    assert set().union(*bob.attempts.values()) == {1}, "a member that goes costs no attempt"


async def test_a_group_of_another_mode_on_one_channel_refuses_the_pattern(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 1)
    config = GroupConfig(mode=GroupMode.GROUP_MODE_KEY_ORDERED)
    await client.groups.AddGroup(AddGroupRequest(channel=CHANNELS[7], name="g", config=config))
    reader = PatternReader(nodes.clients["n2"], "orders.*", group="g", mode=GroupMode.GROUP_MODE_SHARED)
    assert (await reader.open()).closed.failure.reason == "GROUP_MODE"


async def test_an_exclusive_group_has_one_reader_of_all_and_a_failover_group_a_second_that_waits(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 2)
    exclusive = {"group": "one", "mode": GroupMode.GROUP_MODE_EXCLUSIVE}
    first = PatternReader(nodes.clients["n2"], "orders.*", **exclusive)
    assert (await first.open()).WhichOneof("event") == "opened"
    second = PatternReader(nodes.clients["n3"], "orders.*", **exclusive)
    assert (await second.open()).closed.failure.reason == "GROUP_OCCUPIED"
    failover = {"group": "two", "mode": GroupMode.GROUP_MODE_FAILOVER}
    active = PatternReader(nodes.clients["n2"], "orders.*", **failover)
    standby = PatternReader(nodes.clients["n3"], "orders.*", **failover)
    await active.open()
    await active.take(24)
    await standby.open()
    await standby.nothing_more()
    active.stream.cancel()
    await standby.take(24)
    assert standby.got == {key: [0, 1] for key in CHANNELS}


async def test_in_a_broadcast_group_each_consumer_has_its_place_in_every_channel(nodes: Nodes) -> None:
    for channel in CHANNELS:
        await fill(nodes.clients["n1"], channel, 0, 3)
    told = {"group": "b", "mode": GroupMode.GROUP_MODE_BROADCAST}
    ann = PatternReader(nodes.clients["n2"], "orders.*", consumer="ann", **told)
    bob = PatternReader(nodes.clients["n3"], "orders.*", consumer="bob", **told)
    for reader in (ann, bob):
        await reader.open()
        await reader.take(3 * len(CHANNELS))
        assert reader.got == {channel: [0, 1, 2] for channel in CHANNELS}
    for channel in CHANNELS:
        assert await ann.settle(channel, (0, 1)) == [(0, 1, Outcome.OUTCOME_DONE)]
    ann.stream.cancel()
    again = PatternReader(nodes.clients["n1"], "orders.*", consumer="ann", **told)
    await again.open()
    await again.take(len(CHANNELS))
    assert again.got == {channel: [2] for channel in CHANNELS}
