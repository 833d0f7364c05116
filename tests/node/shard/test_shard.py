"""One shard: offsets and positions at the append, everything else at the commit."""

from typing import Any

import pytest

from ringpost.internal.v1.record_pb2 import EpochStart
from ringpost.node.errors import DataLoss, OutOfRange, Precondition, RingpostError, Unavailable
from ringpost.node.journal.frame import FRAME_OVERHEAD, FrameType
from ringpost.node.shard.channel import ChannelLimits
from ringpost.node.shard.shard import Stored
from ringpost.v1.channel_pb2 import ChannelConfig
from ringpost.v1.common_pb2 import Durability
from tests.node.shard.fakes import START_US, Outcomes, Rig, batch_of, publish_of, replayed

MEMORY, LEADER, QUORUM = Durability.DURABILITY_MEMORY, Durability.DURABILITY_LEADER, Durability.DURABILITY_QUORUM
EPOCH_START, CONFIG, DATA, TRIM = FrameType.EPOCH_START, FrameType.CONFIG, FrameType.DATA, FrameType.TRIM


class Watcher:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.advances = 0
        self.reasons: list[str] = []

    def advanced(self) -> None:
        self.advances += 1

    def removed(self, reason: str, message: str) -> None:
        self.reasons.append(reason)


# -- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [LEADER, QUORUM])
def test_a_publish_is_answered_when_it_is_durable(level: Any) -> None:
    rig = Rig()
    channel = rig.channel()
    answers = rig.publish(channel, "x", "y", durability=level, commit=False)
    assert answers == []
    assert (channel.next_offset, channel.end_offset) == (2, 0)
    rig.commit()
    assert answers == [Stored("a", 0, 2, level, START_US, 1, False)]
    assert channel.end_offset == 2


def test_a_publish_in_memory_is_answered_at_once_and_visible_when_durable() -> None:
    rig = Rig()
    channel = rig.channel()
    answers = rig.publish(channel, "x", durability=MEMORY, commit=False)
    assert [answer.first_offset for answer in answers] == [0]
    assert channel.end_offset == 0
    rig.commit()
    assert len(answers) == 1
    assert channel.end_offset == 1


def test_the_first_frame_of_a_leadership_says_who_leads() -> None:
    rig = Rig()
    rig.channel()
    first, second = rig.journal.frames
    assert (first.kind, second.kind) == (EPOCH_START, CONFIG)
    assert EpochStart.FromString(first.body) == EpochStart(leader="n1", session=1)
    rig.lead(5)
    rig.publish(rig.store.find("a"), "x")
    kinds = rig.journal.kinds()
    assert kinds == [EPOCH_START, CONFIG, EPOCH_START, DATA]
    assert [frame.decoded.epoch for frame in rig.journal.frames] == [1, 1, 5, 5]


def test_frames_are_chained_by_position_and_checksum() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", commit=False)
    rig.publish(channel, "y", "z")
    headers = [frame.decoded for frame in rig.journal.frames]
    assert [header.position for header in headers] == [1, 2, 3, 4]
    assert [header.previous_crc for header in headers] == [0, *(header.header_crc for header in headers[:-1])]
    assert [header.committed for header in headers] == [0, 0, 2, 2]
    assert (headers[3].base_offset, headers[3].count, headers[3].channel) == (1, 2, channel.number)
    assert rig.journal.frames[3].body == batch_of("y", "z")
    assert (rig.shard.committed, rig.shard.committed_crc) == (4, headers[3].header_crc)


def test_time_stamps_never_fall_within_a_shard() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x")
    rig.time.now_us -= 10_000_000
    assert rig.publish(channel, "y")[0].time_us == START_US
    rig.time.now_us += 20_000_000
    assert rig.publish(channel, "z")[0].time_us == START_US + 10_000_000


def test_watchers_hear_of_commits_only() -> None:
    rig = Rig()
    channel, watcher = rig.channel(), Watcher()
    channel.watch(watcher)
    rig.publish(channel, "x", commit=False)
    assert watcher.advances == 0
    rig.commit()
    assert watcher.advances == 1
    channel.unwatch(watcher)
    channel.unwatch(watcher)
    rig.publish(channel, "y")
    assert watcher.advances == 1
    assert channel.watchers is None


