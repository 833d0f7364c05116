"""Learning keys ahead of delivery: in the turn from memory, in a task from the disk, and what comes in between."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from ringpost.node.groups.changes import Ack
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.shard import keys
from ringpost.node.shard.batch import message_keys
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.reading import Reading
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.publish_pb2 import Batch, Message
from tests.node.shard.fakes import Outcomes, Rig, publish_of
from tests.node.shard.test_group import Member, settle

KEYED = GroupSettings(mode=GroupMode.GROUP_MODE_KEY_ORDERED)


class Disk:
    """Reads that wait until they are let go."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.go = asyncio.Event()
        self.reading = Reading(rig.log.cache, self._fetch, lambda *_: None)
        self.tasks: list[asyncio.Task[None]] = []
        self.gone = 0

    async def _fetch(self, channel: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
        await self.go.wait()
        if self.gone:
            self.gone -= 1
            raise FileNotFoundError("the segment was reclaimed")
        return await self.rig._fetch(channel, rows)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def read(self) -> None:
        """Lets all reads go and waits for the tasks."""
        self.go.set()
        while self.tasks:
            await self.tasks.pop()


class Failing(Member):
    def failed(self, error: Exception) -> None:
        self.reasons.append(type(error).__name__)


def made(rig: Rig, disk: Disk, *keys_of_batches: bytes, messages: int = 2) -> Group:
    """A group with one member on a channel with a batch for each key."""
    channel = rig.channel()
    for key in keys_of_batches:
        channel.shard.publish(channel, publish_of(*["m"] * messages, key=key), lambda _: None)
    rig.commit()
    group = add_group(channel, "g", KEYED, 0, Outcomes())
    rig.commit()
    group.read_by(disk.reading, disk.spawn)
    group.join(1, Failing())
    return group


def take(group: Group) -> list[tuple[int, int]]:
    return [(lease.first, lease.last) for lease in group.take(1, 100, group.channel.shard.log.clock())]


def member(group: Group) -> Failing:
    (found,) = group.members.values()
    assert isinstance(found, Failing)
    return found


def test_a_batch_gives_a_number_for_each_key() -> None:
    messages = [Message(key=b"a"), Message(data=b"x"), Message(key=b"b"), Message(key=b"a", headers={"k": "v"})]
    first, none, other, again = message_keys(Batch(messages=messages).SerializeToString())
    assert (none, first) == (0, again)
    assert len({0, first, other}) == 3


async def test_what_is_in_memory_is_known_in_the_same_turn() -> None:
    rig = Rig()
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"a")
    assert take(group) == [(0, 0), (2, 2)]
    assert disk.tasks == []


async def test_the_disk_is_read_in_a_task_that_tells_the_members() -> None:
    rig = Rig(cache_bytes=0)
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"a")
    assert take(group) == take(group) == []
    assert len(disk.tasks) == 1
    await disk.read()
    assert member(group).advances == 1
    assert take(group) == [(0, 0), (2, 2)]
    assert len(rig.reads) == 1, "one read for all that fits"


async def test_much_in_memory_is_looked_at_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "TURN_MESSAGES", 3)
    rig = Rig()
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"c", b"d")
    assert take(group) == [(0, 0), (2, 2)]
    assert len(disk.tasks) == 1
    await disk.read()
    assert take(group) == [(4, 4), (6, 6)]


async def test_no_more_is_looked_at_than_is_wanted() -> None:
    rig = Rig()
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"c", b"d")
    assert isinstance(group.core, KeyedCore)
    assert [(lease.first, lease.last) for lease in group.take(1, 2, rig.time.now_us)] == [(0, 0), (2, 2)]
    assert group.core.unknown(8) == 4


async def test_a_seek_while_the_disk_is_read_begins_anew() -> None:
    rig = Rig(cache_bytes=0)
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"a")
    take(group)
    await asyncio.sleep(0)
    seek_group(group, 3, Outcomes())
    rig.commit()
    await disk.read()
    assert take(group) == [(3, 4)]
    settle(group, Ack(), (3, 4))
    rig.time.turn()
    rig.commit()
    assert take(group) == [(5, 5)]


async def test_frames_that_were_trimmed_meanwhile_are_passed_over() -> None:
    rig = Rig(cache_bytes=0)
    disk = Disk(rig)
    group = made(rig, disk, b"a", b"b", b"a")
    take(group)
    await asyncio.sleep(0)
    disk.gone = 1
    group.channel.shard.trim(group.channel, 2, Outcomes())
    rig.commit()
    await disk.read()
    assert take(group) == [(2, 2), (4, 4)]


async def test_who_cannot_read_is_told_and_may_try_again() -> None:
    rig = Rig(cache_bytes=0)
    disk = Disk(rig)
    group = made(rig, disk, b"a")
    take(group)
    disk.gone = 1  # and the frames are still in the index
    await disk.read()
    assert member(group).reasons == ["DataLoss"]
    take(group)
    await disk.read()
    assert take(group) == [(0, 0)]


async def test_nothing_is_read_for_nobody() -> None:
    rig = Rig(cache_bytes=0)
    disk = Disk(rig)
    group = made(rig, disk, *(b"%d" % n for n in range(5)), messages=3)
    take(group)
    await asyncio.sleep(0)
    group.leave(1)
    await disk.read()
    assert len(rig.reads) == 1, "the one that was on its way"
    assert isinstance(group.core, KeyedCore)
    assert group.core.unknown(15) == 0, "and nothing is kept of it"
    group.join(2, Failing())
    assert [(lease.first, lease.last) for lease in group.take(2, 1, rig.time.now_us)] == [(0, 0)]
