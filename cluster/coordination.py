"""How a node takes part in a cluster: the border behind which membership and ownership are decided.

The node knows only this. The embedded implementation (`embedded`) is one node that owns everything; `kv_coordination`
works on a coordination store (`kv`): etcd, or a store in this process.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from ringpost.cluster.view import Desired, NodeRef, ShardRecord, Tombstone, View


class CoordinationError(Exception):
    """The node must not serve: the cluster is another one, is older than this directory, or cannot be reached."""


class Proposal(Enum):
    """What became of a proposed record."""

    ACCEPTED = "accepted"
    CONFLICT = "conflict"  # the record, or a session, was another one meanwhile: nothing changed
    UNKNOWN = "unknown"  # perhaps changed, perhaps later: propose the very same again, or wait for a newer record


class Coordination(Protocol):
    """One node's membership. All calls come from the loop's thread, and so do all callbacks."""

    async def start(self, member: NodeRef) -> View:
        """Joins: makes the session, and returns the view in which this node is a member. Once.

        Raises CoordinationError when it may not join.
        """

    @property
    def name(self) -> str:
        """What stores the membership, for people."""

    @property
    def view(self) -> View:
        """The newest view. Its revision never falls. Not before `start`."""

    @property
    def session(self) -> int:
        """The number of this membership, above 0: greater with every start of any node. Not before `start`."""

    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]:
        """Calls back with each later view, in order; views between may be left out. Returns what ends the watch.

        A lost session shows as a view in which this node has another session than `session`, or is not alive; the
        implementation then makes a new session by itself (`session` changes with the view that shows it). A callback
        must not raise and must not wait.
        """

    async def refresh(self) -> View:
        """A linearizable read; the newest view, never an older one than before. Raises CoordinationError."""

    async def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> Proposal:
        """Replaces a shard's record, whose revision still is `record.revision`, if these nodes have these sessions.

        The new record shows in a later view, perhaps before this returns.
        """

    async def report_lost(self, shards: frozenset[int]) -> None:
        """Says which copies in this directory are damaged and must be made anew. Raises CoordinationError."""

    async def remove_tombs(self, tombs: Sequence[Tombstone]) -> None:
        """Says that these replicas are gone for good; a later view shows which are left. Raises CoordinationError."""

    async def report_unreachable(self, nodes: frozenset[str]) -> None:
        """Says which members that live this node cannot reach; `View.nodes` shows it. Raises CoordinationError."""

    async def set_desired(self, node: str, desired: Desired) -> None:
        """Says what is wanted of a member. Raises KeyError for an unknown one, CoordinationError."""

    async def remove_node(self, node: str) -> None:
        """Forgets a member. Raises KeyError, ValueError when it lives or holds replicas, CoordinationError."""

    async def close(self) -> None:
        """Leaves: gives the session up, so that nobody takes this node for alive. No callbacks after it. Idempotent."""
