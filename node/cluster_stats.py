"""The part of the metrics that is about the cluster, and the groups that lag most. Reads; changes nothing."""

from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice
from typing import Any

from ringpost.cluster.view import Role, View
from ringpost.node.member import Member
from ringpost.node.routing.routing import Routing
from ringpost.node.services.members import cluster_state
from ringpost.node.shard.group import Group

# Groups that are looked at for one answer, and those of them that are named.
GROUPS_LOOKED_AT, GROUPS_NAMED = 10_000, 50


def cluster_stats(member: Member, routing: Routing, newest: Callable[[], View], node: str) -> dict[str, Any]:
    """Fields of `Stats`, as this node sees the cluster."""
    view = newest()
    state = cluster_state(view, "")
    alive = sum(ref.alive for ref in view.nodes.values())
    replicator, counters = member.replicator, member.replicator.counters
    uncommitted = (shard.position - shard.committed for shard in replicator.store.shards if shard.serving)
    return {
        "nodes": {"alive": alive, "away": len(view.nodes) - alive},
        "unreachable_nodes": len(member.peers.unreachable),
        "controller": int(view.controller == node),
        "lease_seconds": round(member.coordination.lease_s, 3),
        "replicas": _roles(view, node),
        "offline_shards": len(state.offline_shards),
        "under_replicated_shards": len(state.under_replicated_shards),
        "moves": len(state.moves),
        "uncommitted_frames": max(uncommitted, default=0),
        "leaderships": counters.leaderships,
        "snapshots": {"sent": counters.snapshots_sent, "installed": counters.snapshots_installed},
        "forwarded_batches": routing.lanes.forwarded_batches,
        "upstream_subscriptions": routing.relay.upstreams,
    }


def _roles(view: View, node: str) -> dict[str, int]:
    roles = {"leader": 0, "follower": 0, "learner": 0}
    for record in view.shards:
        replica = record.replica_on(node)
        if replica is None:
            continue
        if record.leader is not None and record.leader.node == node:
            roles["leader"] += 1
        elif replica.role is Role.LEARNER and replica.replica_id not in record.in_sync:
            roles["learner"] += 1
        else:
            roles["follower"] += 1
    return roles


def group_lags(groups: Iterable[Group]) -> dict[str, int]:
    """Messages that wait to be settled, of the groups with most, by `channel/group`."""
    lags = ((group.core.pending(group.channel.end_offset), group) for group in islice(groups, GROUPS_LOOKED_AT))
    worst = nlargest(GROUPS_NAMED, lags, key=lambda pair: pair[0])
    return {f"{group.channel.name}/{group.name}": lag for lag, group in worst if lag}
