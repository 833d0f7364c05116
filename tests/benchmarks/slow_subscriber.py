"""B8: one of ten subscribers stops reading; what the broker's memory does, and what the other nine notice."""

import asyncio
import time
from contextlib import AsyncExitStack

import psutil
import uvloop

from ringpost.client.api import Client, connect
from ringpost.v1.subscribe_pb2 import OpenSubscription, SubscribeRequest
from tests.benchmarks.clients.ringpost_client import STAMP
from tests.benchmarks.clients.steady import percentiles
from tests.benchmarks.measure import payload, scratch
from tests.benchmarks.suite import Suite
from tests.integration.broker import Client as Stubs
from tests.integration.broker import Node

CHANNEL = "bench.slow"
READERS = 9
SIZE, BATCH, RATE = 1_024, 20, 4_000.0  # bytes, messages, messages a second
MIB = 1 << 20


class Readers:
    """What the nine got. Seconds from the due moment, in `delays` since the last `begin`."""

    def __init__(self) -> None:
        self.count = 0
        self.delays: list[float] = []

    def begin(self) -> None:
        self.delays = []

    async def read(self, client: Client) -> None:
        async with client.subscription(CHANNEL, start="earliest") as subscription:
            async for batch in subscription.batches():
                now = time.perf_counter()
                self.count += batch.count
                self.delays.extend(now - STAMP.unpack_from(data)[0] for data in batch.payloads())


async def publish(client: Client, seconds: float) -> int:
    """Open loop."""
    rest = payload(SIZE - STAMP.size)
    begin, number = time.perf_counter(), 0
    while (due := begin + number * BATCH / RATE) < begin + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await client.publish_many(CHANNEL, [STAMP.pack(due) + rest] * BATCH)
        number += 1
    return number * BATCH


async def measured(node: Node, seconds: float) -> dict[str, float]:
    """First all ten read, then the tenth stops. Raises when one of the nine misses a message."""
    process = psutil.Process(node.process.pid)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(node.address)) for _ in range(READERS + 1)]
        await clients[0].channels.add(CHANNEL)
        readers = Readers()
        tasks = [asyncio.create_task(readers.read(client)) for client in clients[1:]]
        await publish(clients[0], 0.5)
        readers.begin()
        published = int(RATE * 0.5) + await publish(clients[0], seconds / 3)
        before, memory = percentiles(readers.delays), process.memory_info().rss
        stubs = Stubs(node.address)
        stream = stubs.subscriber.Subscribe()
        open_it = OpenSubscription(subscription_id=1, channel=CHANNEL)
        open_it.start.earliest = True
        open_it.credit.messages = open_it.credit.bytes = 1 << 60
        await stream.write(SubscribeRequest(open=open_it))
        await stream.read()
        readers.begin()
        published += await publish(clients[0], seconds)
        during, more = percentiles(readers.delays), process.memory_info().rss
        stream.cancel()
        await stubs.wire.close()
        for _ in range(200):
            if readers.count >= READERS * published:
                break
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert readers.count == READERS * published, f"{READERS * published - readers.count} deliveries are missing"
    return {
        "p50 before": before[0],
        "p99 before": before[1],
        "p50 beside": during[0],
        "p99 beside": during[1],
        "memory before": memory / MIB,
        "memory beside": more / MIB,
    }


def run(suite: Suite) -> None:
    seconds = 60.0 if suite.plan.full else max(1.0, 6 * suite.plan.scale)
    with scratch() as folder, Node(folder / "data") as node:
        found = uvloop.run(measured(node, seconds))
    units = {name: "MiB" if name.startswith("memory") else "ms" for name in found}
    rows = [{"what": f"{name}, {units[name]}", "values": [[value]]} for name, value in found.items()]
    note = (
        f"{RATE:,.0f} messages/s of 1 KiB at T2 in batches of {BATCH}, nine subscribers read; the tenth has "
        f"unlimited credit and reads nothing for {seconds:g} s. Open loop, until delivery; the clients are one process."
    )
    suite.figures["B8"] = {"columns": ["the nine; the node"], "rows": rows, "note": note}
