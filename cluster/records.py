"""The cluster's records: keys and bytes in the coordination store, and the view that they make. Pure.

`proto/ringpost/internal/v1/cluster.proto` says what is kept under which key.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from ringpost.cluster.kv import Change, Item, Picture
from ringpost.cluster.levels import OWN, Levels
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, Role, ShardRecord, Tombstone, View
from ringpost.internal.v1 import cluster_pb2

FORMAT = 1

_DESIRED_TO_PB = {
    Desired.ACTIVE: cluster_pb2.DESIRED_ACTIVE,
    Desired.DRAIN: cluster_pb2.DESIRED_DRAIN,
    Desired.REST: cluster_pb2.DESIRED_REST,
}
_DESIRED = {number: desired for desired, number in _DESIRED_TO_PB.items()}
_ROLE_TO_PB = {
    Role.MEMBER: cluster_pb2.REPLICA_ROLE_MEMBER,
    Role.LEARNER: cluster_pb2.REPLICA_ROLE_LEARNER,
    Role.LEAVING: cluster_pb2.REPLICA_ROLE_LEAVING,
}
_ROLE = {number: role for role, number in _ROLE_TO_PB.items()}


class RecordError(Exception):
    """A value is not what belongs under its key."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster. `prefix` ends with "/"."""

    prefix: str

    def __post_init__(self) -> None:
        assert self.prefix.endswith("/"), self.prefix

    @property
    def meta(self) -> str:
        """ClusterRecord."""
        return f"{self.prefix}meta"

    @property
    def controller(self) -> str:
        """ControllerRecord, under the controller's lease."""
        return f"{self.prefix}controller"

    def node(self, node: str) -> str:
        """NodeRecord."""
        return f"{self.prefix}node/{node}"

    def live(self, node: str) -> str:
        """LiveRecord, under the node's lease."""
        return f"{self.prefix}live/{node}"

    def shard(self, shard: int) -> str:
        """ShardState."""
        return f"{self.prefix}shard/{shard:08}"

    def tomb(self, shard: int, replica_id: str) -> str:
        """Tombstone."""
        return f"{self.prefix}tomb/{shard}/{replica_id}"


def encode_shard(record: ShardRecord) -> bytes:
    """The value of a shard's key; `revision` is the key's own and not in it."""
    state = cluster_pb2.ShardState(
        epoch=record.epoch,
        in_sync=record.in_sync,
        replicas=(
            cluster_pb2.ReplicaState(
                node=replica.node,
                replica_id=replica.replica_id,
                role=_ROLE_TO_PB[replica.role],
                directory=replica.directory,
            )
            for replica in record.replicas
        ),
        min_isr=record.min_isr,
        transfer_to=record.transfer_to,
        unclean_count=record.unclean_count,
        handed_over=record.handed_over,
    )
    if record.leader is not None:
        leader = record.leader
        state.leader.CopyFrom(
            cluster_pb2.LeaderState(node=leader.node, replica_id=leader.replica_id, session=leader.session)
        )
    return state.SerializeToString(deterministic=True)


def decode_shard(shard: int, value: bytes, revision: int) -> ShardRecord:
    """Raises RecordError."""
    state = parse(cluster_pb2.ShardState, value, f"shard {shard}")
    leader = None
    if state.HasField("leader"):
        leader = Leader(state.leader.node, state.leader.replica_id, state.leader.session)
    try:
        return ShardRecord(
            shard=shard,
            epoch=state.epoch,
            leader=leader,
            in_sync=tuple(state.in_sync),
            replicas=tuple(
                Replica(replica.node, replica.replica_id, _ROLE[replica.role], replica.directory)
                for replica in state.replicas
            ),
            min_isr=state.min_isr,
            revision=revision,
            transfer_to=state.transfer_to,
            unclean_count=state.unclean_count,
            handed_over=state.handed_over,
        )
    except (AssertionError, KeyError) as error:
        raise RecordError(f"shard {shard}: {error}") from error


def encode_tomb(replica: Replica) -> bytes:
    """The value of a replica's tombstone."""
    return cluster_pb2.Tombstone(node=replica.node, directory=replica.directory).SerializeToString(deterministic=True)


def decode_tomb(name: str, item: Item) -> Tombstone:
    """`name` is the key without its prefix: `<shard>/<replica id>`. Raises RecordError, ValueError."""
    shard, _, replica_id = name.partition("/")
    tomb = parse(cluster_pb2.Tombstone, item.value, f"tombstone {name}")
    return Tombstone(int(shard), replica_id, tomb.node, tomb.directory, item.mod_revision)


def encode_node(member: NodeRef, boot: int) -> bytes:
    """The permanent value of a member's key."""
    return cluster_pb2.NodeRecord(
        boot=boot,
        zone=member.zone,
        address=member.address,
        peer_address=member.peer_address,
        desired=_DESIRED_TO_PB[member.desired],
        directory=member.directory,
        weight=member.weight,
        host=member.host,
    ).SerializeToString(deterministic=True)


def node_ref(name: str, node: cluster_pb2.NodeRecord, live: cluster_pb2.LiveRecord | None, session: int) -> NodeRef:
    """A member; `live` None: it is not alive."""
    return NodeRef(
        node=name,
        address=node.address,
        zone=node.zone,
        peer_address=node.peer_address,
        session=session if live is not None else 0,
        desired=_DESIRED.get(node.desired, Desired.ACTIVE),
        directory=node.directory,
        lost_shards=frozenset(live.lost_shards) if live is not None else frozenset(),
        weight=node.weight or 1000,
        host=node.host,
        unreachable=frozenset(live.unreachable) if live is not None else frozenset(),
        levels=Levels(live.level_least or 1, live.level_most or 1) if live is not None else OWN,
    )


