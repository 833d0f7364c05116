"""Unary services over raw bytes: a request that does not parse is answered like any other bad one.

Left to itself, gRPC ends such a call with UNKNOWN and writes a traceback into the log, whoever sent the garbage.
"""

from collections.abc import Awaitable
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ringpost.node import status
from ringpost.node.errors import InvalidRequest
from ringpost.node.routing.calls import Call, Passing


def handlers(service: ServiceDescriptor, servicer: object, passing: Passing | None = None) -> grpc.GenericRpcHandler:
    """The service for a gRPC server; every method is unary and `servicer` has a coroutine function for it.

    With `passing`, that decides for each call about channels who serves it; without, this node does.
    """
    methods: Any = {
        method.name: _handler(method, getattr(servicer, method.name), passing) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _handler(method: MethodDescriptor, serve: Any, passing: Passing | None) -> Any:
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    subject = _subject(method)

    async def run(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            request = request_class.FromString(message)
        except DecodeError:
            error = InvalidRequest(f"the request is not an encoded {method.input_type.full_name}")
            await status.abort(context, error)
        local: partial[Awaitable[Message]] = partial(serve, request, context)
        if passing is None:
            return (await local()).SerializeToString()
        channel = getattr(request, subject) if subject else None
        if not channel and method.name.startswith("List"):
            channel = None
        return await passing.run(Call(path, channel, message, request, response_class, context, local))

    return grpc.unary_unary_rpc_method_handler(run)


def _subject(method: MethodDescriptor) -> str:
    """The request's field that names the channel it is about, "" when there is none."""
    fields = method.input_type.fields_by_name
    if "channel" in fields:
        return "channel"
    return "name" if "name" in fields else ""
