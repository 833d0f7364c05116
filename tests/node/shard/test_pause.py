"""A paused group hands out nothing new. The pause is in the log, and a replay and a checkpoint agree."""

import pytest

from ringpost.internal.v1.record_pb2 import GroupRecord
from ringpost.node.errors import NotFound
from ringpost.node.groups.changes import Ack, Lease, Nack
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.configure import pause_group, set_group
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import delete_group
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed
from tests.node.shard.test_group import S, check_replay, made, settle, take


def paused(rig: Rig, group: Group, value: bool = True) -> None:
    done = Outcomes()
    pause_group(group, value, done)
    rig.commit()
    assert done == [None]


def test_a_paused_group_hands_out_nothing_until_it_is_resumed() -> None:
    rig = Rig()
    group = made(rig)
    paused(rig, group)
    assert take(rig, group, 3) == []
    told = [member.advances for member in group.members.values()]
    paused(rig, group, False)
    assert [member.advances for member in group.members.values()] == [n + 1 for n in told]
    assert take(rig, group, 3) == [Lease(0, 2, 1)]
    check_replay(rig)


def test_it_counts_once_it_is_committed() -> None:
    rig = Rig()
    group = made(rig)
    done = Outcomes()
    pause_group(group, True, done)
    assert (done, group.paused, take(rig, group, 1)) == ([], False, [Lease(0, 0, 1)])
    rig.commit()
    assert (done, group.paused, take(rig, group, 1)) == ([None], True, [])


def test_leases_go_on_and_settlements_are_taken() -> None:
    rig = Rig()
    group = made(rig, ack_deadline_ms=1_000)
    take(rig, group, 3)
    paused(rig, group)
    settle(group, Ack(), (0, 0))
    settle(group, Nack(5 * S), (1, 1))
    rig.time.turn()
    rig.commit()
    assert (group.core.settled_below, group.core.in_flight, group.core.to_redeliver) == (1, 1, 1)
    rig.time.pass_us(6 * S)
    rig.commit()
    assert (group.core.in_flight, group.core.to_redeliver) == (0, 2), "the lease ended, and both are due"
    assert take(rig, group, 9) == []
    paused(rig, group, False)
    assert take(rig, group, 2) == [Lease(1, 1, 2), Lease(2, 2, 2)]


def test_replay_and_checkpoint_remember_it() -> None:
    rig = Rig()
    group = made(rig)
    paused(rig, group)
    set_group(group, GroupConfig(max_attempts=4), Outcomes())
    rig.commit()
    check_replay(rig)
    for again, _ in (replayed(rig.journal.frames), replayed([], checkpoint=checkpoint_of(rig.store))):
        (channel,) = again.store
        assert (channel.groups or {})["g"].paused, "a changed configuration does not end it"
        assert again.snapshots() == rig.snapshots()
    paused(rig, group, False)
    check_replay(rig)


def test_a_pause_that_is_not_committed_is_in_no_checkpoint() -> None:
    rig = Rig()
    group = made(rig)
    before = rig.snapshots()
    pause_group(group, True, Outcomes())
    assert [part.channels[0].groups[0].paused for part in checkpoint_of(rig.store)] == [False]
    assert rig.snapshots() == before


def test_a_deleted_group_cannot_be_paused() -> None:
    rig = Rig()
    group = made(rig)
    delete_group(group, Outcomes())
    with pytest.raises(NotFound):
        pause_group(group, True, Outcomes())
    records = [GroupRecord.FromString(f.body) for f in rig.journal.frames if f.kind == FrameType.GROUP]
    assert [record.WhichOneof("change") for record in records] == ["create_at", "deleted"]
