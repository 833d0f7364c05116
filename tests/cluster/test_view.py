"""What a view promises."""

import dataclasses

import pytest

from ringpost.cluster.keys import shard_of
from ringpost.cluster.view import Leader, NodeRef, Replica, Role, ShardRecord, View

NODES = {name: NodeRef(name, f"{name}:7400") for name in ("a", "b")}


def record(shard: int = 0, **changes) -> ShardRecord:
    fields = {
        "shard": shard,
        "epoch": 3,
        "leader": Leader("a", "ra", 7),
        "in_sync": ("ra", "rb"),
        "replicas": (Replica("a", "ra"), Replica("b", "rb"), Replica("c", "rc", Role.LEARNER)),
        "min_isr": 2,
        "revision": 11,
    }
    return ShardRecord(**{**fields, **changes})


def view(revision: int = 12, shards: int = 4) -> View:
    return View(revision, "cluster", shards, NODES, tuple(record(shard) for shard in range(shards)))


def test_a_channel_leads_to_its_shard() -> None:
    assert view().of_channel("orders.eu").shard == shard_of("orders.eu", 4)


def test_a_learner_does_not_count() -> None:
    assert record().in_sync_nodes == ("a", "b")


def test_a_shard_may_have_no_leader() -> None:
    assert record(leader=None).leader is None


def test_the_newer_view_wins() -> None:
    assert view(12).is_newer_than(None)
    assert view(13).is_newer_than(view(12))
    assert not view(12).is_newer_than(view(12))


def test_views_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        view().revision = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"in_sync": ("ra", "rx")}, "not a replica"),
        ({"in_sync": ("ra",)}, "min_isr"),
        ({"min_isr": 0}, "min_isr"),
        ({"leader": Leader("c", "rc", 9)}, "not in sync"),
    ],
)
def test_impossible_records_are_our_own_bugs(changes, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        record(**changes)


def test_impossible_views_are_our_own_bugs() -> None:
    with pytest.raises(AssertionError, match="shard is missing"):
        View(1, "cluster", 2, NODES, (record(1), record(0)))
    with pytest.raises(AssertionError, match="who leads"):
        View(1, "cluster", 1, {}, (record(0),))
