"""What order per key costs: a backlog worked off by one Python client that acks whole batches, by mode and keys.

`python -m tests.benchmarks.group_modes [MESSAGES]`: messages a second, and the node's CPU for each of them.
"""

import asyncio
import random
import sys
import time

import uvloop

from ringpost.client import Client, connect
from tests.benchmarks.measure import payload, scratch
from tests.integration.broker import Node

CHANNEL, GROUP = "bench.keys", "g"
SIZE, BATCH, PREFETCH = 128, 1_000, 4_000
CASES = (("shared", 100), ("key_ordered", 100), ("shared", 10_000), ("key_ordered", 10_000))


async def fill(client: Client, messages: int, keys: int) -> None:
    """In random order of keys."""
    chance, data = random.Random(7), payload(SIZE)
    for first in range(0, messages, 16 * BATCH):
        starts = range(first, min(messages, first + 16 * BATCH), BATCH)
        pairs = [[(b"%d" % chance.randrange(keys), data) for _ in range(min(BATCH, messages - at))] for at in starts]
        await asyncio.gather(*(client.publish_many(CHANNEL, some) for some in pairs))


async def work_off(client: Client, mode: str, messages: int) -> float:
    """Seconds until the last ack is confirmed."""
    begin, left, acks = time.perf_counter(), messages, []
    async with client.subscription(CHANNEL, group=GROUP, mode=mode, prefetch=PREFETCH) as subscription:
        async for batch in subscription.batches():
            batch.payloads()
            acks.append(batch.ack())
            left -= batch.count
            if left == 0:
                break
        for ack in acks:
            await ack
    return time.perf_counter() - begin


async def measured(node: Node, mode: str, keys: int, messages: int) -> str:
    async with connect(node.address) as client:
        await fill(client, messages, keys)
        before = sum(node.process.cpu_times()[:2])
        seconds = await work_off(client, mode, messages)
        cpu = sum(node.process.cpu_times()[:2]) - before
        assert (await client.groups.get(CHANNEL, GROUP)).pending == 0
    rate, cost = messages / seconds, 1e6 * cpu / messages
    return f"{mode:12} {keys:6} keys: {rate:8,.0f} messages/s, {cost:6.1f} µs of node CPU each"


def main(messages: int) -> None:
    for mode, keys in CASES:
        with scratch() as folder, Node(folder / "data") as node:
            print(uvloop.run(measured(node, mode, keys, messages)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
