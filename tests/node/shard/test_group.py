"""A group in its shard: what is settled is written, committed, applied; time and other members wake it."""

from typing import Any

import pytest

from ringpost.internal.v1.record_pb2 import GroupRecord, SettleRecord
from ringpost.node.errors import DataLoss, NotFound, Unavailable
from ringpost.node.groups.changes import Ack, Extend, Lease, Nack, Outcome, Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.shard.fakes import Outcomes, Rig, replayed

S = 1_000_000
DONE, EXPIRED, ALREADY, UNKNOWN = Outcome.DONE, Outcome.EXPIRED, Outcome.ALREADY, Outcome.UNKNOWN
SETTLE = FrameType.SETTLE


class Member:
    """Counts what it is told."""

    has_credit = True

    def __init__(self, consumer: str = "m") -> None:
        self.consumer = consumer
        self.advances = 0
        self.reasons: list[str] = []

    def advanced(self) -> None:
        self.advances += 1

    def removed(self, reason: str, message: str) -> None:
        self.reasons.append(reason)

    def moved(self, message: str) -> None:
        self.reasons.append("moved")


def made(rig: Rig, *, messages: int = 10, start: int = 0, members: int = 1, **settings: Any) -> Group:
    """A committed group with members 1, 2 … on channel "a" with messages."""
    channel = rig.channel()
    if messages:
        rig.publish(channel, *(f"m{n}" for n in range(messages)))
    group = add_group(channel, "g", GroupSettings(**settings), start, Outcomes())
    for number in range(1, members + 1):
        group.join(number, Member(f"m{number}"))
    rig.commit()
    return group


def settle(group: Group, action: Any, *ranges: tuple[int, int], member: int = 1, cumulative: bool = False) -> list[Any]:
    answers: list[Any] = []
    group.settle(member, action, list(ranges), cumulative, answers.append)
    return answers


def settles(rig: Rig) -> list[SettleRecord]:
    return [SettleRecord.FromString(frame.body) for frame in rig.journal.frames if frame.kind == SETTLE]


def take(rig: Rig, group: Group, count: int, member: int = 1) -> list[Lease]:
    return group.take(member, count, rig.time.now_us)


def check_replay(rig: Rig) -> None:
    again, quarantined = replayed(rig.journal.frames)
    assert quarantined == []
    assert again.snapshots() == rig.snapshots()


# -- settling ---------------------------------------------------------------------------------------------------------


def test_an_ack_is_written_committed_applied_answered() -> None:
    rig = Rig()
    group = made(rig)
    assert take(rig, group, 4) == [Lease(0, 3, 1)]
    answers = settle(group, Ack(), (0, 1))
    rig.time.turn()
    assert settles(rig) == [SettleRecord(group="g", acked=[0, 1])]
    assert (answers, group.core.settled_below, group.core.in_flight) == ([], 0, 4)
    rig.commit()
    assert answers == [[(0, 1, DONE)]]
    assert (group.core.settled_below, group.core.in_flight) == (2, 2)
    check_replay(rig)


def test_what_changes_nothing_durable_is_answered_at_once() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 2)
    assert settle(group, Extend(60 * S), (0, 1)) == [[(0, 1, DONE)]]
    assert settle(group, Ack(), (5, 6)) == [[(5, 6, UNKNOWN)]]
    rig.time.turn()
    assert settles(rig) == []


def test_settlements_of_one_turn_share_a_frame_and_are_answered_in_order() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 10)
    order: list[str] = []
    for name, action, pair in (("a", Ack(), (0, 1)), ("n", Nack(5 * S), (2, 2)), ("r", Reject("bad"), (3, 3))):
        group.settle(1, action, [pair], False, lambda results, name=name: order.append(name))
    group.settle(1, Ack(), [(4, 4)], False, lambda results: order.append("b"))
    rig.time.turn()
    (record,) = settles(rig)
    assert list(record.acked) == [0, 1, 4, 4]
    assert (list(record.rejected), record.reject_reason) == ([3, 3], "bad")
    assert [(retry.first, retry.attempt) for retry in record.retries] == [(2, 1)]
    rig.commit()
    assert order == ["a", "n", "r", "b"]
    assert group.core.rejected == 1
    check_replay(rig)


def test_different_reject_reasons_need_frames_of_their_own() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 10)
    first, second = settle(group, Reject("bad"), (0, 0)), settle(group, Reject("worse"), (1, 1))
    rig.time.turn()
    assert [record.reject_reason for record in settles(rig)] == ["bad", "worse"]
    rig.commit()
    assert first + second == [[(0, 0, DONE)], [(1, 1, DONE)]]
    assert group.core.rejected == 2
    check_replay(rig)


