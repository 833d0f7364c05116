"""Coordination without a cluster: one node that owns every shard."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ringpost.cluster.coordination import Coordination, CoordinationError, Proposal
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, ShardRecord, Tombstone, View


class EmbeddedCoordination(Coordination):
    """A `Coordination` of one node.

    `boot` is how often the data directory was started, this time included, so at least 1: it is the session and every
    shard's epoch, and it makes the view's revisions grow over restarts. `replica_id` is the directory's id.
    """

    def __init__(self, *, cluster_id: str, replica_id: str, shard_count: int, boot: int) -> None:
        if shard_count < 1 or boot < 1:
            raise ValueError("shard_count and boot begin at 1")
        self._cluster_id = cluster_id
        self._replica_id = replica_id
        self._shard_count = shard_count
        self._boot = boot
        self._view: View | None = None
        self._watchers: dict[object, Callable[[View], None]] = {}
        self._closed = False

    async def start(self, member: NodeRef) -> View:
        if self._view is not None:
            raise CoordinationError("started already")
        self._view = self._make_view(2 * self._boot, dataclasses.replace(member, session=self._boot))
        return self._view

    @property
    def name(self) -> str:
        return "embedded"

    @property
    def view(self) -> View:
        if self._view is None:
            raise CoordinationError("not started")
        return self._view

    @property
    def session(self) -> int:
        if self._view is None:
            raise CoordinationError("not started")
        return self._boot

    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]:
        key = object()
        self._watchers[key] = callback

        def end() -> None:
            self._watchers.pop(key, None)

        return end

    async def refresh(self) -> View:
        return self.view

    async def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> Proposal:
        return Proposal.CONFLICT

    async def report_lost(self, shards: frozenset[int]) -> None:
        raise CoordinationError("this node is alone: there is no other copy of what is damaged")

    async def remove_tombs(self, tombs: Sequence[Tombstone]) -> None:
        raise CoordinationError("this node is alone: no replica was ever moved away")

    async def report_unreachable(self, nodes: frozenset[str]) -> None:
        raise CoordinationError("this node is alone: there is nobody to be reached")

    async def set_desired(self, node: str, desired: Desired) -> None:
        if node not in self.view.nodes:
            raise KeyError(node)
        if desired is not Desired.ACTIVE:
            raise CoordinationError("this node is alone: there is nobody to hand over to")

    async def remove_node(self, node: str) -> None:
        if node not in self.view.nodes:
            raise KeyError(node)
        raise ValueError(f"{node} is alive")

    async def close(self) -> None:
        """The last view has no node and no leader."""
        if self._closed:
            return
        self._closed = True
        if self._view is not None:
            self._view = self._make_view(2 * self._boot + 1, None)
            for callback in tuple(self._watchers.values()):
                callback(self._view)
        self._watchers.clear()

    def _make_view(self, revision: int, member: NodeRef | None) -> View:
        node = "" if member is None else member.node
        if member is None and self._view is not None:
            (node,) = self._view.nodes
        leader = None if member is None else Leader(node, self._replica_id, self._boot)
        replicas = (Replica(node, self._replica_id),)
        records = (
            ShardRecord(
                shard=shard,
                epoch=self._boot,
                leader=leader,
                in_sync=(self._replica_id,),
                replicas=replicas,
                min_isr=1,
                revision=revision,
            )
            for shard in range(self._shard_count)
        )
        nodes = {} if member is None else {member.node: member}
        return View(revision, self._cluster_id, self._shard_count, nodes, tuple(records))
