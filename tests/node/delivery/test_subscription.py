"""What one subscription sends: in order, within its credit, cut where needed, from memory or the disk."""

import asyncio

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.shard.channel import Channel
from ringpost.v1.common_pb2 import Start
from tests.node.delivery.fakes import Stream, batches_of, events, hub_of, numbered, turns
from tests.node.shard.fakes import Outcomes, Rig, batch_of

SIZE = len(batch_of("m0"))


def names(first: int, last: int) -> list[str]:
    return [f"m{n}" for n in range(first, last + 1)]


async def test_everything_from_the_start_and_then_what_comes() -> None:
    rig = Rig()
    channel, stream = numbered(rig, 3, 2), Stream(hub_of(rig))
    stream.open()
    said = await stream.said()
    assert events(said) == ["opened", "deliver"]
    opened = said[0].opened
    assert (opened.next_offset, opened.end_offset, opened.owner, opened.epoch) == (0, 5, "n1", 1)
    assert [(b.first_offset, b.count, b.attempt, b.lease_ms) for b in batches_of(said)] == [(0, 3, 0, 0), (3, 2, 0, 0)]
    rig.publish(channel, "later", commit=False)
    assert await stream.texts() == []
    rig.commit()
    assert await stream.texts() == ["later"]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (Start(earliest=True), names(2, 4)),
        (Start(latest=True), []),
        (None, []),
        (Start(offset=3), names(3, 4)),
        (Start(offset=5), []),
        (Start(time_us=1), names(2, 4)),
        (Start(time_us=2**62), []),
    ],
    ids=str,
)
async def test_where_a_subscription_begins(start: Start | None, expected: list[str]) -> None:
    rig = Rig()
    channel, stream = numbered(rig, 3, 2), Stream(hub_of(rig))
    channel.shard.trim(channel, 2, Outcomes())
    rig.commit()
    stream.open(start=start)
    assert await stream.texts() == expected
    rig.publish(channel, "later")
    assert await stream.texts() == ["later"]


async def test_messages_are_exact() -> None:
    rig = Rig()
    numbered(rig, 3, 3, 3)
    stream = Stream(hub_of(rig))
    stream.open(messages=4)
    assert [(b.first_offset, b.count) for b in await stream.batches()] == [(0, 3), (3, 1)]
    stream.credit(messages=4)
    assert await stream.texts() == []
    stream.credit(messages=8)
    assert [(b.first_offset, b.count) for b in await stream.batches()] == [(4, 2), (6, 2)]
    stream.credit(messages=2)
    assert await stream.texts() == [], "less than was sent: nothing"
    stream.credit(messages=8)
    assert await stream.texts() == []
    stream.credit()
    assert await stream.texts() == ["m8"]


async def test_bytes_are_passed_by_one_message_at_most() -> None:
    rig = Rig()
    numbered(rig, 3, 3, 3)
    stream = Stream(hub_of(rig))
    stream.open(bytes=SIZE + 1)
    assert [b.count for b in await stream.batches()] == [1, 1], "one fits, one passes the bound by a byte less"
    stream.credit(size=2 * SIZE)
    assert await stream.texts() == []
    stream.credit(size=2 * SIZE + 1)
    assert await stream.texts() == ["m2"]
    stream.credit(size=8 * SIZE)
    assert await stream.texts() == names(3, 7)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 14 * SIZE)), max_size=8),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_any_credit_is_kept_and_everything_comes_once(
    sizes: list[int], grants: list[tuple[int, int]], cold: bool
) -> None:
    rig = Rig(cache_bytes=0 if cold else 1 << 20)
    numbered(rig, *sizes)
    stream = Stream(hub_of(rig))
    stream.open(messages=0, bytes=0)
    got: list[str] = []
    size = 0
    for messages, allowed in grants:
        stream.credit(messages, allowed)
        batches = await stream.batches()
        before = size
        for batch in batches:
            assert size < allowed
            sizes_of = [len(batch_of(message.data.decode())) for message in batch.batch.messages]
            size += sum(sizes_of)
            assert size - sizes_of[-1] < allowed
            got += [message.data.decode() for message in batch.batch.messages]
        assert not batches or len(got) <= messages
        assert before <= size
        assert len(got) == sum(sizes) or len(got) >= messages or size >= allowed, "no credit is left unused"
    stream.credit()
    got += await stream.texts()
    assert got == names(0, sum(sizes) - 1)


