"""Accepting loss (rule P12): a person's decision, never the controller's. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from ringpost.cluster.controller.decisions import Change, NewId
from ringpost.cluster.view import Leader, Replica, Role, ShardRecord, View


class LossRefused(Exception):  # noqa: N818 - named after the outcome
    """Nothing was changed. `reason` is SHARD_HAS_LEADER or NO_REPLICA."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def accept_loss(view: View, shard: int, node: str, new_id: NewId) -> Change:
    """Makes the copy on a node the leader and the only one that counts, whatever it lacks. Raises LossRefused.

    The other copies may have what it lacks, so they can never follow it: their nodes get new ones, which take the place
    of what is there.
    """
    record = view.shards[shard]
    if view.leader_alive(record):
        raise LossRefused("SHARD_HAS_LEADER", f"shard {shard} is led by {record.leader and record.leader.node}")
    member = view.nodes.get(node)
    copies = [r for r in record.replicas if member is not None and r.node == node and r.directory == member.directory]
    if member is None or not member.alive or not copies or shard in member.lost_shards:
        raise LossRefused("NO_REPLICA", f"{node} has no copy of shard {shard} that could be read now")
    (kept,) = copies
    recovered = replace(
        record,
        epoch=record.epoch + 1,
        leader=Leader(node, kept.replica_id, member.session),
        in_sync=(kept.replica_id,),
        replicas=(replace(kept, role=Role.MEMBER), *_others(view, record, kept, new_id)),
        min_isr=1,
        transfer_to="",
        handed_over=False,
        unclean_count=record.unclean_count + 1,
    )
    return Change(recovered, f"loss accepted: {node} leads", {node: member.session})


def _others(view: View, record: ShardRecord, kept: Replica, new_id: NewId) -> Iterator[Replica]:
    done = {kept.node}
    for replica in record.replicas:
        if replica.node in done or replica.node not in view.nodes:
            continue
        done.add(replica.node)
        yield Replica(replica.node, new_id(), Role.LEARNER, view.nodes[replica.node].directory)
