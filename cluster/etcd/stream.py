"""A bidirectional stream that is ended from outside and never by cancelling a read, which would leak."""

import asyncio
from typing import Generic, TypeVar

import grpc

from ringpost.cluster.kv import KvError

Q = TypeVar("Q")
A = TypeVar("A")


class Stream(Generic[Q, A]):
    """A call with `send`, `receive` and `end`. `reason` says why it ended."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[Q, A]") -> None:
        self._call = call
        self._ended = False
        self._writes: set[asyncio.Task[None]] = set()
        self.reason = ""
        # A write that waits for the beginning of a call that ends before would wait for ever.
        call.add_done_callback(lambda _: self._end_writes())

    @property
    def ended(self) -> bool:
        """Whether it is over, or will be as soon as the loop turns."""
        return self._ended or self._call.done()

    async def send(self, request: Q) -> None:
        """Raises KvError when the stream has ended."""
        if self.ended:
            raise KvError("the stream has ended")
        write = asyncio.create_task(self._write(request))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        try:
            await write
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise KvError(f"the stream has ended: {self._described(error)}") from error
        except asyncio.CancelledError:
            self._raise_if_mine()
            raise KvError("the stream was ended") from None

    async def receive(self) -> A | None:
        """The next answer; None when the stream has ended."""
        try:
            answer = await self._call.read()
        except grpc.RpcError as error:
            self.reason = self._described(error)
            return None
        except asyncio.CancelledError:
            self._raise_if_mine()
            return None
        return None if answer is grpc.aio.EOF else answer  # type: ignore[return-value]

    def end(self) -> None:
        """Ends it; a `receive` that waits gets None. Idempotent."""
        if not self._ended:
            self._ended = True
            self._call.cancel()
            self._end_writes()

    async def _write(self, request: Q) -> None:
        await self._call.write(request)

    def _end_writes(self) -> None:
        for write in self._writes:
            write.cancel()

    def _raise_if_mine(self) -> None:
        """gRPC says with CancelledError that the call was cancelled; that may also be meant for this task."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            self.end()
            raise asyncio.CancelledError

    @staticmethod
    def _described(error: BaseException) -> str:
        return f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
