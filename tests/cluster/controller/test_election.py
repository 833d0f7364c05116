"""Who leads when a leader is gone."""

import copy
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.cluster.controller.decisions import Change, End, Fence
from ringpost.cluster.view import Desired, Leader, Replica, Role
from tests.cluster.controller.world import Log, World, started


def led_by(node: str, **options: object) -> tuple[World, int]:
    """A cluster of three at rest, and a shard that the node leads."""
    world = started("a", "b", "c", **options)
    return world, world.leaders().index(node)


def replica(world: World, shard: int, node: str) -> str:
    found = world.records[shard].replica_on(node)
    assert found is not None
    return found.replica_id


def test_a_dead_leader_is_replaced() -> None:
    world, shard = led_by("a")
    before = world.records[shard]
    world.kill("a")
    changes = {change.record.shard: change for change in world.elect()}
    after = changes[shard].record
    assert after.epoch == before.epoch + 1
    assert after.leader is not None
    assert after.leader.session == world.members[after.leader.node].session
    assert changes[shard].sessions == {after.leader.node: after.leader.session}
    assert set(after.in_sync_nodes) == {"b", "c"}
    assert len(after.replicas) == 3, "who is away keeps its copy"
    assert "a" not in world.leaders()
    assert world.elect() == []


def test_a_leader_whose_node_refuses_connections_is_dead() -> None:
    world, shard = led_by("a")
    world.refuse("a")
    world.elect()
    assert world.leaders()[shard] in ("b", "c")
    assert "a" not in world.records[shard].in_sync_nodes


def test_a_restarted_leader_needs_an_election_and_may_win_it() -> None:
    world, shard = led_by("a")
    for node in ("b", "c"):
        world.logs[replica(world, shard, node)].end -= 1
    world.start("a")
    world.elect()
    record = world.records[shard]
    assert record.leader == Leader("a", replica(world, shard, "a"), world.members["a"].session)
    assert len(record.in_sync) == 3


def test_the_greatest_epoch_wins_then_the_longest_log() -> None:
    world, shard = led_by("a")
    b, c = replica(world, shard, "b"), replica(world, shard, "c")
    world.kill("a")
    world.logs[b], world.logs[c] = Log(2, 9), Log(1, 99)
    world.look()
    ballot = world.core.call_election()
    answers = {"b": [End(shard, b, 2, 9)], "c": [End(shard, c, 1, 99)]}
    (change,) = world.core.count_votes(ballot, answers)
    assert change.record.leader is not None
    assert change.record.leader.node == "b"
    answers = {"b": [End(shard, b, 2, 9)], "c": [End(shard, c, 2, 10)]}
    (change,) = world.core.count_votes(ballot, answers)
    assert change.record.leader is not None
    assert change.record.leader.node == "c"


def test_only_those_are_asked_who_may_know_everything() -> None:
    world, shard = led_by("a")
    record = world.records[shard]
    out = replica(world, shard, "c")
    world.records[shard] = replace(record, in_sync=tuple(i for i in record.in_sync if i != out))
    world.kill("a")
    world.look()
    ballot = world.core.call_election()
    asked = {node for node, fences in ballot.asks.items() for fence in fences if fence.shard == shard}
    assert asked == {"b"}
    assert Fence(shard, replica(world, shard, "b"), record.epoch + 1) in ballot.asks["b"]
    answers = {"c": [End(shard, out, 99, 99)]}
    assert [c for c in world.core.count_votes(ballot, answers) if c.record.shard == shard] == []


def test_without_an_answer_there_is_no_leader() -> None:
    world, shard = led_by("a")
    world.kill("a")
    assert world.elect(deaf=["b", "c"]) == []
    assert len(world.elect(deaf=["b"])) > 0
    assert world.leaders()[shard] == "c"


def test_the_in_sync_set_never_falls_below_its_least_size() -> None:
    """With min_isr 2 one of two dead members stays in the set: the shard has a leader and waits for it."""
    world, shard = led_by("a")
    world.kill("a", "b")
    world.elect()
    record = world.records[shard]
    assert record.leader is not None
    assert record.leader.node == "c"
    assert len(record.in_sync) == 2
    assert replica(world, shard, "c") in record.in_sync


def test_of_the_silent_the_lost_leave_first() -> None:
    world, shard = led_by("a")
    world.replace_disk("b")
    world.kill("a")
    world.elect()
    assert set(world.records[shard].in_sync_nodes) == {"a", "c"}


