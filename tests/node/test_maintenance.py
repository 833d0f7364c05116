"""Housekeeping over a disk in memory: what is dead goes, what is alive moves, what is damaged holds nobody up."""

import asyncio
from dataclasses import replace

import pytest

from ringpost.internal.v1.record_pb2 import DeadLetterFrame
from ringpost.node import storage
from ringpost.node.groups.changes import Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.journal.segment import address_of, offset_of, segment_of, segment_path
from ringpost.node.shard import retention
from ringpost.node.shard.boxes import box_of, count
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.commits import Waiting
from ringpost.node.shard.configure import set_group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.log import frame_length
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.shard.fakes import Outcomes, batch_of, publish_of, texts_of
from tests.node.shard.test_settle_any import Member
from tests.node.storage_rig import DIRECTORY, HOUR_US, Node, config_of

BIG = "x" * 1500


async def publish(node: Node, name: str, *texts: str) -> Channel:
    channel = node.storage.store.find_or_add(name)
    channel.shard.publish(channel, publish_of(*texts), [].append)
    await node.committed()
    return channel


async def trim(node: Node, channel: Channel, first: int) -> None:
    done = Outcomes()
    channel.shard.trim(channel, first, done)
    await node.committed()
    assert done == [None]


async def texts(node: Node, name: str) -> list[str]:
    frames = await node.frames(node.storage.store.find(name))
    return [text for frame in frames if frame is not None for text in texts_of(frame.body)]


async def scattered(node: Node) -> tuple[Channel, Channel]:
    """Channel "keep" has one small frame in each of a few segments that channel "fill" has filled and left."""
    for number in range(4):
        keep = await publish(node, "keep", f"first {number}", f"second {number}")
        for _ in range(5):
            fill = await publish(node, "fill", BIG)
    await trim(node, fill, fill.end_offset)
    await publish(node, "fill", BIG)
    for _ in range(2):
        await node.maintenance.checkpoint()
    return keep, fill


async def reclaimed(node: Node, passes: int = 8) -> list[int]:
    for _ in range(passes):
        await node.maintenance.reclaim()
        await node.maintenance.checkpoint()
        await publish(node, "fill", "goes on")
    return [segment.number for segment in node.storage.journal.segments()]


async def test_segments_with_little_alive_are_rewritten_and_go() -> None:
    files = FaultyFiles()
    node = await Node.open(files, config_of(max_batch_bytes=4096, max_message_bytes=4096))
    keep, _ = await scattered(node)
    old = {segment_of(row.address) for row in keep.index.rows(0, 4)}
    assert len(old) == 4
    segments = await reclaimed(node)
    assert not old.intersection(segments[:-1])
    expected = [f"{word} {number}" for number in range(4) for word in ("first", "second")]
    assert await texts(node, "keep") == expected
    assert keep.stored_bytes == sum(row.length for row in keep.index.rows(0, 4))
    await node.close()
    again = await Node.open(files)
    assert again.storage.quarantined == []
    assert await texts(again, "keep") == expected
    await again.close()


async def test_what_is_scheduled_is_rewritten_and_read_where_it_lies_now(monkeypatch: pytest.MonkeyPatch) -> None:
    files = FaultyFiles()
    config = config_of(max_batch_bytes=4096, max_message_bytes=4096, tail_cache_bytes=0)
    node = await Node.open(files, config)
    due_us, expected = storage.now_us() + HOUR_US, []
    for number in range(4):
        later = node.storage.store.find_or_add("later")
        later.shard.publish(later, publish_of(f"{number}", due_us=due_us - number), [].append)
        expected.insert(0, f"{number}")
        for _ in range(5):
            fill = await publish(node, "fill", BIG)
    await trim(node, fill, fill.end_offset)
    await publish(node, "fill", BIG)
    for _ in range(2):
        await node.maintenance.checkpoint()
    (schedule,) = later.shard.schedules.values()
    old = {segment_of(entry.address) for page in schedule.table.entries() for entry in page}
    assert len(old) == 4
    segments = await reclaimed(node)
    assert not old.intersection(segments[:-1])
    await node.close()
    true_us = storage.now_us
    monkeypatch.setattr(storage, "now_us", lambda: true_us() + HOUR_US)
    again = await Node.open(files, config)
    assert again.storage.quarantined == []
    async with asyncio.timeout(20):
        while again.storage.store.log.schedules.entries:
            await asyncio.sleep(0.001)
    assert await texts(again, "later") == expected
    await again.close()


