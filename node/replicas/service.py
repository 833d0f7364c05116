"""PeerService: the side of a replication stream that leads, and fencing."""

import asyncio
from typing import Any

import grpc

from ringpost.internal.v1.peer_pb2 import (
    FenceReplicasRequest,
    FenceReplicasResponse,
    Hello,
    PingRequest,
    PingResponse,
    ReplicateRequest,
    ReplicateResponse,
)
from ringpost.node import log
from ringpost.node.replicas.outbox import ToFollower
from ringpost.node.replicas.peer import SERVICE
from ringpost.node.replicas.peers import Peers, fence_here
from ringpost.node.replicas.replicator import Replicator
from ringpost.node.tls import shows

_HELLO_TRIES = 20
_HELLO_WAIT_S = 0.05
_END: Any = grpc.aio.EOF


class PeerServer:
    """One a node."""

    def __init__(self, replicator: Replicator, peers: Peers, *, node: str) -> None:
        self._replicator = replicator
        self._peers = peers
        self._node = node
        self._streams: dict[str, Any] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._term = 0
        self.open = False  # until this node is a member

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server."""
        replicate: Any = grpc.stream_stream_rpc_method_handler(
            self.replicate,
            request_deserializer=ReplicateRequest.FromString,
            response_serializer=ReplicateResponse.SerializeToString,
        )
        fence: Any = grpc.unary_unary_rpc_method_handler(
            self.fence,
            request_deserializer=FenceReplicasRequest.FromString,
            response_serializer=FenceReplicasResponse.SerializeToString,
        )
        ping: Any = grpc.unary_unary_rpc_method_handler(
            self.ping,
            request_deserializer=PingRequest.FromString,
            response_serializer=PingResponse.SerializeToString,
        )
        methods = {"Replicate": replicate, "FenceReplicas": fence, "Ping": ping}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def ping(self, request: PingRequest, context: Any) -> PingResponse:
        """This node answers."""
        if not self.open:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not a member yet")
        if request.to != self._node:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is node {self._node!r}")
        return PingResponse()

    async def fence(self, request: FenceReplicasRequest, context: Any) -> FenceReplicasResponse:
        """For an election."""
        if not self.open:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not a member yet")
        view = self._replicator.coordination.view
        if request.cluster_id != view.cluster_id or request.term < self._term:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another cluster, or an older controller")
        if not any(shows(context, node) for node in view.nodes):
            log.warning("peer.not_a_member", method="FenceReplicas", peer=context.peer())
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the certificate is no member's, or not yet")
        self._term = request.term
        return await fence_here(self._replicator, request)

    async def replicate(self, _requests: object, context: Any) -> None:
        """A follower's stream."""
        first = await context.read()
        if first is _END or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "hello comes first")
        hello = first.hello
        problem = await self._problem_of(hello) if shows(context, hello.node) else "another node's certificate"
        if problem:
            await context.abort(grpc.StatusCode.UNAVAILABLE, problem)
        box = self._peers.to_follower(hello.node)
        if hello.node in self._streams:  # its connection broke, and this side has not noticed
            box.clear()
            self._replicator.follower_link_lost(hello.node)
        stream = self._streams[hello.node] = object()
        reader = asyncio.get_running_loop().create_task(self._read(context, hello, stream, first))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        reader.add_done_callback(lambda _: box.waiting.set())
        try:
            await self._write(context, hello, stream, box, reader)
        finally:
            if self._streams.get(hello.node) is stream:
                del self._streams[hello.node]
                box.clear()
                self._replicator.follower_link_lost(hello.node)

    async def _problem_of(self, hello: Hello) -> str:
        """Waits a little for a view in which the follower has its session; what is wrong with the hello, or ""."""
        coordination = self._replicator.coordination
        if not self.open:
            return "this node is not a member yet"
        if hello.cluster_id != coordination.view.cluster_id or hello.to != self._node:
            return f"this is node {self._node!r} of cluster {coordination.view.cluster_id}"
        for _ in range(_HELLO_TRIES):
            ref = coordination.view.nodes.get(hello.node)
            if ref is not None and ref.session == hello.session:
                return ""
            if ref is not None and ref.session > hello.session:
                break
            await asyncio.sleep(_HELLO_WAIT_S)
        return f"session {hello.session} of node {hello.node!r} is not the one that lives"

    async def _write(
        self, context: Any, hello: Hello, stream: object, box: ToFollower, reader: "asyncio.Task[None]"
    ) -> None:
        answer = Hello(
            cluster_id=hello.cluster_id,
            node=self._node,
            session=self._replicator.coordination.session,
            to=hello.node,
        )
        await context.write(ReplicateResponse(hello=answer))
        while not reader.done() and self._streams.get(hello.node) is stream:
            message = box.take()
            if message is None:
                await box.waiting.wait()
                continue
            try:
                await context.write(message)
            except grpc.aio.InternalError:
                return

    async def _read(self, context: Any, hello: Hello, stream: object, first: ReplicateRequest) -> None:
        message = first
        try:
            while message is not _END and self._streams.get(hello.node) is stream:
                self._take(hello, message)
                message = await context.read()
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            return  # the call is over, one way or another
        except Exception as error:
            log.error("peer.read_failed", peer=hello.node, exception=error)

    def _take(self, hello: Hello, message: ReplicateRequest) -> None:
        replicator = self._replicator
        cores, now, node, session = replicator.cores, replicator.clock(), hello.node, hello.session
        for fetch in message.fetches:
            core = cores.get(fetch.shard)
            if core is not None:
                core.on_fetch(node, session, fetch, now)
                replicator.look_after(fetch.shard)
        for ack in message.acks:
            core = cores.get(ack.shard)
            if core is not None:
                core.on_ack(node, session, ack, now)
