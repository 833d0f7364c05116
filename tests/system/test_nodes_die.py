"""A node is killed or freezes under load: whoever it was, nothing acknowledged is lost, doubled or put out of order."""

import asyncio

import pytest

from tests.system.conftest import Loaded
from tests.system.load import Load
from tests.system.local import LocalCluster

FREEZE_S = 10.0
LONG = [pytest.param(who, marks=pytest.mark.system) for who in ("follower", "controller", "entry")]


async def role(cluster: LocalCluster, who: str, load: Load) -> str:
    """The node that is this to the load: of its first channel the leader or a follower, or where its clients enter."""
    channel = next(iter(load.books))
    match who:
        case "leader":
            return await cluster.leader_of(channel)
        case "follower":
            return await cluster.follower_of(channel)
        case "controller":
            return await cluster.controller()
    return "n1"  # the first client's first address


@pytest.mark.parametrize("who", ["leader", *LONG])
async def test_a_killed_node_is_replaced_and_comes_back(cluster: LocalCluster, loaded: Loaded, who: str) -> None:
    async with loaded(cluster) as load:
        victim = await role(cluster, who, load)
        cluster.kill(victim)
        await load.progress()
        await cluster.serving()
        await asyncio.to_thread(cluster.restart, victim)
        await load.progress()
        await cluster.whole()


@pytest.mark.system
@pytest.mark.parametrize("who", ["leader", "follower", "controller", "entry"])
async def test_a_frozen_node_loses_its_leases_and_does_no_harm_afterwards(
    cluster: LocalCluster, loaded: Loaded, who: str
) -> None:
    async with loaded(cluster) as load:
        victim = await role(cluster, who, load)
        cluster.freeze(victim)
        await asyncio.sleep(FREEZE_S)
        await load.progress()
        cluster.thaw(victim)
        await load.progress()
        await cluster.whole()


@pytest.mark.system
async def test_the_named_killer(cluster: LocalCluster, loaded: Loaded) -> None:
    """Pause a minority; write; crash a third node; pause the rest, resume and restart those two."""
    async with loaded(cluster) as load:
        paused, crashed, rest = cluster.nodes
        cluster.freeze(paused)
        await load.progress(seconds=60)
        cluster.kill(crashed)
        cluster.freeze(rest)
        cluster.thaw(paused)
        await asyncio.to_thread(cluster.restart, crashed)
        await cluster.until(lambda: _only_reachable(cluster), "two nodes that answer", 30)
        await asyncio.sleep(FREEZE_S)
        cluster.thaw(rest)
        await load.progress(seconds=60)
        await cluster.whole()


async def _only_reachable(cluster: LocalCluster) -> bool:
    return all([(await cluster.status(name)).shard_count for name in cluster.up])


@pytest.mark.system
async def test_a_storm_of_restarts(cluster: LocalCluster, loaded: Loaded) -> None:
    """Every node again and again, the next one down before the last one is in sync; nobody waits for anybody."""
    async with loaded(cluster) as load:
        for turn in range(9):
            victim = f"n{turn % 3 + 1}"
            await asyncio.to_thread(cluster.restart, victim)
        await load.progress(seconds=30)
        await cluster.whole()


async def test_all_nodes_die_at_once(cluster: LocalCluster, loaded: Loaded) -> None:
    async with loaded(cluster) as load:
        cluster.kill(*cluster.nodes)
        await asyncio.to_thread(cluster.start_nodes, cluster.nodes)
        await load.progress()
        await cluster.whole()
