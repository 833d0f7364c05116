"""Delayed publishing on one node: never early, never lost, never twice, through restarts, deletes and damage."""

from typing import Any

import pytest
from crc32c import crc32c

from ringpost.node.errors import AlreadyExists, DataLoss, Exhausted, Precondition, Unavailable
from ringpost.node.journal.frame import FLAG_REWRITTEN, FrameType, encode_header
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.scheduling import WAKE_MAX, Schedule
from ringpost.node.shard.shard import Publish
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message
from tests.node.shard.fakes import (
    START_US,
    Damage,
    Outcomes,
    Rig,
    Stored,
    checkpoint_of,
    publish_of,
    replayed,
    texts_of,
)

SECOND = 1_000_000
SCHEDULE, RELEASE = FrameType.SCHEDULE, FrameType.RELEASE


def delayed(rig: Rig, channel: Channel, delay_s: float, *texts: str, commit: bool = True, **how: Any) -> list[Any]:
    due_us = rig.time.now_us + round(delay_s * SECOND)
    return rig.publish(channel, *texts, commit=commit, due_us=due_us, **how)


def passes(rig: Rig, seconds: float) -> None:
    """Time passes; what is released is committed."""
    rig.time.pass_us(round(seconds * SECOND))
    rig.commit()
    rig.time.pass_us(0)


def texts(rig: Rig, channel: Channel) -> list[str]:
    """What is committed of the channel."""
    frames = {frame.address: frame for frame in rig.journal.frames}
    rows = channel.index.rows(0, channel.committed_rows)
    return [text for row in rows for text in texts_of(frames[row.address].body)]


def scheduled(rig: Rig, channel: Channel) -> int:
    schedule = channel.shard.schedules.get(channel.number)
    return 0 if schedule is None else schedule.table.messages


def again(rig: Rig, *, checkpoint: bool = False, frames: list[Stored] | None = None) -> tuple[Rig, Channel]:
    """The same node after a restart."""
    rig.commit()
    everything = list(rig.journal.frames if frames is None else frames)
    made, damaged = replayed(
        () if checkpoint else everything, checkpoint=checkpoint_of(rig.store) if checkpoint else None
    )
    assert damaged == []
    made.journal.frames, made.journal.end = everything, rig.journal.end
    made.journal.durable = made.journal.end
    made.time.now_us = rig.time.now_us
    made.lead(made.shard.epoch + 1)
    return made, made.store.find("a")


# -- the way of a delayed batch ---------------------------------------------------------------------------------------


def test_a_delayed_batch_is_there_at_its_time_and_not_before() -> None:
    rig = Rig()
    channel = rig.channel()
    (answer,) = delayed(rig, channel, 5, "late", "later")
    assert (answer.first_offset, answer.scheduled_us, answer.duplicate) == (0, START_US + 5 * SECOND, False)
    assert (scheduled(rig, channel), channel.next_offset) == (2, 0)
    rig.publish(channel, "now")
    passes(rig, 4.999)
    assert texts(rig, channel) == ["now"]
    passes(rig, 0.01)
    assert texts(rig, channel) == ["now", "late", "later"]
    release = rig.journal.frames[-1].decoded
    assert (release.type, release.base_offset, release.count) == (RELEASE, 1, 2)
    assert release.time_us >= answer.scheduled_us
    assert (scheduled(rig, channel), rig.log.schedules.entries) == (0, 0)
    assert rig.shard.schedules == {}


def test_batches_leave_by_time_and_those_of_one_time_as_they_were_published() -> None:
    rig = Rig()
    channel = rig.channel()
    for delay, text in ((3, "c"), (1, "a"), (3, "d"), (2, "b"), (0, "at once")):
        delayed(rig, channel, delay, text)
    assert texts(rig, channel) == ["at once"]
    passes(rig, 10)
    assert texts(rig, channel) == ["at once", "a", "b", "c", "d"]