M = TypeVar("M", bound=Message)


def parse(kind: type[M], value: bytes, what: str) -> M:
    """A message. Raises RecordError."""
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise RecordError(f"{what}: not a {kind.DESCRIPTOR.name}") from error


@dataclass(frozen=True, slots=True)
class Kept(Generic[M]):
    """A decoded record with the revisions and the lease of its key."""

    record: M
    create_revision: int
    mod_revision: int
    lease: int


class Records:
    """All records as of `revision` (0: none were read), decoded once each, and the view they make.

    `problems` holds for each key whose newest value makes no sense what is wrong; its last good value is kept.
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.revision = 0
        self.meta: Kept[cluster_pb2.ClusterRecord] | None = None
        self.controller: Kept[cluster_pb2.ControllerRecord] | None = None
        self.nodes: dict[str, Kept[cluster_pb2.NodeRecord]] = {}
        self.lives: dict[str, Kept[cluster_pb2.LiveRecord]] = {}
        self.shards: dict[int, ShardRecord] = {}
        self.tombs: dict[str, Tombstone] = {}
        self.problems: dict[str, str] = {}
        self._mods: dict[str, int] = {}
        # What a view is made of, made again only when something in it has changed.
        self._refs: dict[str, NodeRef] | None = None
        self._in_order: tuple[ShardRecord, ...] | None = None

    def reset(self, picture: Picture) -> bool:
        """Takes everything from a picture, and decodes what it has not decoded. False when it is not newer."""
        if picture.revision <= self.revision:
            return False
        present = {item.key for item in picture.items}
        for key in [key for key in self._mods if key not in present]:
            self._take(key, None)
        for item in picture.items:
            if self._mods.get(item.key) != item.mod_revision:
                self._take(item.key, item)
        self.revision = picture.revision
        return True

    def apply(self, change: Change) -> bool:
        """Takes one revision. False when it is not newer."""
        if change.revision <= self.revision:
            return False
        for key, item in change.items:
            self._take(key, item)
        self.revision = change.revision
        return True

    def view(self) -> View:
        """The view of now. Raises RecordError while there is no cluster's record."""
        if self.meta is None:
            raise RecordError(f"there is no {self.keys.meta}")
        meta = self.meta.record
        if self._in_order is None:
            whole = all(shard in self.shards for shard in range(meta.shard_count))
            self._in_order = tuple(self.shards[i] for i in range(meta.shard_count)) if whole else ()
        if self._refs is None:
            self._refs = self._make_refs()
        controller = self.controller
        return View(
            revision=self.revision,
            cluster_id=meta.cluster_id,
            shard_count=meta.shard_count,
            nodes=self._refs,
            shards=self._in_order,
            controller=controller.record.node if controller else "",
            controller_term=controller.create_revision if controller else 0,
            replication_factor=meta.replication_factor or 1,
            min_isr=meta.min_isr or 1,
            tombs=tuple(self.tombs.values()) if self.tombs else (),
            level=meta.level or 1,
        )

    def _make_refs(self) -> dict[str, NodeRef]:
        refs = {}
        for name in sorted(self.nodes):
            live = self.lives.get(name)
            refs[name] = node_ref(
                name,
                self.nodes[name].record,
                live.record if live else None,
                live.create_revision if live else 0,
            )
        for name in self._leaders():
            refs.setdefault(name, NodeRef(name, ""))  # was removed, and not yet replaced as a leader
        return refs

    def _leaders(self) -> Iterable[str]:
        return {record.leader.node for record in self.shards.values() if record.leader is not None}

    def _take(self, key: str, item: Item | None) -> None:
        kind, _, name = key.removeprefix(self.keys.prefix).partition("/")
        self.problems.pop(key, None)
        if item is None:
            self._mods.pop(key, None)
        else:
            self._mods[key] = item.mod_revision
        try:
            self._take_kind(kind, name, item)
        except (RecordError, ValueError) as error:
            self.problems[key] = str(error)

    def _take_kind(self, kind: str, name: str, item: Item | None) -> None:
        match kind:
            case "shard":
                number = int(name)
                old = self.shards.get(number)
                new = decode_shard(number, item.value, item.mod_revision) if item else None
                _set(self.shards, number, new)
                self._in_order = None
                if _leader_node(old) != _leader_node(new):
                    self._refs = None
            case "node":
                _set(self.nodes, name, _keep(cluster_pb2.NodeRecord, item))
                self._refs = None
            case "live":
                _set(self.lives, name, _keep(cluster_pb2.LiveRecord, item))
                self._refs = None
            case "tomb":
                _set(self.tombs, name, decode_tomb(name, item) if item else None)
            case "meta":
                self.meta = _keep(cluster_pb2.ClusterRecord, item)
                self._in_order = None
            case "controller":
                self.controller = _keep(cluster_pb2.ControllerRecord, item)


K = TypeVar("K")
V = TypeVar("V")


def _set(kept: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        kept.pop(key, None)
    else:
        kept[key] = value


def _keep(kind: type[M], item: Item | None) -> Kept[M] | None:
    if item is None:
        return None
    return Kept(parse(kind, item.value, item.key), item.create_revision, item.mod_revision, item.lease)


def _leader_node(record: ShardRecord | None) -> str:
    return record.leader.node if record is not None and record.leader is not None else ""
