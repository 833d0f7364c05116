"""What a leader commits, whom it answers, and whom it counts."""

from dataclasses import replace

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import Replica, Role
from tests.node.replication.rig import Rig, record


def led(*epochs: int, **changes: object) -> Rig:
    return Rig(*epochs, **changes).lead()


# -- committing


def test_all_that_are_in_sync_must_have_it() -> None:
    rig = led()
    rig.follows("b")
    assert rig.log.committed == 0
    rig.follows("c")
    assert (rig.log.committed, rig.core.serving) == (1, True)
    end = rig.append(3)
    rig.catches_up("b")
    rig.acked("c", 1, 2)
    assert rig.log.committed == 1, "c was not sent it"
    rig.catches_up("c")
    assert rig.log.committed == end


def test_what_older_epochs_left_is_committed_by_the_start_of_the_new_one() -> None:
    rig = led(1, 1, 1)
    rig.fetched("b", 1, 3, 1)
    rig.fetched("c", 1, 3, 1)
    assert (rig.log.committed, rig.core.serving) == (0, False), "all have the three, and nobody has the start"
    rig.catches_up("b")
    rig.catches_up("c")
    assert (rig.log.committed, rig.core.serving) == (4, True)


def test_nothing_of_another_epoch_counts() -> None:
    rig = led(1, 1)
    rig.fetched("b", 1, 2, 1, epoch=1)
    assert rig.heard("refuse") == [("b", 1)]
    rig.follows("b", 2)
    rig.fetched("c", 1, 2, 1)
    rig.acked("c", 1, 3, epoch=1)
    assert rig.log.committed == 0


def test_the_mark_goes_to_followers_also_when_nothing_follows() -> None:
    rig = led()
    rig.follows("b")
    rig.follows("c")
    marks = [rig.core.next_data(node).committed for node in "bc"]
    assert marks == [1, 1]
    assert rig.core.next_data("b") is None


# -- fetches


def test_a_log_that_went_another_way_is_told_where() -> None:
    rig = led(1, 1, 3, 3, epoch=3)
    rig.fetched("b", 1, 4, 2)
    assert rig.heard("diverged") == [(1, 1, 2)], "the leader knows no epoch 2; the one before ends at 2"
    rig.fetched("c", 1, 5, 3)
    assert rig.heard("diverged") == [(1, 3, 4)], "the epoch is the same, and the follower has more of it"


def test_an_older_fetch_is_not_answered() -> None:
    rig = led()
    rig.fetched("b", 5, 0, 0)
    rig.fetched("b", 4, 0, 0)
    assert rig.core.next_data("b").fetch_id == 5


def test_strangers_and_old_sessions_are_refused() -> None:
    rig = led()
    rig.fetched("b", 1, 0, 0, replica_id="other")
    rig.sessions["b"] = 20
    rig.fetched("b", 2, 0, 0)
    assert rig.heard("refuse") == [("b", 1), ("b", 2)], "the session 20 has not been heard of"
    rig.see()
    rig.fetched("b", 3, 0, 0)
    assert rig.heard("refuse") == []


def test_who_is_behind_the_beginning_gets_a_snapshot() -> None:
    rig = led()
    rig.follows("b")
    rig.follows("c")
    rig.append(5)
    rig.catches_up("b")
    rig.catches_up("c")
    rig.log.trim(4)
    rig.fetched("c", 2, 2, 2)
    assert rig.heard("snapshot") == ["c"]


def test_a_flow_that_ends_because_of_a_trim_is_called_back() -> None:
    rig = led()
    rig.follows("b")
    rig.fetched("c", 1, 0, 0)
    rig.see(in_sync=("ra", "rb"))
    rig.append(5)
    rig.catches_up("b")
    rig.log.trim(4)
    assert rig.core.next_data("c") is None
    rig.pass_time(1)
    assert ("c", 1) in rig.heard("refuse"), "else it would wait for ever"


def test_who_was_called_dead_too_late_is_called_back() -> None:
    rig = led()
    rig.follows("b")
    rig.core.node_lost("b", 12, rig.now)
    rig.pass_time(1)
    assert ("b", 1) in rig.heard("refuse")


