"""The stream on which leases are kept alive."""

import asyncio

from ringpost.cluster.etcd.caller import Caller
from ringpost.cluster.etcd.endpoints import Endpoint
from ringpost.cluster.etcd.stream import Stream
from ringpost.cluster.kv import KvError
from ringpost.internal.etcd import rpc_pb2

_Stream = Stream[rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse]


class LeaseStream:
    """One stream to one member, opened again on another one when an answer does not come in time."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._turn = asyncio.Lock()
        self._open: tuple[Endpoint, _Stream] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[rpc_pb2.LeaseKeepAliveResponse | None] | None = None

    async def keep_alive(self, lease: int) -> float:
        """Renews once. Seconds that the lease lives from now, counted from when the request left; 0.0: it is gone.

        Raises KvError when nobody answered within the time for a call.
        """
        clock = asyncio.get_running_loop().time
        async with self._turn:
            end = clock() + self._caller.options.call_timeout_s
            problem = KvError("no etcd member answered a keep-alive in time")
            while clock() < end:
                endpoint, stream = await self._stream()
                sent = clock()
                answer = await self._ask(stream, lease)
                if answer is not None:
                    self._caller.check(answer.header)
                    return max(0.0, answer.ttl - (clock() - sent)) if answer.ttl > 0 else 0.0
                if stream.reason:
                    problem = KvError(f"etcd at {endpoint.address}: {stream.reason}")
                self._caller.endpoints.failed(endpoint)
                await self._drop()
            raise problem

    async def close(self) -> None:
        """Ends the stream; a `keep_alive` that waits raises KvError in time."""
        await self._drop()

    async def _ask(self, stream: _Stream, lease: int) -> rpc_pb2.LeaseKeepAliveResponse | None:
        """None when the stream ends or is silent for too long."""
        self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        try:
            await stream.send(rpc_pb2.LeaseKeepAliveRequest(id=lease))
            await asyncio.wait({answer}, timeout=self._caller.options.keep_alive_timeout_s)
        except KvError:
            return None
        finally:
            if not answer.done():
                stream.end()  # a late answer would be taken for that of the next request
        return answer.result() if answer.done() else None

    async def _stream(self) -> tuple[Endpoint, _Stream]:
        if self._open is not None and not self._open[1].ended:
            return self._open
        await self._drop()
        endpoint = await self._caller.connected()
        metadata = await self._caller.metadata(endpoint)
        stream: _Stream = Stream(endpoint.lease.LeaseKeepAlive(metadata=metadata))
        self._open = endpoint, stream
        self._reader = asyncio.create_task(self._read(stream))
        return self._open

    async def _read(self, stream: _Stream) -> None:
        while True:
            answer = await stream.receive()
            # Requests go out one at a time, and never twice on one stream without an answer between.
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)
            if answer is None:
                stream.end()
                return

    async def _drop(self) -> None:
        reader, self._reader = self._reader, None
        if self._open is not None:
            self._open[1].end()
            self._open = None
        if reader is not None:
            await asyncio.wait({reader})