async def test_what_was_removed_is_told_once_as_a_gap() -> None:
    rig = Rig()
    channel, stream = numbered(rig, 3, 3), Stream(hub_of(rig))
    stream.open(messages=1)
    assert await stream.texts() == ["m0"]
    channel.shard.trim(channel, 4, Outcomes())
    rig.commit()
    stream.credit()
    said = await stream.said()
    assert events(said) == ["gap", "deliver"]
    assert (said[0].gap.missing.first, said[0].gap.missing.last) == (1, 3)
    assert [(b.first_offset, b.count) for b in batches_of(said)] == [(4, 2)]
    rig.publish(channel, "later")
    assert await stream.texts() == ["later"]


async def test_a_start_below_what_is_kept_begins_with_a_gap() -> None:
    rig = Rig()
    channel, stream = numbered(rig, 3), Stream(hub_of(rig))
    channel.shard.trim(channel, 3, Outcomes())
    rig.commit()
    rig.publish(channel, "m3")
    stream.open(start=Start(offset=1))
    said = await stream.said()
    assert events(said) == ["opened", "gap", "deliver"]
    assert (said[1].gap.missing.first, said[1].gap.missing.last) == (1, 2)


async def test_two_subscribers_at_the_tail_send_the_same_bytes_object() -> None:
    rig = Rig()
    channel, hub = rig.channel(), hub_of(rig)
    streams = [Stream(hub), Stream(hub)]
    for stream in streams:
        stream.open()
        await stream.said()
    rig.publish(channel, "to all")
    for stream in streams:
        assert await stream.texts() == ["to all"]
    assert streams[0].raw[-1] is streams[1].raw[-1]


async def test_a_delivery_is_about_as_large_as_allowed() -> None:
    rig = Rig()
    channel = rig.channel()
    for _ in range(10):
        rig.publish(channel, "x" * 100)
    stream = Stream(hub_of(rig, delivery_bytes=250))
    stream.open()
    said = await stream.said()
    assert [len(response.deliver.batches) for response in said[1:]] == [2] * 5
    rig.publish(channel, "y" * 1000)
    assert await stream.texts() == ["y" * 1000], "one frame may pass it"


# -- from the disk ----------------------------------------------------------------------------------------------------


async def test_what_is_not_in_memory_is_read_once() -> None:
    rig = Rig(cache_bytes=0)
    numbered(rig, 3, 3, 3)
    stream = Stream(hub_of(rig))
    stream.open()
    assert await stream.texts() == names(0, 8)
    assert [len(rows) for rows in rig.reads] == [3], "ahead, in one go"


async def test_a_read_begins_once_although_a_part_could_be_sent() -> None:
    """The first frame is in memory, the second is not: the delivery leaves, and one read is under way."""
    rig = Rig()
    channel = numbered(rig, 2, 2, 2)
    first = rig.log.cache.get(channel.index.row(0).address)
    cold = Rig(cache_bytes=0)
    channel = numbered(cold, 2, 2, 2)
    assert first is not None
    cold.reading._cold.put(channel.index.row(0).address, 100, first)
    stream = Stream(hub_of(cold))
    stream.open()
    assert await stream.texts() == names(0, 5)
    assert [len(rows) for rows in cold.reads] == [2]


async def test_a_read_is_kept_until_credit_lets_it_go() -> None:
    rig = Rig(cache_bytes=0)
    numbered(rig, 3, 3)
    stream = Stream(hub_of(rig))
    stream.open(messages=1)
    got = await stream.texts()
    for total in range(2, 7):
        stream.credit(messages=total)
        got += await stream.texts()
    assert got == names(0, 5)
    assert len(rig.reads) <= 2


