"""What an operator does under load: rolling restart, a node more, a node less."""

import asyncio

import pytest

from ringpost.v1.cluster_pb2 import Desired
from tests.system.conftest import Loaded
from tests.system.load import Load
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system

FAIR_MOVES = 1.5  # times the ideal share


async def copies(cluster: LocalCluster) -> dict[int, frozenset[str]]:
    """Nodes with a copy of each shard."""
    return {shard.shard: frozenset(shard.replicas) for shard in (await cluster.routes()).shards}


async def test_a_rolling_restart(cluster: LocalCluster, loaded: Loaded) -> None:
    async with loaded(cluster) as load:
        for name in cluster.nodes:
            assert await asyncio.to_thread(cluster.stop, name) == 0
            await load.progress()
            await asyncio.to_thread(cluster.restart, name)
            await cluster.whole()
        await load.progress()


async def test_a_fourth_node_joins_and_leaves(own_cluster: LocalCluster, loaded: Loaded) -> None:
    cluster, loop = own_cluster, asyncio.get_running_loop()
    async with loaded(cluster) as load:
        begin = loop.time()
        before = await copies(cluster)
        newcomer = await asyncio.to_thread(cluster.add)

        async def has_its_share() -> bool:
            ideal = sum(map(len, before.values())) / len(cluster.nodes)
            return (await cluster.members())[newcomer].replica_count >= 0.9 * ideal

        await cluster.until(has_its_share, "the newcomer's share", 90)
        await cluster.whole()
        await load.progress()
        between = await copies(cluster)
        moved = sum(len(between[shard] - before[shard]) for shard in before)
        ideal = sum(map(len, before.values())) / 4
        print(f"\njoin: {moved} copies moved, {ideal:g} would do; {_told(load, begin)}")
        assert moved <= FAIR_MOVES * ideal, f"{moved} copies moved, {ideal:g} would do"

        begin = loop.time()
        held = sum("n2" in nodes for nodes in between.values())
        await cluster.set_desired("n2", Desired.DESIRED_DRAIN)

        async def holds_nothing() -> bool:
            member = (await cluster.members())["n2"]
            return not (member.leader_count or member.replica_count)

        await cluster.until(holds_nothing, "n2 to hold nothing", 90)
        await cluster.whole()
        after = await copies(cluster)
        moved = sum(len(after[shard] - between[shard]) for shard in between)
        print(f"leave: {moved} copies moved, {held} must be; {_told(load, begin)}")
        assert moved <= FAIR_MOVES * held, f"{moved} copies moved, {held} would do"
        await cluster.until(lambda: _no_tombstones(cluster), "what moved away to be deleted where it was", 15)
        assert await asyncio.to_thread(cluster.stop, "n2") == 0
        await cluster.until(lambda: _not_alive(cluster, "n2"), "n2 to be gone", 15)
        await cluster.remove("n2")
        cluster.forget("n2")
        assert "n2" not in await cluster.members()
        await load.progress()


def _told(load: Load, begin: float) -> str:
    now = asyncio.get_running_loop().time()
    return f"{now - begin:.0f} s, longest pause of a channel {load.longest_pause(begin, now).seconds:.2f} s"


async def _no_tombstones(cluster: LocalCluster) -> bool:
    keys = await asyncio.to_thread(cluster.etcd.ctl, "get", "/ringpost", "--prefix", "--keys-only")
    assert "/shard/" in keys, keys
    return "/tomb/" not in keys


async def _not_alive(cluster: LocalCluster, name: str) -> bool:
    return not (await cluster.members())[name].alive
