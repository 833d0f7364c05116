"""A replica takes its role from the record, and takes part in no election against itself."""

from ringpost.cluster.view import Leader
from ringpost.node.replication.core import LogEnd, ReplicaCore
from tests.node.replication.rig import Rig

MINE = Leader("a", "ra", 11)


def test_it_leads_after_a_read_that_says_so() -> None:
    rig = Rig(1, 1)
    rig.see(epoch=2, leader=MINE)
    (token,) = rig.heard("refresh")
    assert rig.core.role.value == "idle"
    rig.see(token=token)
    assert rig.core.role.value == "leader"
    assert list(rig.log.epochs) == [(1, 1), (2, 3)]


def test_it_asks_again_when_the_read_fails() -> None:
    rig = Rig()
    rig.see(epoch=2, leader=MINE)
    rig.heard("refresh")
    rig.pass_time(1)
    tokens = rig.heard("refresh")
    assert len(set(tokens)) == 1
    rig.see(token=tokens[0])
    assert rig.core.role.value == "leader"


def test_another_session_of_it_is_not_the_leader() -> None:
    rig = Rig()
    rig.sessions["a"] = 40
    rig.see(epoch=2, leader=MINE)
    assert rig.heard("refresh") == []
    assert rig.core.role.value == "idle"


def test_a_new_process_does_not_go_on_in_an_epoch_of_its_log() -> None:
    rig = Rig().lead()
    again = ReplicaCore(0, rig.log, rig, rig.core._limits, node="a", replica_id="ra")
    rig.heard("refresh")
    again.see(rig.shown, rig.sessions, 0)
    assert rig.heard("refresh") == []


def test_an_older_record_changes_nothing() -> None:
    rig = Rig().lead()
    newest = rig.shown
    rig.core.see(Rig().shown, rig.sessions, 0)
    assert rig.core.record == newest
    assert rig.core.role.value == "leader"


def test_a_fence_tells_what_is_fsynced_and_stops_everything() -> None:
    rig = Rig(1, 1).lead()
    for node in "bc":
        rig.fetched(node, 1, 2, 1)
    rig.log.append(2, 0, 0)
    assert rig.core.fence(3, rig.now) == LogEnd(2, 3), "the fourth is not fsynced"
    for node in "bc":
        rig.catches_up(node)
    assert (rig.log.committed, rig.core.serving) == (0, False)


def test_a_fence_for_what_has_come_is_too_late() -> None:
    rig = Rig().lead()
    assert rig.core.fence(2, rig.now) is None


def test_a_fenced_follower_takes_and_acknowledges_nothing() -> None:
    rig = Rig()
    rig.see()
    rig.core.fence(2, rig.now)
    rig.heard("fetch")
    rig.data(1, 0, 1, 1)
    rig.pass_time(1)
    assert (rig.log.end, rig.heard("fetch")) == (0, [])


def test_a_fence_falls_when_the_election_shows_or_a_later_read_shows_none() -> None:
    rig = Rig().lead()
    rig.core.fence(3, rig.now)
    rig.pass_time(1)
    rig.see()
    assert rig.core.leading.fenced
    rig.pass_time(1.5)
    (token,) = rig.heard("refresh")
    rig.core.fence(3, rig.now)
    rig.see(token=token)
    assert rig.core.leading.fenced, "the read was older than the second fence"
    rig.pass_time(2.5)
    rig.see(token=rig.heard("refresh")[-1])
    assert not rig.core.leading.fenced


def test_it_never_says_to_serve_in_an_epoch_that_is_over() -> None:
    rig = Rig().lead()
    rig.follows("b")
    rig.follows("c")
    rig.core.fence(3, rig.now)
    rig.heard("changed")
    rig.see(epoch=3, leader=Leader("b", "rb", 12))
    assert rig.heard("changed") == [("idle", False)]
    assert rig.core.role.value == "follower"


def test_it_follows_nobody_who_does_not_live() -> None:
    rig = Rig()
    rig.sessions["b"] = 50
    rig.see()
    assert rig.core.role.value == "idle"


def test_a_fetch_that_comes_before_the_record_is_answered_when_the_replica_leads() -> None:
    rig = Rig()
    for node in "bc":
        rig.fetched(node, 1, 0, 0, epoch=2)
    assert rig.heard("refuse") == []
    rig.lead()
    for node in "bc":
        rig.catches_up(node)
    assert rig.core.serving


def test_a_fetch_that_comes_while_the_leadership_is_confirmed_is_answered_too() -> None:
    rig = Rig()
    rig.see(epoch=2, leader=MINE)
    rig.fetched("b", 1, 0, 0)
    rig.see(token=rig.heard("refresh")[-1])
    assert rig.core.next_data("b") is not None
    assert rig.heard("refuse") == []


def test_a_fetch_for_an_epoch_that_another_leads_is_refused() -> None:
    rig = Rig()
    rig.fetched("c", 1, 0, 0, epoch=2)
    rig.see(epoch=2, leader=Leader("b", "rb", 12))
    assert rig.heard("refuse") == [("c", 1)]


def test_a_fetch_of_a_stream_that_broke_is_forgotten() -> None:
    rig = Rig()
    rig.fetched("b", 1, 0, 0, epoch=2)
    rig.core.follower_link_lost("b")
    rig.lead()
    assert rig.core.next_data("b") is None


def test_an_epoch_that_its_log_has_already_is_an_alarm_and_no_election() -> None:
    """A store that was restored from a backup gives epochs for the second time."""
    rig = Rig(1, 5)
    rig.see(epoch=4)
    assert rig.core.fence(5, rig.now) is None
    assert rig.core.fence(5, rig.now) is None
    assert len(rig.heard("alarm")) == 1
    assert rig.core.fence(6, rig.now) == LogEnd(5, 2)
