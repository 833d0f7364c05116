"""Copies that moved away are deleted: exactly those with a tombstone, for good, and their disk space comes back."""

import asyncio
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

from ringpost.cluster.keys import shard_of
from ringpost.cluster.kv import Delete, Put
from ringpost.cluster.records import Keys, encode_tomb
from ringpost.cluster.view import Desired, Replica
from ringpost.internal.v1.peer_pb2 import SnapshotPart
from ringpost.node.coordination import key_prefix
from ringpost.node.health import Health
from ringpost.node.journal.segment import offset_of, segment_of
from ringpost.node.maintenance import Maintenance
from ringpost.node.replicas.receive import Receiving
from ringpost.node.shard.snapshot import snapshot_shard
from tests.node.replicas.rig import SHARDS, Cluster, Node

TEXT = "x" * 1_000


def copies(node: Node) -> list[str]:
    return [shard.replicated.replica_id for shard in node.shards if shard.replicated is not None]


def drained(cluster: Cluster, name: str) -> bool:
    view = cluster.nodes["n1"].member.coordination.view
    return not any(record.replica_on(name) for record in view.shards) and not view.tombs


def tombs(node: Node) -> int:
    return len(node.member.coordination.view.tombs)


async def drain(cluster: Cluster, name: str) -> None:
    await cluster.nodes["n1"].member.coordination.set_desired(name, Desired.DRAIN)
    await cluster.until(lambda: drained(cluster, name), f"nothing is on {name}, and no tombstone is left", 60)


async def test_a_drained_node_deletes_its_copies_and_gives_their_disk_space_back(tmp_path: Path) -> None:
    async with Cluster(
        tmp_path, 4, segment_bytes=1 << 20, max_batch_bytes=512 << 10, max_message_bytes=64 << 10
    ) as cluster:
        for n in range(40):
            leader = cluster.leader_of(f"c{n % 8}")
            assert leader is not None
            await leader.publish(f"c{n % 8}", *[TEXT] * 100)
        victim = max(cluster.nodes.values(), key=lambda node: node.storage.store.log.ledger.segments()[-1])
        if victim.name == "n1":
            victim = cluster.nodes["n2"]
        config, journal = victim.opener._config, victim.storage.journal
        before = sum(segment.size_bytes for segment in journal.segments())
        await drain(cluster, victim.name)
        assert copies(victim) == []
        assert victim.storage.store.log.ledger.segments() == [], "no byte of it is live"
        maintenance = Maintenance(victim.storage, config, Health())
        assert before > 2 << 20
        for _ in range(10):  # while the node still hears of its drain a segment may end, and then go one turn later
            for _ in range(2):
                await maintenance.checkpoint()
            await maintenance.reclaim()
            active = segment_of(journal.end)
            # The next one may lie prepared behind it.
            left = [segment.number for segment in journal.segments() if segment.number <= active]
            if left == [active]:
                break
        assert left == [active]
        await victim.stop()
        await victim.start()
        assert copies(victim) == [], "they are gone for good"


async def test_a_deletion_that_a_crash_took_back_is_made_again(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 4) as cluster:
        victim = cluster.nodes["n2"]
        await victim.stop()
        kept = await _copies_on_disk(victim)
        await cluster.nodes["n1"].member.coordination.set_desired("n2", Desired.DRAIN)
        await cluster.until(lambda: tombs(cluster.nodes["n1"]) == kept > 0, "it is to delete them all", 60)
        await victim.start()
        await cluster.until(lambda: drained(cluster, "n2") and not copies(victim), "it did what it had missed")


async def _copies_on_disk(node: Node) -> int:
    await node.start()
    found = len(copies(node))
    await node.stop()
    return found


async def test_a_copy_that_the_record_names_is_not_deleted_whatever_a_tombstone_says(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes["n1"]
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "a")
        number = shard_of("orders", SHARDS)
        replica = node.member.coordination.view.shards[number].replica_on("n1")
        assert replica is not None
        keys = Keys(key_prefix(node.opener._config))
        await node.kv.txn([], [Put(keys.tomb(number, replica.replica_id), encode_tomb(replica))])
        await cluster.until(lambda: tombs(node) == 1, "it sees the tombstone")
        await leader.publish("orders", "b")
        end = leader.shards[number].committed
        await cluster.until(lambda: node.shards[number].committed == end, "it takes part as before")
        assert await node.texts("orders") == ["a", "b"]
        await node.kv.txn([], [Delete(keys.tomb(number, replica.replica_id))])