async def test_damage_closes_the_subscription_and_nothing_else() -> None:
    rig = Rig(cache_bytes=0)
    numbered(rig, 2)
    stream = Stream(hub_of(rig))
    rig.read_error = FrameDamaged("rotten")
    stream.open()
    said = await stream.said()
    assert events(said) == ["opened", "closed"]
    assert said[1].closed.failure.code == grpc.StatusCode.DATA_LOSS.value[0]
    assert said[1].closed.failure.reason == "FRAME_DAMAGED"
    assert rig.damaged == ["rotten"]
    assert rig.store.find("a").watchers is None
    rig.read_error = None
    stream.open(2)
    assert await stream.texts() == names(0, 1)


async def test_a_disk_that_cannot_be_read_closes_the_subscription() -> None:
    rig = Rig(cache_bytes=0)
    numbered(rig, 2)
    stream = Stream(hub_of(rig))
    rig.read_error = OSError(5, "Input/output error")
    stream.open()
    said = await stream.said()
    assert said[1].closed.failure.code == grpc.StatusCode.DATA_LOSS.value[0]


async def test_a_missing_segment_that_nobody_dropped_closes_the_subscription() -> None:
    """It must not look again and again."""
    rig = Rig(cache_bytes=0)
    numbered(rig, 2)
    stream = Stream(hub_of(rig))
    rig.read_error = FileNotFoundError(2, "No such file or directory")
    stream.open()
    said = await stream.said()
    assert events(said) == ["opened", "closed"]
    assert len(rig.reads) == 1


class SlowDisk:
    """Reads wait until they are let go; something may happen meanwhile."""

    def __init__(self, rig: Rig) -> None:
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self._fetch, self._rig = rig._fetch, rig
        rig.reading._fetch = self

    async def __call__(self, channel: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
        await self.go.wait()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return await self._fetch(channel, rows)


@pytest.mark.parametrize("error", [None, FileNotFoundError(2, "dropped")])
async def test_a_trim_while_it_reads_is_a_gap(error: Exception | None) -> None:
    rig = Rig(cache_bytes=0)
    channel = numbered(rig, 2, 2, 2)
    disk, stream = SlowDisk(rig), Stream(hub_of(rig))
    disk.error = error
    stream.open()
    assert events(await stream.said()) == ["opened"]
    channel.shard.trim(channel, 4, Outcomes())
    rig.commit()
    disk.go.set()
    said = await stream.said()
    assert events(said) == ["gap", "deliver"]
    assert (said[0].gap.missing.first, said[0].gap.missing.last) == (0, 3)
    assert [(b.first_offset, b.count) for b in batches_of(said)] == [(4, 2)]


async def test_a_trim_before_the_read_begins_does_not_read_other_rows() -> None:
    """Row numbers shift with a trim; the read is a task that begins later."""
    rig = Rig(cache_bytes=0)
    channel = numbered(rig, 2, 2, 2)
    stream = Stream(hub_of(rig))
    stream.open(messages=1)
    wanted = channel.index.row(0).address
    await asyncio.sleep(0)
    while not stream.session.subscriptions[1]._reading:
        await asyncio.sleep(0)
    channel.shard.trim(channel, 2, Outcomes())
    rig.commit()
    await turns()
    assert rig.reads[0][0][0] == wanted


async def test_frames_that_were_rewritten_while_it_reads_are_found() -> None:
    rig = Rig(cache_bytes=0)
    channel = numbered(rig, 2)
    disk, stream = SlowDisk(rig), Stream(hub_of(rig))
    disk.error = FileNotFoundError(2, "dropped")
    stream.open()
    await stream.said()
    rig.journal.frames.append(rig.journal.frames[-1]._replace(address=rig.journal.end))
    channel.index.move(0, rig.journal.end)
    disk.go.set()
    assert await stream.texts() == names(0, 1)


@pytest.mark.parametrize("error", [None, FrameDamaged("rotten"), OSError(5, "failed")])
async def test_a_subscription_closed_while_it_reads_stays_closed(error: Exception | None) -> None:
    rig = Rig(cache_bytes=0)
    channel = numbered(rig, 2)
    disk, hub = SlowDisk(rig), hub_of(rig)
    stream = Stream(hub)
    disk.error = error
    stream.open()
    await stream.said()
    stream.close()
    assert events(await stream.said()) == ["closed"]
    disk.go.set()
    assert await stream.said() == []
    assert channel.watchers is None
    assert hub.subscriptions == 0
