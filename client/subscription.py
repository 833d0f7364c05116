"""Reading a subscription: message by message, or batch by batch."""

from collections.abc import AsyncIterator, Iterable
from time import monotonic
from typing import Self

from ringpost.client.consumer import Consumer
from ringpost.client.errors import DataCorrupted
from ringpost.client.message import Message, MessageBatch
from ringpost.client.settle import Held


class Subscription:
    """`async for message in subscription`, or `async for batch in subscription.batches()`; use one of them.

    It opens by itself, reconnects and resumes. Without a group it goes on behind the last message that came. In a
    group the messages of a broken stream are delivered again, to whomever; settling the old ones raises `LeaseLost`.
    Leases of messages that wait in here, and of the batch that is being iterated, are extended by
    themselves, for at most `Options.max_lease` while nothing is read; a message taken out is yours to settle or extend.
    Ends without an error when closed; leaving the loop does not close it: use `async with`, or `close`.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._batch: MessageBatch | None = None
        self._messages: list[Message] = []
        self._index = 0
        # Messages of the batch that are counted as consumed, and where to count next.
        self._counted = 0
        self._mark = 0
        self._step = max(1, consumer.request.window_messages // 4)
        # Where the reader was when somebody last looked, and since when.
        self._seen: tuple[int, int] = (0, 0)
        self._seen_at = monotonic()
        consumer.held = self._held
        consumer.unread = self._unread
        consumer.abandoned = self._abandoned
        consumer.on_lost = self._look_again

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

    async def opened(self) -> int:
        """Waits until the subscription stands; the offset that delivery begins at. Raises the broker's refusal."""
        return (await self._consumer.wait_opened()).next_offset

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        index = self._index
        if index == self._mark:
            await self._advance()
            index = self._index
        self._index = index + 1
        return self._messages[index]

    def _look_again(self) -> None:
        """A stream ended: in a group, what is left of its batch is not given out."""
        self._mark = self._index

    async def _advance(self) -> None:
        """Counts what was read; takes the next batch when this one is at its end."""
        batch = self._batch
        if batch is not None and batch.leases is not None and batch.leases.ended:
            self._batch = batch = None
        if batch is not None:
            at_end = self._index == batch.count
            self._consumer.consumed(batch, self._index - self._counted, batch.size if at_end else 0)
            self._counted = self._index
            if at_end:
                self._batch = batch = None
        if batch is None:
            batch = await self._next_batch()
            self._messages = self._open(batch)
            self._batch = batch
            self._index = self._counted = 0
        self._mark = min(self._index + self._step, batch.count)

    async def _next_batch(self) -> MessageBatch:
        # No batch in hand: a reader that comes back after the end shall not find the old one.
        self._index = self._mark = 0
        batch = await self._consumer.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch

    def _open(self, batch: MessageBatch) -> list[Message]:
        try:
            return batch.messages
        except DataCorrupted:
            self._consumer.consumed(batch, batch.count, batch.size)
            raise

    async def batches(self) -> AsyncIterator[MessageBatch]:
        """Whole batches, the fast way: `batch.messages` or `batch.payloads()`, then `await batch.ack()` for all."""
        while True:
            try:
                batch = await self._next_batch()
            except StopAsyncIteration:
                return
            self._batch = batch
            self._counted = 0
            yield batch
            self._batch = None
            self._consumer.consumed(batch, batch.count, batch.size)

    def _held(self) -> Iterable[Held]:
        batch = self._batch
        if batch is None or batch.settled or self._index >= batch.count:
            return ()
        return ((batch.settled_in, batch.first_offset + max(0, self._index - 1), batch.last_offset),)

    def _unread(self) -> tuple[int, int]:
        batch = self._batch
        return (0, 0) if batch is None else (batch.count - self._counted, batch.size)

    def _abandoned(self) -> bool:
        """Whether the reader has not moved for `max_lease`: a loop that was left holds its messages no longer."""
        place = (-1 if self._batch is None else self._batch.first_offset, self._index)
        now = monotonic()
        if place != self._seen:
            self._seen, self._seen_at = place, now
        return now - self._seen_at >= self._consumer.request.max_lease

    async def close(self, timeout: float | None = None) -> None:
        """Sends and confirms what was settled, releases the leases, ends the loop. Safe to call twice.

        Waits at most `timeout` seconds (default: the client's close_timeout) for the node.
        """
        await self._consumer.close(timeout)

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.wait_opened()
        except BaseException:
            await self.close(0.0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
