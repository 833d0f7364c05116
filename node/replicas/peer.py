"""One other member, in one session: the connection to it, the stream on it, and whether it answers."""

import asyncio
from enum import Enum
from typing import Any, Protocol

import grpc

from ringpost.cluster.view import NodeRef
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
from ringpost.node.replicas.outbox import ToLeader
from ringpost.node.replicas.pulse import QUESTION_S, Pulse
from ringpost.node.replicas.replicator import Replicator
from ringpost.node.tls import Dialer

SERVICE = "ringpost.internal.v1.PeerService"
_BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.5)
_LASTING_S = 1.0  # a stream that ends sooner did not work, and the next one waits longer
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


class Owner(Protocol):
    """Who keeps the peers."""

    @property
    def node(self) -> str:
        """This node."""

    @property
    def dialer(self) -> Dialer:
        """Makes connections."""

    @property
    def replicator(self) -> Replicator:
        """This node's replicas."""

    def to_leader(self, node: str) -> ToLeader:
        """What waits for the peer."""

    def lost(self, peer: "Peer") -> None:
        """The stream broke."""

    def found(self, peer: "Peer", reach: Reach) -> None:
        """Something else is known of the process."""


class Peer:
    """One member in one session: its connection, the stream to it."""

    def __init__(self, owner: Owner, cluster_id: str, ref: NodeRef) -> None:
        self.ref = ref
        self.reach = Reach.UNKNOWN
        self._owner = owner
        self._cluster_id = cluster_id
        self._closed = False
        self._call: Any = None
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(loop.time())
        self.reachable = True
        self._connect()
        self._running = loop.create_task(self._run())
        self._asking = loop.create_task(self._ask())

    def _connect(self) -> None:
        self._certificate = self._owner.dialer.version
        self._channel = self._owner.dialer.dial(self.ref.node, self.ref.peer_address, channel_options())
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
        self._ping = self._channel.unary_unary(
            f"/{SERVICE}/Ping",
            request_serializer=PingRequest.SerializeToString,
            response_deserializer=PingResponse.FromString,
        )

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
        self._asking.cancel()
        await asyncio.gather(self._running, self._asking, return_exceptions=True)
        await self._channel.close()

    async def fence(self, request: FenceReplicasRequest, seconds: float) -> FenceReplicasResponse | None:
        """See `Peers.fence`."""
        try:
            return await self._fence(request, timeout=seconds)
        except grpc.aio.AioRpcError:
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None  # the connection was given up, not the election

    # -- whether it answers -----------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Time has passed."""
        self._pulse.look(now)
        if self._pulse.reachable == self.reachable:
            return
        self.reachable = self._pulse.reachable
        if self.reachable:
            log.info("peer.reachable", peer=self.ref.node)
        else:
            log.warning("peer.unreachable", peer=self.ref.node)
            self._connect_again()

    async def _ask(self) -> None:
        while not self._closed:
            self._pulse.asked()
            try:
                await self._ping(PingRequest(to=self.ref.node), timeout=QUESTION_S)
                self._pulse.answered()
            except grpc.aio.AioRpcError as error:
                self._take_failure(error.code())
            except grpc.aio.BaseError as error:  # whoever is not asked would stay what he is
                log.error("peer.not_asked", peer=self.ref.node, exception=error)
                self._pulse.failed()
            except asyncio.CancelledError:
                # So ends a question, too, whose connection is given up.
                if self._closed:
                    raise
                self._pulse.failed()
            await asyncio.sleep(self._pulse.pause_s)

    def _take_failure(self, code: grpc.StatusCode) -> None:
        if code is grpc.StatusCode.UNIMPLEMENTED:  # an older version
            self._pulse.answered()
            return
        self._pulse.failed()
        if not self._pulse.reachable and code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._connect_again()

    def _connect_again(self) -> None:
        """Gives the connection up: what it holds comes late, if ever, and a new one tells when the link works."""
        if self._call is not None:
            self._call.cancel()
        self._owner.replicator.spawn(self._channel.close())
        self._connect()

    # -- the stream -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        # A cancellation may be lost on the way: the tasks of gRPC's own that a read waits for take it and end quietly.
        tries = 0
        while not self._closed:
            if self._certificate != self._owner.dialer.version:
                self._connect_again()
            worked = await self._stream()
            self._owner.lost(self)
            tries = 0 if worked else tries + 1
            self._know(await self._probe())
            await asyncio.sleep(_BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])

    async def _stream(self) -> bool:
        """One stream from beginning to end; whether it worked for a while."""
        box = self._owner.to_leader(self.ref.node)
        box.clear()
        call = self._call = self._replicate()
        writer = asyncio.get_running_loop().create_task(self._write(call, box))
        clock = asyncio.get_running_loop().time
        greeted, begin = False, clock()
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
        except Exception as error:  # a fault of ours costs this stream, not the link
            log.error("peer.read_failed", peer=self.ref.node, exception=error)
        finally:
            call.cancel()
            writer.cancel()  # a write may wait for ever when its call ends before the connection stands
            await asyncio.gather(writer, return_exceptions=True)
        return greeted and clock() - begin >= _LASTING_S

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
                replicator.look_after(refused.shard)
        for diverged in message.diverged:
            if diverged.shard in cores:
                cores[diverged.shard].on_diverged(node, diverged, now)
                replicator.look_after(diverged.shard)
        for data in message.data:
            if data.shard in cores:
                cores[data.shard].on_data(node, data, now)
                if data.traces and replicator.tracing.on:
                    replicator.tracing.follow(data.shard, data.traces, replicator.store.shards[data.shard].position)
                replicator.look_after(data.shard)
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
