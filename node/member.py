"""A node as a member of a cluster: its replicas, the connections to other members, its part in controlling."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import grpc

from ringpost.cluster.controller.decisions import End, FenceRequest, NewId
from ringpost.cluster.controller.decisions import Reach as ReachWord
from ringpost.cluster.controller.loop import FENCE_TIMEOUT_S, ControllerLoop
from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.view import Desired, NodeRef, View
from ringpost.internal.v1.peer_pb2 import FenceReplica, FenceReplicasRequest
from ringpost.node import log
from ringpost.node.journal.identity import Identity, save_identity
from ringpost.node.replicas.peer import Reach
from ringpost.node.replicas.peers import Peers
from ringpost.node.replicas.replicator import Replicator
from ringpost.node.replicas.service import PeerServer
from ringpost.node.storage import Storage
from ringpost.node.tls import Dialer
from ringpost.node.tracing import Tracing

_WORDS: dict[Reach, ReachWord] = {Reach.UP: "up", Reach.REFUSED: "refused", Reach.UNKNOWN: "unknown"}


def monotonic_us() -> int:
    """A clock that never falls."""
    return time.monotonic_ns() // 1000


def new_replica_id() -> str:
    """32 random hex digits."""
    return os.urandom(16).hex()


class Member:
    """Built before the ports are open; `join` when others can reach them."""

    def __init__(
        self,
        storage: Storage,
        coordination: KvCoordination,
        *,
        node: str,
        serving_changed: Callable[[bool], None] = lambda _: None,
        new_id: NewId = new_replica_id,
        dialer: Dialer | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.coordination = coordination
        self._storage = storage
        self._node = node
        self.replicator = Replicator(
            storage.store,
            coordination,
            storage.reader,
            monotonic_us,
            node=node,
            directory=storage.identity.directory_id.hex(),
            serving_changed=serving_changed,
            made_whole=self._made_whole,
            tracing=tracing,
        )
        storage.reading.mends = lambda channel, what: self.replicator.damaged(channel.shard, what)
        self.peers = Peers(
            self.replicator, node=node, reach_changed=lambda *_: self.controller.wake(), dialer=dialer or Dialer()
        )
        self.replicator.boxes = self.peers
        self.server = PeerServer(self.replicator, self.peers, node=node)
        self.controller = ControllerLoop(coordination, node, fence=self._fence, reachability=self._reach, new_id=new_id)
        self._controlling: asyncio.Task[None] | None = None
        self._saving = asyncio.Lock()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the peer port serves beside the public API."""
        return self.server.handlers()

    async def join(self, ref: NodeRef) -> View:
        """Becomes a member; the peer port is open. Raises CoordinationError."""
        view = await self.coordination.start(ref)
        await self._adopt(view)
        view = self.coordination.view  # there may be a newer one by now
        self.server.open = True
        self.replicator.start(view)
        self.peers.start(view)
        self._controlling = asyncio.get_running_loop().create_task(self.controller.run())
        return view

    async def _adopt(self, view: View) -> None:
        """From now on the directory belongs to this cluster.

        A directory that was rolled back keeps its own boot counter, which is too low, so that it counts as rolled back
        at its next start too: until the cluster counts on nothing any more that it held.
        """
        identity = self._storage.identity
        changed = replace(
            identity,
            cluster_id=view.cluster_id,
            view_revision=max(view.revision, identity.view_revision),
            store_id=self.coordination.store_id or identity.store_id,
        )
        self._storage.identity = changed
        async with self._saving:
            await asyncio.to_thread(save_identity, self._storage.directory, self._storage.files, changed)

    def remember(self, revision: int) -> None:
        """Keeps on the disk which revision of the store this directory has seen."""
        if revision > self._storage.identity.view_revision > 0:
            self.replicator.spawn(self._save(replace(self._storage.identity, view_revision=revision)))

    def _made_whole(self) -> None:
        """Nothing that this directory held is lost, or counted on."""
        if self._storage.identity.boot != self.coordination.boot:
            self.replicator.spawn(self._save(replace(self._storage.identity, boot=self.coordination.boot)))

    async def _save(self, identity: Identity) -> None:
        self._storage.identity = identity
        async with self._saving:
            try:
                await asyncio.to_thread(save_identity, self._storage.directory, self._storage.files, identity)
            except OSError as error:
                log.warning("identity.not_saved", error=str(error))

    async def activate(self) -> None:
        """A node that rested for its restart takes its share again."""
        ref = self.coordination.view.nodes.get(self._node)
        if ref is None or ref.desired is not Desired.REST:
            return
        try:
            await self.coordination.set_desired(self._node, Desired.ACTIVE)
        except (CoordinationError, KeyError) as error:
            log.warning("node.not_activated", error=str(error))

    @property
    def has_company(self) -> bool:
        """Whether another member lives that may take over."""
        nodes = self.coordination.view.nodes.items()
        return any(ref.alive and ref.desired is Desired.ACTIVE for node, ref in nodes if node != self._node)

    async def leave(self) -> None:
        """Takes part no more; the streams of peers have ended, or are about to."""
        if self._controlling is not None:
            self._controlling.cancel()
            await asyncio.gather(self._controlling, return_exceptions=True)
            await self.controller.resign()
            await self.peers.close()
            await self.replicator.close()
        await self.coordination.close()

    # -- what the controller asks -----------------------------------------------------------------------------------

    def _reach(self) -> Mapping[str, ReachWord]:
        words: dict[str, ReachWord] = {node: _WORDS[reach] for node, reach in self.peers.reach().items()}
        words[self._node] = "up"
        return words

    async def _fence(self, node: str, request: FenceRequest) -> Sequence[End] | None:
        message = FenceReplicasRequest(
            cluster_id=request.cluster_id,
            term=request.term,
            replicas=[
                FenceReplica(shard=one.shard, replica_id=one.replica_id, new_epoch=one.epoch)
                for one in request.replicas
            ],
        )
        answer = await self.peers.fence(node, message, FENCE_TIMEOUT_S)
        if answer is None:
            log.info("election.no_answer", node=node)
            return None
        return [End(one.shard, one.replica_id, one.last_epoch, one.end) for one in answer.replicas]
