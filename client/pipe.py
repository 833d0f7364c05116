"""One node's publish stream: opens it while a channel wants it, writes what the publisher gives, reads the answers."""

import asyncio
import contextlib
import logging
import sys
from collections import deque
from time import monotonic
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from ringpost.client import wire
from ringpost.client.connection import Connections, Stream
from ringpost.client.errors import RingpostError, Unavailable
from ringpost.client.options import Options
from ringpost.client.outlet import Outlet
from ringpost.client.router import Router
from ringpost.v1 import publish_pb2

_log = logging.getLogger(__name__)
_ROLE: Final = "publish"
# How long a node may take to open a stream where another could be asked instead.
_OPENING_S: Final = 3.0
# While every node is down, it is looked so often whether somebody else took the work over.
_LOOK_S: Final = 0.25


class Host(Protocol):
    """What a pipe asks of the publisher."""

    @property
    def closing(self) -> bool:
        """Whether nothing more is taken in."""

    def next_frame(self, pipe: "Pipe") -> bytes | None:
        """The next encoded request for this pipe; None when nothing may be sent now."""

    def opened(self, pipe: "Pipe") -> None:
        """The stream stands; `pipe.max_batch_bytes` is what its node takes."""

    def answered(self, pipe: "Pipe", result: publish_pb2.PublishResult, now: float) -> None:
        """The outcome of a transmission."""

    def lost(self, pipe: "Pipe", error: RingpostError) -> None:
        """The stream is over; what is in `pipe.sent` will not be answered."""


class _Session:
    """One publish stream's life."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.opened = asyncio.Event()
        self.draining = False
        # Set when the reader has ended.
        self.error: RingpostError | None = None

    def cut_unless_opened(self) -> None:
        if not self.opened.is_set():
            self.stream.cancel()


class Pipe:
    """The publish stream to one address. It is opened while outlets are attached, and kept until the node ends it."""

    def __init__(self, host: Host, connections: Connections, router: Router, options: Options, address: str) -> None:
        self.address = address
        # Channels with work that go this way.
        self.attached: set[Outlet] = set()
        self.ready: deque[Outlet] = deque()
        # By the correlation of each transmission that is not answered: whose it is, and when it was made.
        self.sent: dict[int, tuple[Outlet, float]] = {}
        self.max_batch_bytes = sys.maxsize
        self.wake = asyncio.Event()
        self.session: _Session | None = None
        self._host = host
        self._connections = connections
        self._router = router
        self._options = options
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._runner = self._loop.create_task(self._run(), name=f"ringpost-publisher {address}")

    @property
    def draining(self) -> bool:
        """Whether the node has asked to send no more on this stream."""
        return self.session is not None and self.session.draining

    def owing_since(self) -> float | None:
        """When the oldest transmission without an answer was made; None when all are answered."""
        return next((at for _, at in self.sent.values()), None)

    def cut(self) -> None:
        """Ends the stream, if there is one."""
        if self.session is not None:
            self.session.stream.cancel()

    async def stop(self) -> None:
        """Ends once the host is closing: by half-close, or when it is `cut`."""
        self._stopping.set()
        self.wake.set()
        await asyncio.shield(self._runner)

    # -- the stream -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps a stream while there is work; ends when the client closes."""
        while not self._host.closing:
            if not self.attached:
                self.wake.clear()
                await self.wake.wait()
                continue
            if (delay := self._router.delay(self.address)) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), min(delay, _LOOK_S))
                continue
            try:
                error = await self._serve()
            except RingpostError as unsent:  # no stream can be opened with such a token
                error = unsent
            except Exception as bug:
                _log.exception("the publish stream to %s ended by a bug of this client", self.address)
                error = Unavailable(f"bug in the client: {bug!r}", outcome_open=True)
            if not self._host.closing and self.attached:
                _log.info("the publish stream to %s ended: %s", self.address, error)
            self._host.lost(self, error)

    async def _serve(self) -> RingpostError:
        """One stream, from open to end; returns why it ended."""
        session = self.session = _Session(self._connections.open_stream(_ROLE, wire.PUBLISH_PATH, self.address))
        reader = self._loop.create_task(self._read(session), name=f"ringpost-publish-reader {self.address}")
        watchdog = self._loop.call_later(self._opening_s(), session.cut_unless_opened)
        self._router.watch(session, self.address, session.stream.cancel)
        try:
            await session.opened.wait()
            await self._write(session)
            await reader
        except RingpostError as error:
            session.error = session.error or error
        finally:
            self._router.unwatch(session)
            watchdog.cancel()
            session.stream.cancel()
            await reader
            self.session = None
        assert session.error is not None
        return session.error

    def _opening_s(self) -> float:
        alone = all(address == self.address for address in self._router.routes.up)
        return self._options.connect_timeout if alone else min(_OPENING_S, self._options.connect_timeout)

    async def _write(self, session: _Session) -> None:
        """Sends frames until the stream is over, drains, or the client closes with nothing left."""
        while session.error is None:
            frame = None if session.draining else self._host.next_frame(self)
            if frame is not None:
                await session.stream.write(frame)
            elif session.draining or (self._host.closing and not self.attached):
                await session.stream.half_close()
                return
            else:
                self.wake.clear()
                await self.wake.wait()

    async def _read(self, session: _Session) -> None:
        try:
            while (data := await session.stream.read()) is not None:
                self._on_response(session, publish_pb2.PublishStreamResponse.FromString(data))
            session.error = Unavailable("the node ended the stream", outcome_open=True)
        except RingpostError as error:
            session.error = error
        except DecodeError:
            session.error = Unavailable("the node sent what does not parse", outcome_open=True)
        except Exception as bug:
            _log.exception("the publish stream is given up for a bug of this client")
            session.error = Unavailable(f"bug in the client: {bug!r}", outcome_open=True)
        finally:
            session.opened.set()
            self.wake.set()

    def _on_response(self, session: _Session, response: publish_pb2.PublishStreamResponse) -> None:
        if response.HasField("opened"):
            self.max_batch_bytes = response.opened.max_batch_bytes or sys.maxsize
            self._router.worked(self.address)
            self._host.opened(self)
            session.opened.set()
        now = monotonic()
        for result in response.results:
            self._host.answered(self, result, now)
        if response.HasField("drain"):
            session.draining = True
            # Whatever has nothing outstanding goes elsewhere now.
            self._router.failed(self.address)
            self.wake.set()
