"""Whether a node may join a cluster, and the transaction by which it does. Pure."""

from dataclasses import dataclass, replace

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.kv import Compare, Delete, Field, Put
from ringpost.cluster.levels import OWN, Levels, problem
from ringpost.cluster.records import FORMAT, Kept, Records, encode_node, node_ref
from ringpost.cluster.view import NodeRef
from ringpost.internal.v1 import cluster_pb2


class NameTakenError(CoordinationError):
    """A node of that name is alive with another data directory. It may be about to vanish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryFacts:
    """What a data directory knows of itself.

    `directory` is its id (32 hex digits), `boot` how often it was started, this time included. `cluster_id` is "" as
    long as it belongs to no cluster; `revision_seen` is the highest revision of the store that it remembers.
    """

    directory: str
    boot: int
    cluster_id: str = ""
    revision_seen: int = 0
    store_id: str = ""  # of the store in which it was a member, "" if it does not know
    accept_store: bool = False  # a person says that another store holds all that the one before did


@dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """What the first node makes the cluster with. `cluster_id` is a new one, 32 hex digits."""

    cluster_id: str
    shard_count: int
    replication_factor: int
    min_isr: int
    level: int = OWN.most

    @property
    def value(self) -> bytes:
        """The cluster's record."""
        return cluster_pb2.ClusterRecord(
            cluster_id=self.cluster_id,
            shard_count=self.shard_count,
            format=FORMAT,
            replication_factor=self.replication_factor,
            min_isr=self.min_isr,
            level=self.level,
        ).SerializeToString(deterministic=True)


class Joining:
    """One node's way into the cluster, over all its sessions.

    `boot` and `lost_shards` are those of this start, `unreachable` what this node says of its links. A directory that
    the store has seen started at least as often as the directory itself remembers was rolled back, to a copy perhaps:
    whatever it holds may lack what it has acknowledged, so all its shards count as lost and `boot` is put above.
    """

    def __init__(self, member: NodeRef, facts: DirectoryFacts, version: str, levels: Levels = OWN) -> None:
        self.member = replace(member, directory=facts.directory, session=0, levels=levels)
        self.boot = facts.boot
        self.lost_shards = member.lost_shards
        self.unreachable = member.unreachable
        self.rolled_back = False
        self._facts = facts
        self._version = version
        self._cluster_id = facts.cluster_id
        self._compared = False

    def check_cluster(self, records: Records, store_id: str = "") -> bool:
        """Whether the cluster exists; False: it is to be founded. Raises CoordinationError when it is not ours."""
        facts, meta_key = self._facts, records.keys.meta
        if facts.store_id and store_id and facts.store_id != store_id and not facts.accept_store:
            raise CoordinationError(
                f"the coordination store has id {store_id}, but this data directory was a member in {facts.store_id}: "
                "the store was made anew, or restored from a backup, and may lack what was decided since; the nodes "
                "would then take the wrong copies for good. If it surely holds the newest records, say --accept-store "
                "at every node"
            )
        if records.revision < facts.revision_seen:
            raise CoordinationError(
                f"the coordination store is at revision {records.revision}, but this data directory has seen revision "
                f"{facts.revision_seen}: the store was wiped or restored from a backup. Restore a newer one, or start "
                "this node with an empty data directory"
            )
        if records.problems:
            key, what = next(iter(records.problems.items()))
            raise CoordinationError(f"the record {key} cannot be read ({what}); was it written by a newer version?")
        if records.meta is None:
            if self._cluster_id:
                raise CoordinationError(
                    f"there is no cluster in the coordination store ({meta_key}), but this data directory belongs to "
                    f"cluster {self._cluster_id}. Check the prefix and the cluster's name; if the store was wiped, "
                    "restore it from a backup"
                )
            return False
        meta = records.meta.record
        if meta.format != FORMAT:
            raise CoordinationError(
                f"the cluster's records have format {meta.format}, this version knows {FORMAT} only: use the version "
                "that the other nodes run"
            )
        if text := problem(meta.level or 1, self.member.levels):
            raise CoordinationError(text)
        if self._cluster_id and self._cluster_id != meta.cluster_id:
            raise CoordinationError(
                f"the coordination store holds cluster {meta.cluster_id}, but this data directory belongs to cluster "
                f"{self._cluster_id}. Check the endpoints, the prefix and the cluster's name"
            )
        self._cluster_id = meta.cluster_id
        return True

    def found(self, records: Records, founding: Founding) -> tuple[list[Compare], list[Put | Delete]]:
        """The transaction that makes the cluster, unless another node was quicker."""
        meta = records.keys.meta
        return [Compare(meta, Field.CREATE, 0)], [Put(meta, founding.value)]

    def check_live(self, live: Kept[cluster_pb2.LiveRecord]) -> None:
        """Whether an earlier session of that name is ours, so that we may end it. Raises CoordinationError."""
        name = self.member.node
        if live.record.directory != self._facts.directory:
            raise NameTakenError(
                f"a node named {name} is alive with another data directory ({live.record.directory}). Give this node "
                "another name, or stop the other one"
            )
        if live.record.boot > self.boot:
            raise CoordinationError(
                f"another process was started as {name} with a copy of this data directory. Stop one of them"
            )

    def register(self, records: Records, lease: int) -> tuple[list[Compare], list[Put | Delete]]:
        """The transaction that raises `boot` and makes the session. Raises CoordinationError."""
        keys, name = records.keys, self.member.node
        stored = records.nodes.get(name)
        if stored is not None:
            self._compare_boot(records, stored.record)
            known = node_ref(name, stored.record, None, 0)
            self.member = replace(self.member, desired=known.desired)
        self._compared = True
        assert records.meta is not None
        compares = [
            Compare(keys.meta, Field.MOD, records.meta.mod_revision),
            Compare(keys.node(name), Field.MOD, stored.mod_revision if stored else 0),
            Compare(keys.live(name), Field.CREATE, 0),
        ]
        return compares, [
            Put(keys.node(name), encode_node(self.member, self.boot)),
            Put(keys.live(name), self.live_value(), lease),
        ]

    def live_value(self) -> bytes:
        """The value of the live key."""
        return self.live_record().SerializeToString(deterministic=True)

    def live_record(self) -> cluster_pb2.LiveRecord:
        """What the live key shall say."""
        return cluster_pb2.LiveRecord(
            boot=self.boot,
            version=self._version,
            directory=self._facts.directory,
            lost_shards=sorted(self.lost_shards),
            unreachable=sorted(self.unreachable),
            level_least=self.member.levels.least,
            level_most=self.member.levels.most,
        )

    def _compare_boot(self, records: Records, stored: cluster_pb2.NodeRecord) -> None:
        """The first time, what is stored is of an earlier start; later it is what we wrote, perhaps unanswered."""
        if stored.directory != self._facts.directory:
            return
        if self._compared:
            if stored.boot > self.boot:
                raise CoordinationError(
                    f"another process was started as {self.member.node} with a copy of this data directory. Stop one"
                )
        elif stored.boot >= self.boot:
            assert records.meta is not None
            self.rolled_back = True
            self.boot = stored.boot + 1
            self.lost_shards = frozenset(range(records.meta.record.shard_count))
