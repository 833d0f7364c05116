"""A gRPC proxy before the nodes that shows what a client says, and lets a check disturb it.

One port stands for each node; the answers to GetRoutes name these ports, so a client that goes to owners stays inside.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from ringpost.client import wire
from ringpost.v1 import cluster_pb2, publish_pb2, subscribe_pb2

_ROUTES_PATH = "/ringpost.v1.ClusterService/GetRoutes"
_OPTIONS = (
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class Cut(Exception):  # noqa: N818
    """Raised by a tap: the call ends with this status, as if the node had ended it or the connection had broken."""

    def __init__(
        self,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        text: str = "Connection reset by peer",
        *,
        retry_after_ms: int = 0,
    ):
        super().__init__(text)
        self.code, self.text = code, text
        self.metadata: tuple[tuple[str, bytes], ...] = ()
        if retry_after_ms:
            retry, told = error_details_pb2.RetryInfo(), status_pb2.Status(code=code.value[0], message=text)
            retry.retry_delay.FromMilliseconds(retry_after_ms)
            told.details.add().Pack(retry)
            self.metadata = (("grpc-status-details-bin", told.SerializeToString()),)


@dataclass(eq=False)
class Stream:
    """One PublishStream or Subscribe call through the gate."""

    publishes: bool
    # From 0, over both kinds.
    number: int
    began_at: float
    _context: Any
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, response: publish_pb2.PublishStreamResponse | subscribe_pb2.SubscribeResponse) -> None:
        """Tells the client something, in the node's place."""
        async with self._lock:
            await self._context.write(response.SerializeToString())


class Tap:
    """Sees everything that passes; the default changes nothing. May raise `Cut`, and change what it is given.

    Every `batch` in it is bytes, as `wire` parses it.
    """

    def call(self, path: str, metadata: dict[str, str]) -> None:
        """A call of any kind begins."""

    async def opened(self, stream: Stream) -> None:
        """A stream begins."""

    async def publish(self, stream: Stream, request: publish_pb2.PublishStreamRequest) -> bool:
        """A publisher says this; False: the node does not hear it."""
        return True

    async def answer(self, stream: Stream, response: publish_pb2.PublishStreamResponse) -> bool:
        """The node says this to a publisher; False: it does not hear it."""
        return True

    async def command(self, stream: Stream, request: subscribe_pb2.SubscribeRequest) -> bool:
        """A subscriber says this; False: the node does not hear it."""
        return True

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        """The node says this to a subscriber; False: it does not hear it."""
        return True


class Gate:
    """Serves while it is entered. `tls`: key and certificate chain, PEM, for the client's side."""

    def __init__(
        self, nodes: Sequence[str], tap: Tap, *, tls: tuple[bytes, bytes] | None = None, upstream: Any = None
    ) -> None:
        self.tap = tap
        # host:port of each node's port in here, in the order of `nodes`.
        self.addresses: list[str] = []
        self._nodes = list(nodes)
        self._tls = tls
        self._upstream = upstream
        self._servers: list[grpc.aio.Server] = []
        self._channels: list[grpc.aio.Channel] = []
        self._streams = 0

    async def __aenter__(self) -> Self:
        for node in self._nodes:
            if self._upstream is None:
                channel = grpc.aio.insecure_channel(node, options=_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(node, self._upstream, options=_OPTIONS)
            server = grpc.aio.server(options=_OPTIONS)
            server.add_generic_rpc_handlers((_Passage(self, channel),))
            if self._tls is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([self._tls]))
            await server.start()
            self._servers.append(server)
            self._channels.append(channel)
            self.addresses.append(f"127.0.0.1:{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop(None) for server in self._servers))
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def stream(self, publishes: bool, context: Any) -> Stream:
        """A stream that begins now."""
        self._streams += 1
        return Stream(publishes, self._streams - 1, asyncio.get_running_loop().time(), context)

    def here(self, answer: bytes) -> bytes:
        """Routes that lead through the gate."""
        routes = cluster_pb2.GetRoutesResponse.FromString(answer)
        doors = dict(zip(self._nodes, self.addresses, strict=True))
        for node in routes.nodes:
            node.address = doors.get(node.address, node.address)
        return routes.SerializeToString()


class _Passage(grpc.GenericRpcHandler):
    """What arrives on one port goes to one node."""

    def __init__(self, gate: Gate, channel: grpc.aio.Channel) -> None:
        self._gate = gate
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = details.method
        sent = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        metadata = tuple((key, sent[key]) for key in ("authorization",) if key in sent)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._unary(path, request, context, sent, metadata)

        async def stream(_: Any, context: Any) -> None:
            await self._stream(path, context, sent, metadata)

        if path in (wire.PUBLISH_PATH, wire.SUBSCRIBE_PATH):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, path: str, request: bytes, context: Any, sent: dict[str, str], metadata: Any) -> bytes:
        try:
            self._gate.tap.call(path, sent)
            timeout = context.time_remaining()
            method: Any = self._channel.unary_unary(path)
            answer = cast(bytes, await method(request, metadata=metadata, timeout=timeout))
            return self._gate.here(answer) if path == _ROUTES_PATH else answer
        except Cut as cut:
            await context.abort(cut.code, cut.text, cut.metadata)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        raise AssertionError("abort raises")

    async def _stream(self, path: str, context: Any, sent: dict[str, str], metadata: Any) -> None:
        stream = self._gate.stream(path == wire.PUBLISH_PATH, context)
        call: Any = None
        tasks: set[asyncio.Task[None]] = set()
        try:
            self._gate.tap.call(path, sent)
            await self._gate.tap.opened(stream)
            call = self._channel.stream_stream(path)(metadata=metadata)
            down = asyncio.create_task(self._down(stream, call))
            tasks = {down, asyncio.create_task(self._up(stream, call, context))}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await down
        except Cut as cut:
            await context.abort(cut.code, cut.text, cut.metadata)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        finally:
            if call is not None:
                call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _up(self, stream: Stream, call: Any, context: Any) -> None:
        tap = self._gate.tap
        parse: Any = wire.parse_publish if stream.publishes else subscribe_pb2.SubscribeRequest.FromString
        passes: Any = tap.publish if stream.publishes else tap.command
        while (data := await context.read()) is not grpc.aio.EOF:
            request = parse(data)
            if await passes(stream, request):
                await call.write(request.SerializeToString())
        await call.done_writing()

    async def _down(self, stream: Stream, call: Any) -> None:
        tap = self._gate.tap
        parse: Any = publish_pb2.PublishStreamResponse.FromString if stream.publishes else wire.parse_event
        passes: Any = tap.answer if stream.publishes else tap.event
        while (data := await call.read()) is not grpc.aio.EOF:
            response = parse(data)
            if await passes(stream, response):
                await stream.send(response)