async def test_a_tombstone_for_a_copy_that_is_not_here_is_removed(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes["n1"]
        before = copies(node)
        keys = Keys(key_prefix(node.opener._config))
        other = Replica("n1", "f" * 32, directory=node.storage.identity.directory_id.hex())
        for tomb in (other, replace(other, node="n9"), replace(other, directory="0" * 32)):
            put = await node.kv.txn([], [Put(keys.tomb(0, tomb.replica_id), encode_tomb(tomb))])
            view = node.member.coordination
            await cluster.until(
                lambda v=view, r=put.revision: v.view.revision > r and not v.view.tombs, "it is removed"
            )
        assert copies(node) == before


async def test_a_tombstone_for_a_shard_that_there_is_not_is_passed_over(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node = cluster.nodes["n1"]
        keys = Keys(key_prefix(node.opener._config))
        nowhere = keys.tomb(SHARDS + 7, "f" * 32)
        await node.kv.txn([], [Put(nowhere, encode_tomb(Replica("n1", "f" * 32)))])
        await cluster.until(lambda: tombs(node) == 1, "it is seen")
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "a")
        assert tombs(node) == 1, "a person put it there, a person may look at it"


async def test_damage_in_what_was_deleted_is_nobody_s_loss(tmp_path: Path) -> None:
    async with Cluster(tmp_path, 4) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "a" * 500)
        number = shard_of("orders", SHARDS)
        victim = next(n for n in cluster.nodes.values() if n.name != "n1" and n.shards[number].replicated is not None)
        (channel,) = victim.shards[number].channels.values()
        await cluster.until(lambda: channel.committed_rows == 1, "it has the message")
        (row,) = channel.index.rows(0, 1)
        await drain(cluster, victim.name)
        await victim.stop()
        (segment,) = sorted(victim.directory.rglob("*.journal"))
        with segment.open("r+b") as file:
            file.seek(offset_of(row.address) + row.length // 2)
            file.write(b"damaged")
        await victim.start()
        assert victim.storage.quarantined == []
        assert victim.storage.report.damages, "it was noticed"


async def test_a_copy_that_goes_while_it_is_made_holds_up_no_checkpoint(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "a")
        number = shard_of("orders", SHARDS)
        node = next(n for n in cluster.nodes.values() if n is not leader)
        begin = SnapshotPart(shard=number, begin=snapshot_shard(leader.shards[number]).SerializeToString())
        store, shard = node.storage.store, node.shards[number]
        assert shard.replicated is not None
        first, second = (Receiving(store, shard, shard.replicated.replica_id, fetch_id) for fetch_id in (1, 2))
        for one in (first, second):
            assert one.take(begin, lambda _: None) is None
        first.abandon()
        assert number in store.restoring, "that of the other is kept"
        replicator = node.member.replicator
        replicator.snapshots._receiving[number] = second
        replicator._detach(shard)
        assert store.restoring == {}


async def test_a_directory_that_was_rolled_back_stays_so_until_nobody_counts_on_it(tmp_path: Path) -> None:
    """It must not lead after its second start either: the others, which know more, are down."""
    async with Cluster(tmp_path) as cluster:
        old, n1, n2 = (cluster.nodes[name] for name in ("n3", "n1", "n2"))
        await old.stop()
        copytree(old.directory, tmp_path / "backup")
        await old.start()
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "there is a leader")
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "a")
        number = shard_of("orders", SHARDS)
        await cluster.until(lambda: old.shards[number].committed == leader.shards[number].committed, "all have it")
        for node in (n1, n2, old):
            await node.stop()
        rmtree(old.directory)
        copytree(tmp_path / "backup", old.directory)
        for _ in range(2):
            await old.start()
            ref = old.member.coordination.view.nodes["n3"]
            assert ref.lost_shards == set(range(SHARDS))
            await old.stop()
        for node in (n1, n2, old):
            await node.start()
        whole = old.member.coordination
        await cluster.until(lambda: not whole.view.nodes["n3"].lost_shards, "its copies were made anew")
        await cluster.until(lambda: old.storage.identity.boot == whole.boot, "it knows that it is whole")
        await cluster.until(lambda: cluster.leader_of("orders") is not None, "there is a leader")
        now = cluster.leader_of("orders")
        assert now in (n1, n2)
        end = now.shards[number].committed
        for node in cluster.nodes.values():
            await cluster.until(lambda node=node: node.shards[number].committed >= end, "it has caught up")
            assert await node.texts("orders") == ["a"]
        await old.stop()
        await old.start()
        assert not old.member.coordination.view.nodes["n3"].lost_shards


async def test_what_becomes_durable_after_a_node_has_left_sets_nothing_going_there(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        node, going = cluster.nodes["n2"], []

        async def work() -> None:
            going.append(node.name)

        node.member.replicator.spawn(work())
        await cluster.until(lambda: going == ["n2"], "while it takes part, it goes")
        await node.stop()
        node.member.replicator.spawn(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert going == ["n2"]
