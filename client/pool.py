"""The bounded pool that runs a callback for each message of a subscription."""

import asyncio
import contextvars
import functools
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeAlias

from ringpost.client.consumer import Consumer
from ringpost.client.errors import InvalidRequest, Reject, Retry, RingpostError
from ringpost.client.message import MAX_REASON_BYTES, Message, MessageBatch
from ringpost.client.settle import Held

_log = logging.getLogger(__name__)
# A worker whose handlers never wait lets others run after so many messages.
_BREATH = 64

# After a failure in a group without a policy, when the subscriber does not say how long.
_FALLBACK_S = 1.0
# How long `close` waits for a cancelled handler, and for the node when the handlers have used up its time.
_LAST_S = 0.5
# The worker that this code, or the task that it started, was called by.
_worker: contextvars.ContextVar["asyncio.Task[None] | None"] = contextvars.ContextVar("ringpost_worker", default=None)

Handler: TypeAlias = Callable[[Message], Awaitable[object] | object]


class HandlerPool:
    """Runs `handler` for every message, at most `max_concurrency` at a time, until closed.

    Async callables run on the event loop, plain ones in a thread pool of as many threads. `ordered`: one at a time,
    in the channel's order. In a group: a handler that returns acks its message; one that raises nacks it, `Retry` with
    its own delay, others with `nack_delay` (None: by the group's policy, without one after a second); `Reject` rejects
    it. Unless the handler settled it. Leases are extended while a message waits or is worked on. An exception but
    those two is logged once, here.
    """

    def __init__(
        self, consumer: Consumer, handler: Handler, *, max_concurrency: int, ordered: bool, nack_delay: float | None
    ) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency: at least 1, not {max_concurrency}")
        workers = 1 if ordered else max_concurrency
        self.running = 0
        self._consumer = consumer
        self._handler = handler
        self._nack_delay = nack_delay
        self._queue: deque[Message] = deque()
        self._busy: set[Message] = set()
        # Messages of each batch that are not handled yet.
        self._left: dict[MessageBatch, int] = {}
        self._idle: deque[asyncio.Future[None]] = deque()
        self._ended = False
        self._error: RingpostError | None = None
        self._threads = None if _is_async(handler) else ThreadPoolExecutor(workers, "ringpost-handler")
        self._loop = asyncio.get_running_loop()
        self._closer: asyncio.Task[None] | None = None
        consumer.held = self._held
        consumer.unread = self._unread
        self._feeder = self._loop.create_task(self._feed(), name="ringpost-handler feed")
        self._workers = [self._loop.create_task(self._work(), name=f"ringpost-handler {n}") for n in range(workers)]
        for worker in self._workers:
            worker.add_done_callback(self._on_worker_ended)

    @property
    def channel(self) -> str:
        return self._consumer.request.channel

    @property
    def group(self) -> str:
        """Empty without a group."""
        return self._consumer.request.group

    @property
    def closed(self) -> bool:
        """Whether it has ended, by `close` or by an error."""
        return self._consumer.closed

    @property
    def gaps(self) -> int:
        """Number of offsets that were removed before they could be delivered."""
        return self._consumer.gaps

    async def opened(self) -> None:
        """Waits until the subscription stands. Raises the broker's refusal."""
        await self._consumer.wait_opened()

    async def wait(self) -> None:
        """Waits until the subscription ends. Raises the error that ended it; returns when it was closed."""
        await asyncio.wait([self._feeder, *self._workers])
        if self._error is not None:
            raise self._error

    async def close(self, timeout: float | None = None) -> None:
        """Starts no more handlers and waits for the running ones; settles, releases the leases.

        After `timeout` seconds (default: the client's close_timeout) async handlers are cancelled and threads left
        alone; their messages are not settled and will be delivered again. Safe to call twice, and from a handler, which
        is not waited for then. Goes on when cancelled.
        """
        if self._closer is None:
            limit = self._consumer.request.close_timeout if timeout is None else timeout
            self._closer = self._loop.create_task(self._close(limit), name="ringpost-handler close")
        await asyncio.shield(self._closer)

    async def _close(self, limit: float) -> None:
        deadline = self._loop.time() + limit
        self._queue.clear()
        self._consumer.stop()
        # A task inherits the context of whoever started it.
        me = _worker.get()
        workers = [worker for worker in self._workers if worker is not me]
        if workers:
            _, late = await asyncio.wait(workers, timeout=limit)
            for worker in late:
                worker.cancel()
            if late:
                await asyncio.wait(late, timeout=_LAST_S)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        await self._consumer.close(max(_LAST_S, deadline - self._loop.time()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- workers --------------------------------------------------------------------------------------------------

    def _on_worker_ended(self, worker: "asyncio.Task[None]") -> None:
        """A worker ends before the subscription only by a bug here: without it the pool would be silently smaller."""
        if worker.cancelled() or (bug := worker.exception()) is None:
            return
        _log.error("the subscription to %s ended by a bug of this client", self.channel, exc_info=bug)
        self._error = self._error or RingpostError(f"bug in the client: {bug!r}")
        if self._closer is None:
            limit = self._consumer.request.close_timeout
            self._closer = self._loop.create_task(self._close(limit), name="ringpost-handler close")

    async def _work(self) -> None:
        _worker.set(asyncio.current_task())
        done = 0
        while (message := await self._next()) is not None:
            self._busy.add(message)
            self.running += 1
            try:
                await self._handle(message)
            finally:
                self.running -= 1
                self._busy.discard(message)
                self._handled(message.batch)
            done += 1
            if done % _BREATH == 0:
                await asyncio.sleep(0)

    def _handled(self, batch: MessageBatch) -> None:
        """One more message of the batch needs no more room; its bytes are there until the last."""
        left = self._left[batch] - 1
        if left:
            self._left[batch] = left
            self._consumer.consumed(batch, 1, 0)
        else:
            del self._left[batch]
            self._consumer.consumed(batch, 1, batch.size)

    def _unread(self) -> tuple[int, int]:
        return sum(self._left.values()), sum(batch.size for batch in self._left)

    async def _next(self) -> Message | None:
        while True:
            while self._queue:
                message = self._queue.popleft()
                leases = message.batch.leases
                if leases is None or not leases.ended:
                    return message
                self._handled(message.batch)
            if self._ended:
                return None
            waiter = self._loop.create_future()
            self._idle.append(waiter)
            await waiter

    async def _feed(self) -> None:
        """Takes what comes, within the credit, until the subscription ends."""
        try:
            while (batch := await self._consumer.next_batch()) is not None:
                self._left[batch] = batch.count
                self._queue.extend(batch.messages)
                self._wake_workers()
        except RingpostError as error:
            _log.error("the subscription to %s ended: %s", self.channel, error)
            self._error = error
        finally:
            self._ended = True
            self._wake_workers()

    def _wake_workers(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def _handle(self, message: Message) -> None:
        try:
            await self._call(message)
        except (Retry, Reject) as verdict:
            self._settle_as_told(message, verdict)
        except (Exception, asyncio.CancelledError) as error:
            # A handler may let out the cancellation of something that it waited for; this task's own goes on.
            if (me := asyncio.current_task()) is not None and me.cancelling():
                raise
            _log.exception("a handler failed on %s offset %d", message.channel, message.offset)
            if message.batch.leases is not None and not message.settled:
                reason = _cut(f"{type(error).__name__}: {error}")
                message.nack(self._nack_delay or 0.0, reason, fallback=_FALLBACK_S if self._nack_delay is None else 0.0)
        else:
            if message.batch.leases is not None and not message.settled:
                message.ack()

    def _settle_as_told(self, message: Message, verdict: Retry | Reject) -> None:
        if message.batch.leases is None or message.settled:
            return
        if isinstance(verdict, Reject):
            message.reject(_cut(verdict.reason))
            return
        try:
            message.nack(verdict.delay, _cut(verdict.reason))
        except InvalidRequest:
            _log.exception("a handler failed on %s offset %d", message.channel, message.offset)
            message.nack(0.0, _cut(verdict.reason), fallback=_FALLBACK_S)

    async def _call(self, message: Message) -> None:
        """All that is done for a message; raises what its handler raises."""
        await self._result(message)

    async def _result(self, message: Message) -> object:
        if self._threads is None:
            result = self._handler(message)
        else:
            result = await self._loop.run_in_executor(self._threads, self._call_in_thread, message)
        return await result if inspect.isawaitable(result) else result

    def _call_in_thread(self, message: Message) -> object:
        try:
            return self._handler(message)
        except StopIteration as stop:
            # A future cannot carry it: who waits for that would wait for ever.
            raise RuntimeError("the handler raised StopIteration") from stop

    def _held(self) -> Iterable[Held]:
        held = [message for message in (*self._busy, *self._queue) if not message.settled]
        return ((message.batch.settled_in, message.offset, message.offset) for message in held)


def _cut(reason: str) -> str:
    """As much as a settlement may say, in text that can be encoded."""
    return reason.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")


def _is_async(handler: Handler) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
