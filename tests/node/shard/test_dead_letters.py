"""Dead letters in a group's shard: one frame keeps and settles, whatever else happens to the message meanwhile."""

from itertools import pairwise
from typing import Any

import pytest

from ringpost.internal.v1.record_pb2 import DeadLetterFrame, LetterChange
from ringpost.node.errors import Exhausted, NotFound, RingpostError, Unavailable
from ringpost.node.groups.changes import Ack, Lease, Nack, Outcome, Reject
from ringpost.node.groups.policy import ENDED, Backoff, RetryPolicy
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard import dead_letters
from ringpost.node.shard.boxes import Changed, box_of, count
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.v1.dead_letter_pb2 import DeadLetter
from tests.node.delivery.test_lost import lose
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed
from tests.node.shard.test_group import DONE, S, check_replay, made, settle, settles, take

POLICY = RetryPolicy(Backoff.CONSTANT, S, max_attempts=2, dead_letters=True)


def rig_with(messages: int = 4, **settings: Any) -> tuple[Rig, Group]:
    rig = Rig()
    return rig, made(rig, messages=messages, **{"policy": POLICY, **settings})


def letters(rig: Rig, group: Group) -> list[DeadLetter]:
    """All that were ever written to its box, in order."""
    box = box_of(group)
    assert box is not None
    frames = [frame for frame in rig.journal.frames if frame.kind == FrameType.DATA]
    bodies = [frame.body for frame in frames if frame.decoded.channel == box.number]
    return [letter for body in bodies for letter in DeadLetterFrame.FromString(body).letters]


def stored(rig: Rig) -> None:
    rig.time.turn()
    rig.commit()


def fail(rig: Rig, group: Group, reason: str) -> None:
    """The next delivery of the first message fails."""
    take(rig, group, 1)
    settle(group, Nack(reason=reason), (0, 0))
    stored(rig)
    rig.time.pass_us(S + 2_000)


def change(group: Group, **letter_change: list[int]) -> list[Changed | RingpostError]:
    answers: list[Changed | RingpostError] = []
    dead_letters.change(group, LetterChange(**letter_change), answers.append)
    return answers


def test_a_rejected_message_is_kept_and_settled_by_one_frame() -> None:
    rig, group = rig_with()
    take(rig, group, 2)
    answers = settle(group, Reject("cannot be read"), (1, 1))
    rig.time.turn()
    assert rig.journal.kinds()[-2:] == [FrameType.CONFIG, FrameType.DATA]
    assert settles(rig) == []
    assert (answers, group.core.rejected, count(group)) == ([], 0, 0)
    rig.commit()
    assert answers == [[(1, 1, DONE)]]
    assert (group.core.rejected, group.core.pending(4), count(group)) == (1, 3, 1)
    (letter,) = letters(rig, group)
    assert (letter.offset, letter.message.data, letter.reason, letter.attempts) == (1, b"m1", "cannot be read", 1)
    check_replay(rig)


def test_the_last_attempt_is_kept_with_what_went_before() -> None:
    rig, group = rig_with(1)
    fail(rig, group, "busy")
    fail(rig, group, "broken")
    (letter,) = letters(rig, group)
    assert (letter.reason, letter.attempts) == ("broken", 2)
    assert [(one.attempt, one.reason) for one in letter.failures] == [(1, "busy"), (2, "broken")]
    assert letter.failures[0].time_us < letter.failures[1].time_us == letter.dead_time_us
    assert group.core.pending(1) == 0
    check_replay(rig)


def test_the_last_lease_that_ends_is_a_death_too() -> None:
    rig, group = rig_with(1, ack_deadline_ms=1_000)
    for _ in range(2):
        take(rig, group, 1)
        rig.time.pass_us(S + 2_000)
        stored(rig)
        rig.time.pass_us(S + 2_000)
    assert [letter.reason for letter in letters(rig, group)] == [ENDED]
    assert (group.core.pending(1), group.core.in_flight) == (0, 0)
    check_replay(rig)


