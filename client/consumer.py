"""One subscription's stream: opens it, keeps it alive, resumes it, grants credit, carries settlements.

A subscription has its own stream, so that closing one releases exactly its leases. The application takes whole batches
from `next_batch` and says with `consumed` what it is done with; credit follows that.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from random import randrange
from time import monotonic
from typing import Final

import grpc
from crc32c import crc32c
from google.protobuf.message import DecodeError

from ringpost.client import wire
from ringpost.client.connection import Backoff, Connections
from ringpost.client.credit import Credit
from ringpost.client.errors import (
    Closed,
    DataCorrupted,
    LeaseLost,
    NotFound,
    OutOfRange,
    Precondition,
    RingpostError,
    Unavailable,
    from_failure,
)
from ringpost.client.message import MessageBatch
from ringpost.client.places import GONE, Places, is_pattern
from ringpost.client.router import Router
from ringpost.client.session import SUBSCRIPTION_ID, Request, Session, Watch
from ringpost.client.settle import Action, Held
from ringpost.v1 import common_pb2, subscribe_pb2

_log = logging.getLogger(__name__)
_ROLE = "subscribe"
# Settlements that nobody waits for are gathered so long.
_GATHER_S = 0.003
_EXTEND = Action("extend")
_EXTEND_S_MIN: Final = 0.25
_OCCUPIED: Final = "GROUP_OCCUPIED"
# Logged for whoever wants to tell of it, with the channel.
INTERRUPTED: Final = "the subscription to %s is interrupted: %s"
RESUMED: Final = "the subscription to %s goes on"


class Consumer:
    """Keeps one subscription going until `close` or an error that trying again cannot mend.

    Its stream goes to the channel's owner, or to another node while that is unknown or does not answer. When it breaks
    the next address is tried at once; there is a pause only when all have been.
    """

    def __init__(
        self,
        connections: Connections,
        router: Router,
        request: Request,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
        on_gap: Callable[[int, int], None] | None = None,
    ) -> None:
        self.request = request
        # Offsets that retention, a purge or a compaction removed before they were delivered.
        self.gaps = 0
        self.error: RingpostError | None = None
        self.opened: asyncio.Future[subscribe_pb2.Opened] = asyncio.get_running_loop().create_future()
        # Gives ranges that the application holds and whose leases are to be kept.
        self.held: Callable[[], Iterable[Held]] = tuple
        # Messages and bytes that the application took and that `consumed` was not told about yet.
        self.unread: Callable[[], tuple[int, int]] = lambda: (0, 0)
        # Whether the application has not read for so long that no lease is worth keeping.
        self.abandoned: Callable[[], bool] = lambda: False
        # Called when a stream has ended and its leases are lost.
        self.on_lost: Callable[[], None] = lambda: None
        self._connections = connections
        self._router = router
        self._prepare = prepare
        self._on_gap = on_gap
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[MessageBatch] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._wake = asyncio.Event()
        self._next_offset: int | None = None
        self._places = Places() if is_pattern(request.channel) else None
        self._spread = randrange(1 << 16)
        self._session: Session | None = None
        self._backoff = Backoff()
        # Addresses tried since the last stream that stood, that one's included.
        self._tried: set[str] = set()
        self._stopped = False
        self._closing = False
        self._interrupted = False
        self._last_problem: RingpostError | None = None
        self._runner = self._loop.create_task(self._run(), name=f"ringpost-subscription {request.channel}")

    @property
    def closed(self) -> bool:
        """Whether it has ended, by `close` or by an error."""
        return self._runner.done()

    # -- the application's side -----------------------------------------------------------------------------------

    async def next_batch(self) -> MessageBatch | None:
        """The next batch; None after `close`. Raises the error that ended the subscription, after all batches."""
        while not self._buffer:
            if self.error is not None:
                raise self.error.copy()
            if self._stopped:
                return None
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        return self._buffer.popleft()

    def consumed(self, batch: MessageBatch, messages: int, size: int) -> None:
        """The application is done with so many messages and bytes of a batch: the broker may send as many more."""
        session = self._session
        if session is None or (batch.leases is not None and batch.leases is not session.leases):
            return
        session.credit.consumed(messages, size)
        if session.credit.due and not session.draining:
            self._wake.set()

    async def wait_opened(self) -> subscribe_pb2.Opened:
        """Waits for the first `opened`. Raises the broker's refusal, or the last problem after `connect_timeout`."""
        try:
            async with asyncio.timeout(self.request.connect_timeout):
                return await asyncio.shield(self.opened)
        except TimeoutError:
            raise self._last_problem or Unavailable("no answer to the subscription before connect_timeout") from None

    def stop(self) -> None:
        """Gives out no more batches; settlements go on until `close`."""
        self._stopped = True
        self._buffer.clear()
        self._wake_waiters()

    async def close(self, timeout: float | None = None) -> None:
        """Sends what is left to settle, waits for the answers, releases the leases. Safe to call twice.

        After `timeout` seconds (default: the client's close_timeout) it waits no longer. Goes on when cancelled.
        """
        self.stop()
        self._closing = True
        self._wake.set()
        cut = self._loop.call_later(self.request.close_timeout if timeout is None else timeout, self._cut)
        await asyncio.shield(self._runner)
        cut.cancel()

    # -- the stream -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._closing and self.error is None:
                problem = await self._attempt()
                await self._after(problem)
        except Exception as bug:
            _log.exception("the subscription to %s ended by a bug of this client", self.request.channel)
            self._fail(RingpostError(f"bug in the client: {bug!r}"))
        finally:
            self._finish()

    async def _after(self, problem: RingpostError) -> None:
        """A stream ended: gives up, or waits before the next."""
        if self._closing or self.error is not None:
            return
        self._last_problem = problem
        if self._connections.is_hopeless(problem) or isinstance(problem, NotFound | OutOfRange | Precondition):
            self._fail(problem)
            return
        self._interrupted = True
        _log.info(INTERRUPTED, self.request.channel, problem)
        if self._places is None:
            self._router.heed(self.request.channel, problem)
        self._router.refresh()
        if self._address() in self._tried:
            self._tried.clear()
            await self._pause(max(self._backoff.next_delay(), problem.retry_after_ms / 1000))

    def _address(self) -> str:
        """Where to open a stream: at the channel's owner; a pattern's at any node, as it has channels on all."""
        if self._places is not None:
            return self._router.any_address(self._spread)
        return self._router.address(self.request.channel)

    async def _attempt(self) -> RingpostError:
        if self._prepare is not None:
            try:
                await self._prepare()
            except RingpostError as error:
                return error
            self._prepare = None
        try:
            return await self._serve()
        except RingpostError as unsent:  # no stream can be opened with such a token
            return unsent

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._closing:
                    self._wake.clear()
                    await self._wake.wait()

    async def _serve(self) -> RingpostError:
        """One stream from open to end; returns why it ended."""
        address = self._address()
        self._tried.add(address)
        stream = self._connections.open_stream(_ROLE, wire.SUBSCRIBE_PATH, address)
        # In a group, what is left of an earlier stream is dropped with its leases.
        messages, size = (0, 0) if self.request.group else self.unread()
        messages += sum(b.count for b in self._buffer)
        size += sum(b.size for b in self._buffer)
        credit = Credit(self.request.window_messages, self.request.window_bytes, messages, size)
        session = self._session = Session(stream, credit, self._wake_for_settlements)
        reader = self._loop.create_task(self._read(session), name=f"ringpost-reader {self.request.channel}")
        watch = Watch(self._router, session, self.request.heartbeat_interval_ms / 1000)
        try:
            await stream.write(self._open_command(credit))
            await self._write(session)
            await reader
        except RingpostError as error:
            session.error = session.error or error
        finally:
            watch.end()
            stream.cancel()
            await reader
            self._session = None
            if not session.told and not self._closing:
                self._router.failed(address)
            session.leases.end(LeaseLost("the stream ended; the message is delivered again"))
            if self.request.group:
                self._buffer.clear()
            if self._places is not None:
                self._places.lost()
            self.on_lost()
        assert session.error is not None
        return session.error

    def _open_command(self, credit: Credit) -> bytes:
        request = self.request
        command = subscribe_pb2.SubscribeRequest()
        command.open.subscription_id = SUBSCRIPTION_ID
        command.open.group = request.group
        command.open.mode = request.mode
        command.open.filter = request.filter
        command.open.consumer = request.consumer
        command.open.lease_tokens = request.lease_tokens
        command.open.heartbeat_interval_ms = request.heartbeat_interval_ms
        command.open.credit.CopyFrom(credit.grant())
        if self._places is not None:
            self._places.fill(command.open, request.channel, request.start, request.group)
            return command.SerializeToString()
        command.open.channel = request.channel
        if self._next_offset is not None and not request.group:
            command.open.start.offset = self._next_offset
        elif request.start is not None and not self.opened.done():
            command.open.start.CopyFrom(request.start)
        return command.SerializeToString()

    async def _write(self, session: Session) -> None:
        """Sends credit and settlements until the stream is over or it is time to leave."""
        while session.error is None:
            self._wake.clear()
            for settle in session.leases.flush():
                await session.stream.write(settle.SerializeToString())
            if session.credit.due and not session.draining:
                grant = subscribe_pb2.GrantCredit(subscription_id=SUBSCRIPTION_ID, credit=session.credit.grant())
                await session.stream.write(subscribe_pb2.SubscribeRequest(credit=grant).SerializeToString())
            if self._closing and session.leases.idle:
                close = subscribe_pb2.CloseSubscription(subscription_id=SUBSCRIPTION_ID)
                await session.stream.write(subscribe_pb2.SubscribeRequest(close=close).SerializeToString())
                await session.stream.half_close()
                return
            if session.leaving:
                await session.stream.half_close()
                self._loop.call_later(self.request.close_timeout, session.stream.cancel)
                return
            await self._wake.wait()

    async def _read(self, session: Session) -> None:
        try:
            while (data := await session.stream.read()) is not None:
                session.last_event = monotonic()
                self._on_event(session, wire.parse_event(data))
            session.error = session.error or Unavailable("the node ended the stream")
        except DataCorrupted as error:
            session.error = error
            self._fail(error)
        except RingpostError as error:
            session.error = session.error or error
        except DecodeError:
            session.error = Unavailable("the node sent what does not parse")
        except Exception as bug:
            _log.exception("the subscription to %s ended by a bug of this client", self.request.channel)
            session.error = RingpostError(f"bug in the client: {bug!r}")
            self._fail(session.error)
        finally:
            session.leases.end(LeaseLost("the stream ended; the message is delivered again"))
            self._wake.set()

    def _on_event(self, session: Session, event: subscribe_pb2.SubscribeResponse) -> None:
        match event.WhichOneof("event"):
            case "deliver":
                for delivered in event.deliver.batches:
                    self._on_batch(session, delivered)
                self._wake_waiters()
            case "settled":
                session.leases.answered(event.settled)
                if self._closing:
                    self._wake.set()
            case "opened":
                self._on_opened(session, event.opened)
            case "gap":
                self._on_missing(event.gap)
            case "drain":
                self._on_drain(session, event.drain)
            case "closed":
                self._on_closed(session, event.closed)
            case _:
                pass  # a heartbeat, or news that this client does not know

    def _on_batch(self, session: Session, delivered: subscribe_pb2.DeliveredBatch) -> None:
        raw = wire.batch_bytes(delivered)
        first, count = delivered.first_offset, delivered.count
        if count == 0:
            self._on_place(delivered.channel, first)
            return
        if crc32c(raw) != delivered.crc32c:
            where = f"offsets {first} to {first + count - 1} of {delivered.channel or self.request.channel}"
            raise DataCorrupted(f"{where} do not match their CRC-32C", metadata={"first_offset": str(first)})
        batch = MessageBatch(
            delivered.channel or self.request.channel,
            raw,
            first_offset=first,
            count=count,
            append_time_us=delivered.append_time_us,
            attempt=delivered.attempt,
            last_reason=delivered.last_reason,
            lease_token=delivered.lease_token,
            leases=session.leases if self.request.group else None,
            named=self._places is not None,
        )
        if not self._stopped:
            self._buffer.append(batch)
        self._next_offset = first + count
        if self._places is not None:
            self._places.passed(delivered.channel, first + count - 1)
            self._heed_lease(session, delivered.lease_ms)

    def _on_place(self, channel: str, offset: int) -> None:
        """A pattern's channel is read from here; in a group, what waits here of it is delivered again."""
        if self._places is None:
            return
        self._places.begin(channel, offset)
        if self.request.group:
            for batch in [batch for batch in self._buffer if batch.channel == channel]:
                self._buffer.remove(batch)
                self.consumed(batch, batch.count, batch.size)

    def _on_opened(self, session: Session, opened: subscribe_pb2.Opened) -> None:
        session.opened = True
        if self._interrupted:
            self._interrupted = False
            _log.info(RESUMED, self.request.channel)
        self._backoff.reset()
        self._tried = {session.stream.address}
        self._router.worked(session.stream.address)
        if self._places is None:
            self._router.note(self.request.channel, opened.owner, opened.epoch)
        else:
            self._places.opened = True
        if self._next_offset is None:
            self._next_offset = opened.next_offset
        if opened.ack_deadline_ms:
            self._extend_later(session, opened.ack_deadline_ms / 2000)
        if not self.opened.done():
            self.opened.set_result(opened)

    def _on_missing(self, gap: subscribe_pb2.Gap) -> None:
        channel, first, last = gap.channel or self.request.channel, gap.missing.first, gap.missing.last
        if self._places is not None:
            self._places.passed(channel, last)
            if last == GONE:
                return
        if self.gaps == 0:
            _log.warning("%s: offsets %d to %d are gone (counted from here on)", channel, first, last)
        self.gaps += last - first + 1
        self._next_offset = max(self._next_offset or 0, last + 1)
        if self._on_gap is not None:
            self._loop.call_soon(self._on_gap, first, last)

    def _on_drain(self, session: Session, drain: common_pb2.DrainNotice) -> None:
        """Group: what is being worked on may still be settled for half of the grace. Without: nothing to wait for."""
        session.draining = True
        # Others are to be asked for what comes next.
        self._router.failed(session.stream.address)
        self._loop.call_later(drain.grace_ms / 2000 if self.request.group else 0.0, self._begin_to_leave, session)

    def _begin_to_leave(self, session: Session) -> None:
        session.leaving = True
        self._wake.set()

    def _on_closed(self, session: Session, closed: subscribe_pb2.Closed) -> None:
        if not closed.HasField("failure"):
            session.error = Closed("the subscription is closed")
            return
        session.told = True
        session.error = from_failure(closed.failure)
        # Whoever had the group's only place may find its own broken stream there; a newcomer is told.
        taken = session.error.reason == _OCCUPIED and not self.opened.done()
        if taken or (session.error.code is not grpc.StatusCode.UNAVAILABLE and session.error.retry_after_ms == 0):
            self._fail(session.error)
        session.stream.cancel()

    # -- timers ---------------------------------------------------------------------------------------------------

    def _wake_for_settlements(self, urgent: bool) -> None:
        if urgent:
            self._wake.set()
        else:
            self._loop.call_later(_GATHER_S, self._wake.set)

    def _extend_later(self, session: Session, seconds: float) -> None:
        session.extend_s = seconds
        self._loop.call_later(seconds, self._extend, session, seconds)

    def _heed_lease(self, session: Session, lease_ms: int) -> None:
        """A channel of the pattern may have a group with shorter leases than those that stood at the opening."""
        seconds = max(lease_ms / 2000, _EXTEND_S_MIN)
        if lease_ms and seconds < session.extend_s / 1.5:
            self._extend_later(session, seconds)

    def _extend(self, session: Session, seconds: float) -> None:
        """Keeps the leases of what waits here or is being worked on."""
        if session is not self._session or session.leases.ended or seconds > session.extend_s:
            return
        if self.abandoned():
            _log.warning("nobody has read the subscription to %s for max_lease: its leases end", self.request.channel)
            return
        for channel, first, last in (*self._buffered(), *self.held()):
            session.leases.settle(_EXTEND._replace(channel=channel) if channel else _EXTEND, first, last)
        self._extend_later(session, seconds)

    def _buffered(self) -> Iterator[Held]:
        return ((batch.settled_in, batch.first_offset, batch.last_offset) for batch in self._buffer)

    # -- ends -----------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        if self._session is not None:
            self._session.stream.cancel()

    def _fail(self, error: RingpostError) -> None:
        self.error = error
        if not self.opened.done():
            self.opened.set_exception(error)
        self._wake_waiters()

    def _finish(self) -> None:
        if not self.opened.done():
            self.opened.set_exception(Closed("the subscription is closed"))
        # Whoever wants to know has asked by now; asyncio shall not complain about the others.
        self.opened.exception()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