def test_subscribers_hear_of_released_messages() -> None:
    rig = Rig()
    channel = rig.channel()

    class Watcher:
        heard = 0

        def advanced(self) -> None:
            self.heard += 1

        def removed(self, reason: str, message: str) -> None:
            raise AssertionError(reason)

    watcher = Watcher()
    channel.watch(watcher)
    delayed(rig, channel, 1, "x")
    assert watcher.heard == 0
    rig.time.pass_us(2 * SECOND)
    assert watcher.heard == 0, "not committed"
    rig.commit()
    assert watcher.heard == 1


def test_what_was_due_while_the_node_was_away_comes_at_the_start() -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    rig.time.now_us += 60 * SECOND
    rig, channel = again(rig)
    passes(rig, 0.1)
    assert texts(rig, channel) == ["x"]
    assert rig.log.schedules.late_us_max >= 55 * SECOND


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_restart_loses_nothing_doubles_nothing_and_is_never_early(checkpoint: bool) -> None:
    rig = Rig()
    channel = rig.channel()
    for delay in range(1, 11):
        delayed(rig, channel, delay, f"{delay}")
    passes(rig, 4.5)
    rig, channel = again(rig, checkpoint=checkpoint)
    assert (texts(rig, channel), scheduled(rig, channel)) == (["1", "2", "3", "4"], 6)
    passes(rig, 0.4)
    assert len(texts(rig, channel)) == 4
    passes(rig, 10)
    assert texts(rig, channel) == [f"{n}" for n in range(1, 11)]


def test_a_release_that_was_not_committed_is_made_again() -> None:
    """The frame never reached the disk: the entry is in the journal, and in a checkpoint taken meanwhile."""
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 1, "x")
    durable = len(rig.journal.frames)
    rig.time.pass_us(2 * SECOND)
    assert rig.journal.kinds()[-1] == RELEASE
    checkpoint = checkpoint_of(rig.store)
    for start in (None, checkpoint):
        made, damaged = replayed(rig.journal.frames[:durable] if start is None else (), checkpoint=start)
        assert damaged == []
        assert made.log.schedules.entries == 1
    made, _ = replayed(rig.journal.frames[durable:], checkpoint=checkpoint)
    assert made.log.schedules.entries == 0, "the release reached the disk"
    assert made.store.find("a").end_offset == 1


def test_a_release_that_is_on_its_way_is_not_made_twice() -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 1, "x")
    rig.time.pass_us(2 * SECOND)
    delayed(rig, channel, 1, "y", commit=False)
    rig.time.pass_us(30 * SECOND)
    assert rig.journal.kinds().count(RELEASE) == 1, "y is not committed either"
    rig.commit()
    passes(rig, 1)
    assert texts(rig, channel) == ["x", "y"]


def test_more_than_a_turn_takes_leaves_in_order() -> None:
    rig = Rig()
    channel = rig.channel()
    for number in range(1_000):
        delayed(rig, channel, 1, f"{number}", commit=False)
    rig.commit()
    passes(rig, 2)
    assert texts(rig, channel) == [f"{n}" for n in range(1_000)]


def test_very_many_channels_in_which_something_is_due_at_once_are_woken_in_parts() -> None:
    rig = Rig()
    due, count = START_US + SECOND, 2 * WAKE_MAX + 1
    for number in range(count):
        channel = rig.store.find_or_add(f"c{number}")
        channel.shard.publish(channel, publish_of("x", due_us=due), lambda _: None)
    rig.commit()
    woken: list[Schedule] = []
    rig.log.schedules.release = woken.append
    turns: list[int] = []
    rig.time.now_us = due - 1
    for _ in range(6):
        before = len(woken)
        rig.time.pass_us(1_100)
        turns.append(len(woken) - before)
    assert max(turns) <= WAKE_MAX
    assert len(woken) == len(set(woken)) == count


def test_bodies_that_are_not_in_memory_are_read() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    for number in range(3):
        delayed(rig, channel, 3 - number, f"{number}", ttl_ms=77)
    passes(rig, 5)
    assert texts(rig, channel) == ["2", "1", "0"]
    assert len(rig.reads) == 3
    assert [frame.decoded.ttl_ms for frame in rig.journal.frames][-3:] == [77] * 3