def test_until_it_is_committed_nobody_gets_it() -> None:
    rig, group = rig_with(1)
    take(rig, group, 1)
    settle(group, Reject("x"), (0, 0))
    rig.time.turn()
    rig.time.pass_us(60 * S)
    assert take(rig, group, 1) == []
    assert group.core.in_flight == 1


def test_a_nack_that_is_the_last_for_some_is_answered_once() -> None:
    rig, group = rig_with(3)
    fail(rig, group, "busy")
    assert take(rig, group, 3) == [Lease(0, 0, 2), Lease(1, 2, 1)]
    answers = settle(group, Nack(reason="down"), (0, 2))
    rig.time.turn()
    kinds = [frame.kind for frame in rig.journal.frames if frame.address >= rig.journal.durable]
    assert kinds == [FrameType.CONFIG, FrameType.DATA, FrameType.SETTLE]
    rig.commit(2)
    assert answers == []
    rig.commit()
    assert answers == [[(0, 2, DONE)]]
    assert [letter.offset for letter in letters(rig, group)] == [0]
    assert group.core.to_redeliver == 2


def test_many_are_written_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "LETTERS_MAX", 3)
    rig, group = rig_with(10)
    answers: list[Any] = []
    group.settle_any(Reject("old"), [(0, 7)], answers.append)
    for _ in range(3):
        assert answers == []
        stored(rig)
    assert answers == [[(0, 7, DONE)]]
    assert [letter.offset for letter in letters(rig, group)] == list(range(8))
    assert {letter.attempts for letter in letters(rig, group)} == {0}
    assert (count(group), group.core.settled_below) == (8, 8)
    check_replay(rig)


def test_who_is_acked_before_the_commit_is_not_dead() -> None:
    rig, group = rig_with(2)
    take(rig, group, 2)
    group.settle_any(Ack(), [(0, 0)], lambda _: None)
    settle(group, Reject("x"), (0, 1))
    stored(rig)
    box = box_of(group)
    assert box is not None
    rig.commit()
    frames = [f for f in rig.journal.frames if f.kind in (FrameType.SETTLE, FrameType.DATA)][-2:]
    assert {frame.kind for frame in frames} == {FrameType.SETTLE, FrameType.DATA}
    dead, acked = group.core.rejected, 2 - group.core.rejected
    assert (count(group), box.end_offset) == (dead, 2)
    assert group.core.settled_below == dead + acked == 2
    check_replay(rig)


def test_twice_rejected_is_dead_once() -> None:
    rig, group = rig_with(1)
    answers: list[Any] = []
    for _ in range(2):
        group.settle_any(Reject("x"), [(0, 0)], answers.append)
    stored(rig)
    rig.commit()
    assert answers == [[(0, 0, DONE)]] * 2
    assert (len(letters(rig, group)), count(group), group.core.rejected) == (2, 1, 1)
    check_replay(rig)


def test_a_redriven_message_is_pending_as_if_never_delivered() -> None:
    rig, group = rig_with(3)
    take(rig, group, 3)
    settle(group, Reject("x"), (0, 2))
    stored(rig)
    answers = change(group, redriven=[1, 1, 2, 2])
    assert take(rig, group, 3) == []
    rig.commit()
    assert answers == [Changed(2, 0)]
    assert (count(group), take(rig, group, 3)) == (1, [Lease(1, 2, 1)])
    check_replay(rig)


def test_what_was_redriven_and_acked_is_not_brought_back_again() -> None:
    rig, group = rig_with(1)
    take(rig, group, 1)
    settle(group, Reject("x"), (0, 0))
    stored(rig)
    change(group, redriven=[0, 0])
    rig.commit()
    take(rig, group, 1)
    settle(group, Ack(), (0, 0))
    stored(rig)
    answers = change(group, redriven=[0, 0], dropped=[0, 7])
    rig.commit()
    assert answers == [Changed(0, 0)]
    assert group.core.pending(1) == 0
    check_replay(rig)


