"""Copies that are damaged while they run give way to whole ones, and a store that lost something destroys nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from ringpost.cluster.keys import shard_of
from ringpost.cluster.kv import Put
from ringpost.cluster.records import encode_shard
from ringpost.cluster.view import Leader
from ringpost.internal.v1.peer_pb2 import Refused, SnapshotPart
from ringpost.node.errors import Unavailable
from ringpost.node.journal.cache import TailCache
from ringpost.node.replicas.outbox import ToFollower
from ringpost.node.replicas.receive import Receiving
from ringpost.node.shard.shard import Shard
from tests.node.replicas.rig import SHARDS, Cluster, Node

NUMBER = shard_of("orders", SHARDS)


def whole(cluster: Cluster) -> bool:
    """Whether every node's copy is sound, counts, and is as far as the leader's."""
    leader = cluster.leader(NUMBER)
    if leader is None:
        return False
    core = leader.member.replicator.cores.get(NUMBER)
    shards = [node.shards[NUMBER] for node in cluster.nodes.values()]
    same = {shard.committed for shard in shards}
    return (
        core is not None
        and core.record is not None
        and len(core.record.in_sync) == len(shards)
        and not any(shard.quarantined for shard in shards)
        and len(same) == 1
    )


async def begin(cluster: Cluster) -> Node:
    leader = cluster.leader(NUMBER)
    assert leader is not None
    for number in range(30):
        await leader.publish("orders", str(number))
    await cluster.until(lambda: whole(cluster), "everybody has everything")
    return leader


def spoil(node: Node) -> None:
    """Flips a bit of a stored message, and forgets what is in memory of it."""
    channel = next(one for one in node.shards[NUMBER].channels.values() if one.name == "orders")
    row = channel.index.row(3)
    segment = row.address >> 32
    path = node.directory / f"{segment:016x}.journal"
    with path.open("r+b") as file:
        file.seek((row.address & 0xFFFFFFFF) + 115)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    store = node.storage.store
    _forget(store.log.cache)
    _forget(node.storage.reading._cold)


def _forget(cache: TailCache) -> None:
    cache._entries.clear()
    cache._order.clear()
    cache._charges.clear()


async def read(node: Node) -> None:
    channel = next(one for one in node.shards[NUMBER].channels.values() if one.name == "orders")
    await node.storage.reading.frame(channel, channel.index.row(3))


async def test_a_leader_that_finds_damage_hands_over_and_its_copy_is_made_anew(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        spoil(leader)
        with pytest.raises(Unavailable):
            await read(leader)
        await cluster.until(lambda: cluster.leader(NUMBER) not in (None, leader), "another one leads")
        await cluster.until(lambda: whole(cluster), "three whole copies")
        for node in cluster.nodes.values():
            assert await node.texts("orders") == [str(number) for number in range(30)]


async def test_damage_that_the_making_of_a_copy_meets_does_not_hold_it_up_for_ever(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        late = next(node for node in cluster.nodes.values() if node is not leader)
        await late.stop()
        for number in range(30, 40):
            await leader.publish("orders", str(number))
        for node in cluster.nodes.values():
            log = node.shards[NUMBER].replicated
            if node.running and log is not None:
                log.positions.drop_below(node.storage.journal.durable)
        spoil(leader)
        await late.start()
        # Only two copies count, so the damaged one stays; but the other one leads from now on, and makes the third.
        await cluster.until(lambda: cluster.leader(NUMBER) not in (None, leader), "the whole copy leads")
        await cluster.until(lambda: leader.member.replicator.cores.get(NUMBER) is not None and whole(cluster), "whole")
        await cluster.until(lambda: not leader.member.replicator.damage._frames, "the damaged copy was given up")
        await cluster.until(lambda: whole(cluster), "three whole copies", 30)
        for node in cluster.nodes.values():
            assert await node.texts("orders") == [str(number) for number in range(40)]


async def test_a_copy_that_cannot_apply_what_is_committed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        shard = follower.shards[NUMBER]
        before = shard.replicated
        assert before is not None

        def broken(*_: object) -> None:
            raise RuntimeError("a fault")

        monkeypatch.setattr(before, "_apply", broken)
        await leader.publish("orders", "30")
        await cluster.until(lambda: shard.replicated is not before and whole(cluster), "another copy in its place")
        assert await follower.texts("orders") == [str(number) for number in range(31)]


async def test_a_store_that_lost_an_epoch_leads_to_no_deletion(tmp_path: Path) -> None:
    """As after a restore from a backup: the record names another, older copy on a node that has a newer one."""
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        core = leader.member.replicator.cores[NUMBER]
        assert core.record is not None
        replicas = tuple(
            replace(one, replica_id="f" * 32) if one.node == follower.name else one for one in core.record.replicas
        )
        in_sync = tuple(one for one in core.record.in_sync if one != _id_on(follower))
        old = replace(core.record, epoch=0, replicas=replicas, in_sync=in_sync)
        key = follower.member.coordination.keys.shard(NUMBER)
        await follower.kv.txn([], [Put(key, encode_shard(old))])
        await cluster.until(lambda: bool(follower.member.replicator.damage.problem), "it has noticed")
        assert follower.shards[NUMBER].replicated is not None
        assert await follower.texts("orders") == [str(number) for number in range(30)], "nothing was deleted"


async def test_a_store_that_gives_an_epoch_twice_is_told_of_and_nobody_leads_by_it(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        assert follower.member.replicator.damage.problem == ""
        record = leader.member.replicator.cores[NUMBER].record
        assert record is not None
        again = Leader(follower.name, _id_on(follower), follower.member.coordination.session)
        key = follower.member.coordination.keys.shard(NUMBER)
        await follower.kv.txn([], [Put(key, encode_shard(replace(record, leader=again)))])
        await cluster.until(lambda: bool(follower.member.replicator.damage.problem), "it has noticed")
        problem = follower.member.replicator.damage.problem
        assert problem.startswith(f"shard {NUMBER}: epoch {record.epoch} was given to another leadership before")
        assert follower.member.replicator.cores[NUMBER].leading is None


def _id_on(node: Node) -> str:
    log = node.shards[NUMBER].replicated
    assert log is not None
    return log.replica_id


async def test_a_snapshot_whose_rest_does_not_come_holds_nothing_up(tmp_path: Path) -> None:
    """Its beginning must stay in the journal while it is received; when its leader dies in the middle, no longer."""
    async with Cluster(tmp_path) as cluster:
        leader = await begin(cluster)
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        shard: Shard = follower.shards[NUMBER]
        snapshots = follower.member.replicator.snapshots
        receiving = Receiving(follower.storage.store, shard, _id_on(follower), 1_000_000)
        assert receiving.take(SnapshotPart(shard=NUMBER, begin=b""), lambda _: None) is None
        snapshots._receiving[NUMBER] = receiving
        assert NUMBER in follower.storage.store.restoring
        await cluster.until(lambda: NUMBER not in follower.storage.store.restoring, "it was given up", 5)
        await leader.publish("orders", "30")
        await cluster.until(lambda: whole(cluster), "the follower follows as before")


def test_what_nobody_takes_is_no_more_than_one_message_a_shard() -> None:
    box = ToFollower(lambda _: None)
    for fetch in range(1_000):
        box.refuse(Refused(shard=fetch % 3, fetch_id=fetch, epoch=1))
    message = box.take()
    assert message is not None
    assert sorted(one.fetch_id for one in message.refused) == [997, 998, 999]
