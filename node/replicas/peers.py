"""Connections to all other members: a replication stream each, opened from here, and whether their process runs.

A stream is open to every member that lives, also to those that lead nothing: its end is how the death of a process is
noticed at once. Whether it is dead, or only cut off, a connection attempt tells: one that is refused comes from a
living machine on which nobody listens.

A link that carries nothing any more breaks no stream. So every member is asked about every second (`pulse`), and who
does not answer is reported to the cluster. An answer needs both ways, and the peer's loop: a link that works one way is
as bad as none.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from ringpost.cluster.view import View
from ringpost.internal.v1.peer_pb2 import Data, FenceReplicasRequest, FenceReplicasResponse
from ringpost.node import log
from ringpost.node.replicas.link_report import LinkReport
from ringpost.node.replicas.outbox import ToFollower, ToLeader
from ringpost.node.replicas.peer import Peer, Reach
from ringpost.node.replicas.pulse import LOOK_S
from ringpost.node.replicas.replicator import Replicator
from ringpost.node.tls import Dialer

_FENCE_TRIES = 8
_FENCE_WAIT_S = 0.02


class Peers:
    """One a node. `boxes` of the replicator."""

    def __init__(
        self, replicator: Replicator, *, node: str, reach_changed: Callable[[str, Reach], None], dialer: Dialer
    ) -> None:
        self._replicator = replicator
        self.dialer = dialer
        self._node = node
        self._reach_changed = reach_changed
        self._peers: dict[str, Peer] = {}
        self._session = 0
        self._followers: dict[str, ToFollower] = {}
        self._leaders: dict[str, ToLeader] = {}

    def start(self, view: View) -> None:
        """Connects to all members, also to those that come."""
        coordination = self._replicator.coordination
        self._report = LinkReport(coordination, self._node, self._replicator.spawn)
        self._unwatch = coordination.watch(self.on_view)
        self.on_view(view)
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Ends all connections."""
        self._unwatch()
        self._looking.cancel()
        peers, self._peers = self._peers, {}
        await asyncio.gather(*(peer.close() for peer in peers.values()))

    def on_view(self, view: View) -> None:
        """Members come, go, and come back in another session; so may this node itself."""
        session = self._replicator.coordination.session
        if session != self._session:
            self._session = session
            for peer in self._peers.values():
                peer.greet_again()
        for node in [node for node in self._peers if node not in view.nodes]:
            self._replicator.spawn(self._peers.pop(node).close())
        for node, ref in view.nodes.items():
            known = self._peers.get(node)
            if node == self._node or not ref.alive or not ref.peer_address:
                continue
            if known is not None and known.ref.session == ref.session:
                continue
            if known is not None:
                self._replicator.spawn(known.close())
            self._peers[node] = Peer(self, view.cluster_id, ref)

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(LOOK_S)
            now = clock()
            for peer in self._peers.values():
                peer.look(now)
            self._report.look(self.unreachable)

    # -- boxes ------------------------------------------------------------------------------------------------------

    def to_leader(self, node: str) -> ToLeader:
        """What waits for a node that is followed."""
        box = self._leaders.get(node)
        if box is None:
            box = self._leaders[node] = ToLeader()
        return box

    def to_follower(self, node: str) -> ToFollower:
        """What waits for a node that follows."""
        box = self._followers.get(node)
        if box is None:
            box = self._followers[node] = ToFollower(partial(self._data_for, node))
        return box

    def _data_for(self, node: str, shard: int) -> Data | None:
        core, tracing = self._replicator.cores.get(shard), self._replicator.tracing
        data = core.next_data(node) if core is not None else None
        if data is not None and tracing.on and data.frames:
            for position, traceparent in tracing.frames(shard, data.after):
                data.traces.add(position=position, traceparent=traceparent)
        return data

    # -- reach ------------------------------------------------------------------------------------------------------

    def reach(self) -> dict[str, Reach]:
        """What is known of each other member."""
        return {node: peer.reach for node, peer in self._peers.items()}

    def lost(self, peer: Peer) -> None:
        """The stream to a member broke."""
        if self._peers.get(peer.ref.node) is peer:
            self._replicator.leader_link_lost(peer.ref.node)

    def found(self, peer: Peer, reach: Reach) -> None:
        """Something else is known of a member."""
        if self._peers.get(peer.ref.node) is not peer:
            return
        log.info("peer.reach", peer=peer.ref.node, reach=reach.value)
        if reach is Reach.REFUSED:
            self._replicator.node_lost(peer.ref.node, peer.ref.session)
        self._reach_changed(peer.ref.node, reach)

    @property
    def unreachable(self) -> frozenset[str]:
        """Members that live and do not answer."""
        nodes = self._replicator.coordination.view.nodes
        silent = (peer.ref for peer in self._peers.values() if not peer.reachable)
        return frozenset(ref.node for ref in silent if ref.node in nodes and nodes[ref.node].session == ref.session)

    async def fence(self, node: str, request: FenceReplicasRequest, seconds: float) -> FenceReplicasResponse | None:
        """Asks a member for an election; None when it does not answer in time."""
        if node == self._node:
            return await fence_here(self._replicator, request)
        peer = self._peers.get(node)
        return None if peer is None else await peer.fence(request, seconds)

    @property
    def replicator(self) -> Replicator:
        return self._replicator

    @property
    def node(self) -> str:
        return self._node


async def fence_here(replicator: Replicator, request: FenceReplicasRequest) -> FenceReplicasResponse:
    """Fences the replicas that are here; a copy that is just being made is waited for."""
    response = FenceReplicasResponse()
    left = list(request.replicas)
    for _ in range(_FENCE_TRIES):
        waiting = []
        for wanted in left:
            end = replicator.fence(wanted.shard, wanted.replica_id, wanted.new_epoch)
            if end is None:
                waiting.append(wanted)
            else:
                response.replicas.add(
                    shard=wanted.shard, replica_id=wanted.replica_id, last_epoch=end.last_epoch, end=end.end
                )
        left = waiting
        if not left:
            break
        await asyncio.sleep(_FENCE_WAIT_S)
    return response
