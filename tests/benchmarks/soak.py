"""B12: ten streams opened and cancelled a second beside steady traffic: memory, threads, descriptors."""

import asyncio
import time

import psutil
import uvloop

from ringpost.client.api import connect
from ringpost.v1.subscribe_pb2 import OpenSubscription, SubscribeRequest
from tests.benchmarks.measure import payload, scratch
from tests.benchmarks.suite import Suite
from tests.integration.broker import Client as Stubs
from tests.integration.broker import Node

CHANNEL = "bench.soak"
STREAMS_A_SECOND = 10
BATCH, BATCHES_A_SECOND = 100, 20
KIB = 1 << 10


async def churn(stubs: Stubs, stop: asyncio.Event) -> int:
    """Streams opened, read from and cancelled."""
    count = 0
    while not stop.is_set():
        stream = stubs.subscriber.Subscribe()
        try:
            request = OpenSubscription(subscription_id=1, channel=CHANNEL)
            request.credit.messages = request.credit.bytes = 1 << 20
            await stream.write(SubscribeRequest(open=request))
            await stream.read()
        finally:
            stream.cancel()
        count += 1
        await asyncio.sleep(1 / STREAMS_A_SECOND)
    return count


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through points by least squares; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


async def measured(node: Node, seconds: float) -> dict[str, float]:
    process = psutil.Process(node.process.pid)
    pool = [payload(128) for _ in range(BATCH)]
    async with connect(node.address) as client:
        await client.channels.add(CHANNEL)
        stop, stubs = asyncio.Event(), Stubs(node.address)
        churning = asyncio.create_task(churn(stubs, stop))
        points, published, begin = [], 0, time.perf_counter()
        quarter = 0.25 * seconds
        first = process.num_fds(), process.num_threads()
        while (at := time.perf_counter() - begin) < seconds:
            await client.publish_many(CHANNEL, pool)
            published += BATCH
            if at > quarter:
                points.append((at, process.memory_info().rss / KIB))
            await asyncio.sleep(1 / BATCHES_A_SECOND)
        last = process.num_fds(), process.num_threads()
        stop.set()
        streams = await churning
        await stubs.wire.close()
        stored = (await client.channels.get(CHANNEL)).end_offset
    assert stored == published, f"{published - stored} messages are missing"
    return {
        "streams": float(streams),
        "memory, KiB a second (after a quarter of the time)": slope(points),
        "memory at the end, MiB": points[-1][1] / KIB,
        "descriptors more": float(last[0] - first[0]),
        "threads more": float(last[1] - first[1]),
    }


def run(suite: Suite) -> None:
    seconds = 120.0 if suite.plan.full else max(2.0, 10 * suite.plan.scale)
    with scratch() as folder, Node(folder / "data") as node:
        found = uvloop.run(measured(node, seconds))
    rows = [{"what": name, "values": [[value]]} for name, value in found.items()]
    note = (
        f"{seconds:g} s: {STREAMS_A_SECOND} subscriptions a second opened and cancelled on one connection, beside "
        f"{BATCH * BATCHES_A_SECOND:,} messages/s. The longer soak with faults is `make soak`."
    )
    suite.figures["B12"] = {"columns": ["figure"], "rows": rows, "note": note}