@pytest.mark.parametrize("durability", [Durability.DURABILITY_MEMORY, Durability.DURABILITY_QUORUM])
def test_the_answer_comes_when_it_is_stored_as_asked(durability: Durability.ValueType) -> None:
    rig = Rig()
    channel = rig.channel()
    answers = delayed(rig, channel, 5, "x", durability=durability, commit=False)
    assert len(answers) == (durability == Durability.DURABILITY_MEMORY)
    rig.commit()
    assert [answer.scheduled_us for answer in answers] == [START_US + 5 * SECOND]


# -- numbers and ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [None, "journal", "checkpoint"])
@pytest.mark.parametrize("wait_s", [0, 10])
def test_a_producers_repeat_is_known_before_and_after_it_was_due(restart: str | None, wait_s: int) -> None:
    rig = Rig()
    channel = rig.channel()
    (first,) = delayed(rig, channel, 5, "a", "b", producer=7)
    passes(rig, wait_s)
    if restart:
        rig, channel = again(rig, checkpoint=restart == "checkpoint")
    (repeat,) = delayed(rig, channel, 5, "a", "b", producer=7)
    assert (repeat.duplicate, repeat.first_offset, repeat.scheduled_us) == (True, 0, first.scheduled_us)
    (behind,) = rig.publish(channel, "c", producer=7, first_sequence=2)
    assert (behind.duplicate, behind.first_offset) == (False, channel.end_offset - 1)
    with pytest.raises(Precondition):
        delayed(rig, channel, 5, "x", producer=7, first_sequence=9)
    passes(rig, 20)
    assert sorted(texts(rig, channel)) == ["a", "b", "c"]


def ids_batch(*ids: str, **how: Any) -> Publish:
    batch = Batch(messages=[Message(data=one.encode(), message_id=one) for one in ids]).SerializeToString()
    return Publish(batch, len(ids), crc32c(batch), Durability.DURABILITY_QUORUM, **how)


def publish_ids(rig: Rig, channel: Channel, *ids: str, delay_s: float = 0, **how: Any) -> Any:
    due_us = rig.time.now_us + round(delay_s * SECOND) if delay_s else 0
    answers: list[Any] = []
    channel.shard.publish(channel, ids_batch(*ids, due_us=due_us, **how), answers.append)
    rig.commit()
    (answer,) = answers
    return answer


@pytest.mark.parametrize("restart", [None, "journal", "checkpoint"])
def test_message_ids_of_delayed_messages_count_from_the_publish_on(restart: str | None) -> None:
    rig = Rig()
    channel = rig.channel()
    rig.store.set(channel, ChannelLimits(dedup_window_ms=60_000), Outcomes())
    rig.commit()
    due = publish_ids(rig, channel, "a", "b", delay_s=5).scheduled_us
    publish_ids(rig, channel, "c")
    if restart:
        rig, channel = again(rig, checkpoint=restart == "checkpoint")
    for delay_s in (0.0, 9.0):
        repeat = publish_ids(rig, channel, "a", "b", delay_s=delay_s)
        assert (repeat.duplicate, repeat.scheduled_us) == (True, due)
    with pytest.raises(AlreadyExists):
        publish_ids(rig, channel, "b", "d", delay_s=1)
    passes(rig, 20)
    assert texts(rig, channel) == ["c", "a", "b"]
    assert publish_ids(rig, channel, "b").duplicate, "also after it was due"
    numbered = publish_ids(rig, channel, "a", producer=9)
    assert (numbered.duplicate, numbered.scheduled_us) == (True, due)
    assert not publish_ids(rig, channel, "x", producer=9, first_sequence=1).duplicate
    rig, channel = again(rig)
    rig.time.now_us += 60 * SECOND
    assert not publish_ids(rig, channel, "a").duplicate, "the window has passed"


def test_a_channel_without_a_window_forgets_the_ids() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.store.set(channel, ChannelLimits(dedup_window_ms=60_000), Outcomes())
    rig.commit()
    publish_ids(rig, channel, "a", delay_s=1)
    passes(rig, 2)
    assert rig.shard.schedules, "it still holds the id"
    rig.store.set(channel, ChannelLimits(), Outcomes())
    rig.commit()
    assert rig.shard.schedules == {}
    assert not publish_ids(rig, channel, "a").duplicate


