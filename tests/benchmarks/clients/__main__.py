"""Runs load jobs one after the other and prints, for each, one JSON object; see `tests.benchmarks.job`."""

import asyncio
import importlib
import json
import sys
from dataclasses import asdict
from typing import Any

import uvloop

from tests.benchmarks.clients.steady import patience
from tests.benchmarks.job import Job

MODULES = {
    "ringpost": "ringpost_client",
    "nats": "nats_client",
    "jetstream": "nats_client",
    "pubsub": "redis_client",
    "streams": "redis_client",
    "classic": "rabbitmq_client",
    "quorum": "rabbitmq_client",
}


async def run(jobs: list[dict[str, Any]]) -> None:
    for data in jobs:
        job = Job.of(data)
        module = importlib.import_module(f"tests.benchmarks.clients.{MODULES[job.system]}")
        async with asyncio.timeout(patience(job)):
            print(json.dumps(asdict(await module.LOADS[job.load](job))), flush=True)


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