def test_a_batch_is_in_the_tail_cache_and_counted() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", "y", producer=9, producer_epoch=1)
    row = channel.index.row(0)
    assert row.length == FRAME_OVERHEAD + len(batch_of("x", "y")) == channel.stored_bytes == rig.log.ledger.live(1)
    frame = rig.log.cache.get(row.address)
    assert frame is not None
    assert (frame.base_offset, frame.count, frame.body, frame.producer) == (0, 2, batch_of("x", "y"), 9)


# -- repeats ----------------------------------------------------------------------------------------------------------


def test_a_repeat_in_flight_shares_the_commit() -> None:
    rig = Rig()
    channel = rig.channel()
    how = {"producer": 7, "producer_epoch": 1, "commit": False}
    first = rig.publish(channel, "x", "y", **how)
    again = rig.publish(channel, "x", "y", **how)
    frames = len(rig.journal.frames)
    assert first == again == []
    rig.commit()
    assert [a.duplicate for a in first + again] == [False, True]
    assert first[0].first_offset == again[0].first_offset == 0
    assert again[0].time_us == 0
    late = rig.publish(channel, "x", "y", **how)
    assert [a.duplicate for a in late] == [True], "committed: answered at once"
    assert len(rig.journal.frames) == frames
    assert channel.end_offset == 2


def test_a_repeat_in_memory_does_not_wait() -> None:
    rig = Rig()
    channel = rig.channel()
    how = {"producer": 7, "producer_epoch": 1, "commit": False}
    rig.publish(channel, "x", **how)
    assert [a.duplicate for a in rig.publish(channel, "x", durability=MEMORY, **how)] == [True]


def test_a_repeat_in_flight_fails_with_the_first() -> None:
    rig = Rig()
    channel = rig.channel()
    how = {"producer": 7, "producer_epoch": 1, "commit": False}
    first, again = rig.publish(channel, "x", **how), rig.publish(channel, "x", **how)
    error = Unavailable("the disk failed")
    rig.log.commits.fail(error)
    assert first == again == [error]
    assert channel.end_offset == 0


def test_sequences_are_per_channel() -> None:
    rig = Rig()
    a, b = rig.channel("a"), rig.channel("b")
    how = {"producer": 7, "producer_epoch": 1}
    assert not rig.publish(a, "x", **how)[0].duplicate
    assert not rig.publish(b, "x", **how)[0].duplicate


def test_a_definite_error_changes_nothing() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", producer=7, producer_epoch=2)
    before, frames = rig.snapshots(), len(rig.journal.frames)
    for how in (
        {"producer": 7, "producer_epoch": 2, "first_sequence": 5},
        {"producer": 7, "producer_epoch": 1, "first_sequence": 1},
        {"producer": 8, "producer_epoch": 1, "first_sequence": 1},
    ):
        with pytest.raises(Precondition):
            rig.publish(channel, "y", **how)
    with pytest.raises(OutOfRange):
        channel.shard.trim(channel, 2, Outcomes())
    assert rig.snapshots() == before
    assert len(rig.journal.frames) == frames
    assert channel.next_offset == 1


def test_a_damaged_shard_takes_nothing() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.shard.quarantined = "rotten"
    frames = len(rig.journal.frames)
    done = Outcomes()
    for change in (
        lambda: rig.shard.publish(channel, publish_of("x"), [].append),
        lambda: rig.shard.add_channel("b", ChannelLimits(), done),
        lambda: rig.shard.set_channel(channel, ChannelLimits(), done),
        lambda: rig.shard.trim(channel, 0, done),
        lambda: rig.shard.delete_channel(channel, done),
    ):
        with pytest.raises(DataLoss):
            change()
    assert len(rig.journal.frames) == frames
    assert done == []
    assert not channel.removed


def test_a_failed_journal_answers_what_waits_and_refuses_the_rest() -> None:
    rig = Rig()
    channel = rig.channel()
    waiting = rig.publish(channel, "x", commit=False)
    rig.journal.failed = True
    with pytest.raises(Unavailable) as caught:
        rig.publish(channel, "y")
    assert caught.value.reason == "NOT_APPENDED"
    assert channel.next_offset == 1
    error = Unavailable("the disk failed")
    rig.log.commits.fail(error)
    assert waiting == [error]


# -- channels ---------------------------------------------------------------------------------------------------------


def test_a_channel_s_number_is_the_position_of_its_first_frame() -> None:
    rig = Rig()
    done = Outcomes()
    channel = rig.store.add("a", ChannelLimits(), done)
    assert channel.number == rig.journal.frames[-1].decoded.position == 2
    assert done == []
    rig.commit()
    assert done == [None]


