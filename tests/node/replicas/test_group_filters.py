"""A group's filter in a cluster: what it settled stays so at the next leader, and on a copy made from a snapshot."""

import asyncio
from pathlib import Path

import pytest

from ringpost.node.delivery.opening import make_group, resolve
from ringpost.node.groups.changes import Ack, Nack
from ringpost.node.shard.configure import set_group
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.snapshot import snapshot_shard
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.replicas.rig import Cluster, Node
from tests.node.replicas.test_dedup import next_leader
from tests.node.replicas.test_group_modes import joined, settled, taken

S = 1_000_000
WANTED = 'key == "a" || key == "b"'
MODES = [
    GroupMode.GROUP_MODE_SHARED,
    GroupMode.GROUP_MODE_KEY_ORDERED,
    GroupMode.GROUP_MODE_EXCLUSIVE,
    GroupMode.GROUP_MODE_FAILOVER,
]


async def filled(leader: Node, mode: GroupMode.ValueType) -> Group:
    """x0 x1 a2 b3 x4 x5 a6, and a group with its member."""
    for key, texts in (("x", ("x0", "x1")), ("a", ("a2",)), ("b", ("b3",)), ("x", ("x4", "x5")), ("a", ("a6",))):
        await leader.publish("orders", *texts, key=key)
    channel = leader.storage.store.find("orders")
    return joined(leader, await make_group(channel, "g", GroupSettings(mode=mode, filter=WANTED), 0))


def group_at(node: Node) -> Group:
    groups = node.storage.store.find("orders").groups
    assert groups is not None
    return groups["g"]


def offsets(leases: list[tuple[int, int]]) -> list[int]:
    return [offset for first, last in leases for offset in range(first, last + 1)]


@pytest.mark.parametrize("mode", MODES)
async def test_the_next_leader_goes_on_and_has_nothing_to_filter_again(
    tmp_path: Path, mode: GroupMode.ValueType
) -> None:
    keyed = mode == GroupMode.GROUP_MODE_KEY_ORDERED
    async with Cluster(tmp_path) as cluster:
        first = await next_leader(cluster, "orders")
        group = await filled(first, mode)
        assert offsets(await taken(group)) == ([2, 3] if keyed else [2, 3, 6])
        await settled(group, Nack(60 * S), 2)
        await settled(group, Ack(), 3)
        await cluster.until(lambda: group.core.filtered == 4, "what is filtered out is settled")
        assert group.core.settled_below == 2
        await first.stop()

        second = await next_leader(cluster, "orders")
        assert second is not first
        again = group_at(second)
        assert (again.settings.filter, again.core.filtered, again.core.pending(7)) == (WANTED, 4, 2)
        joined(second, again)
        if keyed:
            assert offsets(await taken(again, later_us=61 * S)) == [2], "a6 is parked behind a2"
            await settled(again, Ack(), 2)
            assert offsets(await taken(again, later_us=61 * S)) == [6]
        else:
            assert offsets(await taken(again)) == [6]
            assert offsets(await taken(again, later_us=61 * S)) == [2]
        await second.publish("orders", "x7", key="x")
        again.take(1, 100, again.channel.shard.log.clock())
        await cluster.until(lambda: again.core.filtered == 5, "the next leader filters, too")


async def test_another_filter_is_known_to_every_copy(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await next_leader(cluster, "orders")
        group = await filled(first, GroupMode.GROUP_MODE_SHARED)
        await taken(group)
        await cluster.until(lambda: group.core.filtered == 4, "what is filtered out is settled")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        set_group(group, GroupConfig(filter='key == "b"'), lambda error: resolve(done, error))
        await done
        await first.stop()
        second = await next_leader(cluster, "orders")
        again = joined(second, group_at(second))
        assert again.settings.filter == 'key == "b"'
        assert offsets(await taken(again)) == [3]
        await cluster.until(lambda: again.core.filtered == 6, "by the new one, a2 and a6 are filtered out")


async def test_a_copy_made_from_a_snapshot_knows_the_filter_and_what_it_has_settled(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await next_leader(cluster, "orders")
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await follower.stop()
        group = await filled(leader, GroupMode.GROUP_MODE_SHARED)
        await taken(group)
        await cluster.until(lambda: group.core.filtered == 4, "what is filtered out is settled")
        shard = group.channel.shard
        assert shard.replicated is not None
        shard.replicated.positions.drop_below(leader.storage.journal.durable)
        await follower.start()
        await cluster.until(lambda: follower.shards[shard.number].committed == shard.committed, "it has caught up")
        (ours,) = [row for row in snapshot_shard(shard).channels if row.name == "orders"]
        (theirs,) = [row for row in snapshot_shard(follower.shards[shard.number]).channels if row.name == "orders"]
        assert theirs.groups == ours.groups
        assert (theirs.groups[0].filtered, theirs.groups[0].config.filter) == (4, WANTED)
