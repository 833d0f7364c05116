"""Connections to all other members: a replication stream each, opened from here, and whether their process runs.

A stream is open to every member that lives, also to those that lead nothing: its end is how the death of a process is
noticed at once. Whether it is dead, or only cut off, a connection attempt tells: one that is refused comes from a
living machine on which nobody listens.
"""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any

import grpc

from ringpost.cluster.view import NodeRef, View
from ringpost.internal.v1.peer_pb2 import (
    FenceReplicasRequest,
    FenceReplicasResponse,
    Hello,
    ReplicateRequest,
    ReplicateResponse,
)
from ringpost.node import log
from ringpost.node.replicas.outbox import ToFollower, ToLeader
from ringpost.node.replicas.replicator import Replicator

SERVICE = "ringpost.internal.v1.PeerService"
_BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5)
_PROBE_S = 0.5
_END: Any = grpc.aio.EOF


class Reach(Enum):
    """What is known of a member's process."""

    UP = "up"
    REFUSED = "refused"
    UNKNOWN = "unknown"


def channel_options() -> list[tuple[str, int]]:
    """gRPC's settings of a connection to a peer."""
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


class Peers:
    """One a node. `boxes` of the replicator."""

    def __init__(self, replicator: Replicator, *, node: str, reach_changed: Callable[[str, Reach], None]) -> None:
        self._replicator = replicator
        self._node = node
        self._reach_changed = reach_changed
        self._peers: dict[str, Peer] = {}
        self._session = 0
        self._followers: dict[str, ToFollower] = {}
        self._leaders: dict[str, ToLeader] = {}

    def start(self, view: View) -> None:
        """Connects to all members, also to those that come."""
        self._unwatch = self._replicator.coordination.watch(self.on_view)
        self.on_view(view)

    async def close(self) -> None:
        """Ends all connections."""
        self._unwatch()
        peers, self._peers = self._peers, {}
        await asyncio.gather(*(peer.close() for peer in peers.values()))

    def on_view(self, view: View) -> None:
        """Members come, go, and come back in another session; so may this node itself."""
        session = self._replicator.coordination.session
        if session != self._session:
            self._session = session
            for peer in self._peers.values():
                peer.greet_again()
        for node, ref in view.nodes.items():
            known = self._peers.get(node)
            if node == self._node or not ref.alive or not ref.peer_address:
                continue
            if known is not None and known.ref.session == ref.session:
                continue
            if known is not None:
                self._replicator.spawn(known.close())
            self._peers[node] = Peer(self, view.cluster_id, ref)

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
            cores = self._replicator.cores
            box = self._followers[node] = ToFollower(
                lambda shard: cores[shard].next_data(node) if shard in cores else None
            )
        return box

    # -- reach ------------------------------------------------------------------------------------------------------

    def reach(self) -> "dict[str, Reach]":
        """What is known of each other member."""
        return {node: peer.reach for node, peer in self._peers.items()}

    def lost(self, peer: "Peer") -> None:
        """The stream to a member broke."""
        self._replicator.leader_link_lost(peer.ref.node)

    def found(self, peer: "Peer", reach: Reach) -> None:
        """Something else is known of a member."""
        if self._peers.get(peer.ref.node) is not peer:
            return
        log.info("peer.reach", peer=peer.ref.node, reach=reach.value)
        if reach is Reach.REFUSED:
            self._replicator.node_lost(peer.ref.node, peer.ref.session)
        self._reach_changed(peer.ref.node, reach)

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


class Peer:
    """One member in one session: its connection, the stream to it."""

    def __init__(self, owner: Peers, cluster_id: str, ref: NodeRef) -> None:
        self.ref = ref
        self.reach = Reach.UNKNOWN
        self._owner = owner
        self._cluster_id = cluster_id
        self._closed = False
        self._call: Any = None
        self._channel = grpc.aio.insecure_channel(ref.peer_address, options=channel_options())
        self._replicate = self._channel.stream_stream(
            f"/{SERVICE}/Replicate",
            request_serializer=ReplicateRequest.SerializeToString,
            response_deserializer=ReplicateResponse.FromString,
        )
        self._fence = self._channel.unary_unary(
            f"/{SERVICE}/FenceReplicas",
            request_serializer=FenceReplicasRequest.SerializeToString,
            response_deserializer=FenceReplicasResponse.FromString,
        )
        self._running = asyncio.get_running_loop().create_task(self._run())

    def greet_again(self) -> None:
        """This node has another session: what it said in the old one counts no more."""
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        """Ends the connection."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._channel.close()

    async def fence(self, request: FenceReplicasRequest, seconds: float) -> FenceReplicasResponse | None:
        """See `Peers.fence`."""
        try:
            return await self._fence(request, timeout=seconds)
        except grpc.aio.AioRpcError:
            return None

    async def _run(self) -> None:
        tries = 0
        while True:
            worked = await self._stream()
            self._owner.lost(self)
            tries = 0 if worked else tries + 1
            self._know(await self._probe())
            await asyncio.sleep(_BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])

    async def _stream(self) -> bool:
        """One stream from beginning to end; whether the other side ever said hello."""
        box = self._owner.to_leader(self.ref.node)
        box.clear()
        call = self._call = self._replicate()
        writer = asyncio.get_running_loop().create_task(self._write(call, box))
        greeted = False
        try:
            while True:
                message: Any = await call.read()
                if message is _END:
                    break
                if not greeted:
                    greeted = True
                    self._know(Reach.UP)
                self._take(message)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                log.warning("peer.stream_ended", peer=self.ref.node, why=error.details())
        except asyncio.CancelledError:
            # So ends a read whose call is cancelled, too, by `greet_again`.
            if self._closed:
                raise
        finally:
            call.cancel()
            writer.cancel()  # a write may wait for ever when its call ends before the connection stands
            await asyncio.gather(writer, return_exceptions=True)
        return greeted

    async def _write(self, call: Any, box: ToLeader) -> None:
        hello = Hello(
            cluster_id=self._cluster_id,
            node=self._owner.node,
            session=self._owner.replicator.coordination.session,
            to=self.ref.node,
        )
        await call.write(ReplicateRequest(hello=hello))
        while not call.done():
            await box.waiting.wait()
            if call.done():
                return
            await call.write(box.take())

    def _take(self, message: ReplicateResponse) -> None:
        replicator, node = self._owner.replicator, self.ref.node
        cores, now = replicator.cores, replicator.clock()
        for refused in message.refused:
            if refused.shard in cores:
                cores[refused.shard].on_refused(node, refused, now)
        for diverged in message.diverged:
            if diverged.shard in cores:
                cores[diverged.shard].on_diverged(node, diverged, now)
        for data in message.data:
            if data.shard in cores:
                cores[data.shard].on_data(node, data, now)
        for part in message.snapshot:
            replicator.on_snapshot(node, part)

    async def _probe(self) -> Reach:
        host, _, port = self.ref.peer_address.rpartition(":")
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            return Reach.REFUSED
        except (OSError, TimeoutError):
            return Reach.UNKNOWN
        writer.close()
        return Reach.UNKNOWN

    def _know(self, reach: Reach) -> None:
        if reach is not self.reach:
            self.reach = reach
            self._owner.found(self, reach)


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


_FENCE_TRIES = 8
_FENCE_WAIT_S = 0.02
