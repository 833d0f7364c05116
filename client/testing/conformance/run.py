"""Runs the checks against one program and tells what each found."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ringpost.client.errors import RingpostError
from ringpost.client.testing.conformance import failover, publishing, refusals, subscribing, working
from ringpost.client.testing.conformance.bench import Bench, connect_to
from ringpost.client.testing.conformance.contract import Broken
from ringpost.client.testing.conformance.registry import CHECKS, Check, LeftOut
from ringpost.client.testing.conformance.targets import Target

# Importing them registers their checks, in the order in which they are told.
MODULES = (publishing, subscribing, working, refusals, failover)
CHECKS.sort(key=lambda one: [module.__name__ for module in MODULES].index(one.judge.__module__))
# A run of the program takes one or two; this is for machines that have much else to do.
RUN_SECONDS = 40.0


@dataclass(frozen=True)
class Result:
    """What became of one check. `outcome`: "ok", "FAIL" or "left out"."""

    check: Check
    outcome: str
    seen: str

    def __str__(self) -> str:
        if self.outcome == "ok":
            return f"ok    {self.check.name:<24} {self.seen}"
        return f"{self.outcome:<5} {self.check.name:<24} {self.check.sentence}\n      {self.seen}"


@asynccontextmanager
async def bench_for(command: Sequence[str], target: Target, seconds: float) -> AsyncIterator[Bench]:
    """A place to work, clean afterwards."""
    async with connect_to(target) as mq:
        bench = Bench(command, target, mq, seconds)
        yield bench
        await bench.clean()


async def results(
    command: Sequence[str], target: Target, only: Sequence[str] = (), seconds: float = RUN_SECONDS
) -> AsyncIterator[Result]:
    """The checks' results in their order; `only`: those whose names begin with one of these; `seconds`: for one run.

    Checks that disturb the cluster come last and by themselves, the others at the same time.
    """
    await target.calm()
    wanted = [one for one in CHECKS if not only or one.name.startswith(tuple(only))]
    async with bench_for(command, target, seconds) as bench:
        quiet = [asyncio.create_task(judge(one, bench)) for one in wanted if not one.alone]
        try:
            for task in quiet:
                yield await task
            for one in wanted:
                if one.alone:
                    yield await judge(one, bench)
        finally:
            for task in quiet:
                task.cancel()
            await asyncio.gather(*quiet, return_exceptions=True)


async def judge(check: Check, bench: Bench) -> Result:
    """One check."""
    try:
        return Result(check, "ok", await check.judge(bench))
    except LeftOut as reason:
        return Result(check, "left out", str(reason))
    except Broken as fault:
        return Result(check, "FAIL", str(fault))
    except RingpostError as error:
        return Result(check, "FAIL", f"the cluster could not be asked: {error}")