# -- the in-sync set


def test_who_has_the_epochs_start_joins_and_counts_from_then_on() -> None:
    rig = led(in_sync=("ra", "rb"))
    rig.follows("b")
    rig.fetched("c", 1, 0, 0)
    assert rig.heard("propose") == []
    rig.catches_up("c")
    ((proposed, sessions),) = rig.heard("propose")
    assert proposed.in_sync == ("ra", "rb", "rc")
    assert sessions == {"a": 11, "c": 13}
    rig.append()
    rig.catches_up("b")
    assert rig.log.committed == 1, "c may be in sync by now"
    rig.catches_up("c")
    assert rig.log.committed == 2


def nearly_in() -> Rig:
    """ "rc" follows, and lacks what "rb" has."""
    rig = led(in_sync=("ra", "rb"))
    rig.follows("b")
    rig.fetched("c", 1, 0, 0)
    rig.append()
    rig.catches_up("b")
    return rig


def test_commits_wait_for_a_copy_that_lacks_only_what_has_just_come() -> None:
    """Otherwise it would never be in sync, as long as the load goes on."""
    rig = nearly_in()
    assert (rig.log.committed, rig.heard("propose")) == (1, [])
    end = rig.append(2)
    rig.catches_up("b")
    assert (rig.log.committed, rig.heard("propose")) == (1, [])
    rig.catches_up("c")
    assert rig.log.committed == end
    assert [proposed.in_sync for proposed, _ in rig.heard("propose")][:1] == [("ra", "rb", "rc")]


def test_they_do_not_wait_for_long_nor_again_at_once() -> None:
    rig = nearly_in()
    rig.pass_time(0.9)
    assert rig.log.committed == 1
    rig.pass_time(0.2)
    assert rig.log.committed == 2
    end = rig.append()
    rig.catches_up("b")
    rig.pass_time(0.1)
    assert rig.log.committed == end


def test_they_do_not_wait_for_one_that_is_far_behind_or_gone() -> None:
    rig = led(in_sync=("ra", "rb"))
    rig.follows("b")
    rig.append(2_000)
    rig.catches_up("b")
    rig.fetched("c", 1, 0, 0)
    rig.pass_time(0.1)
    end = rig.append()
    rig.catches_up("b")
    assert rig.log.committed == end
    rig = nearly_in()
    rig.core.node_lost("c", 13, rig.now)
    assert rig.log.committed == 2


def test_who_is_late_goes_if_enough_remain() -> None:
    rig = led()
    rig.follows("b")
    rig.pass_time(6)
    proposals = rig.heard("propose")
    assert {proposed.in_sync for proposed, _ in proposals} == {("ra", "rb")}
    rig.see(in_sync=("ra", "rb"))
    rig.append()
    rig.pass_time(6)
    assert rig.heard("propose") == [], "b is late, too, and two must remain"


def test_who_surely_does_not_run_goes_at_once() -> None:
    rig = led()
    rig.follows("b")
    rig.core.node_lost("c", 13, rig.now)
    assert rig.heard("propose")[0][0].in_sync == ("ra", "rb")


def test_one_comes_for_another_in_one_step() -> None:
    rig = led(in_sync=("ra", "rb"))
    rig.core.node_lost("b", 12, rig.now)
    assert rig.heard("propose") == []
    rig.follows("c")
    assert rig.heard("propose")[0][0].in_sync == ("ra", "rc")


def test_a_learner_becomes_a_member_and_who_leaves_does_not_join() -> None:
    learner = Replica("c", "rc", Role.LEARNER)
    replicas = (*record().replicas[:2], learner)
    rig = led(in_sync=("ra", "rb"), replicas=replicas)
    rig.follows("c")
    assert rig.heard("propose")[0][0].replica("rc") == replace(learner, role=Role.MEMBER)
    rig = led(in_sync=("ra", "rb"), replicas=(*replicas[:2], replace(learner, role=Role.LEAVING)))
    rig.follows("c")
    assert rig.heard("propose") == []


# -- outcomes


def joining() -> Rig:
    """ "rc" is proposed, and has not all that was appended since."""
    rig = led(in_sync=("ra", "rb"))
    rig.follows("b")
    rig.follows("c")
    rig.append()
    rig.catches_up("b")
    return rig


