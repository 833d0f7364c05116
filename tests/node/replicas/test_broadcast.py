"""Every copy of a shard has each consumer's place in a broadcast group; the next leader goes on from there."""

import asyncio
from pathlib import Path
from typing import Any

from ringpost.node.delivery.opening import make_group
from ringpost.node.groups.changes import Ack, Nack, Outcome
from ringpost.node.replicas.receive import Receiving
from ringpost.node.shard.consumers import cursor_name, cursors_of, find_cursor
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.snapshot import snapshot_shard
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.replicas.rig import Cluster, Node
from tests.node.replicas.test_snapshot import NAMES, sent
from tests.node.shard.test_settle_any import Member

S = 1_000_000


async def settled(group: Group, action: Any, *pair: int) -> None:
    if not group.members:
        group.join(1, Member())
        group.take(1, 100, group.channel.shard.log.clock())
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    first, last = pair
    group.settle(1, action, [(first, last)], False, done.set_result)
    async with asyncio.timeout(20):
        assert await done == [(first, last, Outcome.DONE)]


def places(node: Node, shard: int) -> list[tuple[str, int, int]]:
    rows = snapshot_shard(node.shards[shard]).channels
    return sorted((group.name, group.settled_below, len(group.retries)) for row in rows for group in row.groups)


async def test_places_fail_over_and_a_deleted_group_takes_them_along(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", *(f"m{number}" for number in range(6)))
        channel = leader.storage.store.find("orders")
        settings = GroupSettings.of(GroupConfig(mode=GroupMode.GROUP_MODE_BROADCAST))
        group = await make_group(channel, "g", settings, 0)
        ann, bob = [await make_group(channel, cursor_name("g", name), settings, 0) for name in ("ann", "bob")]
        await settled(ann, Ack(), 0, 3)
        await settled(bob, Nack(60 * S), 0, 0)
        shard = group.channel.shard.number
        expected = [("g", 0, 0), ("g/ann", 4, 0), ("g/bob", 0, 1)]
        await cluster.until(
            lambda: all(places(node, shard) == expected for node in cluster.nodes.values()), "the copies are the same"
        )
        await leader.stop()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "another node leads")
        second = cluster.leader_of("orders")
        assert second is not None
        again = second.storage.store.find_group(second.storage.store.find("orders"), "g")
        await settled(find_cursor(again, "ann", "consumer"), Ack(), 4, 5)
        assert [one.core.settled_below for one in cursors_of(again)] == [6, 0]

        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        delete_group(again, done.set_result)
        async with asyncio.timeout(20):
            assert await done is None
        await cluster.until(
            lambda: all(places(node, shard) == [] for node in cluster.nodes.values() if node.running),
            "they are gone everywhere",
        )


async def test_a_copy_that_is_made_anew_has_the_places_and_knows_of_seeks(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader(1)
        assert leader is not None
        await leader.publish(NAMES[0], *(f"m{number}" for number in range(6)))
        settings = GroupSettings.of(GroupConfig(mode=GroupMode.GROUP_MODE_BROADCAST))
        channel = leader.storage.store.find(NAMES[0])
        await make_group(channel, "g", settings, 0)
        ann = await make_group(channel, cursor_name("g", "ann"), settings, 0)
        await settled(ann, Ack(), 0, 3)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        seek_group(ann, 2, done.set_result)
        async with asyncio.timeout(20):
            assert await done is None

        async def nothing() -> None:
            """Meanwhile."""

        parts = await sent(leader, leader.shards[1], after=1, then=nothing)
        other = next(node for node in cluster.nodes.values() if node is not leader)
        local = other.shards[1].replicated
        assert local is not None
        receiving, complete = Receiving(other.storage.store, other.shards[1], local.replica_id, 1), asyncio.Event()
        assert [problem for part in parts if (problem := receiving.take(part, lambda _: complete.set()))] == []
        async with asyncio.timeout(20):
            await complete.wait()
        assert receiving._restoring is not None
        (copy,) = receiving._restoring.shard.channels.values()
        groups = {name: (group.core.settled_below, group.era) for name, group in (copy.groups or {}).items()}
        receiving.abandon()
        assert groups == {"g": (0, 0), "g/ann": (2, ann.era)}
        assert ann.era > 0
