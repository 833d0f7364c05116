"""What a channel's configuration lets go."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.errors import DataLoss
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.retention import INBOX_IDLE_US, AgeRetention, IdleInboxes, keep_from_by_size
from tests.node.shard.fakes import Outcomes, Rig

S = 1_000_000


def filled(rig: Rig, *sizes: int, gap_us: int = 0, **limits: int) -> Channel:
    """Channel "a" with a batch of so many messages each."""
    channel = rig.channel()
    channel.limits = ChannelLimits(**limits)
    for size in sizes:
        rig.publish(channel, *["m"] * size)
        rig.time.now_us += gap_us
    return channel


def trim(rig: Rig, channel: Channel, first: int) -> None:
    channel.shard.trim(channel, first, Outcomes())
    rig.commit()


def test_nothing_goes_without_limits() -> None:
    assert keep_from_by_size(filled(Rig(), 3, 3)) == 0


class Reader:
    """Somebody who is subscribed."""

    def advanced(self) -> None:
        """It is not asked."""

    def removed(self, reason: str, message: str) -> None:
        """It is not asked."""


def test_an_inbox_is_over_an_hour_after_the_last_reader_and_message() -> None:
    rig, idle = Rig(), IdleInboxes()
    rig.store.add("_inbox.a", ChannelLimits(retention_age_ms=1_000), Outcomes())
    inbox, reader = rig.channel("_inbox.a"), Reader()
    now = rig.time.now_us
    inbox.watch(reader)
    assert not idle.is_over(inbox, now)
    assert not idle.is_over(inbox, now + 2 * INBOX_IDLE_US)
    inbox.unwatch(reader)
    assert not idle.is_over(inbox, now + 3 * INBOX_IDLE_US), "it was not seen without one before"
    assert not idle.is_over(inbox, now + 4 * INBOX_IDLE_US - 1)
    rig.publish(inbox, "an answer", commit=False)
    assert not idle.is_over(inbox, now + 4 * INBOX_IDLE_US)
    rig.commit()
    trim(rig, inbox, 1)
    assert not idle.is_over(inbox, now + 5 * INBOX_IDLE_US)
    assert idle.is_over(inbox, now + 6 * INBOX_IDLE_US)
    inbox.removed = True
    idle.forget_removed()
    inbox.removed = False
    assert not idle.is_over(inbox, now + 7 * INBOX_IDLE_US), "forgotten with the channel"


def test_other_channels_are_never_over() -> None:
    rig, idle = Rig(), IdleInboxes()
    assert not any(idle.is_over(rig.channel("orders"), n * INBOX_IDLE_US) for n in range(3))


def test_the_number_of_messages_is_exact() -> None:
    assert keep_from_by_size(filled(Rig(), 3, 3, retention_messages=4)) == 2
    assert keep_from_by_size(filled(Rig(), 3, 3, retention_messages=6)) == 0
    assert keep_from_by_size(filled(Rig(), retention_messages=1)) == 0


def test_bytes_go_by_whole_frames_oldest_first() -> None:
    rig = Rig()
    channel = filled(rig, 1, 1, 1, 1)
    length = channel.index.row(0).length
    for limit, expected in ((4 * length, 0), (4 * length - 1, 1), (2 * length, 2), (1, 4)):
        channel.limits = ChannelLimits(retention_bytes=limit)
        assert keep_from_by_size(channel) == expected
    trim(rig, channel, 2)
    channel.limits = ChannelLimits(retention_bytes=length)
    assert keep_from_by_size(channel) == 3


def test_bytes_go_a_bounded_number_of_frames_at_once_and_the_next_pass_goes_on() -> None:
    rig = Rig()
    channel = filled(rig, 1, 1, 1, 1, 1, retention_bytes=1)
    kept_from = []
    while channel.first_offset < channel.end_offset:
        trim(rig, channel, keep_from_by_size(channel, rows_max=2))
        kept_from.append(channel.first_offset)
    assert kept_from == [2, 4, 5]


def test_what_is_not_committed_stays() -> None:
    rig = Rig()
    channel = filled(rig, 1, retention_bytes=1, retention_messages=1)
    rig.publish(channel, "in flight", "too", commit=False)
    assert keep_from_by_size(channel) == 1
    channel.limits = ChannelLimits(retention_messages=1)
    assert keep_from_by_size(channel) == 0


@given(st.lists(st.integers(1, 4), max_size=8), st.integers(0, 12), st.integers(0, 1500), st.integers(0, 12))
@settings(deadline=None)
def test_what_is_kept_is_within_the_limits_and_no_more_than_needed_goes(
    sizes: list[int], messages: int, size: int, trimmed: int
) -> None:
    rig = Rig()
    channel = filled(rig, *sizes, retention_messages=messages, retention_bytes=size)
    trim(rig, channel, min(trimmed, channel.end_offset))
    before = channel.first_offset
    first = keep_from_by_size(channel)
    assert before <= first <= channel.end_offset
    trim(rig, channel, first)
    assert not messages or channel.end_offset - channel.first_offset <= messages
    assert not size or channel.stored_bytes <= size
    assert keep_from_by_size(channel) == first
    if first > before:
        too_many = messages and channel.end_offset - first + 1 > messages
        kept = channel.stored_bytes + (len(sizes) and rig.journal.frames[-1].decoded.body_length)
        assert too_many or (size and kept > 0)


# -- age --------------------------------------------------------------------------------------------------------------


async def test_frames_go_when_they_are_older_than_allowed() -> None:
    rig = Rig()
    channel = filled(rig, 2, 2, 2, gap_us=10 * S, retention_age_ms=25_000)
    age, start = AgeRetention(rig.reading), rig.time.now_us - 30 * S
    assert await age.keep_from(channel, start + 25 * S) == 0
    assert await age.keep_from(channel, start + 25 * S + 1) == 2
    assert await age.keep_from(channel, start + 45 * S) == 4
    assert await age.keep_from(channel, start + 46 * S) == 6


async def test_a_channel_with_nothing_to_drop_costs_one_read() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, 2, 2, gap_us=S, retention_age_ms=25_000)
    age = AgeRetention(rig.reading)
    for _ in range(5):
        assert await age.keep_from(channel, rig.time.now_us) == 0
    assert len(rig.reads) == 1
    trim(rig, channel, 2)
    assert await age.keep_from(channel, rig.time.now_us) == 2
    assert len(rig.reads) == 2


async def test_an_empty_channel_is_not_read() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, 2, retention_age_ms=1)
    trim(rig, channel, 2)
    assert await AgeRetention(rig.reading).keep_from(channel, rig.time.now_us + S) == 2
    assert rig.reads == []


async def test_damage_is_told() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, 2, retention_age_ms=1)
    rig.read_error = FrameDamaged("rotten")
    with pytest.raises(DataLoss):
        await AgeRetention(rig.reading).keep_from(channel, rig.time.now_us + S)


async def test_removed_channels_are_forgotten() -> None:
    rig = Rig(cache_bytes=0)
    channel = filled(rig, 2, retention_age_ms=25_000)
    age = AgeRetention(rig.reading)
    await age.keep_from(channel, rig.time.now_us)
    age.forget_removed()
    await age.keep_from(channel, rig.time.now_us)
    assert len(rig.reads) == 1
    rig.store.delete(channel, Outcomes())
    age.forget_removed()
    assert age._oldest == {}