def test_a_letter_from_before_a_seek_brings_back_nothing_that_was_acked_since() -> None:
    rig, group = rig_with(3)
    take(rig, group, 3)
    settle(group, Reject("bad"), (1, 1))
    stored(rig)
    seek_group(group, 0, Outcomes())
    rig.commit()
    take(rig, group, 3)
    settle(group, Ack(), (0, 2))
    stored(rig)
    answers = change(group, redriven=[0, 1])
    rig.commit()
    assert answers == [Changed(0, 0)]
    assert (group.core.pending(3), count(group)) == (0, 0)
    rig.commit()  # the box gives up its room
    check_replay(rig)


def test_of_two_letters_of_a_message_the_one_behind_the_seek_counts() -> None:
    rig, group = rig_with(3)
    for reason in ("before", "after"):
        take(rig, group, 3)
        settle(group, Reject(reason), (1, 1))
        stored(rig)
        if reason == "before":
            seek_group(group, 1, Outcomes())
            rig.commit()
    assert count(group) == 2
    (channel,) = (row for row in checkpoint_of(rig.store)[0].channels if row.name == "a")
    assert list(channel.groups[0].seeks) == [1, 1]
    change(group, redriven=[0, 1])
    rig.commit()
    assert (group.core.settled_below, count(group)) == (2, 1)
    change(group, redriven=[1, 1])
    rig.commit()
    assert (group.core.settled_below, count(group)) == (1, 0)
    rig.commit()
    check_replay(rig)


def test_a_change_in_front_of_the_delete_of_its_group_counts_everywhere() -> None:
    """The delete may yet be lost."""
    rig, group = rig_with(3)
    take(rig, group, 3)
    settle(group, Reject("bad"), (1, 1))
    stored(rig)
    answers = change(group, redriven=[0, 1])
    delete_group(group, Outcomes())
    rig.commit(1)
    assert answers == [Changed(1, 0)]
    assert (group.core.pending(3), list(group.letters_gone)) == (3, [(0, 0)])


def test_what_the_channel_does_not_keep_stays_dead() -> None:
    rig, group = rig_with(3)
    group.settle_any(Reject("x"), [(0, 2)], lambda _: None)
    stored(rig)
    rig.shard.trim(group.channel, 2, Outcomes())
    answers = change(group, redriven=[0, 0, 1, 1, 2, 2])
    rig.commit()
    assert answers == [Changed(1, 0)]
    assert (count(group), take(rig, group, 3)) == (2, [Lease(2, 2, 1)])
    check_replay(rig)


def test_dropped_letters_give_up_their_room_from_the_low_end() -> None:
    rig, group = rig_with(4)
    group.settle_any(Reject("x"), [(0, 3)], lambda _: None)
    stored(rig)
    box = box_of(group)
    assert box is not None
    change(group, dropped=[2, 2])
    rig.commit()
    assert (count(group), box.first_offset) == (3, 0)
    change(group, dropped=[0, 1])
    rig.commit()
    rig.commit()
    assert (count(group), box.first_offset) == (1, 3)
    assert group.core.pending(4) == 0
    check_replay(rig)


def test_trimmed_while_it_dies_it_is_settled_without_a_letter() -> None:
    rig, group = rig_with(2)
    take(rig, group, 2)
    rig.shard.trim(group.channel, 1, Outcomes())
    rig.commit()
    answers: list[Any] = []
    group.settle_any(Reject("x"), [(0, 1)], answers.append)
    stored(rig)
    assert [letter.offset for letter in letters(rig, group)] == [1]
    assert group.core.settled_below == 2
    check_replay(rig)


