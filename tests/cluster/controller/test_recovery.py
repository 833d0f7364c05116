"""Accepting loss: when every copy that counts is gone."""

import pytest

from ringpost.cluster.controller.recovery import LossRefused, accept_loss
from ringpost.cluster.view import Leader, Role
from tests.cluster.controller.world import World, started


def new_id() -> str:
    return "f" * 32


def lost() -> tuple[World, int]:
    """Shard 0 counted on b and c only, and both are gone; a has an old copy."""
    world = started("a", "b", "c")
    world.kill("a")
    world.settle(seconds=1)
    world.kill("b", "c")
    world.start("a")
    return world, 0


def test_a_copy_that_does_not_count_becomes_the_leader() -> None:
    world, shard = lost()
    assert world.settle() == 0, "the controller never does it by itself"
    before = world.records[shard]
    change = accept_loss(world.view, shard, "a", world.core._new_id)
    after = change.record
    own = before.replica_on("a")
    assert own is not None
    assert after.leader == Leader("a", own.replica_id, world.members["a"].session)
    assert (after.epoch, after.in_sync, after.min_isr) == (before.epoch + 1, (own.replica_id,), 1)
    assert after.unclean_count == 1
    assert change.sessions == {"a": world.members["a"].session}


def test_the_other_copies_are_no_part_of_it_and_are_not_deleted() -> None:
    world, shard = lost()
    before = world.records[shard]
    change = accept_loss(world.view, shard, "a", world.core._new_id)
    assert change.tombs == ()
    others = [replica for replica in change.record.replicas if replica.node != "a"]
    assert {replica.node for replica in others} == {"b", "c"}
    assert all(replica.role is Role.LEARNER for replica in others)
    assert all(before.replica(replica.replica_id) is None for replica in others)


def test_afterwards_the_shard_becomes_whole_again() -> None:
    world, shard = lost()
    change = accept_loss(world.view, shard, "a", world.core._new_id)
    world.committed[shard] = 0
    world.write([change])
    for name in ("b", "c"):
        world.start(name)
    world.settle()
    record = world.records[shard]
    assert (len(record.in_sync), record.min_isr, record.unclean_count) == (3, 2, 1)


def test_not_while_there_is_a_leader() -> None:
    world = started("a", "b", "c")
    with pytest.raises(LossRefused, match="is led by") as refused:
        accept_loss(world.view, 0, "a", new_id)
    assert refused.value.reason == "SHARD_HAS_LEADER"


@pytest.mark.parametrize("why", ["unknown", "dead", "another directory", "damaged", "no copy"])
def test_not_without_a_copy_that_can_be_read(why: str) -> None:
    world, shard = lost()
    node = "a"
    match why:
        case "unknown":
            node = "x"
        case "dead":
            world.kill("a")
        case "another directory":
            world.replace_disk("a")
        case "damaged":
            world.damage("a", shard)
        case "no copy":
            node = "d"
            world.join("d")
    with pytest.raises(LossRefused, match="no copy") as refused:
        accept_loss(world.view, shard, node, new_id)
    assert refused.value.reason == "NO_REPLICA"