def test_a_repeated_ack_waits_for_the_first() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 1)
    first = settle(group, Ack(), (0, 0))
    rig.time.turn()
    again = settle(group, Ack(), (0, 0))
    assert again == []
    rig.time.pass_us(S)
    rig.commit()
    assert first == again == [[(0, 0, DONE)]]
    assert settle(group, Ack(), (0, 0)) == [[(0, 0, ALREADY)]]


def test_what_could_not_be_written_is_leased_as_before() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 3)
    rig.shard.quarantined = "rotten"
    (error,) = settle(group, Ack(), (0, 1)) or [None]
    assert error is None
    answers = settle(group, Ack(), (2, 2))
    rig.time.turn()
    assert isinstance(answers[0], DataLoss)
    assert group.core.in_flight_of(1) == 3
    assert settles(rig) == []


def test_a_failed_journal_answers_every_settlement_once() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 4)
    written = settle(group, Ack(), (0, 0))
    rig.time.turn()
    rig.journal.failed = True
    refused = [settle(group, Reject("bad"), (1, 1)), settle(group, Reject("worse"), (2, 2))]
    rig.time.pass_us(S)
    assert [len(answers) for answers in refused] == [1, 1]
    rig.log.commits.fail(Unavailable("the disk failed"))
    assert all(isinstance(answers[0], Unavailable) for answers in (written, *refused))
    assert group.core.in_flight_of(1) == 4


# -- moving and ending ------------------------------------------------------------------------------------------------


def test_a_seek_counts_when_committed_and_after_what_was_settled_before_it() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 10)
    acked, done = settle(group, Ack(), (0, 9)), Outcomes()
    seek_group(group, 3, done)
    assert rig.journal.kinds()[-2:] == [SETTLE, FrameType.GROUP]
    rig.commit()
    assert acked == [[(0, 9, DONE)]]
    assert done == [None]
    assert (group.core.settled_below, group.core.in_flight) == (3, 0)
    assert group.members[1].reasons == ["moved"]
    assert take(rig, group, 100) == [Lease(3, 9, 1)]
    check_replay(rig)


def test_a_deleted_group_tells_its_members_and_takes_nothing_more() -> None:
    rig = Rig()
    group, done = made(rig, members=2), Outcomes()
    member = group.members[1]
    take(rig, group, 2)
    acked = settle(group, Ack(), (0, 0))
    delete_group(group, done)
    assert member.reasons == ["GROUP_DELETED"]
    assert "g" not in group.channel.groups
    rig.commit()
    assert (done, acked) == ([None], [[(0, 0, DONE)]])
    frames = len(rig.journal.frames)
    rig.time.pass_us(100 * S)
    assert len(rig.journal.frames) == frames, "its leases expire in silence"
    check_replay(rig)


def test_a_group_made_again_begins_where_it_is_told() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 5)
    settle(group, Ack(), (0, 4))
    delete_group(group, Outcomes())
    again = add_group(group.channel, "g", GroupSettings(), 2, Outcomes())
    rig.commit()
    assert again.core.settled_below == 2
    check_replay(rig)


def test_a_deleted_channel_ends_its_groups() -> None:
    """No frame of the channel may follow the one that deletes it: replay would not know what it belongs to."""
    rig = Rig()
    group = made(rig)
    take(rig, group, 5)
    acked = settle(group, Ack(), (0, 1))
    member = group.members[1]
    rig.store.delete(group.channel, Outcomes())
    assert member.reasons == ["CHANNEL_DELETED"]
    rig.time.pass_us(100 * S)
    rig.commit()
    assert len(acked) == 1
    check_replay(rig)


def test_nothing_can_be_done_to_what_was_deleted_meanwhile() -> None:
    """Somebody found the channel or the group, waited for a read, and comes back too late."""
    rig = Rig()
    group = made(rig)
    delete_group(group, Outcomes())
    for change in (lambda: seek_group(group, 0, Outcomes()), lambda: delete_group(group, Outcomes())):
        with pytest.raises(NotFound) as caught:
            change()
        assert caught.value.reason == "GROUP_NOT_FOUND"
    rig.store.delete(group.channel, Outcomes())
    with pytest.raises(NotFound) as caught:
        add_group(group.channel, "h", GroupSettings(), 0, Outcomes())
    assert caught.value.reason == "CHANNEL_NOT_FOUND"
    rig.commit()
    check_replay(rig)


def test_a_trim_settles_what_is_gone() -> None:
    rig = Rig()
    group = made(rig)
    take(rig, group, 2)
    rig.shard.trim(group.channel, 6, Outcomes())
    rig.commit()
    assert (group.core.settled_below, group.core.in_flight) == (6, 0)
    assert take(rig, group, 100) == [Lease(6, 9, 1)]
    check_replay(rig)