async def test_a_frame_of_which_a_part_is_trimmed_is_rewritten_too() -> None:
    """Otherwise its segment would be chosen for ever, and no other."""
    node = await Node.open(FaultyFiles(), config_of(max_batch_bytes=4096, max_message_bytes=4096))
    keep, _ = await scattered(node)
    oldest = segment_of(keep.index.row(0).address)
    await trim(node, keep, 1)
    segments = await reclaimed(node)
    assert oldest not in segments
    assert (await texts(node, "keep"))[:2] == ["first 0", "second 0"]
    await node.close()


async def test_a_damaged_frame_stays_and_does_not_hold_up_the_others() -> None:
    files = FaultyFiles()
    node = await Node.open(files, config_of(max_batch_bytes=4096, max_message_bytes=4096))
    keep, _ = await scattered(node)
    rows = keep.index.rows(0, 4)
    files.flip(segment_path(DIRECTORY, segment_of(rows[0].address)), offset_of(rows[0].address) + 115, 0)
    segments = await reclaimed(node)
    assert segment_of(rows[0].address) in segments
    assert not {segment_of(row.address) for row in rows[1:]}.intersection(segments[:-1])
    await node.close()


async def test_nothing_is_reclaimed_while_a_shard_is_damaged() -> None:
    """What follows the damage is in no index, and may be all that an operator can still save."""
    node = await Node.open(FaultyFiles(), config_of(max_batch_bytes=4096, max_message_bytes=4096))
    await scattered(node)
    before = node.storage.journal.segments()
    node.storage.store.shards[0].quarantined = "rotten"
    end = node.storage.journal.end
    await node.maintenance.reclaim()
    assert node.storage.journal.segments() == before
    assert node.storage.journal.end == end
    node.storage.store.shards[0].quarantined = ""
    await node.maintenance.reclaim()
    assert node.storage.journal.segments() != before
    await node.close()


async def test_a_segment_that_only_an_old_checkpoint_knows_is_forgotten() -> None:
    """Deleted before a power cut that left the checkpoint whose rows still point there."""
    node = await Node.open(FaultyFiles())
    await scattered(node)
    assert 1 not in await reclaimed(node)
    ledger = node.storage.store.log.ledger
    ledger.add(address_of(1, 64), 100)
    ledger.drop(address_of(1, 64), 100)
    await node.maintenance.reclaim()
    assert 1 not in ledger.dead(node.storage.journal.durable, segment_of(node.storage.journal.end))
    await node.close()


async def test_retention_goes_on_behind_a_channel_that_cannot_be_read() -> None:
    files = FaultyFiles()
    config = config_of(tail_cache_bytes=0)
    node = await Node.open(files, config)
    store = node.storage.store
    for name, age_ms in (("a", 3_600_000), ("b", 1)):
        store.add(name, ChannelLimits(retention_age_ms=age_ms), Outcomes())
        await publish(node, name, "old")
    a, b = store.find("a"), store.find("b")
    row = a.index.row(0)
    files.flip(segment_path(DIRECTORY, segment_of(row.address)), offset_of(row.address) + 115, 0)
    a.limits = replace(a.limits, retention_messages=1)
    await publish(node, "a", "new")
    while not b.first_offset:
        await node.maintenance.retain()
        await node.committed()
    assert a.first_offset == 1, "by number, for which nothing is read"
    assert b.first_offset == 1
    assert any("damaged" in what for what in node.damages)
    assert row.length == frame_length(batch_of("old"))
    await node.close()


