"""How shards come to where they should be, step by step."""

from collections import Counter
from dataclasses import replace

import pytest

from ringpost.cluster.controller.decisions import Settings
from ringpost.cluster.view import Desired, Replica, Role
from tests.cluster.controller.world import World, started


def under_way(world: World) -> Counter[str]:
    """Copies that are being made, at both their ends."""
    ends: Counter[str] = Counter()
    for record in world.records.values():
        for replica in record.replicas:
            if replica.role is Role.LEARNER and replica.replica_id not in record.in_sync and record.leader:
                ends.update((replica.node, record.leader.node))
    return ends


def whys(world: World) -> set[str]:
    return {change.why for change in world.plan().changes}


def test_a_cluster_at_rest_is_left_alone() -> None:
    world = started("a", "b", "c")
    world.now += 10_000
    assert world.step() == []
    world.core = world.new_core()
    assert world.settle() == 0


def test_a_fourth_node_gets_its_share_and_gives_it_back() -> None:
    """And not many more copies are made than must be."""
    world = started("a", "b", "c", shard_count=64)
    must = 64 * 3 / 4
    made = world.copies_made
    world.join("d")
    world.settle()
    joined = world.copies_made - made
    assert must * 0.9 <= joined <= 1.5 * must
    assert joined == sum("d" in world.nodes_of(shard) for shard in world.records)
    leaders = Counter(world.leaders())
    assert set(leaders) == {"a", "b", "c", "d"}
    assert max(leaders.values()) <= 1.05 * 64 / 4 + 1

    made = world.copies_made
    world.want("d", Desired.DRAIN)
    world.settle()
    assert world.copies_made - made <= 1.5 * must
    assert all(world.nodes_of(shard) == {"a", "b", "c"} for shard in world.records)
    world.kill("d")
    world.remove("d")
    assert world.settle() == 0


def test_at_most_two_copies_a_node_and_one_a_shard_are_under_way() -> None:
    world = started("a", "b", "c", shard_count=64)
    world.join("d", "e")
    seen = 0
    for _ in range(500):
        world.step()
        ends = under_way(world)
        seen = max(seen, *ends.values(), 0) if ends else seen
        assert all(count <= 2 for count in ends.values())
        assert all(len(record.replicas) <= 4 for record in world.records.values())
        world.work()
        world.now += 0.25
    assert seen == 2
    assert world.settle() == 0


def test_the_steps_of_a_move() -> None:
    """Copy, in sync, transfer if it shall lead, and the surplus copy goes with a tombstone."""
    world = started("a", "b", "c", shard_count=1)
    before = world.records[0]
    world.join("d", "e", "f", "g")
    said: list[str] = []
    tombs: list[Replica] = []
    for _ in range(200):
        changes = world.step()
        said += [change.why.split()[0] for change in changes]
        tombs += [tomb for change in changes for tomb in change.tombs]
        world.work()
        world.now += 0.25
    (own,) = world.core._placement()
    assert world.nodes_of(0) == set(own)
    new = set(own) - {"a", "b", "c"}
    assert new, "this shard moves"
    assert said.count("copy") == 2 * len(new)
    gone = [replica for replica in before.replicas if replica.node not in own]
    assert sorted(tombs, key=lambda t: t.node) == sorted(
        (replace(replica, role=tomb.role) for replica, tomb in zip(gone, tombs, strict=True)), key=lambda t: t.node
    )


def test_a_learner_is_told_to_the_session_that_has_its_directory() -> None:
    world = started("a", "b", "c")
    world.join("d")
    changes = world.plan().changes
    assert changes
    for change in changes:
        assert change.sessions == {"d": world.members["d"].session}
        learner = change.record.replica_on("d")
        assert learner is not None
        assert (learner.role, learner.directory) == (Role.LEARNER, world.members["d"].directory)
        assert learner.replica_id not in change.record.in_sync
        assert [r.role for r in change.record.replicas].count(Role.LEAVING) == 1
    assert world.plan().changes == changes, "asked again, it says the same, ids included"


def test_a_dead_node_is_replaced_after_a_while() -> None:
    world = started("a", "b", "c", "d")
    world.kill("d")
    world.elect()
    plan = world.plan()
    world.work()
    assert plan.wake_at == world.now + 300
    world.now += 299
    world.settle(seconds=0)
    assert any("d" in world.nodes_of(shard) for shard in world.records)
    world.now += 1
    world.settle()
    assert all(world.nodes_of(shard) == {"a", "b", "c"} for shard in world.records)


def test_a_dead_node_keeps_its_copies_when_nobody_could_replace_it() -> None:
    world = started("a", "b", "c")
    world.kill("c")
    world.now += 1000
    world.settle(seconds=1000)
    assert all(world.nodes_of(shard) == {"a", "b", "c"} for shard in world.records)
    world.start("c")
    made = world.copies_made
    world.settle()
    assert world.copies_made == made, "what it has is still good"
    assert all(len(record.in_sync) == 3 for record in world.records.values())


