"""What the controller decides, and what every decision must keep. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ringpost.cluster.view import Replica, ShardRecord

Reach = Literal["up", "refused", "unknown"]
"""How another node answers: it does, its machine says that nobody listens, or neither."""

NewId = Callable[[], str]
"""Makes a replica id, 32 hex digits, never the same again."""

IdFor = Callable[[int, int, str], str]
"""The replica id for a new copy of a shard, in the record that replaces the one of a revision, on a node: the same one
whenever it is asked."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How patient and how busy the controller is."""

    # A node that is away longer is replaced.
    replace_after_s: float = 300.0
    # A node leads again when it has been there for so long.
    settle_s: float = 5.0
    # It does so, too, when its links have been good for so long.
    link_settle_s: float = 10.0
    # The first shards wait so long for more nodes than the least number.
    bootstrap_wait_s: float = 5.0
    # A transfer that is not done by then is taken back, and not asked for again before as much time has passed.
    transfer_s: float = 10.0
    # Copies under way to or from one node.
    moves_per_node: int = 2
    # Transfers under way from one node.
    transfers_per_node: int = 8


class Fence(NamedTuple):
    """Asks a replica to refuse frames of epochs below `epoch`, and what it has."""

    shard: int
    replica_id: str
    epoch: int


class End(NamedTuple):
    """What a fenced replica has on disk."""

    shard: int
    replica_id: str
    last_epoch: int
    end: int


class FenceRequest(NamedTuple):
    """To one node. `term` is the controller's."""

    cluster_id: str
    term: int
    replicas: tuple[Fence, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A record that shall replace the one of its `revision` (0: there is none), if these nodes have these sessions.

    `tombs` are replicas that may be deleted once it has. `why` is for people.
    """

    record: ShardRecord
    why: str
    sessions: Mapping[str, int] = field(default_factory=dict)
    tombs: Sequence[Replica] = ()


def verify(before: ShardRecord, change: Change) -> Change:
    """Asserts what no decision may break; returns it. Unclean recovery is a person's decision and not one of these."""
    after = change.record
    kept, was = set(after.in_sync), set(before.in_sync)
    ids = [replica.replica_id for replica in after.replicas]
    known = {replica.replica_id: replica for replica in before.replicas}
    leader = after.leader
    assert (after.shard, after.revision) == (before.shard, before.revision), "another record"
    assert after.unclean_count == before.unclean_count, "loss is not ours to accept"
    assert len(set(ids)) == len(ids), "a replica id twice"
    assert all(known.get(r.replica_id, r).node == r.node for r in after.replicas), "a replica went to another node"
    moved = [r for r in after.replicas if r.directory not in ("", known.get(r.replica_id, r).directory)]
    assert not moved, "a replica id was reused"
    assert not {tomb.replica_id for tomb in change.tombs}.intersection(ids), "a replica that is wanted has a tombstone"
    assert leader is None or leader.replica_id in kept, "the leader is not in sync"
    if before.epoch == after.epoch == 0:
        assert leader is None, "a shard that was never led has no leader"
        return change  # nothing is stored yet: its replicas may all be others
    assert kept <= was, "only a leader puts a replica in sync"
    assert len(kept) >= after.min_isr >= before.min_isr, "fewer in sync than min_isr"
    if after.epoch == before.epoch:
        assert leader == before.leader, "another leader in the same epoch"
    else:
        assert after.epoch == before.epoch + 1, "an epoch was left out"
        assert leader is not None, "an election nobody won"
    return change
