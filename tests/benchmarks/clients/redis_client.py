"""redis-py with hiredis: streams and pub/sub, pipelined. A pipeline is answered before the next is sent."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from tests.benchmarks.clients.steady import Tally, found, steady
from tests.benchmarks.job import Found, Job
from tests.benchmarks.measure import Span, payload

READ = 1_000


def connect(job: Job) -> "Redis":
    host, port = job.address.split(":")
    return Redis(host=host, port=int(port))


async def publish(job: Job) -> Found:
    connections = [connect(job) for _ in range(job.producers)]
    ready = iter(connections)
    result = await steady(job, lambda tally: _produce(next(ready), job, tally))
    if job.system == "streams":
        result.missing = result.acknowledged - await connections[0].xlen(job.channel)
    for connection in connections:
        await connection.aclose()
    return result


async def _produce(redis: Any, job: Job, tally: Tally) -> None:
    message = payload(job.size)
    while not tally.stop:
        begin = time.perf_counter()
        await _send(redis, job, message, job.batch)
        tally.answered(job.batch, begin)


async def _send(redis: Any, job: Job, message: bytes, count: int) -> None:
    """One command by itself, or a pipeline of them."""
    to = redis if count == 1 else redis.pipeline(transaction=False)
    for _ in range(count):
        call = to.xadd(job.channel, {"d": message}) if job.system == "streams" else to.publish(job.channel, message)
        if count == 1:
            await call
    if count > 1:
        await to.execute()


async def consume(job: Job) -> Found:
    """A consumer group; what one read brought is acknowledged by one command."""
    control = connect(job)
    message = payload(job.size)
    wanted = -(-job.messages // READ) * READ
    for _ in range(0, wanted, READ):
        await _send(control, job, message, READ)
    await control.xgroup_create(job.channel, "workers", "0")
    members = [connect(job) for _ in range(job.subscribers)]
    span = Span(*job.pids)
    counts = await asyncio.gather(*(_member(redis, job, number) for number, redis in enumerate(members)))
    span.stop()
    pending = (await control.xpending(job.channel, "workers"))["pending"]
    for redis in (control, *members):
        await redis.aclose()
    return found(span, wanted, acknowledged=wanted, missing=wanted - sum(counts) + pending)


async def _member(redis: Any, job: Job, number: int) -> int:
    count = 0
    while True:
        answer = await redis.xreadgroup("workers", f"w{number}", {job.channel: ">"}, count=READ)
        entries = (
            answer[0][1] if isinstance(answer, list) and answer else next(iter(answer.values()))[0] if answer else []
        )
        if not entries:
            return count
        count += len(entries)
        await redis.xack(job.channel, "workers", *(entry[0] for entry in entries))


LOADS = {"publish": publish, "consume": consume}
