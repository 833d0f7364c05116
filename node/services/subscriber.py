"""SubscriberService: the stream's shell around a delivery session."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import Session
from ringpost.node.errors import InvalidRequest
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.v1.subscribe_pb2 import SubscribeRequest

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


class Subscriber:
    """One a node."""

    def __init__(self, hub: Hub, gate: StreamGate) -> None:
        self._hub = hub
        self._gate = gate

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server, with raw bytes in and out."""
        method: Any = grpc.stream_stream_rpc_method_handler(self.subscribe)
        return grpc.method_handlers_generic_handler(SERVICE, {"Subscribe": method})

    async def subscribe(self, _requests: object, context: RawContext) -> None:
        """The stream."""
        await serve(context, self._gate, lambda: _RawSession(self._hub))
