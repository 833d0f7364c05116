"""A leader gives groups messages only while nobody else can (P7)."""

from typing import Any

import pytest

from ringpost.cluster.view import Leader
from tests.node.replication.rig import Rig
from tests.node.replication.test_leader import ready_to_hand_over


def leads_alone() -> Rig:
    """Since long ago, with both followers."""
    rig = Rig().lead()
    for node in "bc":
        rig.follows(node)
    rig.pass_time(3)
    return rig


def asks(rig: Rig, node: str) -> int:
    """What the leader asks a follower now; 0: nothing."""
    asked = 0
    while (data := rig.core.next_data(node)) is not None:
        asked = data.asked_us
    return asked


def test_it_delivers_while_all_that_count_say_that_they_follow() -> None:
    rig = leads_alone()
    assert not rig.core.may_deliver(rig.now), "nobody has said so lately"
    for node in "bc":
        rig.acked(node, 1, rig.log.end, asked_us=asks(rig, node))
    assert rig.core.may_deliver(rig.now)
    rig.pass_time(1.4)
    assert rig.core.may_deliver(rig.now)
    rig.acked("b", 1, rig.log.end, asked_us=asks(rig, "b"))
    rig.pass_time(0.2)
    assert not rig.core.may_deliver(rig.now), "c may have elected another leader"


def test_a_frame_asks_too() -> None:
    rig = leads_alone()
    rig.append()
    for node in "bc":
        rig.acked(node, 1, rig.log.end, asked_us=asks(rig, node))
    assert rig.core.may_deliver(rig.now)


def test_it_asks_nobody_who_does_not_need_to_know() -> None:
    rig = leads_alone()
    assert [asks(rig, node) for node in "bc"] == [0, 0]


def test_who_is_alone_in_sync_asks_nobody() -> None:
    rig = Rig().lead(min_isr=1, in_sync=("ra",))
    rig.pass_time(3)
    assert rig.core.may_deliver(rig.now)


def answered(rig: Rig) -> bool:
    """Whether it delivers once both followers have said that they follow."""
    rig.core.may_deliver(rig.now)
    for node in "bc":
        rig.acked(node, 1, rig.log.end, asked_us=asks(rig, node))
    return rig.core.may_deliver(rig.now)


def elected(**changes: Any) -> Rig:
    """In place of "b", which led for long."""
    rig = Rig()
    rig.see()
    rig.pass_time(5)
    rig.lead(**changes)
    for node in "bc":
        rig.follows(node)
    return rig


def test_a_new_leader_waits_until_the_one_before_surely_delivers_no_more() -> None:
    rig = elected()
    assert rig.core.serving
    assert not answered(rig)
    rig.pass_time(2)
    assert answered(rig)


def test_a_new_leader_waits_for_nobody_who_has_handed_over() -> None:
    assert answered(elected(handed_over=True))


@pytest.mark.parametrize(("session", "dead"), [(12, True), (11, False)], ids=["dead", "another session's"])
def test_a_new_leader_waits_for_no_process_that_is_dead(session: int, dead: bool) -> None:
    rig = elected()
    rig.core.node_lost("b", session, rig.now)
    rig.see(in_sync=("ra", "rc"))
    assert answered(rig) is dead


def test_but_it_waits_for_the_leader_before_that_one() -> None:
    """It may have lost its leadership without knowing, a moment ago."""
    rig = Rig()
    rig.see()
    rig.pass_time(5)
    rig.see(epoch=2, leader=Leader("c", "rc", 13))
    rig.lead(handed_over=True)
    for node in "bc":
        rig.follows(node)
    assert not answered(rig)
    rig.pass_time(2)
    assert answered(rig)


def test_who_hands_over_delivers_no_more_even_when_the_outcome_is_unknown() -> None:
    rig = ready_to_hand_over()
    rig.pass_time(3)
    assert answered(rig)
    rig.see(transfer_to="rb")
    assert not rig.core.may_deliver(rig.now)
    rig.pass_time(2)
    assert rig.core.serving, "it takes publishes again, which commit if the other does not lead"
    assert not answered(rig)
