"""The cluster's members, its state and its moves, as the API shows them. Pure translation of a view."""

from collections.abc import Iterator

from ringpost.cluster.view import Desired, Role, ShardRecord, View
from ringpost.v1 import cluster_pb2 as api

_DESIRED = {
    Desired.ACTIVE: api.Desired.DESIRED_ACTIVE,
    Desired.DRAIN: api.Desired.DESIRED_DRAIN,
    Desired.REST: api.Desired.DESIRED_REST,
}
DESIRED = {number: desired for desired, number in _DESIRED.items()}


def members(view: View) -> list[api.Member]:
    """Every member with its share, by id."""
    leads = dict.fromkeys(view.nodes, 0)
    holds = dict.fromkeys(view.nodes, 0)
    counts = dict.fromkeys(view.nodes, 0)
    for record in view.shards:
        if record.leader is not None and view.leader_alive(record):
            leads[record.leader.node] += 1
        for replica in record.replicas:
            if replica.node in holds:
                holds[replica.node] += 1
                counts[replica.node] += replica.replica_id in record.in_sync
    return [
        api.Member(
            node=node,
            address=ref.address,
            peer_address=ref.peer_address,
            zone=ref.zone,
            alive=ref.alive,
            session=ref.session,
            desired=_DESIRED[ref.desired],
            leader_count=leads[node],
            replica_count=holds[node],
            in_sync_count=counts[node],
            controller=node == view.controller,
            host=ref.host,
        )
        for node, ref in sorted(view.nodes.items())
    ]


def member(view: View, node: str) -> api.Member | None:
    """One of them; None for an unknown one."""
    return next((one for one in members(view) if one.node == node), None)


def cluster_state(view: View, coordination: str) -> api.GetClusterResponse:
    """How the cluster is."""
    wanted = min(view.replication_factor, max(len(view.nodes), 1))
    return api.GetClusterResponse(
        cluster_id=view.cluster_id,
        view=view.revision,
        shard_count=view.shard_count,
        replication_factor=view.replication_factor,
        min_isr=view.min_isr,
        controller=view.controller,
        offline_shards=_offline(view),
        under_replicated_shards=[record.shard for record in view.shards if len(record.in_sync) < wanted],
        moves=[move for record in view.shards for move in _moves(view, record)],
        coordination=coordination,
    )


def _offline(view: View) -> list[int]:
    if not view.shards:
        return list(range(view.shard_count))
    return [record.shard for record in view.shards if not view.leader_alive(record)]


def _moves(view: View, record: ShardRecord) -> Iterator[api.ShardMove]:
    leader = record.leader.node if record.leader is not None else ""
    for replica in record.replicas:
        kind = ""
        if replica.replica_id == record.transfer_to:
            kind = "transfer"
        elif replica.role is Role.LEAVING:
            kind = "leaving"
        elif replica.role is Role.LEARNER or (
            replica.replica_id not in record.in_sync and replica.node in view.nodes and view.nodes[replica.node].alive
        ):
            kind = "catching up"
        if kind:
            yield api.ShardMove(shard=record.shard, kind=kind, leader=leader, node=replica.node)