def test_a_new_controller_counts_the_time_from_its_own_beginning() -> None:
    world = started("a", "b", "c", "d")
    world.kill("d")
    world.settle(seconds=0)
    world.now += 200
    world.core = world.new_core()
    world.settle(seconds=0)
    world.now += 200
    assert whys(world) == set()


def test_a_draining_node_hands_over_first_and_then_empties() -> None:
    world = started("a", "b", "c", "d", shard_count=32)
    world.want("d", Desired.DRAIN)
    first = [change for change in world.plan().changes if change.why.startswith("transfer")]
    handed = [change.record.shard for change in first if change.record.leader and change.record.leader.node == "d"]
    assert handed == [shard for shard, leader in enumerate(world.leaders()) if leader == "d"] != []
    world.settle()
    assert all(world.nodes_of(shard) == {"a", "b", "c"} for shard in world.records)


def test_a_draining_node_stays_as_long_as_the_shard_needs_it() -> None:
    world = started("a", "b")
    world.want("b", Desired.DRAIN)
    world.settle()
    assert set(world.leaders()) == {"a"}
    assert all(len(record.in_sync) == 2 for record in world.records.values())
    world.join("c")
    world.settle()
    assert all(world.nodes_of(shard) == {"a", "c"} for shard in world.records)


def test_a_resting_node_leads_nothing_and_keeps_its_copies() -> None:
    world = started("a", "b", "c", "d", shard_count=16)
    copies = {shard: world.nodes_of(shard) for shard in world.records}
    before = world.leaders()
    made = world.copies_made
    world.want("b", Desired.REST)
    world.settle()
    assert "b" not in world.leaders()
    world.kill("b")
    world.settle(seconds=1)
    world.start("b")
    world.settle()
    assert "b" not in world.leaders()
    world.want("b", Desired.ACTIVE)
    world.settle()
    assert world.leaders() == before
    assert {shard: world.nodes_of(shard) for shard in world.records} == copies
    assert world.copies_made == made


def test_a_resting_node_gets_no_copies() -> None:
    world = started("a", "b", "c")
    world.join("d")
    world.want("d", Desired.REST)
    assert world.settle() == 0


def test_leadership_goes_home_when_a_node_has_been_back_for_a_while() -> None:
    world = started("a", "b", "c")
    before = world.leaders()
    world.kill("a")
    world.step()
    world.work()
    world.start("a")
    world.step()
    world.work()
    world.now += 4.9
    assert not any(why.startswith("transfer") for why in whys(world))
    world.now += 0.1
    assert any(why == "transfer to a" for why in whys(world))
    world.settle()
    assert world.leaders() == before


def test_a_transfer_that_was_given_up_is_not_asked_again_at_once() -> None:
    world = started("a", "b", "c", settings=Settings(transfer_s=10))
    shard = world.leaders().index("a")
    world.want("a", Desired.REST)
    world.step()
    assert world.records[shard].transfer_to
    world.look()
    world._put(replace(world.records[shard], transfer_to=""))
    world.step()
    first = world.records[shard].transfer_to
    world.now += 10
    world.step()
    assert (first, bool(world.records[shard].transfer_to)) == ("", True)


def test_a_transfer_that_takes_too_long_is_taken_back() -> None:
    world = started("a", "b", "c")
    shard = world.leaders().index("a")
    world.want("a", Desired.REST)
    world.step()
    world.step()
    world.now += 9.9
    world.step()
    assert world.records[shard].transfer_to
    world.now += 0.1
    world.step()
    assert not world.records[shard].transfer_to


def test_a_transfer_to_a_node_that_dies_is_taken_back() -> None:
    world = started("a", "b", "c")
    shard = world.leaders().index("a")
    world.want("a", Desired.REST)
    world.step()
    target = world.records[shard].replica(world.records[shard].transfer_to)
    assert target is not None
    world.kill(target.node)
    world.step()
    assert world.records[shard].transfer_to == ""


def test_a_replaced_disk_is_filled_again_two_shards_at_a_time() -> None:
    world = started("a", "b", "c", shard_count=16)
    ids = {shard: world.records[shard].replica_on("b") for shard in world.records}
    world.replace_disk("b")
    world.step()
    assert all("b" not in record.in_sync_nodes for record in world.records.values())
    assert max(under_way(world).values()) <= 2
    world.settle()
    for shard, record in world.records.items():
        replica, before = record.replica_on("b"), ids[shard]
        assert replica is not None
        assert before is not None
        assert replica.replica_id != before.replica_id
        assert len(record.in_sync) == 3


