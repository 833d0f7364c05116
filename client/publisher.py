"""Publishing: joins messages into batches, keeps one publish stream alive, resolves what callers wait for.

What is sent when, and again, is decided by `producer.Lane`, one for each channel. This module owns the stream, the open
batches and the counts for back-pressure. Nothing here is per message but a small handle.
"""

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Iterable
from time import monotonic

from google.protobuf.message import DecodeError

from ringpost.client import wire
from ringpost.client.batch import Publishable, encode_batches
from ringpost.client.connection import Backoff, Connections, Stream, is_hopeless
from ringpost.client.errors import BufferFull, Closed, RingpostError, Unavailable, from_failure
from ringpost.client.options import Options
from ringpost.client.outlet import OpenBatch, Outlet
from ringpost.client.producer import Effect, Stored, too_large
from ringpost.client.receipts import BatchReceipt, PendingPublish, Ticket, Unreported
from ringpost.v1 import publish_pb2

_log = logging.getLogger(__name__)
_ROLE = "publish"
_SWEEP_S = 0.25
# An event loop's timer may fire so much too early.
_TIMER_SLACK_S = 0.002
# Channels whose producer session is kept while nothing is published to them.
_MAX_IDLE = 100_000
# publish_many lets other tasks run after so many batches.
_BREATH = 16


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


