"""The parts of which the loads of `ringpost bench` are made."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from ringpost.client.api import Client
from ringpost.client.cli.command import PATIENCE
from ringpost.client.cli.contexts import dial
from ringpost.client.cli.stats import Samples
from ringpost.client.errors import NotFound
from ringpost.client.message import MessageBatch
from ringpost.client.receipts import PendingPublish
from ringpost.client.subscription import Subscription

_POOL = 64


@dataclass(frozen=True)
class Load:
    """Parameters of a run; either `messages` (over all producers) or `seconds` is above 0.

    `batch`: messages handed over per call. `window`: calls of one producer that wait for their answer at a time.
    `rate`: messages a second over all producers, open loop only.
    """

    size: int
    batch: int
    messages: int
    seconds: float
    durability: str
    channels: int
    producers: int
    window: int
    subscribers: int = 1
    rate: float = 0.0

    def parameters(self, *unused: str) -> dict[str, Any]:
        """For the report, without the parameters that this load does not use."""
        return {name: value for name, value in asdict(self).items() if value and name not in unused}


# Told how many more messages are done.
Watch = Callable[[int], object]


class Stop:
    """When producers end: after their share of the messages, or when time is up."""

    def __init__(self, load: Load) -> None:
        self._left = load.messages or (1 << 62)
        self._deadline = time.perf_counter() + load.seconds if load.seconds else float("inf")

    def take(self, wanted: int) -> int:
        """How many to send next; 0: enough."""
        if time.perf_counter() >= self._deadline:
            return 0
        granted = min(wanted, self._left)
        self._left -= granted
        return granted


def payloads(size: int) -> list[bytes]:
    """Random and so incompressible."""
    return [os.urandom(size) for _ in range(_POOL)]


@asynccontextmanager
async def scratch(mq: Client, load: Load, users: Sequence[Client]) -> AsyncIterator[list[str]]:
    """Channels that nobody but `users` uses, deleted afterwards.

    The users are closed before: what one of them still had on its way would make its channel again.
    """
    run = os.urandom(5).hex()
    names = [f"bench.{run}.{i}" for i in range(load.channels)]
    try:
        for name in names:
            await mq.channels.add(name)
        yield names
    finally:
        await asyncio.gather(*(user.close() for user in users), return_exceptions=True)
        for name in names:
            with suppress(NotFound):
                await mq.channels.delete(name)


@asynccontextmanager
async def clients(addr: str, count: int) -> AsyncIterator[list[Client]]:
    """Connections of their own."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(dial(addr, PATIENCE)) for _ in range(count)]


class Producer:
    """Keeps up to `window` calls on their way, round robin over the channels."""

    def __init__(self, mq: Client, load: Load, channels: list[str]) -> None:
        self._mq, self._load, self._channels = mq, load, channels
        self._data = payloads(load.size)
        self._turn = 0
        self.answered = 0
        self.samples = Samples()

    async def run(self, stop: Stop, watch: Watch) -> None:
        """Until `stop` says enough and everything is answered. Raises the first error."""
        window: deque[tuple[float, int, PendingPublish | asyncio.Future[Any]]] = deque()
        try:
            while count := stop.take(self._load.batch):
                window.append((time.perf_counter(), count, self._publish(count)))
                while len(window) >= self._load.window or (window and window[0][2].done()):
                    watch(await self._answer(*window.popleft()))
            while window:
                watch(await self._answer(*window.popleft()))
        finally:
            calls = [call for _, _, call in window if isinstance(call, asyncio.Future)]
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _publish(self, count: int) -> "PendingPublish | asyncio.Future[Any]":
        channel = self._channels[self._turn % len(self._channels)]
        first = self._turn * count
        self._turn += 1
        if count == 1:
            return self._mq.publish_nowait(channel, self._data[first % _POOL], durability=self._load.durability)
        batch = [self._data[n % _POOL] for n in range(first, first + count)]
        return asyncio.ensure_future(self._mq.publish_many(channel, batch, durability=self._load.durability))

    async def _answer(self, begin: float, count: int, answer: Awaitable[Any]) -> int:
        await answer
        self.samples.add(time.perf_counter() - begin)
        self.answered += count
        return count


class Tally:
    """Counts what a set of readers got; `done` is set when `want` says that it is all there."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.done = asyncio.Event()
        self._wanted: int | None = None

    def want(self, count: int) -> None:
        self._wanted = count
        self.add(0)

    def add(self, count: int) -> None:
        self.count += count
        self.last = time.perf_counter()
        if self._wanted is not None and self.count >= self._wanted:
            self.done.set()


async def read(
    subscription: Subscription, tally: Tally, on_batch: Callable[[MessageBatch], None] | None = None
) -> None:
    """Takes batches, opens every payload, acknowledges in a group. Ends when cancelled."""
    async for batch in subscription.batches():
        if on_batch is not None:
            on_batch(batch)
        else:
            batch.payloads()
        if subscription.group:
            batch.ack()
        tally.add(batch.count)


@asynccontextmanager
async def reading(jobs: "list[Coroutine[Any, Any, None]]") -> AsyncIterator[None]:
    """Readers that run until the body ends; the body is cancelled when one of them fails."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()


async def produce(producers: list[Producer], load: Load, watch: Watch) -> int:
    """Runs all producers to their end; the number of answered messages."""
    stop = Stop(load)
    async with asyncio.TaskGroup() as group:
        for producer in producers:
            group.create_task(producer.run(stop, watch))
    return sum(producer.answered for producer in producers)