def test_a_full_disk_takes_no_letters_and_the_lease_is_as_it_was() -> None:
    rig, group = rig_with(1)
    take(rig, group, 1)
    rig.store.disk_state = DiskState.REFUSE
    refused = settle(group, Reject("x"), (0, 0))
    rig.time.turn()
    assert [type(answer) for answer in refused] == [Exhausted]
    assert group.core.in_flight == 1
    rig.store.disk_state = DiskState.OK
    answers = settle(group, Reject("x"), (0, 0))
    stored(rig)
    assert answers == [[(0, 0, DONE)]]


def test_an_ended_lease_that_could_not_be_buried_is_tried_again() -> None:
    rig, group = rig_with(1, policy=RetryPolicy(max_attempts=1, dead_letters=True), ack_deadline_ms=1_000)
    take(rig, group, 1)
    rig.store.disk_state = DiskState.REFUSE
    rig.time.pass_us(5 * S)
    assert group.core.in_flight == 1
    rig.store.disk_state = DiskState.OK
    rig.time.pass_us(2 * S)
    stored(rig)
    assert (count(group), group.core.in_flight) == (1, 0)


def test_while_they_cannot_be_buried_others_are_settled_and_it_is_tried_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[int] = []
    rig, group = rig_with(400, policy=RetryPolicy(max_attempts=1, dead_letters=True), ack_deadline_ms=1_000)
    monkeypatch.setattr(dead_letters.log, "warning", lambda *_, **__: failed.append(rig.time.now_us))
    take(rig, group, 100)
    rig.store.disk_state = DiskState.REFUSE
    rig.time.pass_us(S + 2_000)
    assert len(failed) == 1
    for offset in range(100, 400):
        assert take(rig, group, 1) == [Lease(offset, offset, 1)]
        settle(group, Ack(), (offset, offset))
        stored(rig)
        rig.time.pass_us(10_000)
    assert (group.core.in_flight, group.core.pending(400)) == (100, 100)
    assert 3 <= len(failed) <= 4, "of three seconds"
    assert min(later - before for before, later in pairwise(failed)) >= S
    rig.store.disk_state = DiskState.OK
    rig.time.pass_us(S + 2_000)
    stored(rig)
    assert (count(group), group.core.in_flight) == (100, 0)


def test_a_retry_comes_in_time_while_others_cannot_be_buried() -> None:
    rig, group = rig_with(2, ack_deadline_ms=1_000)
    fail(rig, group, "busy")
    take(rig, group, 1)
    rig.store.disk_state = DiskState.REFUSE
    rig.time.pass_us(S + 2_000)
    assert take(rig, group, 1) == [Lease(1, 1, 1)]
    settle(group, Nack(delay_us=300_000), (1, 1))
    stored(rig)
    assert group.wake_at_us == rig.time.now_us + 300_000
    rig.time.pass_us(310_000)
    assert take(rig, group, 2) == [Lease(1, 1, 2)], "the other one has ended and is not buried yet"


def test_after_a_failed_write_nothing_is_between_life_and_death() -> None:
    rig, group = rig_with(1)
    take(rig, group, 1)
    answers = settle(group, Reject("x"), (0, 0))
    rig.time.turn()
    rig.log.commits.fail(Unavailable("the disk failed"))
    (error,) = answers
    assert isinstance(error, Unavailable)
    assert (group.core.in_flight, group.burying) == (1, False)


def test_a_seek_ends_what_was_appended_before_it_only() -> None:
    rig, group = rig_with(2)
    take(rig, group, 2)
    answers = settle(group, Reject("x"), (0, 1))
    rig.time.turn()
    seek_group(group, 0, Outcomes())
    rig.commit()
    assert answers == [[(0, 1, DONE)]]
    assert (count(group), group.core.pending(2)) == (2, 2)
    check_replay(rig)


