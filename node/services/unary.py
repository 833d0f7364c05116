"""Unary services over raw bytes: a request that does not parse is answered like any other bad one.

Left to itself, gRPC ends such a call with UNKNOWN and writes a traceback into the log, whoever sent the garbage.
"""

from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from ringpost.node import status
from ringpost.node.errors import InvalidRequest


def handlers(service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
    """The service for a gRPC server; every method is unary and `servicer` has a coroutine function for it."""
    methods: Any = {method.name: _handler(method, getattr(servicer, method.name)) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _handler(method: MethodDescriptor, serve: Any) -> Any:
    request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

    async def run(message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            request = request_class.FromString(message)
        except DecodeError:
            error = InvalidRequest(f"the request is not an encoded {method.input_type.full_name}")
            await status.abort(context, error)
        return await serve(request, context)

    return grpc.unary_unary_rpc_method_handler(run, response_serializer=response_class.SerializeToString)
