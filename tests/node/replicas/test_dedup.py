"""Windows of message ids in a cluster: every copy holds them, however it came to be one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from ringpost.cluster.keys import shard_of
from ringpost.node.errors import AlreadyExists, RingpostError
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.shard import Publish, Stored
from ringpost.node.storage import now_us
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message
from tests.node.replicas.rig import SHARDS, Cluster, Node

WINDOW = ChannelLimits(dedup_window_ms=3_600_000)


async def windowed(leader: Node, name: str) -> Channel:
    """A channel with a window of an hour."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    channel = leader.storage.store.add(name, WINDOW, lambda error: done.set_result(None))
    await done
    return channel


async def publish(leader: Node, name: str, *ids: str, **how: Any) -> Stored:
    batch = Batch(messages=[Message(message_id=one) for one in ids]).SerializeToString()
    done: asyncio.Future[Stored | RingpostError] = asyncio.get_running_loop().create_future()
    channel = leader.storage.store.find(name)
    how.setdefault("durability", Durability.DURABILITY_QUORUM)
    channel.shard.publish(channel, Publish(batch, len(ids), crc32c(batch), **how), done.set_result)
    answer = await done
    assert isinstance(answer, Stored)
    return answer


async def next_leader(cluster: Cluster, name: str) -> Node:
    await cluster.until(lambda: cluster.leader_of(name) is not None, "another leader")
    leader = cluster.leader_of(name)
    assert leader is not None
    return leader


async def test_an_id_is_known_to_the_next_leader(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        first = await next_leader(cluster, "orders")
        await windowed(first, "orders")
        await publish(first, "orders", "a", "b")
        assert (await publish(first, "orders", "a", producer=7)).duplicate
        await first.stop()
        second = await next_leader(cluster, "orders")
        again = await publish(second, "orders", "a", "b")
        assert (again.first_offset, again.duplicate) == (0, True)
        with pytest.raises(AlreadyExists):
            await publish(second, "orders", "c", "a")
        behind = await publish(second, "orders", "c", producer=7, first_sequence=1)
        assert (behind.first_offset, behind.duplicate) == (2, False), "the producer's numbers count, too"


async def test_what_was_not_committed_is_not_known(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await next_leader(cluster, "orders")
        channel = await windowed(leader, "orders")
        others = [node for node in cluster.nodes.values() if node is not leader]
        await publish(leader, "orders", "a")
        await asyncio.gather(*(node.stop() for node in others))
        lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        batch = Batch(messages=[Message(message_id="b")]).SerializeToString()
        channel.shard.publish(channel, Publish(batch, 1, crc32c(batch), Durability.DURABILITY_QUORUM), lost.set_result)
        assert channel.seen is not None
        assert len(channel.seen) == 2
        await leader.stop()
        await asyncio.gather(*(node.start() for node in others))
        second = await next_leader(cluster, "orders")
        assert second is not leader
        assert (await publish(second, "orders", "a")).duplicate
        assert not (await publish(second, "orders", "b")).duplicate
        await leader.start()
        number = shard_of("orders", SHARDS)
        await cluster.until(
            lambda: leader.shards[number].committed == second.shards[number].committed, "it has caught up"
        )
        await second.stop()
        third = await next_leader(cluster, "orders")
        assert [(await publish(third, "orders", one)).first_offset for one in "ab"] == [0, 1]


async def test_a_copy_made_from_a_snapshot_has_the_window(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await next_leader(cluster, "orders")
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        await follower.stop()
        channel = await windowed(leader, "orders")
        await asyncio.gather(*(publish(leader, "orders", f"id-{n}") for n in range(200)))
        shard = channel.shard
        assert shard.replicated is not None
        shard.replicated.positions.drop_below(leader.storage.journal.durable)
        await follower.start()
        number = shard.number
        await cluster.until(lambda: follower.shards[number].committed == shard.committed, "it has caught up")
        (copy,) = [one for one in follower.shards[number].channels.values() if one.name == "orders"]
        assert copy.seen is not None
        assert channel.seen is not None
        assert list(copy.seen.runs(1 << 60)) == list(channel.seen.runs(1 << 60))


async def test_a_producers_repeat_of_a_delayed_message_by_its_id_is_told_the_same_again(tmp_path: Path) -> None:
    """Under its numbers, too, once those are committed: by the same leader and by the next."""
    async with Cluster(tmp_path) as cluster:
        leader = await next_leader(cluster, "orders")
        await windowed(leader, "orders")
        due = now_us() + 3_600_000_000
        await publish(leader, "orders", "a", due_us=due)
        for _ in range(2):
            again = await publish(leader, "orders", "a", due_us=due, producer=7)
            assert (again.duplicate, again.scheduled_us) == (True, due)
        await leader.stop()
        leader = await next_leader(cluster, "orders")
        again = await publish(leader, "orders", "a", due_us=due, producer=7)
        assert (again.duplicate, again.scheduled_us) == (True, due)
