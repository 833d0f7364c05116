"""The part of the metrics that is about the cluster, and the groups that lag most. Reads; changes nothing."""

from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice
from typing import Any

from ringpost.cluster.view import Role, View
from ringpost.node.member import Member
from ringpost.node.routing.routing import Routing
from ringpost.node.services.members import cluster_state
from ringpost.node.shard.boxes import count, group_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.lag import GROUPS_LOOKED_AT, GROUPS_NAMED, known_age_us, lag_bytes, lagging
from ringpost.node.shard.reading import Reading


def cluster_stats(member: Member, routing: Routing, newest: Callable[[], View], node: str) -> dict[str, Any]:
    """Fields of `Stats`, as this node sees the cluster."""
    view = newest()
    state = cluster_state(view, "")
    alive = sum(ref.alive for ref in view.nodes.values())
    replicator, counters = member.replicator, member.replicator.counters
    snapshots = replicator.snapshots
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
        "snapshots": {"sent": snapshots.sent, "installed": snapshots.received},
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


def box_counts(boxes: Iterable[Channel]) -> dict[str, int]:
    """Dead letters kept, of the groups with most, by `channel/group`."""
    groups = (group for box in islice(boxes, GROUPS_LOOKED_AT) if (group := group_of(box)) is not None)
    most = nlargest(GROUPS_NAMED, ((count(group), group) for group in groups), key=lambda pair: pair[0])
    return {f"{group.channel.name}/{group.name}": letters for letters, group in most if letters}


def lag_stats(groups: Iterable[Group], reading: Reading, now_us: int) -> dict[str, Any]:
    """Fields of `Stats`: how far the groups that lag most are behind, by `channel/group`. Reads no disk."""
    worst = {f"{group.channel.name}/{group.name}": (lag, group) for lag, group in lagging(groups)}
    ages = {name: known_age_us(group, reading, now_us) for name, (_, group) in worst.items()}
    return {
        "group_lag": {name: lag for name, (lag, _) in worst.items()},
        "group_lag_bytes": {name: lag_bytes(group) for name, (_, group) in worst.items()},
        "group_lag_seconds": {name: age / 1e6 for name, age in ages.items() if age is not None},
    }
