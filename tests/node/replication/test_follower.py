"""A follower says what it has fsynced, takes what it asked for, and cuts only what nobody can miss."""

from ringpost.internal.v1.peer_pb2 import Diverged, Refused
from tests.node.replication.rig import Rig


def following(*epochs: int) -> Rig:
    rig = Rig(*epochs)
    rig.see()
    return rig


def test_it_asks_from_its_end() -> None:
    rig = following(1, 1)
    (fetch,) = rig.heard("fetch")
    assert (fetch.epoch, fetch.replica_id, fetch.end, fetch.last_epoch) == (1, "ra", 2, 1)


def test_it_acknowledges_what_is_fsynced_and_commits_no_more_than_that() -> None:
    rig = following()
    rig.data(1, 0, 1, 2, committed=2)
    assert (rig.heard("ack"), rig.log.committed) == ([], 0)
    rig.disk.fsync_begins()
    rig.data(1, 2, 1, 1, committed=2)
    rig.finish_fsync()
    assert (rig.heard("ack"), rig.log.committed) == ([2], 2)


def test_it_asks_again_when_something_is_missing_and_takes_only_answers_to_that() -> None:
    rig = following()
    rig.data(1, 4, 1, 1)
    assert rig.log.end == 0
    rig.data(1, 0, 1, 1)
    assert rig.log.end == 0, "the first fetch is over"
    rig.pass_time(1)
    rig.data(rig.heard("fetch")[-1].fetch_id, 0, 1, 1)
    assert rig.log.end == 1


def test_it_asks_only_while_everything_is_fsynced() -> None:
    rig = following()
    rig.data(1, 0, 1, 1)
    rig.heard("fetch")
    rig.core.leader_link_lost("b", rig.now)
    rig.pass_time(1)
    assert rig.heard("fetch") == []
    rig.fsync()
    assert rig.heard("fetch")[-1].end == 1


def test_it_cuts_to_where_both_logs_can_be_the_same() -> None:
    rig = following(1, 1, 2, 2, 2)
    rig.core.on_diverged("b", Diverged(epoch=1, fetch_id=1, log_epoch=1, log_end=7), rig.now)
    assert rig.log.end == 2, "its own end of epoch 1"
    rig.heard("fetch")
    rig.fsync()
    assert rig.heard("fetch")[-1].end == 2
    rig = following(1, 1, 1, 1)
    rig.core.on_diverged("b", Diverged(epoch=1, fetch_id=1, log_epoch=1, log_end=3), rig.now)
    assert rig.log.end == 3, "the leader's"


def test_it_rather_stops_than_cuts_what_is_committed() -> None:
    rig = following(1, 1, 1)
    rig.data(1, 3, 1, 0, committed=3)
    rig.core.leader_link_lost("b", rig.now)
    rig.pass_time(1)
    fetch_id = rig.heard("fetch")[-1].fetch_id
    rig.core.on_diverged("b", Diverged(epoch=1, fetch_id=fetch_id, log_epoch=1, log_end=1), rig.now)
    assert len(rig.heard("alarm")) == 1
    assert rig.log.end == 3


def test_a_refusal_is_asked_about_again_however_often_it_comes() -> None:
    rig = following()
    rig.heard("fetch")
    for _ in range(9):
        rig.core.on_refused("b", Refused(fetch_id=1, epoch=1), rig.now)
        rig.pass_time(0.1)
    assert len(rig.heard("fetch")) == 1


def test_a_snapshot_that_nobody_asked_for_is_not_taken() -> None:
    rig = following()
    assert not rig.core.on_snapshot("b", 1, 9)
    assert not rig.core.on_snapshot("c", 1, 1)
    assert rig.core.on_snapshot("b", 1, 1)
    rig.heard("fetch")
    rig.pass_time(2)
    assert rig.heard("fetch") == [], "it is on its way"


def test_the_other_stream_of_the_pair_has_nothing_to_do_with_it() -> None:
    rig = following()
    rig.data(1, 0, 1, 1)
    rig.fsync()
    rig.core.follower_link_lost("b")
    assert rig.core.following.flowing


def test_it_says_that_it_follows_when_it_is_asked_and_has_nothing_to_fsync() -> None:
    rig = Rig()
    rig.see()
    rig.data(1, 0, 1, 1, asked_us=7)
    assert rig.heard("ack") == []
    rig.fsync()
    assert rig.heard("word") == [7]
    rig.data(1, 1, 1, 0, asked_us=8)
    assert rig.heard("word") == [8]
    rig.data(1, 1, 1, 0, committed=1)
    assert rig.heard("word") == [], "that was no question"


def test_it_says_nothing_to_a_leader_in_whose_place_another_may_be_elected() -> None:
    rig = Rig()
    rig.see()
    rig.data(1, 0, 1, 0)
    rig.core.fence(2, rig.now)
    rig.data(1, 0, 1, 0, asked_us=9)
    assert rig.heard("word") == []
