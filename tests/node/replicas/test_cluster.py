"""Members of a cluster replicate, fail over, come back, and get whole shards."""

import asyncio
from pathlib import Path

from ringpost.cluster.keys import shard_of
from ringpost.v1.common_pb2 import Durability
from tests.node.replicas.rig import SHARDS, Cluster


async def test_what_is_acknowledged_is_on_all_in_sync_replicas(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        stored = await leader.publish("orders", "a", "b")
        assert (stored.first_offset, sorted(stored.replicas)) == (0, ["n1", "n2", "n3"])
        for node in cluster.nodes.values():
            shard = node.shards[shard_of("orders", SHARDS)]
            assert shard.replicated is not None
            assert shard.replicated.durable >= 2
        await cluster.until(
            lambda: all(n.shards[shard_of("orders", SHARDS)].committed == 3 for n in cluster.nodes.values()),
            "the news of the commit is everywhere",
        )
        for node in cluster.nodes.values():
            assert await node.texts("orders") == ["a", "b"]


async def test_levels_say_what_they_waited_for(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        for level in (Durability.DURABILITY_MEMORY, Durability.DURABILITY_LEADER):
            stored = await leader.publish("orders", "a", durability=level)
            assert (stored.durability, stored.replicas) == (level, (leader.name,))


async def test_a_leader_that_stops_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = cluster.leader_of("orders")
        assert first is not None
        await first.publish("orders", "a", producer=7)
        await first.stop()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "another leader")
        second = cluster.leader_of("orders")
        assert second is not None
        assert (await second.publish("orders", "a", producer=7)).duplicate
        assert (await second.publish("orders", "b", producer=7, first_sequence=1)).first_offset == 1
        await first.start()
        number = shard_of("orders", SHARDS)
        await cluster.until(
            lambda: first.shards[number].committed == second.shards[number].committed, "it has caught up"
        )
        assert await first.texts("orders") == ["a", "b"]


async def test_a_replica_that_is_behind_the_log_gets_the_whole_shard(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await follower.stop()
        await asyncio.gather(*(leader.publish("orders", f"{n}") for n in range(200)))
        shard = leader.shards[shard_of("orders", SHARDS)]
        assert shard.replicated is not None
        shard.replicated.positions.drop_below(leader.storage.journal.durable)
        assert shard.replicated.start > 100
        await follower.start()
        number = shard.number
        await cluster.until(lambda: follower.shards[number].committed == shard.committed, "it has caught up")
        assert await follower.texts("orders") == [str(n) for n in range(200)]
        await follower.stop()
        await follower.start()
        await cluster.until(lambda: follower.shards[number].committed == shard.committed, "it has it still")
        assert await follower.texts("orders") == [str(n) for n in range(200)]


async def test_a_session_that_is_lost_is_replaced_and_its_replicas_come_back(tmp_path: Path) -> None:
    """As after a freeze: the process goes on, under another number, and nothing that it said before counts."""
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes["n1"]
        before = node.member.coordination.session
        await node.kv.revoke(node.member.coordination.lease)
        await cluster.until(lambda: node.member.coordination.session > before, "a new session")

        def whole() -> bool:
            view = cluster.nodes["n2"].member.coordination.view
            return all(len(record.in_sync) == 3 and view.leader_alive(record) for record in view.shards)

        await cluster.until(whole, "every copy is in sync again")
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "a leader")
        leader = cluster.leader_of("orders")
        assert leader is not None
        assert len((await leader.publish("orders", "a")).replicas) == 3
