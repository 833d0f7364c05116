"""Requests on their way: a call's headers are here, its one request is not, or not as a whole.

gRPC hands a unary call to its handler with the request, however late that is; a call of which it never comes stays, its
connection does not count as idle, and what has come of it is kept. Served as a stream of one request the same call is
the node's from its headers on: who may not make it is refused before any of it is read, and the rest has a time limit.
To the client both look the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

SECONDS_MAX = 30.0  # a batch of 4 MiB at 1.2 Mbit/s
COUNT_MAX = 1_000
_CROWDED_S = 1.0  # what has just begun is let come, however many there are
_END: Any = grpc.aio.EOF


class _Arrival:
    """One request."""

    __slots__ = ("begun", "context", "ending", "timer")

    def __init__(self, context: Any, begun: float) -> None:
        self.context = context
        self.begun = begun
        self.ending: asyncio.Task[BaseException] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def end(self, code: grpc.StatusCode, text: str) -> None:
        """Ends the call; the read that waits comes back then. Reads are never cancelled: that leaks (grpc#43360)."""
        if self.ending is None:
            self.ending = asyncio.get_running_loop().create_task(self._abort(code, text))

    async def _abort(self, code: grpc.StatusCode, text: str) -> BaseException:
        """What the handler must raise: gRPC insists on its own exception."""
        try:
            await self.context.abort(code, text)
        except grpc.aio.AbortError as error:
            return error
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the client has left meanwhile
        return asyncio.CancelledError()


class Arrivals:
    """What is on its way at one port. Each has `seconds_max`; of more than `count_max` the oldest give way."""

    def __init__(self, *, seconds_max: float | None = None, count_max: int | None = None) -> None:
        self._seconds_max = SECONDS_MAX if seconds_max is None else seconds_max
        self._count_max = COUNT_MAX if count_max is None else count_max
        self._open: dict[_Arrival, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def request(self, context: Any) -> bytes:
        """The request of a call, whole. Raises AbortError when there is none, and when it takes too long."""
        loop = asyncio.get_running_loop()
        arrival = _Arrival(context, loop.time())
        self._make_room(arrival.begun)
        self._open[arrival] = None
        arrival.timer = loop.call_later(
            self._seconds_max,
            arrival.end,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the request did not come as a whole within {self._seconds_max:g} s; nothing was done",
        )
        try:
            message = await context.read()
        except grpc.aio.BaseError:
            message = _END
        finally:
            arrival.timer.cancel()
            self._open.pop(arrival, None)
        if message is _END:
            # Also of what gRPC itself has ended already, because it is above the limit of a message.
            arrival.end(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
        if arrival.ending is not None:
            raise await arrival.ending
        assert isinstance(message, bytes), "handlers take raw bytes"
        return message

    def _make_room(self, now: float) -> None:
        while len(self._open) >= self._count_max:
            oldest = next(iter(self._open))
            if now - oldest.begun < _CROWDED_S:
                return
            del self._open[oldest]
            oldest.end(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the request did not come, and {self._count_max} others are waited for; nothing was done",
            )


def as_stream(serve: Callable[[Any], Awaitable[bytes]]) -> Any:
    """The handler of a unary call that reads its request by itself, from its context; the answer is one as ever."""

    async def run(_requests: object, context: Any) -> bytes:
        return await serve(context)

    return grpc.stream_unary_rpc_method_handler(run)
