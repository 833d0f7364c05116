"""Lease tokens at a group in its shard: whose they are, and what seeks, redrives and restarts leave of them."""

from typing import Any

import pytest

from ringpost.internal.v1.record_pb2 import LetterChange
from ringpost.node.errors import InvalidRequest, NotFound, Unavailable
from ringpost.node.groups.changes import Ack, Action, Nack, Outcome, Reject
from ringpost.node.groups.ranges import RangeSet
from ringpost.node.shard.claims import Mint, claim_of, read_token, unclaimed
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed
from tests.node.shard.test_settle_any import Member

DONE, EXPIRED, ALREADY, UNKNOWN = Outcome.DONE, Outcome.EXPIRED, Outcome.ALREADY, Outcome.UNKNOWN
MEMBER = 1 << 61


def made(rig: Rig, channel: str = "a", name: str = "g", messages: int = 10) -> Group:
    """A group with a member; nothing is leased."""
    found = rig.channel(channel)
    rig.publish(found, *(f"m{n}" for n in range(messages)))
    group = add_group(found, name, GroupSettings.of(GroupConfig()), 0, Outcomes())
    rig.commit()
    group.join(MEMBER, Member())
    return group


def delivered(rig: Rig, group: Group, messages: int = 10) -> bytes:
    """The token of all that the member gets now."""
    (lease,) = group.take(MEMBER, messages, rig.time.clock())
    return Mint(group, MEMBER).token(lease.first, lease.last, lease.attempt)


def settled(rig: Rig, group: Group, action: Action, token: bytes, *ranges: tuple[int, int]) -> list[Any]:
    answers: list[Any] = []
    wanted = RangeSet(ranges) if ranges else None
    read = read_token(token, "token")
    left = [(first, last, UNKNOWN) for first, last in unclaimed(wanted, [read])]
    group.settle_claims(action, [claim_of(group, read, wanted, "token")], left, answers.append)
    rig.time.turn()
    rig.commit()
    assert len(answers) == 1
    return answers[0]


def found(rig: Rig, channel: str = "a") -> Group:
    known = rig.store.get(channel)
    assert known is not None
    assert known.groups is not None
    return known.groups["g"]


def test_a_token_settles_its_delivery_or_a_part_of_it() -> None:
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    assert settled(rig, group, Ack(), token, (0, 3), (9, 12)) == [(0, 3, DONE), (9, 9, DONE), (10, 12, UNKNOWN)]
    assert settled(rig, group, Nack(), token, (4, 4)) == [(4, 4, DONE)]
    assert settled(rig, group, Ack(), token) == [(0, 3, ALREADY), (4, 4, EXPIRED), (5, 8, DONE), (9, 9, ALREADY)]
    assert group.core.settled_below == 4


def test_it_is_good_after_a_restart_for_what_is_finished() -> None:
    rig = Rig()
    token = delivered(rig, made(rig))
    again, _ = replayed(rig.journal.frames)
    assert settled(again, found(again), Nack(), token, (0, 1)) == [(0, 1, EXPIRED)]
    assert settled(again, found(again), Ack(), token, (0, 1)) == [(0, 1, DONE)]
    from_checkpoint, _ = replayed([], checkpoint=checkpoint_of(again.store))
    assert settled(from_checkpoint, found(from_checkpoint), Ack(), token) == [(0, 1, ALREADY), (2, 9, DONE)]


def test_after_a_seek_it_settles_no_new_delivery() -> None:
    """Also where a restart, or a checkpoint, is in between."""
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    settled(rig, group, Ack(), token, (0, 4))
    seek_group(group, 0, Outcomes())
    with pytest.raises(Unavailable) as moving:
        settled(rig, group, Ack(), token)
    assert moving.value.reason == "GROUP_MOVED"
    rig.commit()
    again, _ = replayed(rig.journal.frames)
    from_checkpoint, _ = replayed([], checkpoint=checkpoint_of(rig.store))
    for one in (rig, again, from_checkpoint):
        assert settled(one, found(one), Ack(), token) == [(0, 9, EXPIRED)]
        assert found(one).era == group.era > 0


def test_after_a_redrive_it_settles_nothing_without_a_lease() -> None:
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    settled(rig, group, Reject("bad"), token, (0, 0))
    group.leave(MEMBER)
    change(group, LetterChange(redriven=[0, 0]), lambda _: None)
    rig.commit()
    again, _ = replayed(rig.journal.frames)
    for one in (rig, again):
        assert found(one).core.settled_below == 0
        assert settled(one, found(one), Ack(), token) == [(0, 9, EXPIRED)]


def test_letters_that_are_dropped_change_nothing_for_tokens() -> None:
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    settled(rig, group, Reject("bad"), token, (0, 0))
    change(group, LetterChange(dropped=[0, 0]), lambda _: None)
    rig.commit()
    assert group.era == 0


def test_a_token_of_another_group_or_channel_is_refused() -> None:
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    beside = add_group(rig.channel("a"), "h", GroupSettings(), 0, Outcomes())
    elsewhere = made(rig, "b")
    with pytest.raises(InvalidRequest, match="token: is of another group than 'h', or of one of this name that was d"):
        settled(rig, beside, Ack(), token)
    with pytest.raises(InvalidRequest, match="token: is of another channel than 'b'"):
        settled(rig, elsewhere, Ack(), token)
    assert group.core.in_flight == 10


def test_a_token_of_a_group_that_was_made_again_is_refused() -> None:
    rig = Rig()
    group = made(rig)
    token = delivered(rig, group)
    delete_group(group, Outcomes())
    with pytest.raises(NotFound) as gone:
        settled(rig, group, Ack(), token)
    rig.commit()
    rig.time.pass_us(1)
    anew = add_group(rig.channel("a"), "g", GroupSettings(), 0, Outcomes())
    with pytest.raises(InvalidRequest, match="that was deleted"):
        settled(rig, anew, Ack(), token)
    assert gone.value.reason == "GROUP_NOT_FOUND"


@pytest.mark.parametrize("junk", [b"x", b"\x01", b"\x01" * 57])
def test_what_is_no_token_is_refused_with_advice(junk: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"lease_tokens\[3\]: .*; give back what DeliveredBatch.lease_token said"):
        read_token(junk, "lease_tokens[3]")
