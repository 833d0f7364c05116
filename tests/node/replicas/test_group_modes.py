"""A group keeps its mode, the order of its keys and its pause when another node takes the lead."""

import asyncio
from pathlib import Path
from typing import Any

from ringpost.node.delivery.opening import make_group, resolve
from ringpost.node.groups.changes import Ack, Nack, Outcome
from ringpost.node.shard.configure import pause_group
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from tests.node.replicas.rig import Cluster, Node
from tests.node.shard.test_group import Member

S = 1_000_000
KEYED = GroupMode.GROUP_MODE_KEY_ORDERED


def joined(node: Node, group: Group) -> Group:
    group.read_by(node.storage.reading, asyncio.ensure_future)
    group.join(1, Member())
    return group


async def settled(group: Group, action: Any, offset: int) -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    group.settle(1, action, [(offset, offset)], False, done.set_result)
    assert await done == [(offset, offset, Outcome.DONE)]


async def taken(group: Group, *, later_us: int = 0) -> list[tuple[int, int]]:
    """What the member gets, once the keys have been read."""
    now = group.channel.shard.log.clock() + later_us
    async with asyncio.timeout(10):
        while not (leases := group.take(1, 100, now)):
            await asyncio.sleep(0.01)
    return [(lease.first, lease.last) for lease in leases]


async def test_the_next_leader_goes_on_in_order(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        await first.publish("orders", "a1", "a2", "a3", key="a")
        await first.publish("orders", "b1", "b2", key="b")
        channel = first.storage.store.find("orders")
        group = joined(first, await make_group(channel, "g", GroupSettings(mode=KEYED), 0))
        assert await taken(group) == [(0, 0), (3, 3)]
        await settled(group, Ack(), 0)
        await settled(group, Nack(60 * S), 3)
        assert await taken(group) == [(1, 1)]
        await first.stop()

        await cluster.until(lambda: cluster.leader_of("orders") is not None, "another leader")
        second = cluster.leader_of("orders")
        assert second is not None
        groups = second.storage.store.find("orders").groups
        assert groups is not None
        again = joined(second, groups["g"])
        assert again.settings.mode == KEYED
        assert await taken(again) == [(1, 1)], "its lease was lost; b1 is parked still, and b2 behind it"
        await settled(again, Ack(), 1)
        assert await taken(again) == [(2, 2)]
        assert await taken(again, later_us=61 * S) == [(3, 3)]


async def paused(group: Group, value: bool) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    pause_group(group, value, lambda error: resolve(done, error))
    await done


async def test_a_pause_outlives_restarts_and_leaders(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        await first.publish("orders", "one", "two")
        group = await make_group(first.storage.store.find("orders"), "g", GroupSettings(), 0)
        await paused(group, True)
        for node in cluster.nodes.values():  # the leader too: each of them leads from a log that it has read again
            await node.stop()
            await node.start()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "a leader after the restarts")
        second = cluster.leader_of("orders")
        assert second is not None
        await second.stop()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "another leader")
        third = cluster.leader_of("orders")
        assert third is not None
        assert third is not second
        again = joined(third, (third.storage.store.find("orders").groups or {})["g"])
        now = again.channel.shard.log.clock()
        assert again.paused
        assert again.take(1, 100, now) == []
        await paused(again, False)
        assert await taken(again) == [(0, 1)]
