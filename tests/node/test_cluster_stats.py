"""What the metrics say of the cluster."""

from types import SimpleNamespace
from typing import Any, cast

from ringpost.cluster.view import Leader, NodeRef, Replica, Role, ShardRecord, View
from ringpost.node.cluster_stats import GROUPS_LOOKED_AT, GROUPS_NAMED, cluster_stats, group_lags


def group(number: int, lag: int) -> Any:
    channel = SimpleNamespace(name=f"c{number}", end_offset=lag)
    return SimpleNamespace(name="g", channel=channel, core=SimpleNamespace(pending=lambda end: end))


def test_the_groups_that_lag_most_are_named_and_no_others() -> None:
    lags = group_lags(group(n, n) for n in range(200))
    assert len(lags) == GROUPS_NAMED
    assert next(iter(lags.items())) == ("c199/g", 199)
    assert min(lags.values()) == 200 - GROUPS_NAMED
    assert group_lags([group(1, 0)]) == {}, "one that is done is not named"


def test_a_node_with_very_many_groups_looks_at_some() -> None:
    looked = 0

    def endless() -> Any:
        nonlocal looked
        while True:
            looked += 1
            yield group(looked, 1)

    group_lags(endless())
    assert looked <= GROUPS_LOOKED_AT + 1


def record(shard: int, leader: str, *, learner: str = "") -> ShardRecord:
    replicas = tuple(Replica(n, f"{n}{shard}", Role.LEARNER if n == learner else Role.MEMBER) for n in ("a", "b", "c"))
    in_sync = tuple(r.replica_id for r in replicas if r.node != learner)
    return ShardRecord(shard, 1, Leader(leader, f"{leader}{shard}", 5), in_sync, replicas, 2, 7)


def test_the_view_is_counted_as_this_node_sees_it() -> None:
    nodes = {name: NodeRef(name, f"{name}:1", session=5) for name in ("a", "b")} | {"c": NodeRef("c", "c:1")}
    shards = (record(0, "a"), record(1, "b", learner="a"), record(2, "b"), record(3, "c"))
    view = View(9, "c", 4, nodes, shards, controller="a", replication_factor=3, min_isr=2)
    serving = [SimpleNamespace(serving=n == 0, position=12, committed=2) for n in range(4)]
    replicator = SimpleNamespace(
        store=SimpleNamespace(shards=serving),
        counters=SimpleNamespace(leaderships=4, snapshots_sent=1, snapshots_installed=2),
    )
    member = SimpleNamespace(
        replicator=replicator, peers=SimpleNamespace(unreachable={"b"}), coordination=SimpleNamespace(lease_s=3.5)
    )
    routing = SimpleNamespace(lanes=SimpleNamespace(forwarded_batches=8), relay=SimpleNamespace(upstreams=3))
    found = cluster_stats(cast(Any, member), cast(Any, routing), lambda: view, "a")
    assert found == {
        "nodes": {"alive": 2, "away": 1},
        "unreachable_nodes": 1,
        "controller": 1,
        "lease_seconds": 3.5,
        "replicas": {"leader": 1, "follower": 2, "learner": 1},
        "offline_shards": 1,
        "under_replicated_shards": 1,
        "moves": 1,
        "uncommitted_frames": 10,
        "leaderships": 4,
        "snapshots": {"sent": 1, "installed": 2},
        "forwarded_batches": 8,
        "upstream_subscriptions": 3,
    }
