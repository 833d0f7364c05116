"""B7: a reader that comes late reads what is no longer in memory, beside tail traffic of another channel.

`python -m tests.benchmarks.catch_up ADDRESS` is that reader. It starts before this process uses gRPC, whose threads a
fork should not meet, and waits for a line with the number of messages.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import uvloop

from ringpost.client.api import Client, connect
from tests.benchmarks.clients.ringpost_client import STAMP
from tests.benchmarks.clients.steady import percentiles
from tests.benchmarks.lean import ROOT
from tests.benchmarks.measure import payload, scratch
from tests.benchmarks.suite import Suite
from tests.integration.broker import Node

OLD, TAIL = "bench.old", "bench.tail"
SIZE, BATCH = 1_024, 100
TAIL_BATCH, TAIL_RATE = 10, 2_000.0


async def read_all(address: str, messages: int) -> None:
    """Reads the old channel from its beginning; prints the seconds it took. Raises on a gap."""
    async with connect(address) as client, client.subscription(OLD, start="earliest") as subscription:
        begin, count = time.perf_counter(), 0
        async for batch in subscription.batches():
            assert batch.first_offset == count, f"offset {batch.first_offset} came, {count} was to come"
            count += len(batch.payloads())
            if count >= messages:
                break
    print(time.perf_counter() - begin)


async def fill(client: Client, total_bytes: float) -> int:
    pool = [payload(SIZE) for _ in range(BATCH)]
    turns = max(8, int(total_bytes / SIZE / BATCH))
    for first in range(0, turns, 16):
        await asyncio.gather(*(client.publish_many(OLD, pool) for _ in range(first, min(turns, first + 16))))
    return turns * BATCH


def forget(directory: Path) -> None:
    """Asks the system to drop the journal's pages from its memory."""
    for path in directory.rglob("*.journal"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


class Tail:
    """Steady small traffic; `delays` in seconds from the due moment to the delivery."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.delays: list[float] = []
        self.published = self.delivered = 0
        self.stop = False

    async def publish(self) -> None:
        rest = payload(128 - STAMP.size)
        begin, number = time.perf_counter(), 0
        while not self.stop:
            due = begin + number * TAIL_BATCH / TAIL_RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self.client.publish_many(TAIL, [STAMP.pack(due) + rest] * TAIL_BATCH)
            self.published += TAIL_BATCH
            number += 1

    async def read(self) -> None:
        async with self.client.subscription(TAIL, start="earliest") as subscription:
            async for batch in subscription.batches():
                now = time.perf_counter()
                self.delivered += batch.count
                self.delays.extend(now - STAMP.unpack_from(data)[0] for data in batch.payloads())


async def measured(node: Node, total_bytes: float, seconds: float) -> dict[str, float]:
    command = (sys.executable, "-m", "tests.benchmarks.catch_up", node.address)
    reader = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    async with connect(node.address) as client:
        messages = await fill(client, total_bytes)
        await client.channels.add(TAIL)
        forget(node.data_dir)
        tail = Tail(client)
        reading, publishing = asyncio.create_task(tail.read()), asyncio.create_task(tail.publish())
        await asyncio.sleep(0.5)
        tail.delays = []
        await asyncio.sleep(seconds)
        before, tail.delays = percentiles(tail.delays), []
        output, _ = await reader.communicate(f"{messages}\n".encode())
        beside = percentiles(tail.delays)
        tail.stop = True
        await publishing
        for _ in range(200):
            if tail.delivered >= tail.published:
                break
            await asyncio.sleep(0.02)
        reading.cancel()
        assert reader.returncode == 0, f"the reader ended with {reader.returncode}"
        assert tail.delivered == tail.published, f"{tail.published - tail.delivered} deliveries are missing"
    rate = messages * SIZE / float(output) / 1e6
    return {"MB/s": rate, "tail p50 ms before": before[0], "tail p99 ms before": before[1],
            "tail p50 ms beside": beside[0], "tail p99 ms beside": beside[1]}  # fmt: skip


def run(suite: Suite) -> None:
    total = 2e9 if suite.plan.full else 150e6 * suite.plan.scale
    found = []
    for _ in range(suite.plan.long_repeat):
        with scratch() as folder, Node(folder / "data") as node:
            found.append(uvloop.run(measured(node, total, max(0.5, 3 * suite.plan.scale))))
    rows = [{"what": name, "values": [[one[name] for one in found]]} for name in found[0]]
    note = (
        f"{total / 1e6:,.0f} MB of 1 KiB messages, read from the beginning by a Python client in a process of its own, "
        f"after the system was asked to forget the files; {TAIL_RATE:,.0f} messages/s of 128 B on another channel, T2, "
        "open loop."
    )
    suite.figures["B7"] = {"columns": ["figure"], "rows": rows, "note": note}


if __name__ == "__main__":
    uvloop.run(read_all(sys.argv[1], int(sys.stdin.readline())))