def test_with_its_group_the_box_goes() -> None:
    rig, group = rig_with(2)
    group.settle_any(Reject("x"), [(0, 0)], lambda _: None)
    stored(rig)
    box = box_of(group)
    assert box is not None
    checkpoint = None
    delete_group(group, Outcomes())
    checkpoint = checkpoint_of(rig.store)
    frames = list(rig.journal.frames)
    again = add_group(group.channel, "g", group.settings, 0, Outcomes())
    again.settle_any(Reject("y"), [(0, 1)], lambda _: None)
    stored(rig)
    assert (box.number in rig.shard.channels, count(again)) == (False, 2)
    assert [letter.reason for letter in letters(rig, again)] == ["y", "y"]
    check_replay(rig)
    behind, quarantined = replayed(rig.journal.frames, checkpoint=checkpoint)
    assert (quarantined, behind.snapshots()) == ([], rig.snapshots())
    assert len(frames) < len(rig.journal.frames)


def test_with_its_channel_the_box_goes() -> None:
    rig, group = rig_with(2)
    group.settle_any(Reject("x"), [(0, 0)], lambda _: None)
    stored(rig)
    rig.store.delete(group.channel, Outcomes())
    rig.commit()
    assert (rig.shard.channels, rig.shard.boxes) == ({}, {})
    assert rig.log.ledger.live(1) == 0
    check_replay(rig)


def test_a_box_is_in_no_list_and_cannot_be_opened() -> None:
    rig, group = rig_with(1)
    group.settle_any(Reject("x"), [(0, 0)], lambda _: None)
    stored(rig)
    box = box_of(group)
    assert box is not None
    assert (box.name, len(rig.store), rig.store.page("", "", 9)) == ("$dead.g.a", 1, [group.channel])
    with pytest.raises((NotFound, ValueError, RingpostError)):
        rig.store.find(box.name)
    again, _ = replayed(rig.journal.frames)
    assert [channel.name for channel in again.store] == ["a"]


def test_letters_outlive_a_restart_from_a_checkpoint() -> None:
    rig, group = rig_with(4)
    group.settle_any(Reject("x"), [(0, 3)], lambda _: None)
    stored(rig)
    change(group, dropped=[1, 2])
    rig.commit()
    checkpoint, at = checkpoint_of(rig.store), len(rig.journal.frames)
    change(group, redriven=[3, 3])
    rig.commit()
    again, quarantined = replayed(rig.journal.frames[at:], checkpoint=checkpoint)
    assert (quarantined, again.snapshots()) == ([], rig.snapshots())
    (channel,) = again.store
    loaded = (channel.groups or {})["g"]
    assert (count(loaded), loaded.core.pending(4)) == (1, 1)
    assert rig.store.get("a") is not None


def test_lost_letters_are_not_counted_and_forgotten_with_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "LETTERS_MAX", 2)
    rig, group = rig_with(6)
    group.settle_any(Reject("x"), [(0, 5)], lambda _: None)
    for _ in range(3):
        stored(rig)
    box = box_of(group)
    assert box is not None
    change(group, dropped=[2, 2])
    rig.commit()
    assert count(group) == 5
    lose(rig, box, 1)  # numbers 2 and 3, of which 2 has left
    assert (count(group), rig.store.lost_messages) == (4, 2)
    again, _ = replayed([], checkpoint=checkpoint_of(rig.store))
    (channel,) = again.store
    assert (count((channel.groups or {})["g"]), again.store.lost_messages) == (4, 2)
    delete_group(group, Outcomes())
    rig.commit()
    assert (rig.store.lost_messages, rig.store.lossy) == (0, set())


def test_without_dead_letters_a_reject_settles_and_counts() -> None:
    rig, group = rig_with(1, policy=RetryPolicy(max_attempts=1))
    take(rig, group, 1)
    answers = settle(group, Reject("x"), (0, 0))
    stored(rig)
    assert answers == [[(0, 0, Outcome.DONE)]]
    assert (group.core.rejected, box_of(group), settles(rig)[-1].rejected) == (1, None, [0, 0])
