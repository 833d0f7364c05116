"""nats-py: core and JetStream in files.

JetStream answers a publish when the message is in its file, written but not fsynced (that comes every two minutes).
"""

import asyncio
import time
from functools import partial
from typing import Any

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from tests.benchmarks.clients.steady import Tally, found, steady
from tests.benchmarks.job import Found, Job
from tests.benchmarks.measure import Span, payload

FETCH = 1_000


def stream(job: Job) -> str:
    return job.channel.replace(".", "-")


async def publish(job: Job) -> Found:
    """Core answers nothing: a flush (ping and pong) behind each batch tells that the server has it."""
    connections = [await nats.connect(f"nats://{job.address}") for _ in range(job.producers)]
    ready = iter(connections)
    if job.system == "nats":
        result = await steady(job, lambda tally: _core(next(ready), job, tally))
    else:
        await make_stream(connections[0], job)
        result = await steady(job, lambda tally: _stored(next(ready), job, tally))
        info = await connections[0].jetstream().stream_info(stream(job))
        result.missing = result.acknowledged - info.state.messages
    for connection in connections:
        await connection.close()
    return result


async def make_stream(connection: Client, job: Job) -> None:
    await connection.jetstream().add_stream(
        name=stream(job), subjects=[job.channel], storage="file", num_replicas=job.replicas
    )


async def _core(connection: Client, job: Job, tally: Tally) -> None:
    message = payload(job.size)
    while not tally.stop:
        begin = time.perf_counter()
        for _ in range(job.batch):
            await connection.publish(job.channel, message)
        await connection.flush()
        tally.answered(job.batch, begin)


async def _stored(connection: Client, job: Job, tally: Tally) -> None:
    """At most `job.window` single messages are unanswered."""
    js = connection.jetstream(publish_async_max_pending=4 * job.window + 4)
    message = payload(job.size)
    if job.window == 1:
        while not tally.stop:
            begin = time.perf_counter()
            await js.publish(job.channel, message)
            tally.answered(1, begin)
        return
    room = asyncio.Semaphore(job.window)
    waiting: set[asyncio.Future[Any]] = set()

    def answered(begin: float, future: "asyncio.Future[Any]") -> None:
        waiting.discard(future)
        room.release()
        tally.answered(1, begin)

    while not tally.stop:
        await room.acquire()
        begin = time.perf_counter()
        future = await js.publish_async(job.channel, message)
        waiting.add(future)
        future.add_done_callback(partial(answered, begin))
    await asyncio.gather(*waiting)


async def fill(js: JetStreamContext, job: Job) -> None:
    message = payload(job.size)
    for _ in range(0, job.messages, FETCH):
        await asyncio.gather(*[await js.publish_async(job.channel, message) for _ in range(FETCH)])


async def consume(job: Job) -> Found:
    """Pull, explicit acks: fetches a thousand at a time, acknowledges each; the last ack of a fetch is confirmed."""
    connections = [await nats.connect(f"nats://{job.address}") for _ in range(job.subscribers + 1)]
    control = connections[0].jetstream(publish_async_max_pending=4 * FETCH)
    await make_stream(connections[0], job)
    await fill(control, job)
    left = [-(-job.messages // FETCH) * FETCH]
    wanted = left[0]
    config = ConsumerConfig(max_ack_pending=100 * FETCH)  # the default of 1,000 lets one member work at a time
    subscriptions = [await c.jetstream().pull_subscribe(job.channel, "workers", config=config) for c in connections[1:]]
    all_done = asyncio.Event()
    span = Span(*job.pids)
    members = [asyncio.create_task(_member(subscription, left, all_done)) for subscription in subscriptions]
    await asyncio.wait_for(all_done.wait(), 120)
    span.stop()
    for member in members:
        member.cancel()
    await asyncio.wait(members)
    info = await control.consumer_info(stream(job), "workers")
    for connection in connections:
        await connection.close()
    missing = (info.num_pending or 0) + (info.num_ack_pending or 0)
    return found(span, wanted, acknowledged=wanted - left[0], missing=missing)


async def _member(subscription: Any, left: list[int], all_done: asyncio.Event) -> None:
    """Fetches and acknowledges until nothing is left; who fetches in vain tries again."""
    while left[0] > 0:
        try:
            messages = await subscription.fetch(min(FETCH, left[0]), timeout=5)
        except TimeoutError:
            continue
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=10)
        left[0] -= len(messages)
    all_done.set()


LOADS = {"publish": publish, "consume": consume}
