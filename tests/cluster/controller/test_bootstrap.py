"""How a cluster gets its first shards."""

from collections import Counter

from ringpost.cluster.view import Desired
from tests.cluster.controller.world import World, started


def test_the_shards_are_made_when_there_are_enough_nodes() -> None:
    world = World(shard_count=60)
    world.join("a", "b")
    assert world.plan().changes == ()
    world.join("c")
    changes = world.plan().changes
    assert len(changes) == 60
    for change in changes:
        record = change.record
        assert (record.epoch, record.leader, record.revision, record.min_isr) == (0, None, 0, 2)
        assert {replica.node for replica in record.replicas} == {"a", "b", "c"}
        assert len(record.in_sync) == 3
        assert {r.directory for r in record.replicas} == {m.directory for m in world.members.values()}
        assert change.sessions == {name: member.session for name, member in world.members.items()}


def test_fewer_nodes_are_enough_after_a_wait() -> None:
    world = World()
    world.join("a", "b")
    plan = world.plan()
    assert (plan.changes, plan.wake_at) == ((), world.now + 5)
    world.now += 5
    assert len(world.plan().changes) == world.shard_count
    assert all(len(change.record.replicas) == 2 for change in world.plan().changes)


def test_a_node_that_restarts_begins_the_wait_again() -> None:
    world = World()
    world.join("a", "b")
    world.plan()
    world.now += 4
    world.kill("b")
    world.start("b")
    world.plan()
    world.now += 4
    assert world.plan().changes == ()


def test_nodes_that_are_not_to_have_shards_do_not_count() -> None:
    world = World()
    world.join("a", "b", "c")
    world.want("b", Desired.DRAIN)
    world.refuse("c")
    world.plan()
    world.now += 60
    assert world.plan().changes == ()


def test_one_node_is_a_cluster_when_it_shall_be() -> None:
    world = started("a", replication_factor=1, min_isr=1)
    assert set(world.leaders()) == {"a"}


def test_replica_ids_stay_the_same_until_they_are_written() -> None:
    """A transaction whose answer was lost can be sent again."""
    world = World()
    world.join("a", "b", "c")
    assert world.plan() == world.plan()


def test_leaders_are_spread_from_the_beginning() -> None:
    world = World(shard_count=60)
    world.join("a", "b", "c")
    world.step()
    world.step()
    assert max(Counter(world.leaders()).values()) <= 21


def test_the_first_election_waits_for_everybody_who_is_there() -> None:
    world = World()
    world.join("a", "b", "c")
    world.write(world.plan().changes)
    assert world.elect(deaf=["c"]) == []
    assert len(world.elect()) == world.shard_count
    assert all(record.epoch == 1 and len(record.in_sync) == 3 for record in world.records.values())


def test_who_dies_before_the_first_election_comes_back_as_a_learner() -> None:
    world = World()
    world.join("a", "b", "c")
    world.write(world.plan().changes)
    world.kill("c")
    world.elect()
    for record in world.records.values():
        assert record.in_sync_nodes == tuple(r.node for r in record.replicas if r.node != "c")
    world.start("c")
    world.settle()
    assert all(len(record.in_sync) == 3 for record in world.records.values())


def test_shards_that_were_never_led_are_made_again_elsewhere() -> None:
    world = World()
    world.join("a", "b", "c")
    world.write(world.plan().changes)
    world.kill("b", "c")
    world.join("d", "e")
    world.settle()
    assert world.leaders() == [""] * world.shard_count
    world.now += 301
    world.settle()
    assert all(world.nodes_of(shard) == {"a", "d", "e"} for shard in world.records)
    assert set(world.leaders()) == {"a", "d", "e"}


def test_damage_from_before_does_not_matter_to_a_shard_that_was_never_led() -> None:
    world = World()
    world.join("a", "b", "c")
    world.write(world.plan().changes)
    world.members["b"].lost = frozenset({0, 1})
    assert world.plan().changes == ()
    world.settle()
    assert all(len(record.in_sync) == 3 for record in world.records.values())