class Publisher:
    """Publishes to any number of channels over one stream, opened with the first message."""

    def __init__(self, connections: Connections, options: Options, node_batch_bytes: int = 0) -> None:
        """`node_batch_bytes`: greatest encoded batch that the node takes, as far as is known; 0: not known."""
        self._connections = connections
        self._options = options
        self._node_batch_bytes = node_batch_bytes or sys.maxsize
        self._max_batch_bytes = min(options.max_batch_bytes, self._node_batch_bytes)
        self._outlets: dict[str, Outlet] = {}
        self._active: set[Outlet] = set()
        # By the correlation of each transmission that is not answered on this stream.
        self._sent: dict[int, Outlet] = {}
        self._ready: deque[Outlet] = deque()
        self._wake = asyncio.Event()
        self._room: deque[asyncio.Future[None]] = deque()
        self._pending_messages = 0
        self._pending_bytes = 0
        self._correlation = 0
        self._backoff = Backoff()
        self._unreported = Unreported()
        self._session: _Session | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closing = False
        self._stopping = asyncio.Event()
        self._sweeping = False
        self._loop = asyncio.get_running_loop()

    # -- taking messages in ---------------------------------------------------------------------------------------

    def add(self, channel: str, entry: bytes, durability: int) -> PendingPublish:
        """Takes one encoded message. Raises `BufferFull`, `Closed`, and `InvalidRequest` for one that no node takes."""
        self._check_size(len(entry))
        if not self._fits(1, len(entry)):
            raise BufferFull("max_pending_messages or max_pending_bytes are unanswered")
        outlet = self._outlet(channel)
        now = monotonic()
        opened = outlet.open
        if opened is not None and not self._joins(opened, len(entry), durability):
            outlet.seal()
            opened = None
        if opened is None:
            opened = outlet.open = OpenBatch(Ticket(channel, self._loop), durability, now, self._options)
            if self._options.linger_ms:
                self._loop.call_at(self._loop.time() + self._options.linger_ms / 1000, self._mark, outlet)
            self._mark(outlet)
        ticket = opened.ticket
        pending = PendingPublish(ticket, ticket.count)
        ticket.count += 1
        opened.parts.append(entry)
        opened.size += len(entry)
        self._pending_messages += 1
        self._pending_bytes += len(entry)
        return pending

    async def add_when_room(self, channel: str, entry: bytes, durability: int) -> PendingPublish:
        """As `add`, but waits while the buffer is full."""
        self._check_size(len(entry))
        while not self._fits(1, len(entry)):
            await self._wait_for_room()
        return self.add(channel, entry, durability)

    async def add_many(self, channel: str, messages: Iterable[Publishable], durability: int) -> list[BatchReceipt]:
        """Publishes a whole list, encoded as it goes, and waits for all of it.

        Raises the first error once every batch has its outcome; of an unusable message at once, and then the batches
        before it go on.
        """
        tickets: list[Ticket] = []
        encoded = encode_batches(messages, self._max_batch_bytes, self._options.max_batch_messages)
        for number, (payload, count) in enumerate(encoded, start=1):
            self._check_size(len(payload))
            while not self._fits(count, len(payload)):
                await self._wait_for_room()
            outlet = self._outlet(channel)
            if outlet.open is not None:
                outlet.seal()
            ticket = Ticket(channel, self._loop)
            ticket.count = count
            ticket.ask_all()
            self._pending_messages += count
            self._pending_bytes += len(payload)
            outlet.enqueue(payload, ticket, durability, monotonic() + self._options.publish_timeout)
            self._mark(outlet)
            tickets.append(ticket)
            if number % _BREATH == 0:
                await asyncio.sleep(0)
        for ticket in tickets:
            await ticket.wait()
        return [receipt for ticket in tickets for receipt in ticket.receipts()]

    def _check_size(self, size: int) -> None:
        """One message above it would end the stream for all that share it."""
        if size > self._node_batch_bytes:
            raise too_large(size, self._node_batch_bytes)

    def _joins(self, opened: OpenBatch, size: int, durability: int) -> bool:
        return (
            opened.durability == durability
            and opened.size + size <= self._max_batch_bytes
            and len(opened.parts) < self._options.max_batch_messages
        )

    def _fits(self, count: int, size: int) -> bool:
        """Whether the bounds allow it; the first of an empty buffer always fits, however large."""
        if self._closing:
            raise Closed("the client is closed")
        if self._pending_messages == 0:
            return True
        options = self._options
        return (
            self._pending_messages + count <= options.max_pending_messages
            and self._pending_bytes + size <= options.max_pending_bytes
        )

    async def _wait_for_room(self) -> None:
        future = self._loop.create_future()
        self._room.append(future)
        await future

    def _outlet(self, channel: str) -> Outlet:
        outlet = self._outlets.get(channel)
        if outlet is None:
            outlet = self._outlets[channel] = Outlet(channel)
        return outlet

    def _mark(self, outlet: Outlet) -> None:
        """There may be something to send for this channel."""
        if not outlet.queued:
            outlet.queued = True
            self._ready.append(outlet)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        self._active.add(outlet)
        self._wake.set()
        if self._runner is None:
            self._runner = self._loop.create_task(self._run(), name="ringpost-publisher")

    # -- the stream -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keeps a stream while there is work; ends when the client closes."""
        while not self._closing:
            if not self._active:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                error = await self._serve()
            except Exception as bug:
                _log.exception("the publish stream ended by a bug of this client")
                error = Unavailable(f"bug in the client: {bug!r}", outcome_open=True)
            self._sent.clear()
            for outlet in list(self._active):
                self._apply(outlet, outlet.lane.abort(error) if is_hopeless(error) else outlet.lane.stream_lost())
                # At once, or what made `_sweep` cut this stream would go out on the next one.
                self._apply(outlet, outlet.lane.expire(monotonic()))
            if not self._closing and self._active:
                _log.info("the publish stream ended: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._backoff.next_delay())

    async def _serve(self) -> RingpostError:
        """One stream, from open to end; returns why it ended."""
        session = self._session = _Session(self._connections.open_stream(_ROLE, wire.PUBLISH_PATH))
        reader = self._loop.create_task(self._read(session), name="ringpost-publish-reader")
        watchdog = self._loop.call_later(self._options.connect_timeout, session.cut_unless_opened)
        try:
            await session.opened.wait()
            await self._write(session)
            await reader
        except RingpostError as error:
            session.error = session.error or error
        finally:
            watchdog.cancel()
            session.stream.cancel()
            await reader
            self._session = None
            self._connections.move_on(_ROLE, session.stream.address)
        assert session.error is not None
        return session.error

    async def _write(self, session: _Session) -> None:
        """Sends frames until the stream is over, drains, or the client closes with nothing left."""
        while session.error is None:
            frame = None if session.draining else self._next_frame()
            if frame is not None:
                await session.stream.write(frame)
            elif session.draining or (self._closing and not self._active):
                await session.stream.half_close()
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_frame(self) -> bytes | None:
        """The next batch of the channel whose turn it is; None when nothing may be sent now."""
        now = monotonic()
        while self._ready:
            outlet = self._ready.popleft()
            outlet.queued = False
            lane, opened = outlet.lane, outlet.open
            if opened is not None and not lane.unsent and lane.has_room(now) and opened.due <= now + _TIMER_SLACK_S:
                outlet.seal()
            batch = lane.take(self._correlation + 1, now)
            if batch is None:
                continue
            self._correlation += 1
            self._sent[self._correlation] = outlet
            outlet.queued = True
            self._ready.append(outlet)
            assert batch.sequence is not None
            return wire.encode_publish(
                correlation=self._correlation,
                channel=lane.channel,
                batch=batch.payload,
                count=batch.count,
                crc32c=batch.crc32c,
                durability=batch.durability,
                producer_id=lane.producer_id,
                producer_epoch=lane.producer_epoch,
                first_sequence=batch.sequence,
            )
        return None

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
            self._wake.set()

    def _on_response(self, session: _Session, response: publish_pb2.PublishStreamResponse) -> None:
        if response.HasField("opened"):
            self._bound(response.opened.max_batch_bytes or sys.maxsize)
            self._backoff.reset()
            for outlet in self._active:
                self._mark(outlet)
            session.opened.set()
        now = monotonic()
        for result in response.results:
            self._on_result(result, now)
        if response.HasField("drain"):
            session.draining = True
            self._wake.set()

    def _on_result(self, result: publish_pb2.PublishResult, now: float) -> None:
        correlation = result.correlation
        outlet = self._sent.pop(correlation, None)
        if outlet is None:
            return
        answer = result.stored if result.HasField("stored") else from_failure(result.failure)
        self._apply(outlet, outlet.lane.answered(correlation, answer, now))
        if outlet.lane.resume_at > now:
            self._loop.call_later(outlet.lane.resume_at - now + _TIMER_SLACK_S, self._mark, outlet)

    def _bound(self, node_batch_bytes: int) -> None:
        """A stream is open: what waits was made for the bound of another node, perhaps."""
        fell = node_batch_bytes < self._node_batch_bytes
        self._node_batch_bytes = node_batch_bytes
        self._max_batch_bytes = min(self._options.max_batch_bytes, node_batch_bytes)
        if not fell:
            return
        for outlet in list(self._active):
            if outlet.open is not None and outlet.open.size > node_batch_bytes:
                outlet.seal()
            self._apply(outlet, outlet.lane.bound(node_batch_bytes))

    # -- outcomes -------------------------------------------------------------------------------------------------

    def _apply(self, outlet: Outlet, effects: list[Effect]) -> None:
        for effect in effects:
            batch = effect.batch
            ticket: Ticket = batch.ticket
            self._pending_messages -= batch.count
            self._pending_bytes -= len(batch.payload)
            if isinstance(effect, Stored):
                ticket.resolve(effect.response, batch.first, batch.count)
                continue
            ticket.resolve(effect.error, batch.first, batch.count)
            if ticket.unasked_error() is effect.error:
                _log.error("a batch of %d for %s failed: %s", batch.count, outlet.lane.channel, effect.error)
                self._unreported.add(ticket)
        if effects:
            while self._room:
                waiter = self._room.popleft()
                _wake_up(waiter)
        if outlet.open is not None or outlet.lane.pending:
            self._mark(outlet)
        else:
            self._active.discard(outlet)
            self._wake.set()
            if len(self._outlets) > _MAX_IDLE:
                self._outlets.pop(outlet.lane.channel, None)

    def _sweep(self) -> None:
        """Gives up what is past its deadline; cuts a stream that owes an answer for too long."""
        now = monotonic()
        for outlet in list(self._active):
            if outlet.open is not None and outlet.open.deadline <= now:
                outlet.seal()
            if outlet.lane.unanswered_since(now):
                self._cut()
            self._apply(outlet, outlet.lane.expire(now))
        self._sweeping = bool(self._active)
        if self._sweeping:
            self._loop.call_later(_SWEEP_S, self._sweep)

    async def flush(self) -> None:
        """Waits until everything published before has its outcome.

        Raises the first error since the last flush of a message whose outcome nobody waited for.
        """
        tickets: list[Ticket] = []
        for outlet in list(self._active):
            if outlet.open is not None:
                outlet.seal()
                self._mark(outlet)
            tickets += [batch.ticket for batch in outlet.lane.batches()]
        for ticket in tickets:
            await ticket.wait()
        if (error := self._unreported.take()) is not None:
            raise error

    async def close(self, timeout: float) -> None:
        """Flushes within `timeout` seconds, then gives up the rest with `Closed`. Raises as `flush` does."""
        deadline = self._loop.time() + timeout
        error: RingpostError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                await self.flush()
        except TimeoutError:
            _log.warning("%d published messages were not answered before the client closed", self._pending_messages)
        except RingpostError as failed:
            error = failed
        await self._stop(deadline)
        if (error := error or self._unreported.take()) is not None:
            raise error

    async def _stop(self, deadline: float) -> None:
        """Gives up what is left; ends the stream with half-close until `deadline` of the loop's clock."""
        self._closing = True
        self._stopping.set()
        for outlet in list(self._active):
            if outlet.open is not None:
                outlet.seal()
            self._apply(outlet, outlet.lane.abort(Closed("the client was closed before the answer")))
        while self._room:
            _wake_up(self._room.popleft())
        self._wake.set()
        cut = self._loop.call_at(deadline, self._cut)
        if self._runner is not None:
            await asyncio.shield(self._runner)
        cut.cancel()

    def _cut(self) -> None:
        if self._session is not None:
            self._session.stream.cancel()


def _wake_up(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
