"""How a node takes part in a cluster: the border behind which membership and ownership are decided.

The node knows only this. The embedded implementation (`embedded`) is one node that owns everything. One on a consensus
store keeps a lease for the session, reads its records linearizably before `start` returns, follows them by
a watch, and changes shard records by a compare-and-swap on `ShardRecord.revision`.
"""

from collections.abc import Callable
from typing import Protocol

from ringpost.cluster.view import NodeRef, View


class CoordinationError(Exception):
    """The node must not serve: the cluster is another one, is older than this directory, or cannot be reached."""


class Coordination(Protocol):
    """One node's membership. All calls come from the loop's thread, and so do all callbacks."""

    async def start(self, member: NodeRef) -> View:
        """Joins: makes the session, and returns the view in which this node is a member. Once.

        Raises CoordinationError when it may not join.
        """

    @property
    def view(self) -> View:
        """The newest view. Its revision never falls. Not before `start`."""

    @property
    def session(self) -> int:
        """The number of this membership, above 0: greater with every start of any node. Not before `start`."""

    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]:
        """Calls back with each later view, in order; views between may be left out. Returns what ends the watch.

        A lost session shows as a view without this node. A callback must not raise and must not wait.
        """

    async def close(self) -> None:
        """Leaves: gives the session up, so that nobody takes this node for alive. No callbacks after it. Idempotent."""