def test_a_shard_whose_copies_are_all_away_is_offline() -> None:
    world, shard = led_by("a")
    world.kill("a", "b", "c")
    world.look()
    ballot = world.core.call_election()
    assert ballot.offline == tuple(range(world.shard_count))
    assert ballot.asks == {}
    assert world.settle() == 0, "nothing is decided about it by itself"
    world.start("b")
    world.settle()
    assert world.leaders()[shard] == "b"


def test_among_equals_those_win_who_shall_lead() -> None:
    world = started("a", "b", "c", shard_count=30)
    led = [shard for shard, leader in enumerate(world.leaders()) if leader == "a"]
    for log in world.logs.values():
        log.epoch, log.end = 9, 99
    world.want("b", Desired.REST)
    world.kill("a")
    world.elect()
    assert {world.leaders()[shard] for shard in led} == {"c"}


def test_a_leader_whose_copy_is_damaged_leads_no_more() -> None:
    world, shard = led_by("a")
    world.damage("a", shard)
    world.elect()
    assert world.leaders()[shard] in ("b", "c")
    assert "a" not in world.records[shard].in_sync_nodes
    assert [other for other, leader in enumerate(world.leaders()) if leader == "a"] != []


@pytest.mark.parametrize("between", ["leader", "restart"])
def test_an_outcome_about_an_old_picture_is_not_written(between: str) -> None:
    world, shard = led_by("a")
    world.kill("a")
    world.look()
    ballot = world.core.call_election()
    answers = {
        node: [End(fence.shard, fence.replica_id, 1, 1) for fence in fences] for node, fences in ballot.asks.items()
    }
    changes: list[Change] = world.core.count_votes(ballot, answers)
    (winner,) = [c.record.leader for c in changes if c.record.shard == shard]
    assert winner is not None
    if between == "restart":
        world.start(winner.node)
    else:
        world._put(replace(world.records[shard], in_sync=world.records[shard].in_sync[:2]))
    world.write(changes)
    assert world.records[shard].epoch == 1


def test_a_learner_is_never_asked() -> None:
    world, shard = led_by("a")
    record = world.records[shard]
    learner = Replica("d", "d" * 32, Role.LEARNER, "d1")
    world.records[shard] = replace(record, replicas=(*record.replicas, learner))
    world.join("d")
    world.kill("a")
    world.look()
    assert "d" not in world.core.call_election().asks


def test_a_leader_that_lives_but_is_cut_off_is_replaced_without_being_asked() -> None:
    world, shard = led_by("a")
    before = world.records[shard]
    world.cut("a", "b", "c")
    world.look()
    assert "a" not in world.core.call_election().asks
    changes = {change.record.shard: change.record for change in world.elect()}
    after = changes[shard]
    assert after.epoch == before.epoch + 1
    assert set(after.in_sync_nodes) == {"b", "c"}, "a set that can commit"
    assert "a" not in world.leaders()
    assert world.elect() == []
    committed = world.committed[shard]
    world.work()
    assert world.committed[shard] > committed


@pytest.mark.parametrize("who", ["a", "bc"])
def test_it_is_enough_that_one_end_of_a_link_says_so(who: str) -> None:
    world, shard = led_by("a")
    world.cut("a", "b", "c", told=False)
    assert world.elect() == []
    for name in who:
        world.tell(name, *("bc" if name == "a" else "a"))
    world.elect()
    assert world.leaders()[shard] in ("b", "c")


def test_a_leader_that_still_reaches_enough_leads_on() -> None:
    world, _ = led_by("a")
    world.cut("a", "b")
    assert world.elect() == []
    led = [shard for shard, leader in enumerate(world.leaders()) if leader == "b"]
    world.cut("c", "b")
    assert sorted(change.record.shard for change in world.elect()) == led, "now b reaches nobody, the others do"
    assert "b" not in world.leaders()


def test_nobody_is_elected_who_would_be_cut_off_as_well() -> None:
    world, _ = led_by("a")
    for name in "abc":
        world.cut(name, *"abc".replace(name, ""))
    assert world.settle() == 0
    world.join_links()
    world.cut("a", "b", "c")
    world.cut("b", "c")
    assert world.settle() == 0


def test_where_one_copy_is_enough_nobody_is_cut_off() -> None:
    world, _ = led_by("a", min_isr=1)
    world.cut("a", "b", "c")
    assert world.elect() == []


