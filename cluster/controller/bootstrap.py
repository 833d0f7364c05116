"""The records of a cluster without shards, and of shards that lost everybody before anything was stored. Pure."""

from collections.abc import Sequence

from ringpost.cluster.controller.decisions import Change, IdFor, Settings
from ringpost.cluster.controller.roster import Roster
from ringpost.cluster.placement import place
from ringpost.cluster.view import Replica, ShardRecord, View


def make_shards(view: View, roster: Roster, settings: Settings, id_for: IdFor) -> list[Change]:
    """The first record of every shard, once enough nodes are there; until then none.

    Enough are as many as there are to be replicas, or the least number after a wait.
    """
    nodes = roster.newcomers()
    least = min(view.min_isr, view.replication_factor)
    waited = len(nodes) >= least and roster.alive_for(nodes[least - 1], settings.bootstrap_wait_s)
    if len(nodes) < view.replication_factor and not waited:
        return []
    sites = frozenset(site for site in roster.sites(0) if site.node in nodes)
    placed = place(sites, frozenset(nodes), view.shard_count, view.replication_factor)
    return [
        Change(_record(shard, own, least, roster, id_for), "first record", _sessions(own, roster))
        for shard, own in enumerate(placed)
    ]


def make_again(record: ShardRecord, wanted: Sequence[str], roster: Roster, id_for: IdFor) -> Change | None:
    """Another record for a shard that was never led, when too few of its replicas will ever come back."""
    lost = [r for r in record.replicas if not roster.intact(record, r) or roster.gone(r.node)]
    own = [node for node in wanted if roster.active(node)]
    if record.epoch or len(record.replicas) - len(lost) >= record.min_isr or len(own) < record.min_isr:
        return None
    made = _record(record.shard, own, record.min_isr, roster, id_for, record.revision)
    return Change(made, "first record again", _sessions(own, roster))


def _record(
    shard: int, nodes: Sequence[str], min_isr: int, roster: Roster, id_for: IdFor, revision: int = 0
) -> ShardRecord:
    """All in sync: there is nothing that one of them could lack."""
    replicas = tuple(Replica(node, id_for(shard, revision, node), directory=roster.directory(node)) for node in nodes)
    in_sync = tuple(replica.replica_id for replica in replicas)
    return ShardRecord(shard, 0, None, in_sync, replicas, min_isr, revision)


def _sessions(nodes: Sequence[str], roster: Roster) -> dict[str, int]:
    return {node: roster.session(node) for node in nodes}
