"""A whole shard on its way to another node, while its leader goes on: trims, deletes and publishes in between."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ringpost.cluster.keys import shard_of
from ringpost.internal.v1.peer_pb2 import Fetch, SnapshotPart
from ringpost.internal.v1.record_pb2 import ChannelTrim
from ringpost.node.replicas.receive import Receiving
from ringpost.node.replicas.send import send_snapshot
from ringpost.node.shard.shard import Shard
from tests.node.replicas.rig import SHARDS, Cluster, Node

NAMES = [name for name in (f"c{n}" for n in range(400)) if shard_of(name, SHARDS) == 1][:3]


async def leading(cluster: Cluster) -> tuple[Node, Shard]:
    leader = cluster.leader(1)
    assert leader is not None
    for name in NAMES:
        for number in range(6):
            await leader.publish(name, f"{name} {number}")
    return leader, leader.shards[1]


class Box:
    """Where the parts are put; after so many of them `then` is called and awaited by the reader."""

    snapshot_waiting = False

    def __init__(self, leader: Node, *, after: int, then: Callable[[], Awaitable[None]]) -> None:
        self.parts: list[SnapshotPart] = []
        self._read = leader.storage.reader.read_raw
        self._after, self._then = after, then
        self._reads = 0

    def snapshot(self, part: SnapshotPart) -> None:
        self.parts.append(part)

    async def read_raw(self, rows: Any) -> bytes:
        """As the reader, which takes its time."""
        read = await self._read(rows)
        self._reads += 1
        if self._reads == self._after:
            await self._then()
        return read


async def sent(leader: Node, shard: Shard, *, after: int, then: Callable[[], Awaitable[None]]) -> list[SnapshotPart]:
    box: Any = Box(leader, after=after, then=then)
    await send_snapshot(shard, Fetch(shard=1, fetch_id=1), 1, box, box, lambda: True)
    return box.parts  # type: ignore[no-any-return]


async def taken(node: Node, parts: list[SnapshotPart]) -> dict[str, tuple[int, int]]:
    """What another node makes of it: its channels' first and end offsets."""
    local = node.shards[1].replicated
    assert local is not None
    receiving = Receiving(node.storage.store, node.shards[1], local.replica_id, 1)
    complete = asyncio.Event()
    problems = [problem for part in parts if (problem := receiving.take(part, lambda _: complete.set()))]
    assert problems == []
    await asyncio.wait_for(complete.wait(), 10)
    assert receiving._restoring is not None
    made = receiving._restoring.shard.channels.values()
    receiving.abandon()
    return {channel.name: (channel.first_offset, channel.end_offset) for channel in made}


async def trim(shard: Shard, name: str, before: int) -> None:
    channel = next(one for one in shard.channels.values() if one.name == name)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    shard.trim(channel, before, lambda error: done.set_result(None) if error is None else done.set_exception(error))
    await done


@pytest.mark.parametrize("before", [3, 6])
@pytest.mark.parametrize("which", [0, 1])
async def test_what_is_trimmed_while_it_is_sent_is_left_out(
    tmp_path: Path, before: int, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringpost.node.replicas.send._CHUNK_BYTES", 1)  # a part for each frame
    async with Cluster(tmp_path) as cluster:
        leader, shard = await leading(cluster)
        other = next(node for node in cluster.nodes.values() if node is not leader)
        parts = await sent(leader, shard, after=1, then=lambda: trim(shard, NAMES[which], before))
        expected = dict.fromkeys(NAMES, (0, 6)) | {NAMES[which]: (before, 6)}
        assert await taken(other, parts) == expected


async def test_a_channel_that_is_deleted_while_it_is_sent_arrives_empty(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader, shard = await leading(cluster)
        other = next(node for node in cluster.nodes.values() if node is not leader)

        async def delete() -> None:
            store = leader.storage.store
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            store.delete(store.find(NAMES[1]), lambda error: done.set_result(None))
            await done

        parts = await sent(leader, shard, after=1, then=delete)
        assert await taken(other, parts) == {NAMES[0]: (0, 6), NAMES[1]: (6, 6), NAMES[2]: (0, 6)}


async def test_a_delete_that_may_yet_be_lost_leaves_nothing_out(tmp_path: Path) -> None:
    """It is appended behind the last read, so it is not committed when the last part is put."""
    async with Cluster(tmp_path) as cluster:
        leader, shard = await leading(cluster)
        other = next(node for node in cluster.nodes.values() if node is not leader)
        ends: list[int] = []

        async def delete() -> None:
            leader.storage.store.delete(leader.storage.store.find(NAMES[1]), lambda error: ends.append(shard.committed))

        parts = await sent(leader, shard, after=len(NAMES), then=delete)
        assert ends == []
        assert await taken(other, parts) == dict.fromkeys(NAMES, (0, 6))


async def test_frames_that_are_lacking_without_a_trim_are_noticed(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader, shard = await leading(cluster)
        other = next(node for node in cluster.nodes.values() if node is not leader)
        parts = await sent(leader, shard, after=1, then=lambda: trim(shard, NAMES[1], 3))
        local = other.shards[1].replicated
        assert local is not None
        for trims in ([], [ChannelTrim(channel=parts[-1].trims[0].channel, first_offset=2)]):
            receiving = Receiving(other.storage.store, other.shards[1], local.replica_id, 1)
            last = SnapshotPart()
            last.CopyFrom(parts[-1])
            del last.trims[:]
            last.trims.extend(trims)
            problems = [receiving.take(part, lambda _: None) for part in [*parts[:-1], last]]
            assert "lacks what is before 3" in (problems[-1] or "")
            receiving.abandon()


async def test_a_copy_is_made_while_retention_trims_every_channel_of_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new node's copy, over the real streams; after a restart it still is what it was."""
    monkeypatch.setattr("ringpost.node.replicas.send._CHUNK_BYTES", 1)
    async with Cluster(tmp_path) as cluster:
        leader, shard = await leading(cluster)
        late = next(node for node in cluster.nodes.values() if node is not leader)
        await late.stop()
        for number in range(6, 60):
            for name in NAMES:
                await leader.publish(name, f"{name} {number}")
        # What it lacks is not in the log any more, so that it needs the whole shard.
        assert shard.replicated is not None
        shard.replicated.positions.drop_below(leader.storage.journal.durable)
        trimming = asyncio.create_task(_trim_all(shard))
        read = leader.storage.reader.read_raw

        async def slowly(rows: Any) -> bytes:
            await asyncio.sleep(0.005)
            return await read(rows)

        monkeypatch.setattr(leader.storage.reader, "read_raw", slowly)
        await late.start()
        snapshots = late.member.replicator.snapshots
        await cluster.until(lambda: snapshots.received >= 1, "the snapshot is there")
        await trimming
        await leader.publish(NAMES[0], "last")
        ends = [channel.end_offset for channel in shard.channels.values()]
        firsts = [channel.first_offset for channel in shard.channels.values()]
        theirs = late.shards[1].channels
        await cluster.until(lambda: [one.end_offset for one in theirs.values()] == ends, "it has caught up")
        assert [one.first_offset for one in theirs.values()] == firsts
        await late.stop()
        await late.start()
        assert [one.first_offset for one in late.shards[1].channels.values()] == firsts
        assert (await late.texts(NAMES[0]))[0] == f"{NAMES[0]} {firsts[0]}"


async def _trim_all(shard: Shard) -> None:
    for before in range(1, 50):
        for name in NAMES:
            await trim(shard, name, before)
        await asyncio.sleep(0.005)