# -- channels that go, limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["before", "due"])
def test_a_deleted_channel_takes_its_delayed_messages_with_it(at: str) -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    rig.store.delete(channel, Outcomes())
    if at == "due":
        rig.time.pass_us(10 * SECOND)  # the delete is not committed yet
    rig.commit()
    assert (rig.log.schedules.entries, rig.shard.schedules) == (0, {})
    assert rig.log.ledger.live(1) == 0
    channel = rig.channel()
    passes(rig, 20)
    assert (texts(rig, channel), RELEASE in rig.journal.kinds()) == ([], False)
    made, damaged = replayed(rig.journal.frames)
    assert (damaged, made.log.schedules.entries) == ([], 0)


def test_a_purge_leaves_what_is_scheduled() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "old")
    delayed(rig, channel, 5, "x")
    rig.shard.trim(channel, 1, Outcomes())
    rig.commit()
    passes(rig, 6)
    assert texts(rig, channel) == ["x"]


def test_a_node_holds_so_many_delayed_batches_and_no_more() -> None:
    rig = Rig(max_scheduled_batches=2)
    channel = rig.channel()
    for number in range(2):
        rig.store.check_schedules()
        delayed(rig, channel, 5, "x", producer=7, first_sequence=number)
    with pytest.raises(Exhausted, match="max_scheduled_batches"):
        rig.store.check_schedules()
    with pytest.raises(Exhausted, match="max_scheduled_batches") as refused:
        delayed(rig, channel, 5, "x", producer=7, first_sequence=2)
    assert refused.value.reason == "SCHEDULE_LIMIT"
    (again,) = delayed(rig, channel, 5, "x", producer=7, first_sequence=1)
    assert again.duplicate, "what is stored is not said to be refused"
    passes(rig, 6)
    rig.store.check_schedules()
    delayed(rig, channel, 5, "x", producer=7, first_sequence=2)


def test_a_node_at_rest_with_distant_messages_wakes_once_in_ten_seconds() -> None:
    rig = Rig()
    channel = rig.channel()
    for number in range(1_000):
        delayed(rig, channel, 1_000_000 - number, "x")
    before = len(rig.time.timers)
    assert before < 10, "one timer, and few that were cancelled"
    woken: list[int] = []
    wake = rig.log.schedules.wake
    rig.log.schedules.wake = lambda now_us: (woken.append(now_us), wake(now_us))[1]  # type: ignore[func-returns-value,method-assign]
    passes(rig, 100)
    assert 8 <= len(woken) <= 12
    assert len(rig.log.schedules._heap) < 100, "a channel's earlier and earlier times leave nothing behind"


# -- the journal ------------------------------------------------------------------------------------------------------


def frame_of(rig: Rig, kind: FrameType) -> Stored:
    return next(frame for frame in rig.journal.frames if frame.kind == kind)


def test_a_rewritten_entry_is_read_where_it_lies_now() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    delayed(rig, channel, 50, "x")
    first = frame_of(rig, SCHEDULE)
    fields = first.decoded._asdict() | {"flags": FLAG_REWRITTEN}
    del fields["header_crc"]
    copy = Stored(7 << 32 | 96, encode_header(**fields), first.body)
    rig, channel = again(rig, frames=[*rig.journal.frames, copy])
    schedule = rig.shard.schedules[channel.number]
    assert schedule.table.take(1 << 60, 1, 1)[0].address == copy.address
    assert [rig.log.ledger.live(segment) > 0 for segment in (1, 7)] == [False, True]


