"""What a lease token is good for when another node leads, or a copy was made from a snapshot."""

import asyncio
from pathlib import Path
from typing import Any

from ringpost.node.delivery.opening import make_group
from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Outcome
from ringpost.node.shard.claims import Mint, claim_of, read_token
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.snapshot import snapshot_shard
from tests.node.replicas.rig import Cluster, Node
from tests.node.shard.test_settle_any import Member

DONE, EXPIRED, ALREADY = Outcome.DONE, Outcome.EXPIRED, Outcome.ALREADY
ANN, BOB = 1 << 60, 2 << 60
S = 1_000_000


async def grouped(cluster: Cluster) -> tuple[Node, Group]:
    """The leader, and there a group of six messages."""
    leader = cluster.leader_of("orders")
    assert leader is not None
    await leader.publish("orders", *(f"m{number}" for number in range(6)))
    return leader, await make_group(leader.storage.store.find("orders"), "g", GroupSettings(), 0)


def delivered(group: Group, member: int, messages: int) -> bytes:
    """The token of what a new member gets."""
    group.join(member, Member())
    (lease,) = group.take(member, messages, group.channel.shard.log.clock())
    return Mint(group, member).token(lease.first, lease.last, lease.attempt)


async def settled(group: Group, action: Action, token: bytes) -> Any:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    group.settle_claims(action, [claim_of(group, read_token(token, "token"), None, "token")], [], done.set_result)
    async with asyncio.timeout(20):
        return await done


def eras(node: Node, shard: int) -> list[int]:
    rows = snapshot_shard(node.shards[shard]).channels
    return [group.era for row in rows for group in row.groups]


async def successor(cluster: Cluster, leader: Node) -> Group:
    """The group at the next leader."""
    await leader.stop()
    await cluster.until(lambda: cluster.leader_of("orders") is not None, "another node leads")
    second = cluster.leader_of("orders")
    assert second is not None
    return second.storage.store.find_group(second.storage.store.find("orders"), "g")


async def test_the_next_leader_takes_finished_work_and_lets_nothing_be_taken_from_others(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader, group = await grouped(cluster)
        first = delivered(group, ANN, 2)
        failed = delivered(group, BOB, 2)
        assert await settled(group, Nack(), failed) == [(2, 3, DONE)]

        again = await successor(cluster, leader)
        assert await settled(again, Extend(), first) == [(0, 1, EXPIRED)]
        assert await settled(again, Ack(), failed) == [(2, 3, EXPIRED)]
        assert await settled(again, Ack(), first) == [(0, 1, DONE)]
        assert again.core.settled_below == 2

        theirs = delivered(again, BOB, 2)
        assert await settled(again, Nack(S), first) == [(0, 1, ALREADY)]
        assert again.core.in_flight_of(BOB) == 2
        assert await settled(again, Ack(), theirs) == [(2, 3, DONE)]


async def test_what_the_next_leader_has_handed_out_is_another_s(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader, group = await grouped(cluster)
        first = delivered(group, ANN, 6)
        again = await successor(cluster, leader)
        delivered(again, BOB, 4)
        assert await settled(again, Ack(), first) == [(0, 3, EXPIRED), (4, 5, DONE)]
        assert again.core.in_flight_of(BOB) == 4


async def test_all_copies_know_of_the_seek_that_old_tokens_do_not_survive(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader, group = await grouped(cluster)
        first = delivered(group, ANN, 6)
        await settled(group, Ack(), first)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        seek_group(group, 0, done.set_result)
        async with asyncio.timeout(20):
            assert await done is None
        shard = group.channel.shard.number
        await cluster.until(
            lambda: all(eras(node, shard) == [group.era] for node in cluster.nodes.values()), "the copies are the same"
        )
        again = await successor(cluster, leader)
        assert again.era == group.era > 0
        assert await settled(again, Ack(), first) == [(0, 5, EXPIRED)]
