"""The check of calls to the libraries' own services, which look into the node."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ringpost.node import status
from ringpost.node.access.access import Access
from ringpost.node.access.grants import Verb
from ringpost.node.arrivals import Arrivals, as_stream
from ringpost.node.errors import RingpostError

_NEEDS = {"/grpc.channelz.": Verb.VIEW, "/grpc.reflection.": None}


class InspectionGuard(grpc.aio.ServerInterceptor):
    """What the libraries' own services need: channelz, which shows all connections, VIEW; reflection a token. Health
    answers everybody: probes have no tokens, and it says of each part only whether it works."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._arrivals = Arrivals()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of the call, or one that refuses it."""
        handler = await continuation(details)
        if not self._access.on or handler is None or not details.method.startswith(tuple(_NEEDS)):
            return handler
        (verb,) = (need for start, need in _NEEDS.items() if details.method.startswith(start))

        async def admitted(context: Any) -> None:
            try:
                caller = await self._access.authenticate(context, details.method)
                if verb is not None and not caller.may(verb):
                    error = caller.denial(verb)
                    self._access.note_denial(error, caller=caller.name, peer=context.peer(), method=details.method)
                    raise error
            except RingpostError as error:
                await status.abort(context, error)

        return _guarded(handler, admitted, self._arrivals)


def _guarded(handler: Any, admitted: Callable[[Any], Awaitable[None]], arrivals: Arrivals) -> Any:
    """The same handler, of a synchronous service or not, behind a check that ends the call when it fails.

    A unary call is checked before its request is read.
    """
    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> Any:
            await admitted(context)
            made = (handler.stream_stream or handler.unary_stream)(request, context)
            async for response in made:
                yield response

        many: Any = grpc.stream_stream_rpc_method_handler
        one: Any = grpc.unary_stream_rpc_method_handler
        return (many if handler.request_streaming else one)(
            stream, handler.request_deserializer, handler.response_serializer
        )

    async def unary(context: Any) -> bytes:
        await admitted(context)
        request = handler.request_deserializer(await arrivals.request(context))
        answer = handler.unary_unary(request, context)
        answer = await answer if inspect.isawaitable(answer) else answer
        return bytes(handler.response_serializer(answer))

    return as_stream(unary)