def test_what_cannot_be_read_stays_and_holds_up_nobody() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    for text in ("a", "bad", "c"):
        delayed(rig, channel, 5, text)
    bad = rig.journal.frames[-2].address
    fetch = rig._fetch

    async def fails(owner: Channel, rows: list[tuple[int, int]]) -> Any:
        if any(address == bad for address, _ in rows):
            raise DataLoss("the frame is damaged")
        return await fetch(owner, rows)

    rig.reading._fetch = fails
    passes(rig, 6)
    assert (texts(rig, channel), scheduled(rig, channel)) == (["a", "c"], 1)
    rig, channel = again(rig)
    passes(rig, 1)
    assert texts(rig, channel) == ["a", "c", "bad"], "it is tried again at the next start"


def test_what_was_taken_and_could_not_be_released_is_taken_again() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    for text in ("a", "b"):
        delayed(rig, channel, 5, text)
    fetch, failures = rig._fetch, [Unavailable("another copy takes over"), OSError("no such luck")]

    async def fails_at_first(owner: Channel, rows: list[tuple[int, int]]) -> Any:
        if failures:
            raise failures.pop(0)
        return await fetch(owner, rows)

    rig.reading._fetch = fails_at_first
    passes(rig, 5.5)
    assert texts(rig, channel) == []
    passes(rig, 5)
    assert texts(rig, channel) == ["a", "b"]


def test_a_clock_that_is_set_back_makes_nothing_early() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    due_us, fetch = rig.time.now_us + 5 * SECOND, rig._fetch

    async def sets_it_back(owner: Channel, rows: list[tuple[int, int]]) -> Any:
        if len(rig.reads) == 0:
            rig.time.now_us -= 3 * SECOND
        return await fetch(owner, rows)

    rig.reading._fetch = sets_it_back
    passes(rig, 6)
    passes(rig, 60)
    assert texts(rig, channel) == ["x"]
    assert rig.journal.frames[-1].decoded.time_us >= due_us


def test_a_full_disk_makes_them_late_and_loses_nothing() -> None:
    from ringpost.node.journal.disk import DiskState

    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    rig.store.disk_state = DiskState.REFUSE
    passes(rig, 20)
    assert texts(rig, channel) == []
    rig.store.disk_state = DiskState.OK
    passes(rig, 2)
    assert texts(rig, channel) == ["x"]


# -- accepted loss ----------------------------------------------------------------------------------------------------


def salvaged(rig: Rig, *, broken: frozenset[int] = frozenset(), missing: frozenset[int] = frozenset()) -> Rig:
    frames = [frame for frame in rig.journal.frames if frame.address not in missing]
    damages = [Damage(address, None, "a hole", length=10) for address in missing]
    made, quarantined = replayed(frames, broken=broken, damages=damages, accept_loss=True)
    assert quarantined == []
    made.journal.frames, made.journal.end = list(frames), rig.journal.end
    made.journal.durable = made.journal.end
    made.time.now_us = rig.time.now_us
    made.lead(made.shard.epoch + 1)
    return made


def test_damage_to_a_scheduled_batch_is_told() -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "gone")
    delayed(rig, channel, 5, "kept")
    made = salvaged(rig, broken=frozenset({frame_of(rig, SCHEDULE).address}))
    assert made.losses
    passes(made, 10)
    assert texts(made, made.store.find("a")) == ["kept"]


def test_a_damaged_release_loses_its_offsets_and_is_not_made_again() -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    passes(rig, 10)
    rig.publish(channel, "y")
    made = salvaged(rig, broken=frozenset({frame_of(rig, RELEASE).address}))
    passes(made, 10)
    again_there = made.store.find("a")
    assert again_there.lost_at(0) == (0, 0)
    assert (again_there.next_offset, made.log.schedules.entries) == (2, 0)


def test_a_missing_segment_takes_its_scheduled_batches() -> None:
    rig = Rig()
    channel = rig.channel()
    delayed(rig, channel, 5, "x")
    checkpoint = checkpoint_of(rig.store)
    from ringpost.node.shard.salvage import Salvage

    made = Rig(epoch=0)
    salvage = Salvage(made.store)
    salvage.load(checkpoint)
    salvage.finish(())
    salvage.lose_segments([1])
    assert ["scheduled for" in str(loss) for loss in salvage.losses] == [True]
    assert (made.log.schedules.entries, made.log.ledger.live(1)) == (0, 0)