def test_a_channel_made_again_is_another_one() -> None:
    rig = Rig()
    old, watcher, done = rig.channel(), Watcher(), Outcomes()
    old.watch(watcher)
    rig.publish(old, "x", "y", producer=7, producer_epoch=1)
    rig.store.delete(old, done)
    new = rig.store.find_or_add("a")
    answers = rig.publish(new, "z", commit=False)
    assert watcher.reasons == [], "told when it is certain"
    rig.commit()
    assert done == [None]
    assert watcher.reasons == ["CHANNEL_DELETED"]
    assert new.number > old.number
    assert answers[0].first_offset == 0
    assert rig.log.ledger.live(1) == new.stored_bytes, "the old one's bytes are dead"
    assert not rig.publish(new, "w", producer=7, producer_epoch=1)[0].duplicate
    again, quarantined = replayed(rig.journal.frames)
    assert quarantined == []
    assert again.store.find("a").number == new.number
    assert again.snapshots() == rig.snapshots()


def test_a_batch_in_flight_when_its_channel_goes_is_answered() -> None:
    rig = Rig()
    channel = rig.channel()
    answers = rig.publish(channel, "x", commit=False)
    rig.store.delete(channel, Outcomes())
    rig.commit()
    assert [answer.first_offset for answer in answers] == [0]
    _, quarantined = replayed(rig.journal.frames)
    assert quarantined == []


def test_limits_change_when_committed() -> None:
    rig = Rig()
    channel, done = rig.channel(), Outcomes()
    limits = channel.limits.changed(ChannelConfig(retention_bytes=5))
    rig.shard.set_channel(channel, limits, done)
    assert channel.limits == ChannelLimits()
    rig.commit()
    assert done == [None]
    assert channel.limits == ChannelLimits(retention_bytes=5)
    again, _ = replayed(rig.journal.frames)
    assert again.store.find("a").limits == limits


def test_limits_keep_what_is_not_given_and_take_zero_for_none() -> None:
    limits = ChannelLimits(1, 2, 3, 4).changed(ChannelConfig(retention_bytes=0, max_message_bytes=9))
    assert limits == ChannelLimits(1, 0, 3, 9)
    assert ChannelLimits().changed(limits.message()) == limits
    assert all(limits.message().HasField(name) for name in ("retention_age_ms", "retention_bytes"))
    assert not limits.retains_all
    assert ChannelLimits(max_message_bytes=9).retains_all


# -- trims ------------------------------------------------------------------------------------------------------------


def test_a_trim_drops_whole_frames_and_hides_the_rest_when_committed() -> None:
    rig = Rig()
    channel, done = rig.channel(), Outcomes()
    for texts in (("a", "b"), ("c", "d"), ("e",)):
        rig.publish(channel, *texts)
    rig.shard.trim(channel, 3, done)
    assert (channel.first_offset, len(channel.index), channel.trim_to) == (0, 3, 3)
    rig.commit()
    assert done == [None]
    assert (channel.first_offset, len(channel.index), channel.end_offset) == (3, 2, 5)
    assert channel.stored_bytes == rig.log.ledger.live(1) == sum(row.length for row in channel.index.rows(0, 2))
    rig.shard.trim(channel, 1, done)
    rig.commit()
    assert channel.first_offset == 3, "a smaller trim changes nothing"
    rig.shard.trim(channel, 5, done)
    rig.commit()
    assert (channel.first_offset, len(channel.index), channel.stored_bytes) == (5, 0, 0)
    assert rig.publish(channel, "f")[0].first_offset == 5
    again, _ = replayed(rig.journal.frames)
    assert again.snapshots() == rig.snapshots()


def test_only_what_is_committed_can_be_trimmed() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x")
    rig.publish(channel, "y", commit=False)
    with pytest.raises(OutOfRange) as caught:
        rig.shard.trim(channel, 2, Outcomes())
    assert caught.value.metadata == {"end_offset": "1", "first_offset": "0"}
    with pytest.raises(RingpostError):
        rig.shard.trim(channel, -1, Outcomes())
    rig.shard.trim(channel, 1, Outcomes())
    rig.commit()
    assert (channel.first_offset, channel.end_offset) == (1, 2)


def test_a_repeat_of_what_was_trimmed_is_still_a_repeat() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", producer=7, producer_epoch=1)
    rig.shard.trim(channel, 1, Outcomes())
    rig.commit()
    assert rig.publish(channel, "x", producer=7, producer_epoch=1)[0].duplicate
