"""Reading: cache or disk, an offset by time, and rows that move while somebody waits for the disk."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.errors import DataLoss, OutOfRange
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.reading import READ_AHEAD_BYTES, Reading, check_offset, read_ahead
from tests.node.shard.fakes import START_US, Outcomes, Rig

S = 1_000_000


def filled(rig: Rig, times: list[int]) -> Channel:
    """Channel "a" with batches of two messages at so many seconds after the start."""
    channel = rig.channel()
    for time in times:
        rig.time.now_us = START_US + time * S
        rig.publish(channel, "x", "y")
    return channel


async def test_a_frame_comes_from_the_cache_or_once_from_the_disk() -> None:
    warm, cold = Rig(), Rig(cache_bytes=0)
    for rig, reads in ((warm, 0), (cold, 1)):
        channel = filled(rig, [1])
        for _ in range(3):
            frame = await rig.reading.frame(channel, channel.index.row(0))
        assert (frame.base_offset, frame.count) == (0, 2)
        assert len(rig.reads) == reads


async def test_damage_is_told_to_the_reader_and_the_node() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1])
    rig.read_error = FrameDamaged("rotten")
    with pytest.raises(DataLoss) as caught:
        await rig.reading.frame(channel, channel.index.row(0))
    assert caught.value.metadata == {"channel": "a", "offset": "0"}
    assert rig.damaged == ["rotten"]


class Disk:
    """A fetch that does something else first, the first time."""

    def __init__(self, rig: Rig, meanwhile: Any, error: Exception | None = None) -> None:
        self._rig = rig
        self._meanwhile = meanwhile
        self._error = error

    async def __call__(self, channel: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
            if self._error is not None:
                raise self._error
        return await self._rig._fetch(channel, rows)


def reading_on(rig: Rig, meanwhile: Any, error: Exception | None = None) -> Reading:
    return Reading(rig.log.cache, Disk(rig, meanwhile, error), lambda channel, what: rig.damaged.append(what))


async def test_a_frame_that_was_rewritten_meanwhile_is_read_where_it_is_now() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1, 2])
    new_place = rig.journal.end
    rig.journal.frames.append(rig.journal.frames[-2]._replace(address=new_place))
    reading = reading_on(rig, lambda: channel.index.move(0, new_place), FileNotFoundError("segment dropped"))
    frame = await reading.frame(channel, channel.index.row(0))
    assert frame.base_offset == 0
    assert rig.reads == [[(new_place, channel.index.row(0).length)]]


async def test_a_frame_that_was_trimmed_meanwhile_is_gone() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1, 2])

    def trim() -> None:
        channel.shard.trim(channel, 2, Outcomes())
        rig.commit()

    reading = reading_on(rig, trim, FileNotFoundError("segment dropped"))
    with pytest.raises(LookupError):
        await reading.frame(channel, channel.index.row(0))


async def test_a_missing_segment_that_nobody_dropped_is_an_error() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1])
    rig.read_error = FileNotFoundError("who did that")
    with pytest.raises(DataLoss, match="who did that"):
        await rig.reading.frame(channel, channel.index.row(0))


# -- by time ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 10), st.integers(0, 18), st.booleans())
@settings(deadline=None)
async def test_the_first_message_not_earlier_than_a_time(
    times: list[int], wanted: int, trimmed: int, in_flight: bool
) -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, sorted(times))
    if in_flight:
        rig.publish(channel, "not visible", commit=False)
    channel.shard.trim(channel, min(trimmed, channel.end_offset), Outcomes())
    rig.log.commits.durable(rig.journal.end if not in_flight else rig.journal.durable)
    first = channel.first_offset
    stamps = [time for time in sorted(times) for _ in "xy"]
    expected = next((n for n, time in enumerate(stamps) if n >= first and time >= wanted), len(stamps))
    assert await rig.reading.offset_at(channel, START_US + wanted * S) == expected


@pytest.mark.parametrize("error", [None, FileNotFoundError("segment dropped")])
async def test_a_trim_meanwhile_is_noticed(error: Exception | None) -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1, 2, 3, 4, 5])

    def trim() -> None:
        channel.shard.trim(channel, 7, Outcomes())
        rig.commit()

    assert await reading_on(rig, trim, error).offset_at(channel, START_US + 2 * S) == 7


@pytest.mark.parametrize("error", [None, FileNotFoundError("segment dropped")])
async def test_a_delete_meanwhile_ends_the_search(error: Exception | None) -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, [1, 2, 3, 4, 5])

    def delete() -> None:
        rig.store.delete(channel, Outcomes())
        rig.commit()

    assert await reading_on(rig, delete, error).offset_at(channel, START_US + 4 * S) == channel.end_offset


# -- ahead ------------------------------------------------------------------------------------------------------------


def test_reading_ahead_takes_what_is_wanted_committed_and_not_too_much() -> None:
    rig = Rig()
    channel = filled(rig, [1, 2, 3])
    rig.publish(channel, "not visible", commit=False)
    assert [row.base for row in read_ahead(channel, 0, 3)] == [0, 2]
    assert [row.base for row in read_ahead(channel, 1, 99)] == [2, 4]
    big = "x" * (READ_AHEAD_BYTES // 2)
    for _ in range(3):
        rig.publish(channel, big)
    rows = read_ahead(channel, 3, 99)
    assert [row.base for row in rows] == [6, 7]
    assert sum(row.length for row in rows) <= READ_AHEAD_BYTES
    rig.publish(channel, big * 3)
    assert len(read_ahead(channel, 7, 99)) == 1, "one at least, however large"


def test_an_offset_beyond_the_end_is_refused() -> None:
    rig = Rig()
    channel = filled(rig, [1])
    check_offset(channel, 2, "start")
    with pytest.raises(OutOfRange) as caught:
        check_offset(channel, 3, "start")
    assert caught.value.metadata == {"end_offset": "2", "first_offset": "0"}
