"""SubscriberService: the stream's shell around a delivery session."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ringpost.internal.v1.forward_pb2 import ForwardedSubscribeRequest
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.access.tokens import shown_token
from ringpost.node.delivery.commands import FORWARDED_RANGES_MAX
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import METHOD, Session
from ringpost.node.errors import InvalidRequest, RingpostError
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.node.tls import peer_name
from ringpost.v1.subscribe_pb2 import SubscribeRequest

PEER_STREAMS_MAX = 10_000
PEER_STREAM_MAX = 1_000_000  # subscriptions, and settlements not yet answered, of another node's stream
SERVICE = "ringpost.v1.SubscriberService"


class _RawSession(Session):
    """A delivery session that decodes its commands."""

    __slots__ = ()

    def handle_raw(self, message: bytes) -> None:
        """One encoded SubscribeRequest."""
        try:
            request = SubscribeRequest.FromString(message)
        except DecodeError:
            self.end(InvalidRequest("the message is not an encoded ringpost.v1.SubscribeRequest"))
            return
        self.handle(request)


class _ForwardedSession(_RawSession):
    """Another node's stream: it carries the subscriptions of all its clients, each with its client's token."""

    __slots__ = ("_callers",)
    forwarded = True
    ranges_max = FORWARDED_RANGES_MAX

    def __init__(self, hub: Hub, peer: str) -> None:
        super().__init__(hub, peer=peer)
        self.subscriptions_max = self.settlements_max = PEER_STREAM_MAX
        self._callers: dict[int, Caller] = {}

    def handle(self, request: SubscribeRequest, token: bytes = b"") -> None:
        """One command, with the client's token if it opens a subscription."""
        number = request.open.subscription_id
        if self.hub.access.on and request.HasField("open") and number not in self.subscriptions:
            try:
                self._callers[number] = self.hub.access.verify(shown_token(token))
            except RingpostError as error:
                self.hub.access.note_denial(error, method=METHOD, peer=self.peer)
                self.send_closed(number, error)
                return
        super().handle(request)
        if number not in self.subscriptions:
            self._callers.pop(number, None)

    def handle_raw(self, message: bytes) -> None:
        """One encoded SubscribeRequest with what the other node has added to it."""
        try:
            request = SubscribeRequest.FromString(message)
            token = ForwardedSubscribeRequest.FromString(message).token if request.HasField("open") else b""
        except DecodeError:
            self.end(InvalidRequest("the message is not an encoded ringpost.v1.SubscribeRequest"))
            return
        self.handle(request, token)

    def caller_of(self, number: int) -> Caller:
        return self._callers.get(number, ANYONE)

    def forget_caller(self, number: int) -> None:
        self._callers.pop(number, None)

    def check_access(self) -> None:
        if self.ended is not None:
            return
        for number, before in tuple(self._callers.items()):
            try:
                self._callers[number] = self.hub.access.renewed(before)
            except RingpostError as error:
                self.close_subscription(self.subscriptions[number], error)
                continue
            if self._callers[number] is not before:
                self.close_forbidden((number,))


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
        hub, peer = self._hub, context.peer()
        await serve(context, METHOD, self._gate, hub.access, lambda caller: _RawSession(hub, caller, peer))

    async def subscribe_forwarded(self, _requests: object, context: RawContext) -> None:
        """The stream of another node."""
        peer = peer_name(context)
        await serve(context, METHOD, self._peer_gate, None, lambda _: _ForwardedSession(self._hub, peer))


def _handlers(method: Any) -> grpc.GenericRpcHandler:
    handler: Any = grpc.stream_stream_rpc_method_handler(method)
    return grpc.method_handlers_generic_handler(SERVICE, {"Subscribe": handler})
