"""aio-pika: durable queues, persistent messages, publisher confirms, consumer acks by range."""

import asyncio
import time

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue, AbstractRobustChannel, AbstractRobustConnection

from tests.benchmarks.clients.steady import Tally, found, steady
from tests.benchmarks.job import Found, Job
from tests.benchmarks.measure import Span, payload

PREFETCH = 1_000
ACK_EVERY = 100
FILL = 1_000
_PATIENCE_S = 5.0


async def connect(job: Job) -> AbstractRobustConnection:
    return await aio_pika.connect_robust(f"amqp://guest:guest@{job.address}/")


async def declare(channel: "AbstractRobustChannel", job: Job) -> AbstractQueue:
    return await channel.declare_queue(job.channel, durable=True, arguments={"x-queue-type": job.system})


async def publish(job: Job) -> Found:
    connections = [await connect(job) for _ in range(job.producers)]
    channels = [await connection.channel(publisher_confirms=True) for connection in connections]
    await declare(channels[0], job)
    ready = iter(channels)
    result = await steady(job, lambda tally: _produce(next(ready), job, tally))
    result.missing = await _missing(connections[0], job, result.acknowledged)
    await channels[0].queue_delete(job.channel)
    for connection in connections:
        await connection.close()
    return result


async def _missing(connection: AbstractRobustConnection, job: Job, wanted: int) -> int:
    """The broker's count of a queue comes late; it is asked until it is right or patience ends."""
    deadline, missing = time.monotonic() + _PATIENCE_S, wanted
    while missing and time.monotonic() < deadline:
        channel = await connection.channel()
        queue = await channel.declare_queue(job.channel, passive=True)
        missing = wanted - (queue.declaration_result.message_count or 0)
        await channel.close()
        await asyncio.sleep(0.05)
    return missing


def message(job: Job) -> aio_pika.Message:
    return aio_pika.Message(payload(job.size), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def _produce(channel: "AbstractRobustChannel", job: Job, tally: Tally) -> None:
    """As many coroutines as may be unanswered, each one message at a time."""
    out = message(job)

    async def one_at_a_time() -> None:
        while not tally.stop:
            begin = time.perf_counter()
            await channel.default_exchange.publish(out, job.channel)
            tally.answered(1, begin)

    await asyncio.gather(*(one_at_a_time() for _ in range(job.window)))


async def consume(job: Job) -> Found:
    """Prefetch 1,000; every hundredth message acknowledges all before it."""
    connections = [await connect(job) for _ in range(job.subscribers + 1)]
    channel = await connections[0].channel(publisher_confirms=True)
    queue = await declare(channel, job)
    wanted = -(-job.messages // FILL) * FILL
    for _ in range(0, wanted, FILL):
        await asyncio.gather(*(channel.default_exchange.publish(message(job), job.channel) for _ in range(FILL)))
    work, done = [0], asyncio.Event()
    span = Span(*job.pids)
    for connection in connections[1:]:
        await _member(connection, job, wanted, work, done)
    await done.wait()
    span.stop()
    for connection in connections[1:]:
        await connection.close()  # what is not acknowledged goes back to the queue
    missing = wanted - work[0] + await _left(connections[0], job)
    await queue.delete(if_unused=False, if_empty=False)
    await connections[0].close()
    return found(span, wanted, acknowledged=wanted, missing=missing)


async def _member(
    connection: AbstractRobustConnection, job: Job, wanted: int, work: list[int], done: asyncio.Event
) -> None:
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    mine = 0

    async def took(incoming: AbstractIncomingMessage) -> None:
        nonlocal mine
        mine += 1
        work[0] += 1
        if mine % ACK_EVERY == 0 or work[0] == wanted:
            await incoming.ack(multiple=True)
        if work[0] == wanted:
            done.set()

    await (await declare(channel, job)).consume(took)


async def _left(connection: AbstractRobustConnection, job: Job) -> int:
    await asyncio.sleep(0.2)
    queue = await (await connection.channel()).declare_queue(job.channel, passive=True)
    return queue.declaration_result.message_count or 0


LOADS = {"publish": publish, "consume": consume}
