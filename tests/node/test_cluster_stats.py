"""What the metrics say of the cluster."""

from types import SimpleNamespace
from typing import Any, cast

from ringpost.cluster.view import Leader, NodeRef, Replica, Role, ShardRecord, View
from ringpost.node.cluster_stats import box_counts, cluster_stats
from ringpost.node.groups.changes import Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from tests.node.shard.fakes import Outcomes, Rig


def test_groups_with_dead_letters_are_counted() -> None:
    rig = Rig()
    for number in range(3):
        found = rig.channel(f"c{number}")
        rig.publish(found, "a", "b")
        made = add_group(found, "g", GroupSettings(policy=RetryPolicy(dead_letters=True)), 0, Outcomes())
        if number:
            made.settle_any(Reject(""), [(0, number - 1)], lambda _: None)
        rig.time.turn()
        rig.commit()
    assert box_counts(rig.store.boxes()) == {"c2/g": 2, "c1/g": 1}
    assert rig.log.burials.letters == 3


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
        counters=SimpleNamespace(leaderships=4),
        snapshots=SimpleNamespace(sent=1, received=2),
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
