"""Work that is confirmed by somebody who holds no lease: a consumer whose stream died, through another node."""

from typing import Any

import pytest

from ringpost.node.errors import Exhausted, NotFound, Unavailable
from ringpost.node.groups.changes import Ack, Outcome, Reject
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from tests.node.shard.fakes import Outcomes, Rig, replayed

DONE, ALREADY, UNKNOWN = Outcome.DONE, Outcome.ALREADY, Outcome.UNKNOWN


class Member:
    """A subscription that is told nothing of interest."""

    consumer = "m"
    has_credit = True

    def advanced(self) -> None:
        """Nothing."""

    def removed(self, reason: str, message: str) -> None:
        """Nothing."""

    def moved(self, message: str) -> None:
        """Nothing."""


def made(rig: Rig, messages: int = 10) -> Group:
    """A committed group on channel "a" with one member that holds every message."""
    channel = rig.channel()
    rig.publish(channel, *(f"m{n}" for n in range(messages)))
    group = add_group(channel, "g", GroupSettings(), 0, Outcomes())
    group.join(1, Member())
    rig.commit()
    group.take(1, messages, rig.time.clock())
    return group


def settle_any(group: Group, action: Ack | Reject, *ranges: tuple[int, int]) -> list[Any]:
    answers: list[Any] = []
    group.settle_any(action, list(ranges), answers.append)
    return answers


def stored(rig: Rig) -> None:
    rig.time.turn()
    rig.commit()


def test_finished_work_is_confirmed_after_its_stream_died() -> None:
    rig = Rig()
    group = made(rig)
    group.leave(1)

    answers = settle_any(group, Ack(), (0, 3), (9, 12))
    assert answers == [], "nothing is answered before it is durable"
    stored(rig)

    assert answers == [[(0, 3, DONE), (9, 9, DONE), (10, 12, UNKNOWN)]]
    assert (group.core.settled_below, group.core.pending(10)) == (4, 5)


def test_saying_it_again_changes_nothing() -> None:
    rig = Rig()
    group = made(rig)
    settle_any(group, Ack(), (2, 4))
    stored(rig)

    assert settle_any(group, Reject("late"), (2, 4)) == [[(2, 4, ALREADY)]]
    assert group.core.rejected == 0


def test_it_ends_the_lease_of_whoever_holds_the_message_now() -> None:
    rig = Rig()
    group = made(rig)
    settle_any(group, Reject("bad"), (0, 1))
    stored(rig)

    late: list[Any] = []
    group.settle(1, Ack(), [(0, 2)], False, late.append)
    stored(rig)

    assert late == [[(0, 1, ALREADY), (2, 2, DONE)]]
    assert (group.core.rejected, group.core.in_flight) == (2, 7)


def test_it_survives_a_restart() -> None:
    rig = Rig()
    settle_any(made(rig), Ack(), (0, 4))
    stored(rig)

    again, _ = replayed(rig.journal.frames)
    channel = again.store.get("a")

    assert channel is not None
    assert channel.groups is not None
    assert channel.groups["g"].core.settled_below == 5


def test_a_group_that_is_moved_or_gone_settles_nothing() -> None:
    rig = Rig()
    group = made(rig)
    seek_group(group, 0, Outcomes())
    with pytest.raises(Unavailable) as moving:
        settle_any(group, Ack(), (0, 1))
    rig.commit()
    delete_group(group, Outcomes())
    with pytest.raises(NotFound) as gone:
        settle_any(group, Ack(), (0, 1))

    assert (moving.value.reason, gone.value.reason) == ("GROUP_MOVED", "GROUP_NOT_FOUND")
    assert group.core.settled_below == 0


def test_a_group_is_not_broken_into_too_many_pieces() -> None:
    rig = Rig()
    group = made(rig)
    group.core._fragments_max = 2
    settle_any(group, Ack(), (2, 2), (4, 4))
    stored(rig)

    with pytest.raises(Exhausted, match="too many pieces"):
        settle_any(group, Ack(), (6, 6))