@pytest.mark.parametrize("committed", [True, False])
def test_nothing_below_what_is_kept_is_ever_pending(committed: bool) -> None:
    """A trim may be on its way, or have come while somebody looked for the place to begin or to move to."""
    rig = Rig()
    moved = made(rig)
    rig.shard.trim(moved.channel, 6, Outcomes())
    if committed:
        rig.commit()
    begun = add_group(moved.channel, "h", GroupSettings(), 2, Outcomes())
    seek_group(moved, 1, Outcomes())
    rig.commit()
    assert (begun.core.settled_below, moved.core.settled_below) == (6, 6)
    assert (begun.core.pending(10), moved.core.pending(10)) == (4, 4)
    check_replay(rig)


# -- time -------------------------------------------------------------------------------------------------------------


def test_expired_leases_are_written_and_delivered_again() -> None:
    rig = Rig()
    group = made(rig, ack_deadline_ms=5_000)
    member = group.members[1]
    take(rig, group, 2)
    rig.time.pass_us(5 * S)
    assert settles(rig) == []
    rig.time.pass_us(2_000)
    (record,) = settles(rig)
    assert [(r.first, r.last, r.attempt) for r in record.retries] == [(0, 1, 1)]
    before = member.advances
    rig.commit()
    assert member.advances > before
    assert take(rig, group, 3) == [Lease(0, 1, 2), Lease(2, 2, 1)]
    check_replay(rig)
    rig.time.pass_us(5 * S + 2_000)
    assert len(settles(rig)) == 2, "armed again"


def test_an_extended_lease_ends_later() -> None:
    rig = Rig()
    group = made(rig, ack_deadline_ms=5_000)
    take(rig, group, 1)
    rig.time.pass_us(4 * S)
    settle(group, Extend(), (0, 0))
    rig.time.pass_us(5 * S)
    assert settles(rig) == []
    rig.time.pass_us(2_000)
    assert len(settles(rig)) == 1


def test_a_nack_wakes_the_members_when_its_delay_is_over() -> None:
    rig = Rig()
    group = made(rig, messages=1)
    member = group.members[1]
    take(rig, group, 1)
    settle(group, Nack(3 * S), (0, 0))
    rig.time.turn()
    rig.commit()
    assert take(rig, group, 1) == []
    before = member.advances
    rig.time.pass_us(3 * S + 2_000)
    assert member.advances == before + 1
    assert take(rig, group, 1) == [Lease(0, 0, 2)]


# -- members ----------------------------------------------------------------------------------------------------------


def test_a_take_leaves_others_their_share() -> None:
    rig = Rig()
    group = made(rig, messages=12, members=3)
    assert take(rig, group, 100, member=1) == [Lease(0, 3, 1)]
    assert take(rig, group, 100, member=2) == [Lease(4, 6, 1)], "a third of what is left, rounded up"
    assert take(rig, group, 1, member=3) == [Lease(7, 7, 1)], "no more than asked for"
    rest = [lease for _ in range(12) for member in (1, 2, 3) for lease in take(rig, group, 100, member)]
    assert sum(lease.last - lease.first + 1 for lease in rest) == 4
    assert take(rig, group, 100) == []


def test_in_flight_is_bounded_over_all_members() -> None:
    rig = Rig()
    group = made(rig, messages=12, members=2, max_in_flight=5)
    taken = [lease for _ in range(5) for member in (1, 2) for lease in take(rig, group, 100, member)]
    assert sum(lease.last - lease.first + 1 for lease in taken) == 5


def test_who_leaves_gives_its_leases_back_without_an_attempt() -> None:
    rig = Rig()
    group = made(rig, messages=4, members=2)
    take(rig, group, 100, member=1)
    other = group.members[2]
    take(rig, group, 100, member=2)
    before = other.advances
    group.leave(1)
    group.leave(1)
    assert other.advances == before + 1
    assert take(rig, group, 100, member=2) == [Lease(0, 1, 1), Lease(3, 3, 1)]
    assert settles(rig) == []


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_have_defaults_and_are_stored_in_full() -> None:
    assert GroupSettings.of(GroupConfig()) == GroupSettings(30_000, 100_000, RetryPolicy(dead_letters=True))
    assert GroupSettings.of(GroupConfig(ack_deadline_ms=1_000, dead_letters=False)) == GroupSettings(1_000, 100_000)
    rig = Rig()
    group = made(rig, ack_deadline_ms=7_000, max_in_flight=3)
    record = GroupRecord.FromString(rig.journal.frames[-1].body)
    assert record.config == group.settings.message()
    assert record.config.mode == GroupMode.GROUP_MODE_SHARED
    again, _ = replayed(rig.journal.frames)
    assert again.store.find_group(again.store.find("a"), "g").settings == GroupSettings(7_000, 3)
    check_replay(rig)