async def test_an_inbox_that_its_client_left_behind_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "INBOX_IDLE_US", 0)
    node = await Node.open(FaultyFiles())
    store = node.storage.store
    for name in ("_inbox.a", "kept"):
        store.add(name, ChannelLimits(retention_age_ms=1), Outcomes())
    await publish(node, "_inbox.a", "an answer that nobody takes")
    inbox = store.find("_inbox.a")
    while store.get("_inbox.a") is not None:
        await node.maintenance.retain()
        await node.committed()
    assert inbox.removed
    assert store.get("kept") is not None
    await node.close()


async def test_dead_letters_go_by_their_own_retention_and_move_with_their_segments() -> None:
    files = FaultyFiles()
    node = await Node.open(files, config_of(max_batch_bytes=4096, max_message_bytes=4096))
    channel = await publish(node, "a", *(f"m{number}" for number in range(6)))
    settings = GroupSettings(policy=RetryPolicy(dead_letters=True))
    group = add_group(channel, "g", settings, 0, Outcomes())
    await node.committed()

    async def bury(offset: int) -> None:
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        group.settle_any(Reject("bad"), [(offset, offset)], done.set_result)
        await done

    for offset in range(4):
        await bury(offset)
        for _ in range(5):
            fill = await publish(node, "fill", BIG)
    await trim(node, fill, fill.end_offset)
    await publish(node, "fill", BIG)
    for _ in range(2):
        await node.maintenance.checkpoint()
    box = box_of(group)
    assert box is not None
    old = {segment_of(row.address) for row in box.index.rows(0, 4)}
    assert len(old) > 1
    assert not old.intersection((await reclaimed(node))[:-1])

    set_group(group, GroupConfig(dead_letter_bytes=box.stored_bytes - 1), Outcomes())
    await node.committed()
    await node.maintenance.retain()
    await node.committed()
    assert (count(group), box.first_offset) == (3, 1)
    await node.close()

    again = await Node.open(files)
    found = again.storage.store.find_group(again.storage.store.find("a"), "g")
    kept = box_of(found)
    assert kept is not None
    frames = [frame for frame in await again.frames(kept) if frame is not None]
    letters = [letter for frame in frames for letter in DeadLetterFrame.FromString(frame.body).letters]
    assert [letter.message.data for letter in letters] == [b"m1", b"m2", b"m3"]
    assert (count(found), found.core.settled_below) == (3, 4)
    await again.close()


async def test_a_checkpoint_is_written_only_when_all_that_it_knows_is_durable() -> None:
    """Producers and groups are in it from their append on."""
    files = FaultyFiles()
    node = await Node.open(files)
    await publish(node, "a", "x")
    commits = node.storage.store.log.commits
    far = node.storage.journal.end + (1 << 40)
    commits.add(Waiting(far, None, 0, 0, Outcomes(), ()))
    writing = asyncio.ensure_future(node.maintenance.checkpoint())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not writing.done()
    assert not [path for path in files.paths() if "checkpoint-" in path]
    commits.durable(far + 1)
    await writing
    assert [path for path in files.paths() if "checkpoint-" in path]
    await node.close()


async def test_consumers_of_a_broadcast_group_that_nobody_uses_go_with_their_places() -> None:
    files = FaultyFiles()
    node = await Node.open(files, config_of())
    channel = await publish(node, "a", "m")
    config = GroupConfig(mode=GroupMode.GROUP_MODE_BROADCAST, consumer_expiry_ms=60_000)
    settings = GroupSettings.of(config)
    for name in ("g", "g/ann", "g/bob"):
        add_group(channel, name, settings, 0, Outcomes())
    await node.committed()
    groups = channel.groups
    assert groups is not None
    groups["g/bob"].join(1, Member())
    log, now_us = node.storage.store.log, node.storage.store.log.clock()
    log.clock = lambda: now_us
    await node.maintenance.expire_consumers()
    assert list(groups) == ["g", "g/ann", "g/bob"]
    now_us += 60_000_000
    await node.maintenance.expire_consumers()
    await node.committed()
    assert list(groups) == ["g", "g/bob"]
    await node.close()

    again = await Node.open(files)
    assert list(again.storage.store.find("a").groups or ()) == ["g", "g/bob"]
    await again.close()
