"""A watch over one prefix that outlives connections, members and compactions."""

import asyncio
import logging
from collections.abc import Callable

from ringpost.cluster.etcd.caller import Caller
from ringpost.cluster.etcd.events import Assembly, to_item
from ringpost.cluster.etcd.messages import prefix_range, watch_request
from ringpost.cluster.etcd.stream import Stream
from ringpost.cluster.kv import Change, KvError, Picture, Watch
from ringpost.internal.etcd import rpc_pb2

_LOG = logging.getLogger("ringpost.cluster.etcd")
_PAUSE_MIN_S = 0.05
_PAUSE_MAX_S = 1.0
_Stream = Stream[rpc_pb2.WatchRequest, rpc_pb2.WatchResponse]


async def read_picture(caller: Caller, prefix: str) -> Picture:
    """All keys below a prefix, read linearizably. Raises KvError."""
    answer = await caller.read(lambda member: member.kv.Range, prefix_range(prefix), rpc_pb2.RangeResponse)
    return Picture(answer.header.revision, tuple(map(to_item, answer.kvs)))


class EtcdWatch(Watch):
    """Range at R, then Watch from R + 1; after a lost stream from the last revision seen.

    When etcd cancels it, which it does when that revision is compacted, everything is read again and given as another
    picture. The stream is asked for its progress at an interval; twice the interval without any answer
    ends it, and another member is asked.
    """

    def __init__(
        self, caller: Caller, prefix: str, picture: Callable[[Picture], None], change: Callable[[Change], None]
    ) -> None:
        self._caller = caller
        self._prefix = prefix
        self._picture = picture
        self._change = change
        self._revision = 0  # what has been told; never falls
        self._closed = False
        self._stream: _Stream | None = None
        self._heard = 0.0
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Gives the first picture, and goes on by itself. Raises KvError."""
        self._tell(await read_picture(self._caller, self._prefix))
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            self._stream.end()
        elif self._task is not None:
            self._task.cancel()  # it sleeps, or makes a single call
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        pause = _PAUSE_MIN_S
        read_again = False
        while not self._closed:
            before = self._revision
            began = self._now()
            try:
                if read_again:
                    self._tell(await read_picture(self._caller, self._prefix))
                    read_again = False
                read_again = await self._follow()
            except KvError as error:
                _LOG.warning("watch of %s: %s", self._prefix, error)
            except Exception:
                _LOG.exception("watch of %s", self._prefix)
                read_again = True
            # A stream that worked for a while, or brought something, is replaced at once.
            worked = self._revision > before or self._now() - began > _PAUSE_MAX_S
            pause = _PAUSE_MIN_S if worked else min(2 * pause, _PAUSE_MAX_S)
            if not self._closed:
                await asyncio.sleep(pause)

    async def _follow(self) -> bool:
        """Follows one stream to its end. True when what was missed cannot be had from a stream. Raises KvError."""
        endpoint = await self._caller.connected()
        metadata = await self._caller.metadata(endpoint)
        if self._closed:
            return False
        stream: _Stream = Stream(endpoint.watch.Watch(metadata=metadata))
        self._stream = stream
        self._heard = self._now()
        guard = asyncio.create_task(self._guard(stream))
        try:
            await stream.send(watch_request(self._prefix, self._revision + 1))
            assembly = Assembly()
            while (answer := await stream.receive()) is not None:
                self._heard = self._now()
                if answer.canceled or answer.compact_revision:
                    self._caller.forget_token()  # which may be the reason
                    return True
                await self._check(answer)
                for change in assembly.add(answer):
                    self._apply(change)
            self._caller.endpoints.failed(endpoint)
            return False
        finally:
            stream.end()
            self._stream = None
            guard.cancel()
            await asyncio.wait({guard})

    async def _check(self, answer: rpc_pb2.WatchResponse) -> None:
        """Raises StoreChanged, also when etcd waits for a revision that it has had, and lost."""
        self._caller.check(answer.header)
        if answer.created and answer.header.revision < self._revision:
            # The member may only be behind; a linearizable read tells.
            await read_picture(self._caller, f"{self._prefix}meta")

    async def _guard(self, stream: _Stream) -> None:
        """Asks for progress, and ends the stream when it is silent for too long."""
        interval = self._caller.options.progress_interval_s
        request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
        try:
            while True:
                await asyncio.sleep(interval)
                if self._now() - self._heard >= 2 * interval:
                    stream.reason = "silent"
                    stream.end()
                await stream.send(request)
        except KvError:
            return

    def _tell(self, picture: Picture) -> None:
        if picture.revision > self._revision and not self._closed:
            self._revision = picture.revision
            self._picture(picture)

    def _apply(self, change: Change) -> None:
        if change.revision > self._revision and not self._closed:
            self._revision = change.revision
            self._change(change)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
