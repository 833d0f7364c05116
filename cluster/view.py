"""The cluster as of one revision: who is there and who owns which shard. Pure and immutable."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self

from ringpost.cluster.keys import shard_of


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node: its stable id, `host:port` for clients, and the failure domain it lies in ("" when unknown)."""

    node: str
    address: str
    zone: str = ""


class Role(Enum):
    """What a replica is for."""

    MEMBER = "member"
    LEARNER = "learner"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Replica:
    """One data directory's copy of one shard. `replica_id` is 32 hex digits, made with the copy."""

    node: str
    replica_id: str
    role: Role = Role.MEMBER


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a shard. A node that started again has another session, so it never resumes a leadership."""

    node: str
    replica_id: str
    session: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The truth about one shard's ownership.

    `epoch` is the number of the leadership, `leader` None while there is none. `in_sync` names replica ids, never
    nodes. `revision` is the revision of this record's last change: what a compare-and-swap compares.
    Invariants: the leader is in sync; whoever is in sync is a replica; in_sync never has fewer than min_isr.
    """

    shard: int
    epoch: int
    leader: Leader | None
    in_sync: tuple[str, ...]
    replicas: tuple[Replica, ...]
    min_isr: int
    revision: int

    def __post_init__(self) -> None:
        known = {replica.replica_id for replica in self.replicas}
        assert known.issuperset(self.in_sync), "in sync, but not a replica"
        assert len(self.in_sync) >= self.min_isr >= 1, "fewer in sync than min_isr"
        assert self.leader is None or self.leader.replica_id in self.in_sync, "the leader is not in sync"

    @property
    def in_sync_nodes(self) -> tuple[str, ...]:
        """Ids of the nodes whose copy counts, in the order of `replicas`."""
        return tuple(replica.node for replica in self.replicas if replica.replica_id in self.in_sync)


@dataclass(frozen=True, slots=True)
class View:
    """Everything a node or a client needs to route. Views of one cluster are ordered by `revision`.

    Invariants: `shards` has one record for each number from 0 to shard_count - 1, in order; a leader is a known node.
    """

    revision: int
    cluster_id: str
    shard_count: int
    nodes: Mapping[str, NodeRef]
    shards: tuple[ShardRecord, ...]

    def __post_init__(self) -> None:
        assert [record.shard for record in self.shards] == list(range(self.shard_count)), "a shard is missing"
        assert all(record.leader is None or record.leader.node in self.nodes for record in self.shards), "who leads?"

    def of_channel(self, channel: str) -> ShardRecord:
        """The record of the shard that a channel lives in. `channel` is a valid name."""
        return self.shards[shard_of(channel, self.shard_count)]

    def is_newer_than(self, other: Self | None) -> bool:
        """Whether this view replaces `other`."""
        return other is None or self.revision > other.revision
