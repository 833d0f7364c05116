"""Versions: the next one joins a cluster of this one; when all nodes run it there is no way back."""

import asyncio
from pathlib import Path

import pytest

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.levels import Levels
from tests.node.replicas.rig import SHARDS, Cluster, Node

NOW, NEXT, LATER = Levels(1, 1), Levels(1, 2), Levels(3, 4)


def whole(cluster: Cluster) -> bool:
    for shard in range(SHARDS):
        leader = cluster.leader(shard)
        core = leader.member.replicator.cores.get(shard) if leader is not None else None
        if core is None or core.record is None or len(core.record.in_sync) < 3:
            return False
    return True


def level(node: Node) -> int:
    return node.member.coordination.view.level


async def upgrade(cluster: Cluster, name: str, to: Levels) -> None:
    node = cluster.nodes[name]
    await node.stop()
    node.replace(to)
    await node.start()
    await cluster.until(lambda: whole(cluster), f"{name} has its place again")


async def test_nodes_are_upgraded_one_by_one_and_what_was_published_stays(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        await cluster.until(lambda: whole(cluster), "three nodes of this version")
        published = []
        for number, name in enumerate(("n1", "n2", "n3")):
            leader = cluster.leader_of("orders")
            assert leader is not None
            await leader.publish("orders", str(number))
            published.append(str(number))
            assert {level(node) for node in cluster.nodes.values()} == {1}, "as long as one of them knows no more"
            await upgrade(cluster, name, NEXT)
        await cluster.until(lambda: {level(node) for node in cluster.nodes.values()} == {2}, "all speak the next level")
        for node in cluster.nodes.values():
            assert await node.texts("orders") == published


async def test_a_version_that_does_not_know_the_clusters_level_is_refused_and_says_what_to_start(
    tmp_path: Path,
) -> None:
    async with Cluster(tmp_path, levels=NEXT) as cluster:
        await cluster.until(lambda: whole(cluster), "three nodes of the next version")
        node = cluster.nodes["n2"]
        for other, told in ((NOW, "older than what the other nodes run"), (LATER, "it is too new")):
            await node.stop()
            node.replace(other)
            with pytest.raises(CoordinationError) as raised:
                await node.start()
            assert told in str(raised.value)
            await node.relay.stop()
            await node.server.stop(0)
            await asyncio.to_thread(node.storage.close)
        node.replace(NEXT)
        await node.start()
        await cluster.until(lambda: whole(cluster), "it is back as what it was")


async def test_a_member_that_is_away_holds_the_level_down(tmp_path: Path) -> None:
    """It may come back as it was."""
    async with Cluster(tmp_path) as cluster:
        await cluster.until(lambda: whole(cluster), "three nodes of this version")
        for name in ("n1", "n2"):
            await upgrade(cluster, name, NEXT)
        await cluster.nodes["n3"].stop()
        leader = cluster.nodes["n1"]
        await cluster.until(lambda: not leader.member.coordination.view.nodes["n3"].alive, "it is away")
        await cluster.until(lambda: cluster.leader(0) is not None, "others go on")
        assert level(leader) == 1
        await cluster.nodes["n3"].start()
        await cluster.until(lambda: whole(cluster), "it is back")
