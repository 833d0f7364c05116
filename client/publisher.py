"""Publishing: joins messages into batches, chooses their way, resolves what callers wait for.

What is sent when, and again, is decided by `producer.Lane`, one for each channel; where to, by the router; a `Pipe` is
the stream to one node. This module owns the open batches, the ways and the counts for back-pressure. Nothing here is
per message but a small handle.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Iterable
from itertools import islice
from time import monotonic

from ringpost.client import wire
from ringpost.client.batch import Publishable, encode_batches
from ringpost.client.checks import refused
from ringpost.client.connection import Connections
from ringpost.client.errors import BufferFull, Closed, RingpostError, from_failure
from ringpost.client.options import Options
from ringpost.client.outlet import OpenBatch, Outlet
from ringpost.client.pipe import Pipe
from ringpost.client.producer import Effect, OutBatch, Stored, too_large
from ringpost.client.receipts import BatchReceipt, PendingPublish, Ticket, Unreported
from ringpost.client.router import Router
from ringpost.client.timing import AT_ONCE, Timing, remaining_ms
from ringpost.v1 import publish_pb2

_log = logging.getLogger(__name__)
_SWEEP_S = 0.25
# An event loop's timer may fire so much too early.
_TIMER_SLACK_S = 0.002
# Channels whose producer session is kept while nothing is published to them.
_MAX_IDLE = 100_000
# publish_many lets other tasks run after so many batches.
_BREATH = 16
# A node that owes an answer for so long is asked whether it lives.
_OWING_S = 1.0
# A channel that has a new owner waits so long for answers of the old one.
_HOLD_S = 1.0


class Publisher:
    """Publishes to any number of channels over one stream a node, opened with its first message."""

    def __init__(self, connections: Connections, router: Router, options: Options, node_batch_bytes: int = 0) -> None:
        """`node_batch_bytes`: greatest encoded batch that the node takes, as far as is known; 0: not known."""
        self.closing = False
        self._connections = connections
        self._router = router
        self._options = options
        self._node_batch_bytes = node_batch_bytes or sys.maxsize
        self._max_batch_bytes = min(options.max_batch_bytes, self._node_batch_bytes)
        self._outlets: dict[str, Outlet] = {}
        self._active: set[Outlet] = set()
        self._pipes: dict[str, Pipe] = {}
        self._room: deque[asyncio.Future[None]] = deque()
        self._pending_messages = 0
        self._pending_bytes = 0
        self._correlation = 0
        self._unreported = Unreported()
        self._sweeping = False
        self._rerouting = False
        self._loop = asyncio.get_running_loop()
        router.on_change = self._on_routes

    # -- taking messages in ---------------------------------------------------------------------------------------

    def add(
        self, channel: str, entry: bytes, durability: int, traceparent: str = "", timing: Timing = AT_ONCE
    ) -> PendingPublish:
        """Takes one encoded message. Raises `BufferFull`, `Closed`, and `InvalidRequest` for one that no node takes."""
        self._check_size(len(entry))
        if not self._fits(1, len(entry)):
            raise BufferFull("max_pending_messages or max_pending_bytes are unanswered")
        outlet = self._outlet(channel)
        now = monotonic()
        opened = outlet.open
        if opened is not None and not self._joins(opened, len(entry), durability, timing):
            outlet.seal()
            opened = None
        if opened is None:
            opened = outlet.open = OpenBatch(Ticket(channel, self._loop), durability, now, self._options, timing)
            if self._options.linger_ms:
                self._loop.call_at(self._loop.time() + self._options.linger_ms / 1000, self._mark, outlet)
            self._mark(outlet)
        ticket = opened.ticket
        if traceparent and not ticket.traceparent:
            ticket.traceparent = traceparent
        pending = PendingPublish(ticket, ticket.count)
        ticket.count += 1
        opened.parts.append(entry)
        opened.size += len(entry)
        self._pending_messages += 1
        self._pending_bytes += len(entry)
        return pending

    async def add_when_room(
        self, channel: str, entry: bytes, durability: int, traceparent: str = "", timing: Timing = AT_ONCE
    ) -> PendingPublish:
        """As `add`, but waits while the buffer is full."""
        self._check_size(len(entry))
        while not self._fits(1, len(entry)):
            await self._wait_for_room()
        return self.add(channel, entry, durability, traceparent, timing)

    async def add_many(
        self, channel: str, messages: Iterable[Publishable], durability: int, timing: Timing = AT_ONCE
    ) -> list[BatchReceipt]:
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
            ticket = Ticket(channel, self._loop)
            self._enqueue(ticket, payload, count, durability, timing=timing)
            tickets.append(ticket)
            if number % _BREATH == 0:
                await asyncio.sleep(0)
        for ticket in tickets:
            await ticket.wait()
        return [receipt for ticket in tickets for receipt in ticket.receipts()]

    async def add_expected(
        self,
        channel: str,
        messages: Iterable[Publishable],
        durability: int,
        expected_offset: int,
        traceparent: str = "",
        timing: Timing = AT_ONCE,
    ) -> BatchReceipt:
        """Publishes messages as one batch that is stored at `expected_offset`, whole or not at all, and waits for it.

        Raises `InvalidRequest` for what does not fit in one batch, or is none at all.
        """
        batches = list(islice(encode_batches(messages, self._max_batch_bytes, self._options.max_batch_messages), 2))
        if len(batches) != 1:
            most = f"{self._options.max_batch_messages:,} messages and {self._max_batch_bytes:,} bytes"
            raise refused("messages", f"with expected_offset they must be one batch: 1 message to {most}")
        ((payload, count),) = batches
        self._check_size(len(payload))
        while not self._fits(count, len(payload)):
            await self._wait_for_room()
        ticket = Ticket(channel, self._loop)
        ticket.traceparent = traceparent
        self._enqueue(ticket, payload, count, durability, expected_offset, timing)
        await ticket.wait()
        (receipt,) = ticket.receipts()
        return receipt

    def _enqueue(
        self,
        ticket: Ticket,
        payload: bytes,
        count: int,
        durability: int,
        expected_offset: int | None = None,
        timing: Timing = AT_ONCE,
    ) -> None:
        """A batch that is closed already, behind all others of its channel."""
        outlet = self._outlet(ticket.channel)
        if outlet.open is not None:
            outlet.seal()
        ticket.count = count
        ticket.ask_all()
        self._pending_messages += count
        self._pending_bytes += len(payload)
        deadline = monotonic() + self._options.publish_timeout
        outlet.enqueue(payload, ticket, durability, deadline, expected_offset, timing)
        self._mark(outlet)

    def _check_size(self, size: int) -> None:
        """One message above it would end the stream for all that share it."""
        if size > self._node_batch_bytes:
            raise too_large(size, self._node_batch_bytes)

    def _joins(self, opened: OpenBatch, size: int, durability: int, timing: Timing) -> bool:
        return (
            opened.durability == durability
            and opened.timing == timing
            and opened.size + size <= self._max_batch_bytes
            and len(opened.parts) < self._options.max_batch_messages
        )

    def _fits(self, count: int, size: int) -> bool:
        """Whether the bounds allow it; the first of an empty buffer always fits, however large."""
        if self.closing:
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
        pipe = self._way(outlet)
        pipe.attached.add(outlet)
        if not outlet.queued:
            outlet.queued = True
            pipe.ready.append(outlet)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(_SWEEP_S, self._sweep)
        self._active.add(outlet)
        pipe.wake.set()

    # -- ways -----------------------------------------------------------------------------------------------------

    def _way(self, outlet: Outlet) -> Pipe:
        """The pipe for the channel's next batch; another one than before only when nothing is outstanding there."""
        version = self._router.routes.version
        before = outlet.pipe
        if before is not None and (outlet.version == version or outlet.lane.outstanding):
            return before
        outlet.version = version
        outlet.held_since = 0.0
        address = self._router.address(outlet.lane.channel)
        pipe = self._pipes.get(address)
        if pipe is None:
            pipe = Pipe(self, self._connections, self._router, self._options, address)
            self._pipes[address] = pipe
        if pipe is not before:
            if before is not None:
                before.attached.discard(outlet)
                before.wake.set()
            outlet.pipe = pipe
            outlet.queued = False
            self._fit(outlet, pipe.max_batch_bytes)
        return pipe

    def _on_routes(self) -> None:
        """Event: the answers of the router may be others than before."""
        if not self._rerouting:
            self._rerouting = True
            self._loop.call_soon(self._reroute)

    def _reroute(self) -> None:
        self._rerouting = False
        for outlet in list(self._active):
            self._mark(outlet)

    def _stays(self, outlet: Outlet, pipe: Pipe) -> bool:
        """Whether the channel's next batch still goes this way."""
        if outlet.version == self._router.routes.version:
            return True
        if self._router.address(outlet.lane.channel) != pipe.address:
            return False
        outlet.version = self._router.routes.version
        outlet.held_since = 0.0
        return True

    def next_frame(self, pipe: Pipe) -> bytes | None:
        """The next batch of the channel whose turn it is on this pipe; None when nothing may be sent now."""
        now = monotonic()
        while pipe.ready:
            outlet = pipe.ready.popleft()
            if outlet.pipe is not pipe:
                continue
            outlet.queued = False
            if not self._stays(outlet, pipe):
                # Waits for the last answer from here, which marks it again; without one to wait for it goes now.
                if not outlet.lane.outstanding:
                    self._mark(outlet)
                continue
            if (frame := self._take(outlet, pipe, now)) is not None:
                return frame
        return None

    def _take(self, outlet: Outlet, pipe: Pipe, now: float) -> bytes | None:
        lane, opened = outlet.lane, outlet.open
        if opened is not None and not lane.unsent and lane.has_room(now) and opened.due <= now + _TIMER_SLACK_S:
            outlet.seal()
        batch = lane.take(self._correlation + 1, now)
        if batch is None:
            return None
        self._correlation += 1
        pipe.sent[self._correlation] = (outlet, now)
        outlet.queued = True
        pipe.ready.append(outlet)
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
            traceparent=batch.ticket.traceparent,
            expected_offset=batch.expected_offset,
            timing=self._timing(batch, now),
        )

    def _timing(self, batch: OutBatch, now: float) -> Timing:
        """That of a batch at the moment: what it has waited here is over of its delay."""
        timing = batch.timing
        if not timing.delay_ms:
            return timing
        waited = now - (batch.deadline - self._options.publish_timeout)
        return timing._replace(delay_ms=remaining_ms(timing.delay_ms, waited))

    def opened(self, pipe: Pipe) -> None:
        """A stream stands: what waits was made for the bound of another node, perhaps."""
        self._node_batch_bytes = min(one.max_batch_bytes for one in self._pipes.values())
        self._max_batch_bytes = min(self._options.max_batch_bytes, self._node_batch_bytes)
        for outlet in list(pipe.attached):
            self._fit(outlet, pipe.max_batch_bytes)
            self._mark(outlet)

    def _fit(self, outlet: Outlet, node_batch_bytes: int) -> None:
        if outlet.open is not None and outlet.open.size > node_batch_bytes:
            outlet.seal()
        if outlet.lane.unsent and not outlet.lane.outstanding:
            self._apply(outlet, outlet.lane.bound(node_batch_bytes))

    def answered(self, pipe: Pipe, result: publish_pb2.PublishResult, now: float) -> None:
        """The outcome of a transmission; one that was given up meanwhile is ignored."""
        correlation = result.correlation
        outlet, _ = pipe.sent.pop(correlation, (None, 0.0))
        if outlet is None:
            return
        channel = outlet.lane.channel
        answer: publish_pb2.PublishResponse | RingpostError
        if result.HasField("stored"):
            answer = result.stored
            self._router.note(channel, answer.owner, answer.epoch)
        else:
            answer = from_failure(result.failure)
            self._router.heed(channel, answer)
        self._apply(outlet, outlet.lane.answered(correlation, answer, now))
        if outlet.lane.resume_at > now:
            self._loop.call_later(outlet.lane.resume_at - now + _TIMER_SLACK_S, self._mark, outlet)

    def lost(self, pipe: Pipe, error: RingpostError) -> None:
        """A stream is over: what it carried is sent again, elsewhere when another node answers."""
        pipe.sent.clear()
        outlets = [outlet for outlet in self._active if outlet.pipe is pipe]
        hopeless = self._connections.is_hopeless(error)
        for outlet in outlets:
            if hopeless and outlet.open is not None:
                outlet.seal()  # given up, too: no stream would take it
        effects = [(one, one.lane.abort(error) if hopeless else one.lane.stream_lost()) for one in outlets]
        if not self.closing:
            self._router.failed(pipe.address)
        for outlet, found in effects:
            self._apply(outlet, found)
            # At once, or what made `_sweep` cut this stream would go out on the next one.
            self._apply(outlet, outlet.lane.expire(monotonic()))

    def _give_up(self, outlet: Outlet) -> None:
        """The old owner does not answer: what it was sent is as open as on a broken stream."""
        pipe = outlet.pipe
        assert pipe is not None
        for correlation in [number for number, (whose, _) in pipe.sent.items() if whose is outlet]:
            del pipe.sent[correlation]
        self._apply(outlet, outlet.lane.stream_lost())

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
            if outlet.pipe is not None:
                outlet.pipe.attached.discard(outlet)
                outlet.pipe.wake.set()
            if len(self._outlets) > _MAX_IDLE:
                self._outlets.pop(outlet.lane.channel, None)

    def _sweep(self) -> None:
        """Gives up what is past its deadline; looks after nodes that owe an answer for too long."""
        now = monotonic()
        for outlet in list(self._active):
            if outlet.open is not None and outlet.open.deadline <= now:
                outlet.seal()
            if outlet.pipe is not None and outlet.lane.unanswered_since(now):
                outlet.pipe.cut()
            self._apply(outlet, outlet.lane.expire(now))
            if outlet.lane.outstanding and outlet.pipe is not None and not self._stays(outlet, outlet.pipe):
                outlet.held_since = outlet.held_since or now
                if now - outlet.held_since >= _HOLD_S:
                    self._give_up(outlet)
        for pipe in self._pipes.values():
            since = pipe.owing_since()
            if since is not None and now - since >= _OWING_S:
                self._router.suspect(pipe.address)
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
        self.closing = True
        for outlet in list(self._active):
            if outlet.open is not None:
                outlet.seal()
            self._apply(outlet, outlet.lane.abort(Closed("the client was closed before the answer")))
        while self._room:
            _wake_up(self._room.popleft())
        cuts = [self._loop.call_at(deadline, pipe.cut) for pipe in self._pipes.values()]
        await asyncio.gather(*(pipe.stop() for pipe in self._pipes.values()))
        for cut in cuts:
            cut.cancel()


def _wake_up(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
