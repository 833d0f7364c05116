"""Delayed messages in a cluster: through failover, restarts and whole copies, each once and none early."""

import asyncio
from pathlib import Path

import pytest

from ringpost.cluster.keys import shard_of
from ringpost.node.shard.shard import Stored
from ringpost.node.storage import now_us
from tests.node.replicas.rig import SHARDS, Cluster, Node

SECOND = 1_000_000


async def leading(cluster: Cluster, name: str) -> Node:
    await cluster.until(lambda: cluster.leader_of(name) is not None, "a leader")
    leader = cluster.leader_of(name)
    assert leader is not None
    return leader


async def delayed(leader: Node, name: str, text: str, due_us: int, **how: int) -> Stored:
    return await leader.publish(name, text, due_us=due_us, **how)


def entries(node: Node) -> int:
    return node.storage.store.log.schedules.entries


async def all_there(cluster: Cluster, name: str, count: int) -> None:
    """Every copy has so many messages, and nothing scheduled."""
    for node in cluster.nodes.values():
        if node.running:
            await cluster.until(lambda: entries(node) == 0, "nothing is scheduled")  # noqa: B023
            assert len(await node.texts(name)) == count


async def test_the_next_leader_releases_what_the_last_one_took(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await leading(cluster, "orders")
        begun = now_us()
        stored = [
            await delayed(first, "orders", f"{n}", begun + 60 * SECOND, producer=7, first_sequence=n) for n in range(3)
        ]
        assert [one.scheduled_us for one in stored] == [begun + 60 * SECOND] * 3
        soon = now_us() + 2 * SECOND
        await asyncio.gather(*(delayed(first, "orders", f"soon {n}", soon) for n in range(20)))
        await cluster.until(lambda: all(entries(node) >= 3 for node in cluster.nodes.values()), "every copy has them")
        await first.stop()
        second = await leading(cluster, "orders")
        await cluster.until(lambda: entries(second) == 3, "what was due is released")
        assert now_us() >= soon
        texts = await second.texts("orders")
        assert sorted(texts) == sorted(f"soon {n}" for n in range(20))
        repeat = await delayed(second, "orders", "0", begun + 60 * SECOND, producer=7)
        assert (repeat.duplicate, repeat.scheduled_us) == (True, begun + 60 * SECOND)
        await first.start()
        number = shard_of("orders", SHARDS)
        await cluster.until(
            lambda: first.shards[number].committed == second.shards[number].committed, "the first has caught up"
        )
        assert entries(first) == 3
        assert await first.texts("orders") == texts


async def test_a_leader_that_goes_in_the_middle_of_releases_doubles_and_loses_none(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await leading(cluster, "orders")
        due = now_us() + SECOND
        count = 300
        await asyncio.gather(*(delayed(first, "orders", f"{n}", due + n * 3_000) for n in range(count)))
        await cluster.until(lambda: entries(first) < count - 50, "some")
        await first.stop()
        second = await leading(cluster, "orders")
        await cluster.until(lambda: entries(second) == 0, "all are released")
        assert await second.texts("orders") == [f"{n}" for n in range(count)]
        await first.start()
        await all_there(cluster, "orders", count)
        assert await first.texts("orders") == await second.texts("orders")


def _shard(node: Node) -> int:
    return next(shard.number for shard in node.shards if shard.schedules)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_copy_made_from_a_snapshot_has_what_is_scheduled(tmp_path: Path, restart: bool) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await leading(cluster, "orders")
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await follower.stop()
        due = now_us() + 3_600 * SECOND
        await leader.publish("orders", "there")
        await asyncio.gather(*(delayed(leader, "orders", f"{n}", due + n) for n in range(50)))
        await delayed(leader, "orders", "soon", now_us() + SECOND // 10)
        await cluster.until(lambda: entries(leader) == 50, "one is released")
        shard = leader.shards[_shard(leader)]
        assert shard.replicated is not None
        shard.replicated.positions.drop_below(leader.storage.journal.durable)
        await follower.start()
        copy = follower.shards[shard.number]
        await cluster.until(lambda: copy.committed == shard.committed and bool(copy.schedules), "it has caught up")
        assert follower.member.replicator.snapshots.received
        if restart:
            await follower.stop()
            await follower.start()
            copy = follower.shards[shard.number]
        (mine,), (theirs,) = copy.schedules.values(), shard.schedules.values()
        assert [e[:2] for page in mine.table.entries() for e in page] == [
            e[:2] for page in theirs.table.entries() for e in page
        ]
        frames = await follower.storage.reading.fetch(mine.channel, list(next(mine.rows_in_segment(1))))
        assert len(frames) == 50
        assert await follower.texts("orders") == ["there", "soon"]