def test_the_greatest_of_all_that_answer_must_be_able_to_commit() -> None:
    world = started(*"abcde", replication_factor=5, shard_count=8)
    shard = world.leaders().index("a")
    world.cut("a", *"bcde")
    world.cut("b", *"cde")
    world.logs[replica(world, shard, "b")].end += 1
    changes = {change.record.shard for change in world.elect()}
    assert shard not in changes, "b has more than the others, and reaches none of them"
    world.tell("b")
    world.elect()
    assert world.leaders()[shard] == "b"


def test_a_copy_that_does_not_count_yet_helps_to_commit() -> None:
    """A leader shrinks its set as far as it may before anybody knows that it is cut off."""
    world, shard = led_by("a")
    record = world.records[shard]
    out = replica(world, shard, "c")
    world.records[shard] = replace(record, in_sync=tuple(i for i in record.in_sync if i != out))
    world.cut("a", "b", "c")
    world.elect()
    assert world.leaders()[shard] == "b"
    committed = world.committed[shard]
    for _ in range(9):
        world.work()
    assert set(world.records[shard].in_sync_nodes) == {"b", "c"}
    assert world.committed[shard] > committed


def test_of_those_who_count_the_new_leader_keeps_whom_it_reaches() -> None:
    world, shard = led_by("a", min_isr=1)
    world.kill("a")
    b, c = replica(world, shard, "b"), replica(world, shard, "c")
    world.cut("b", "c")
    world.logs[b].end += 1
    world.elect()
    assert world.records[shard].in_sync == (b,)
    assert c not in world.records[shard].in_sync


def test_a_leader_that_died_is_replaced_by_one_that_reaches_others_if_it_has_as_much() -> None:
    world = started(*"abcd", replication_factor=4, shard_count=40)
    led = [shard for shard, leader in enumerate(world.leaders()) if leader == "a"]
    for log in world.logs.values():
        log.epoch, log.end = 9, 99
    world.cut("b", "c", "d")
    world.kill("a")
    world.elect()
    assert "b" not in {world.leaders()[shard] for shard in led}


AT_REST = started(*"abcde", replication_factor=3, shard_count=20)
bad_links = st.sets(st.sampled_from(list(combinations("abcde", 2))))


@settings(max_examples=60)
@given(bad_links, st.sampled_from(["", "a", "bc"]))
def test_whatever_links_are_bad_one_election_is_enough(bad: set[tuple[str, str]], dead: str) -> None:
    world = copy.deepcopy(AT_REST)
    for name in "abcd":
        world.cut(name, *(other for one, other in bad if one == name))
    world.kill(*dead)

    def reached(shard: int, node: str) -> int:
        nodes = {r.node for r in world.records[shard].replicas if world.up(r.node) and world.linked(node, r.node)}
        return len(nodes)

    changes = world.elect()
    assert {shard for shard, leader in enumerate(world.leaders()) if not world.up(leader)} <= {
        shard for shard, record in world.records.items() if not any(map(world.up, record.in_sync_nodes))
    }
    assert world.elect() == [], "and then it is over"
    for shard, record in world.records.items():
        assert record.leader is not None
        others = [node for node in record.in_sync_nodes if node != record.leader.node and world.up(node)]
        if world.up(record.leader.node) and reached(shard, record.leader.node) < record.min_isr:
            assert all(reached(shard, node) < record.min_isr for node in others), "another one would do better"
    for change in changes:
        if AT_REST.records[change.record.shard].leader.node not in dead:  # type: ignore[union-attr]
            assert change.record.leader is not None
            assert reached(change.record.shard, change.record.leader.node) >= change.record.min_isr


@pytest.mark.parametrize("up_s", [1.0, 3.0, 8.0])
def test_a_link_that_flaps_does_not_make_leadership_flap(up_s: float) -> None:
    """Leadership goes back only after the links were good for a while."""
    world, shard = led_by("a")
    before = world.records[shard].epoch
    for _ in range(20):
        world.cut("a", "b", "c")
        world.run(8, until=lambda: world.leaders()[shard] != "a")
        world.join_links()
        world.run(int(up_s / 0.25))
    assert world.records[shard].epoch == before + 1
    world.settle()
    assert (world.records[shard].epoch, world.leaders()[shard]) == (before + 2, "a")
