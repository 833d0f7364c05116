"""Ringpost's own client."""

import asyncio
import struct
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ringpost.client.api import Client, connect
from ringpost.client.options import Options
from tests.benchmarks.clients.steady import Tally, found, percentiles, steady
from tests.benchmarks.job import Found, Job
from tests.benchmarks.measure import Span, payload

# A frame may hold a whole batch of the job; the default would cut 1,000 messages of 128 bytes in two.
FRAME_BYTES_MAX = 4 << 20
FILL = 1_000
TICK_S = 0.001
STAMP = struct.Struct("<d")


@asynccontextmanager
async def clients(job: Job, count: int) -> AsyncIterator[list[Client]]:
    options = Options(max_batch_bytes=FRAME_BYTES_MAX, max_batch_messages=max(job.batch, 1_000))
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connect(job.address, options=options)) for _ in range(count)]


async def missing(client: Client, job: Job, wanted: int) -> int:
    """Messages that the channel does not have. At T0 the answer comes before the message can be seen: it may take."""
    for _ in range(200):
        if (left := wanted - (await client.channels.get(job.channel)).end_offset) == 0:
            return 0
        await asyncio.sleep(0.05)
    return left


async def publish(job: Job) -> Found:
    """Single messages are handed over one by one; the client joins what waits."""
    async with clients(job, job.producers) as connections:
        await connections[0].channels.add(job.channel)
        ready = iter(connections)
        tally = Tally()
        result = await steady(job, lambda _: _produce(next(ready), job, tally), tally)
        result.missing = await missing(connections[0], job, result.acknowledged)
    return result


async def _produce(client: Client, job: Job, tally: Tally) -> None:
    pool = [payload(job.size) for _ in range(job.batch)]
    window: deque[tuple[float, Any]] = deque()
    while window or not tally.stop:
        while not tally.stop and len(window) < job.window:
            begin = time.perf_counter()
            if job.batch == 1:
                window.append((begin, client.publish_nowait(job.channel, pool[0], durability=job.durability)))
            else:
                call = client.publish_many(job.channel, pool, durability=job.durability)
                window.append((begin, asyncio.ensure_future(call)))
        begin, answer = window.popleft()
        await answer
        tally.answered(job.batch, begin)


async def fill(client: Client, job: Job) -> int:
    """Stores at least `job.messages`; how many."""
    pool = [payload(job.size) for _ in range(FILL)]
    turns = -(-job.messages // FILL)
    for first in range(0, turns, 8):
        calls = [
            client.publish_many(job.channel, pool, durability=job.durability)
            for _ in range(first, min(first + 8, turns))
        ]
        await asyncio.gather(*calls)
    return turns * FILL


async def consume(job: Job) -> Found:
    """Members of a durable group, each on a connection of its own, acknowledge batch by batch."""
    async with clients(job, job.subscribers + 1) as (producer, *members):
        wanted = await fill(producer, job)
        work = Work(wanted)
        span = Span(*job.pids)
        tasks = [asyncio.create_task(_member(client, job, work)) for client in members]
        done = asyncio.create_task(work.done.wait())
        await asyncio.wait([done, *tasks], return_when=asyncio.FIRST_COMPLETED)
        span.stop()
        for task in (*tasks, done):
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    return found(span, wanted, acknowledged=wanted, missing=wanted - work.settled)


class Work:
    """What the members of a group share: messages that are settled for good."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.settled, self.done = wanted, 0, asyncio.Event()

    def settle(self, count: int) -> None:
        self.settled += count
        if self.settled >= self.wanted:
            self.done.set()


async def _member(client: Client, job: Job, work: Work) -> None:
    waiting: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def confirm() -> None:
        while True:
            count, settlement = await waiting.get()
            await settlement
            work.settle(count)

    async with asyncio.TaskGroup() as group, client.subscription(job.channel, group="workers") as subscription:
        group.create_task(confirm())
        async for batch in subscription.batches():
            batch.payloads()
            waiting.put_nowait((batch.count, batch.ack()))


async def latency(job: Job) -> Found:
    """Open loop. What is due within a millisecond is handed over together; the wait begins at each one's due time."""
    async with clients(job, 2) as (producer, reader):
        await producer.channels.add(job.channel)
        subscription = reader.subscription(job.channel, start="earliest")
        await subscription.opened()
        total = int(job.rate * (job.warm_up + job.seconds))
        delays: list[float] = []
        reading = asyncio.create_task(_hear(subscription, delays, total))
        span = Span(*job.pids)
        late = await _say(producer, job, total)
        async with asyncio.timeout(20):
            await reading
        span.stop()
        await subscription.close()
    result = found(span, total, acknowledged=total, missing=total - len(delays))
    result.late = late
    result.wait_ms = percentiles(delays[int(job.warm_up * job.rate) :])
    return result


async def _hear(subscription: Any, delays: list[float], total: int) -> None:
    async for batch in subscription.batches():
        now = time.perf_counter()
        delays.extend(now - STAMP.unpack_from(data)[0] for data in batch.payloads())
        if len(delays) >= total:
            return


async def _say(client: Client, job: Job, total: int) -> int:
    """Messages of ticks that began more than two milliseconds late."""
    rest = payload(max(job.size, STAMP.size))[STAMP.size :]
    waiting: set[asyncio.Future[Any]] = set()
    begin, sent, late = time.perf_counter() + 0.01, 0, 0
    while sent < total:
        due = begin + -(-(sent / job.rate) // TICK_S) * TICK_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        until = min(total, max(sent, int((now - begin) * job.rate)) + 1)
        late += until - sent if now - due > 2 * TICK_S else 0
        messages = [STAMP.pack(begin + number / job.rate) + rest for number in range(sent, until)]
        call = asyncio.ensure_future(client.publish_many(job.channel, messages, durability=job.durability))
        waiting.add(call)
        call.add_done_callback(waiting.discard)
        sent = until
    await asyncio.gather(*waiting)
    return late


LOADS = {"publish": publish, "consume": consume, "latency": latency}
