"""Steady loads: producers that run until they are told to stop, watched over a span in the middle."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from ringpost.client.cli.stats import Latency
from tests.benchmarks.job import Found, Job
from tests.benchmarks.measure import Span


def patience(job: Job) -> float:
    """Seconds after which a job is given up."""
    return 60 + 3 * (job.seconds + job.warm_up)


def milliseconds(latency: Latency) -> list[float]:
    return [round(seconds * 1e3, 4) for seconds in latency]


class Tally:
    """What the producers of a job share. Waits in seconds, taken while `measuring`."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.stop = False
        self.measuring = False
        self.waits: list[float] = []

    def answered(self, messages: int, sent: float) -> None:
        """`sent` by `time.perf_counter`."""
        self.acknowledged += messages
        if self.measuring:
            self.waits.append(time.perf_counter() - sent)


async def steady(job: Job, produce: Callable[[Tally], Awaitable[None]], tally: Tally | None = None) -> Found:
    """Runs `job.producers` of them: warms up, measures for `job.seconds`, stops, waits for the last answers."""
    tally = tally or Tally()
    async with asyncio.TaskGroup() as group:
        for _ in range(job.producers):
            group.create_task(_as_task(produce, tally))
        await asyncio.sleep(job.warm_up)
        before, tally.measuring = tally.acknowledged, True
        span = Span(*job.pids)
        await asyncio.sleep(job.seconds)
        span.stop()
        count, tally.measuring, tally.stop = tally.acknowledged - before, False, True
    return found(span, count, acknowledged=tally.acknowledged, wait_ms=percentiles(tally.waits))


async def _as_task(produce: Callable[[Tally], Awaitable[None]], tally: Tally) -> None:
    await produce(tally)


def percentiles(seconds: Sequence[float]) -> list[float]:
    """p50, p99, p99.9 and greatest in milliseconds, by nearest rank; empty for none."""
    ordered = sorted(seconds)
    if not ordered:
        return []
    ranks = (max(0, math.ceil(q * len(ordered)) - 1) for q in (0.5, 0.99, 0.999, 1.0))
    return [round(ordered[rank] * 1e3, 4) for rank in ranks]


def found(span: Span, messages: int, *, acknowledged: int, missing: int = 0, wait_ms: Sequence[float] = ()) -> Found:
    return Found(
        messages=messages,
        seconds=span.seconds,
        broker_cpu_s=span.cpu_seconds,
        client_cpu_s=span.client_seconds,
        acknowledged=acknowledged,
        missing=missing,
        wait_ms=list(wait_ms),
    )