def test_what_is_unknown_stays_pending_and_is_sent_again_the_same() -> None:
    rig = joining()
    ((proposed, sessions),) = rig.heard("propose")
    rig.core.proposed(proposed, Proposal.UNKNOWN)
    rig.sessions["c"] = 30
    rig.see()
    rig.pass_time(1)
    assert rig.heard("propose")[0] == (proposed, sessions), "the session 30 may have lost what 13 had"
    assert rig.log.committed == 1


def test_a_refusal_counts_when_a_later_read_shows_the_old_record() -> None:
    rig = joining()
    ((proposed, _),) = rig.heard("propose")
    rig.core.proposed(proposed, Proposal.CONFLICT)
    (token,) = rig.heard("refresh")
    rig.see()
    assert rig.core.leading.pending is not None, "this view is no answer to the read"
    rig.see(token=token)
    assert rig.core.leading.pending is None
    assert rig.core.restless, "c is not in sync yet"


def test_a_slow_read_is_not_forgotten_while_the_proposal_is_sent_again() -> None:
    rig = joining()
    ((proposed, _),) = rig.heard("propose")
    rig.core.proposed(proposed, Proposal.CONFLICT)
    (token,) = rig.heard("refresh")
    rig.pass_time(2)
    rig.see(token=token)
    assert rig.core.leading.pending is None


def test_the_answer_to_an_older_proposal_is_not_taken_for_one_about_the_newer() -> None:
    rig = joining()
    ((older, _),) = rig.heard("propose")
    rig.see(min_isr=2)
    rig.catches_up("c")
    ((newer, _),) = rig.heard("propose")
    assert newer.revision > older.revision
    rig.core.proposed(older, Proposal.CONFLICT)
    for token in rig.heard("refresh"):
        rig.see(token=token)
    assert rig.core.leading.pending == newer


def test_a_newer_record_tells_what_became_of_it() -> None:
    rig = joining()
    rig.see(in_sync=("ra", "rb", "rc"))
    assert rig.core.leading.pending is None
    assert rig.log.committed == 1
    rig.catches_up("c")
    assert rig.log.committed == 2


# -- handing over


def ready_to_hand_over() -> Rig:
    rig = led()
    rig.follows("b")
    rig.follows("c")
    rig.append()
    for node in "bc":
        rig.catches_up(node)
    rig.said.clear()
    return rig


def test_a_leader_hands_over_when_the_target_has_everything() -> None:
    rig = ready_to_hand_over()
    rig.log.append(2, 0, 0)
    rig.core.appended(rig.now)
    rig.see(transfer_to="rb")
    assert not rig.core.serving, "nothing more is taken"
    assert rig.heard("propose") == []
    rig.fsync()
    for node in "bc":
        rig.catches_up(node)
    ((proposed, sessions),) = rig.heard("propose")
    assert (proposed.epoch, proposed.leader.replica_id, proposed.transfer_to) == (3, "rb", "")
    assert sessions == {"a": 11, "b": 12}
    rig.see(epoch=3, leader=proposed.leader, transfer_to="")
    assert rig.core.role.value == "follower"


def test_a_hand_over_that_takes_too_long_is_given_up_for_some_time() -> None:
    rig = ready_to_hand_over()
    rig.log.append(2, 0, 0)
    rig.see(transfer_to="rb")
    rig.pass_time(1.5)
    assert rig.core.serving
    rig.fsync()
    for node in "bc":
        rig.catches_up(node)
    rig.pass_time(3)
    assert rig.core.serving
    assert rig.heard("propose") == []
    rig.pass_time(3)
    assert rig.heard("propose")[0][0].leader.replica_id == "rb", "another try"


def test_an_unknown_hand_over_holds_publishes_no_longer() -> None:
    rig = ready_to_hand_over()
    rig.see(transfer_to="rb")
    ((proposed, _),) = rig.heard("propose")
    rig.core.proposed(proposed, Proposal.UNKNOWN)
    rig.pass_time(1.5)
    assert rig.core.serving
    assert rig.core.leading.pending == proposed