def test_a_lost_copy_that_the_set_cannot_do_without_is_swapped() -> None:
    """Two nodes, min_isr 2: the lost one stays in the set, and so nothing is committed, until the new one has all."""
    world = started("a", "b")
    world.replace_disk("b")
    world.step()
    shard, record = next((s, r) for s, r in world.records.items() if len(r.replicas) == 3)
    lost, new = [r for r in record.replicas if r.node == "b"][::-1]
    assert (lost.role, new.role) == (Role.LEAVING, Role.LEARNER)
    assert lost.replica_id in record.in_sync
    assert record.replica_on("b") == new, "this is the copy that the node is to make"
    world.settle()
    assert world.records[shard].in_sync_nodes == tuple(r.node for r in world.records[shard].replicas)
    assert world.records[shard].replica(lost.replica_id) is None
    assert all(len(r.replicas) == len(r.in_sync) == 2 for r in world.records.values())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_old_disk_of_a_node_that_got_another_comes_back_in_the_middle(steps: int) -> None:
    world = started("a", "b")
    old = world.members["b"].directory
    for directory in ("f" * 32, old):
        world.kill("b")
        world.members["b"].directory = directory
        world.start("b")
        for _ in range(steps):
            world.step()
    world.settle()
    for record in world.records.values():
        assert len(record.replicas) == len(record.in_sync) == 2
        assert {replica.role for replica in record.replicas} == {Role.MEMBER}


def test_a_damaged_copy_is_made_anew_once_and_may_be_deleted() -> None:
    world = started("a", "b", "c")
    shard = world.leaders().index("a")
    damaged = world.records[shard].replica_on("b")
    world.damage("b", shard)
    (change,) = world.plan().changes
    assert [tomb.replica_id for tomb in change.tombs] == [damaged.replica_id if damaged else ""]
    world.write([change])
    assert world.plan().changes == (), "the node has not made it yet, and still reports the old one"
    world.settle()
    assert len(world.records[shard].in_sync) == 3


def test_a_copy_that_was_damaged_is_not_trusted_again() -> None:
    """It is written off in the record, even while there is no room to make another one."""
    world = started("a", "b", settings=Settings(moves_per_node=0))
    shard = world.leaders().index("a")
    world.damage("b", shard)
    world.step()
    world.start("b")
    world.members["b"].lost = frozenset()
    world.look()
    replica = world.records[shard].replica_on("b")
    assert replica is not None
    assert not world.core._roster.intact(world.records[shard], replica)


def test_what_is_short_of_copies_comes_before_what_is_only_out_of_balance() -> None:
    world = started("a", "b", "c", "d", shard_count=32)
    world.kill("d")
    world.settle(seconds=0)
    world.now += 301
    world.join("e")
    short = {shard for shard in world.records if "d" in world.nodes_of(shard)}
    copies = [c.record.shard for c in world.plan().changes if c.why.startswith("copy to")]
    assert copies
    assert set(copies) <= short


def test_nothing_is_moved_for_balance_while_a_shard_cannot_commit() -> None:
    world = started("a", "b", "c")
    world.kill("b", "c")
    world.join("d")
    world.step()
    assert not any(why.startswith("copy") for why in whys(world))


def test_min_isr_is_raised_when_enough_are_in_sync() -> None:
    world = started("a", "b", "c")
    world.records[0] = replace(world.records[0], min_isr=1)
    (change,) = world.plan().changes
    assert (change.record.min_isr, change.why) == (2, "min_isr raised")
    world.kill("b", "c")
    world.records[0] = replace(world.records[0], min_isr=1, in_sync=world.records[0].in_sync[:1])
    assert "min_isr raised" not in whys(world)


def test_replicas_move_to_a_new_zone() -> None:
    world = World(shard_count=12)
    world.join("a1", "a2", zone="a")
    world.join("b1", "b2", zone="b")
    world.settle()
    world.join("c1", zone="c")
    world.settle()
    assert all({name[0] for name in world.nodes_of(shard)} == {"a", "b", "c"} for shard in world.records)


def test_a_node_that_was_removed_from_the_members_is_replaced_at_once() -> None:
    world = started("a", "b", "c", "d")
    world.kill("d")
    del world.members["d"]
    world.settle()
    assert all(world.nodes_of(shard) == {"a", "b", "c"} for shard in world.records)


def test_a_surplus_copy_stays_while_a_wanted_one_is_away() -> None:
    """Removing it would be allowed by min_isr, and leave one copy less than there could be."""
    world = started("a", "b", "c", "d", shard_count=16)
    shard = next(s for s in world.records if "d" in world.nodes_of(s) and world.leaders()[s] != "d")
    away = next(n for n in sorted(world.nodes_of(shard)) if n not in ("d", world.leaders()[shard]))
    world.kill(away)
    world.want("d", Desired.DRAIN)
    spare = next(n for n in ("a", "b", "c") if n not in world.nodes_of(shard))
    world.settle(seconds=10)
    live = [r.node for r in world.records[shard].replicas if r.replica_id in world.records[shard].in_sync]
    assert set(live) == {"a", "b", "c", "d"} - {away}
    assert spare in live
    world.start(away)
    world.settle()
    assert world.nodes_of(shard) == {"a", "b", "c"}


def test_without_anybody_who_shall_have_shards_everything_stays() -> None:
    world = started("a", "b", "c")
    for name in ("a", "b", "c"):
        world.want(name, Desired.DRAIN)
    assert world.settle() == 0
