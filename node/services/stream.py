"""The shell of a bidirectional stream: one task reads, the call's own coroutine writes.

A read is never cancelled (cancelling leaks inside gRPC): when the call ends, a read that is under way ends by itself.
Nor is a write: gRPC sends no status behind a message that the client does not take, so a cancelled call would never end
for a client that reads on later. A session that was ended while a write waits closes by itself, and the call
then holds nothing but that one message, until it is taken or the client is gone.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from ringpost.node import status
from ringpost.node.access.access import Access
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.errors import Exhausted, RingpostError

RawContext = grpc.aio.ServicerContext[bytes, bytes]


class StreamSession(Protocol):
    """What runs a stream. All but `next_message` and `room` return at once."""

    def handle_raw(self, message: bytes) -> None:
        """One message of the client."""

    async def room(self) -> bool:
        """Returns when the next message may be read; False: none any more, the stream has ended or is about to."""

    @property
    def limited(self) -> bool:
        """Whether `room` depends on what other streams take, so that it is asked again before a message is handled."""

    def half_close(self) -> None:
        """The client will send nothing more."""

    async def next_message(self) -> bytes | None:
        """What to write; None: end with OK. Raises the error that ends the stream."""

    def close(self) -> None:
        """The stream is over. Idempotent."""


class StreamGate:
    """Counts the open streams of a node and refuses those above `streams_max`."""

    def __init__(self, streams_max: int) -> None:
        self.open = 0
        self.streams_max = streams_max

    def enter(self) -> None:
        """Raises Exhausted when there are too many."""
        if self.open >= self.streams_max:
            raise Exhausted(
                f"the node has its {self.streams_max} open streams (streams_max)",
                reason="STREAM_LIMIT",
                retry_after_ms=1_000,
            )
        self.open += 1

    def leave(self) -> None:
        """A stream that entered is over."""
        self.open -= 1


_END: Any = grpc.aio.EOF  # what `read` gives at the end, against its declared type
_readers: set[asyncio.Task[None]] = set()


async def serve(
    context: RawContext,
    method: str,
    gate: StreamGate,
    access: Access | None,
    make_session: Callable[[Caller], StreamSession],
) -> None:
    """Runs a session until its stream ends, either way.

    `access` None: another node calls; what it passes on shows its clients' tokens.
    """
    try:
        caller = ANYONE if access is None else await access.authenticate(context, method)
        gate.enter()
        try:
            caller.usage.open_stream()
        except RingpostError:
            gate.leave()
            raise
    except RingpostError as error:
        await status.abort(context, error)
    try:
        await _run(context, make_session(caller))
    finally:
        caller.usage.close_stream()
        gate.leave()


async def _run(context: RawContext, session: StreamSession) -> None:
    reader = asyncio.get_running_loop().create_task(_read(context, session))
    _readers.add(reader)
    reader.add_done_callback(_readers.discard)
    try:
        while (message := await session.next_message()) is not None:
            if not await _write(context, message):
                return
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await status.abort(context, error)
    finally:
        session.close()


async def _write(context: RawContext, message: bytes) -> bool:
    """False when the client is gone, which is no fault of anybody and not worth a line in the log."""
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        return False
    return True


async def _read(context: RawContext, session: StreamSession) -> None:
    while await session.room():
        try:
            message = await context.read()
        except Exception:
            # The call is over, one way or another; its own coroutine sees to the rest.
            session.half_close()
            return
        if message is _END:
            session.half_close()
            return
        if session.limited and not await session.room():
            return
        session.handle_raw(message)
