"""Unary services over raw bytes: a request that does not parse is answered like any other bad one.

Left to itself, gRPC ends such a call with UNKNOWN and writes a traceback into the log, whoever sent the garbage. Who
calls is looked at before the request is read; see `node.arrivals`.
"""

from collections.abc import Awaitable
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ringpost.node import status
from ringpost.node.access.guard import Guard
from ringpost.node.arrivals import as_stream
from ringpost.node.errors import InvalidRequest
from ringpost.node.routing.calls import Call, Passing

Context = grpc.aio.ServicerContext[Any, Any]


def handlers(
    service: ServiceDescriptor, servicer: object, guard: Guard, passing: Passing | None = None
) -> grpc.GenericRpcHandler:
    """The service for a gRPC server; every method is unary and `servicer` has a coroutine function for it.

    `guard` says who may call. With `passing`, that decides for each call about channels who serves it; without, this
    node does.
    """
    methods: Any = {
        method.name: _handler(method, getattr(servicer, method.name), guard, passing) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _handler(method: MethodDescriptor, serve: Any, guard: Guard, passing: Passing | None) -> Any:
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    subject = _subject(method)

    def parsed(message: bytes) -> Message:
        try:
            return request_class.FromString(message)
        except DecodeError:
            raise InvalidRequest(f"the request is not an encoded {method.input_type.full_name}") from None

    async def served(message: bytes, request: Message, context: Context) -> bytes:
        local: partial[Awaitable[Message]] = partial(serve, request, context)
        if passing is None:
            return (await local()).SerializeToString()
        channel = getattr(request, subject) if subject else None
        if not channel and method.name.startswith("List"):
            channel = None
        return await passing.run(Call(path, channel, message, request, response_class, context, local))

    async def run(context: Context) -> bytes:
        try:
            caller = await guard.enter(path, context)
            message = await guard.arrivals.request(context)
            request = parsed(message)
            return await guard.run(path, request, caller, context, partial(served, message, request, context))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await status.abort(context, error)

    return as_stream(run)


def _subject(method: MethodDescriptor) -> str:
    """The request's field that names the channel it is about, "" when there is none."""
    fields = method.input_type.fields_by_name
    if "channel" in fields:
        return "channel"
    return "name" if "name" in fields else ""
