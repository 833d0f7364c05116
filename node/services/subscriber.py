"""SubscriberService: the stream's shell around a delivery session."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ringpost.node.delivery.commands import FORWARDED_RANGES_MAX
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import Session
from ringpost.node.errors import InvalidRequest
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.v1.subscribe_pb2 import SubscribeRequest

PEER_STREAMS_MAX = 10_000
PEER_STREAM_MAX = 1_000_000  # subscriptions, and settlements not yet answered, of another node's stream
SERVICE = "ringpost.v1.SubscriberService"


class _RawSession(Session):
    """A delivery session that decodes its commands."""

    def handle_raw(self, message: bytes) -> None:
        """One encoded SubscribeRequest."""
        try:
            request = SubscribeRequest.FromString(message)
        except DecodeError:
            self.end(InvalidRequest("the message is not an encoded ringpost.v1.SubscribeRequest"))
            return
        self.handle(request)


class _ForwardedSession(_RawSession):
    """Another node's stream: it carries the subscriptions of all its clients."""

    forwarded = True
    ranges_max = FORWARDED_RANGES_MAX

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.subscriptions_max = self.settlements_max = PEER_STREAM_MAX


class Subscriber:
    """One a node."""

    def __init__(self, hub: Hub, gate: StreamGate) -> None:
        self._hub = hub
        self._gate = gate
        self._peer_gate = StreamGate(PEER_STREAMS_MAX)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server, with raw bytes in and out."""
        return _handlers(self.subscribe)

    def peer_handlers(self) -> grpc.GenericRpcHandler:
        """The service as other nodes meet it."""
        return _handlers(self.subscribe_forwarded)

    async def subscribe(self, _requests: object, context: RawContext) -> None:
        """The stream."""
        await serve(context, self._gate, lambda: _RawSession(self._hub))

    async def subscribe_forwarded(self, _requests: object, context: RawContext) -> None:
        """The stream of another node."""
        await serve(context, self._peer_gate, lambda: _ForwardedSession(self._hub))


def _handlers(method: Any) -> grpc.GenericRpcHandler:
    handler: Any = grpc.stream_stream_rpc_method_handler(method)
    return grpc.method_handlers_generic_handler(SERVICE, {"Subscribe": handler})
