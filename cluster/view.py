"""The cluster as of one revision: who is there and who owns which shard. Pure and immutable."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Self

from ringpost.cluster.keys import shard_of
from ringpost.cluster.levels import OWN, Levels


class Desired(Enum):
    """What is wanted of a node."""

    ACTIVE = "active"
    DRAIN = "drain"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A member of the cluster, alive or not.

    `address` and `peer_address` are `host:port` for clients and for other nodes. `zone` is the failure domain ("" when
    unknown). `session` numbers this life of the node: greater with every start, 0 while it is not alive. `directory`
    is the id of its data directory (32 hex digits), `lost_shards` those whose copy there is damaged. `weight` is its
    share of shards in per mille of the usual one. `host` is what it shares with other nodes of one machine, within the
    zone ("": its own). `unreachable` are members that it says it cannot reach.
    `levels` are what it speaks.
    """

    node: str
    address: str
    zone: str = ""
    peer_address: str = ""
    session: int = 0
    desired: Desired = Desired.ACTIVE
    directory: str = ""
    lost_shards: frozenset[int] = frozenset()
    weight: int = 1000
    unreachable: frozenset[str] = frozenset()
    levels: Levels = OWN
    host: str = ""

    @property
    def alive(self) -> bool:
        """Whether it holds its lease."""
        return self.session > 0


class Role(Enum):
    """What a replica is for."""

    MEMBER = "member"
    LEARNER = "learner"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Replica:
    """One data directory's copy of one shard. `replica_id` is 32 hex digits, made with the copy.

    A node that comes with another directory has lost the copy; with "" as directory it is lost by the record, whatever
    the node holds.
    """

    node: str
    replica_id: str
    role: Role = Role.MEMBER
    directory: str = ""


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a shard. A node that started again has another session, so it never resumes a leadership."""

    node: str
    replica_id: str
    session: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The truth about one shard's ownership.

    `epoch` is the number of the leadership (0: never led, nothing is stored), `leader` None while there is none.
    `in_sync` names replica ids, never nodes. `revision` is the revision of this record's last change: what a
    compare-and-swap compares. `transfer_to` is the replica that the leader is asked to hand over to, "" for none.
    `handed_over`: the leader of the epoch before began this one, and had stopped serving before.
    Invariants: the leader is in sync; whoever is in sync is a replica; in_sync never has fewer than min_isr.
    """

    shard: int
    epoch: int
    leader: Leader | None
    in_sync: tuple[str, ...]
    replicas: tuple[Replica, ...]
    min_isr: int
    revision: int
    transfer_to: str = ""
    unclean_count: int = 0
    handed_over: bool = False

    def __post_init__(self) -> None:
        known = {replica.replica_id for replica in self.replicas}
        assert known.issuperset(self.in_sync), "in sync, but not a replica"
        assert len(self.in_sync) >= self.min_isr >= 1, "fewer in sync than min_isr"
        assert self.leader is None or self.leader.replica_id in self.in_sync, "the leader is not in sync"

    @property
    def in_sync_nodes(self) -> tuple[str, ...]:
        """Ids of the nodes whose copy counts, in the order of `replicas`."""
        return tuple(replica.node for replica in self.replicas if replica.replica_id in self.in_sync)

    def replica_on(self, node: str) -> Replica | None:
        """The node's copy; behind it a lost one may follow that the in-sync set cannot do without yet."""
        return next((replica for replica in self.replicas if replica.node == node), None)

    def replica(self, replica_id: str) -> Replica | None:
        """The copy of that id."""
        return next((replica for replica in self.replicas if replica.replica_id == replica_id), None)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Permission to delete one replica, which no record names any more and none ever will again.

    `directory` is the one that it was in, as far as was known. `revision` is that of its key.
    """

    shard: int
    replica_id: str
    node: str
    directory: str
    revision: int


@dataclass(frozen=True, slots=True)
class View:
    """Everything a node or a client needs to route. Views of one cluster are ordered by `revision`.

    `nodes` has all members, alive or not. `controller` is the id of the controller, "" while there is none;
    `controller_term` its number, greater with each. `tombs` are the replicas that may be deleted.
    `level` is what the nodes speak to each other.
    Invariants: `shards` has one record for each number from 0 to shard_count - 1, in order (none at all before the
    cluster's shards are made); a leader is a known node.
    """

    revision: int
    cluster_id: str
    shard_count: int
    nodes: Mapping[str, NodeRef]
    shards: tuple[ShardRecord, ...]
    controller: str = ""
    controller_term: int = 0
    replication_factor: int = 1
    min_isr: int = 1
    tombs: tuple[Tombstone, ...] = ()
    level: int = 1

    def __post_init__(self) -> None:
        numbers = [record.shard for record in self.shards]
        assert numbers in ([], list(range(self.shard_count))), "a shard is missing"
        assert all(record.leader is None or record.leader.node in self.nodes for record in self.shards), "who leads?"

    def of_channel(self, channel: str) -> ShardRecord:
        """The record of the shard that a channel lives in. `channel` is a valid name."""
        return self.shards[shard_of(channel, self.shard_count)]

    def leader_alive(self, record: ShardRecord) -> bool:
        """Whether the record's leader is still in the session in which it became leader."""
        leader = record.leader
        return leader is not None and leader.node in self.nodes and self.nodes[leader.node].session == leader.session

    def is_newer_than(self, other: Self | None) -> bool:
        """Whether this view replaces `other`."""
        return other is None or self.revision > other.revision
