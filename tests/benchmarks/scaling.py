"""S1: what a message costs by role and by number of nodes; T3 against T2. Low load: below what the machine can.

The cost is the CPU of all node processes, less their idling, over the messages acknowledged. Channels are led by all
nodes, the client goes straight to each leader.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import uvloop

from ringpost.client.api import Client, connect
from ringpost.client.options import Options
from tests.benchmarks import roles
from tests.benchmarks.measure import payload, scratch
from tests.benchmarks.report.stats import paired
from tests.benchmarks.suite import Suite
from tests.system.local import LocalCluster

SIZES = (1, 3, 5)
BATCHES = (100, 1_000)
# Messages a second at which the load is low, by batch.
RATES = {100: 10_000.0, 1_000: 60_000.0}
PAYLOAD = 128
CHANNELS_A_NODE = 2
FRAME_BYTES_MAX = 4 << 20


async def paced(client: Client, channels: list[str], batch: int, seconds: float) -> int:
    """Publishes at the low rate; the messages acknowledged. Raises the first error."""
    pool = [payload(PAYLOAD) for _ in range(batch)]
    begin, number = time.perf_counter(), 0
    calls: list[asyncio.Future[Any]] = []
    while (now := time.perf_counter()) - begin < seconds:
        await asyncio.sleep(max(0.0, begin + number * batch / RATES[batch] - now))
        channel = channels[number % len(channels)]
        calls.append(asyncio.ensure_future(client.publish_many(channel, pool)))
        number += 1
    await asyncio.gather(*calls)
    return number * batch


async def costs(folder: Path, size: int, seconds: float, settle: float) -> dict[int, dict[str, float]]:
    """By batch: CPU µs a message of all nodes together, of etcd and of the client. Raises when a message got lost."""
    copies = str(min(size, 3))
    cluster = LocalCluster(folder, size, "--replication-factor", copies, "--min-isr", str(min(size, 2)))
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        channels = await cluster.channels_on_all_nodes("s1", CHANNELS_A_NODE)
        await asyncio.sleep(settle)
        watched = roles.Watched(cluster)
        await watched.rest(2 * settle)
        found = {}
        options = Options(max_batch_bytes=FRAME_BYTES_MAX)
        async with connect(cluster.address(roles.LEADER), options=options) as client:
            for batch in BATCHES:
                await paced(client, channels, batch, 0.5)
                stored = await roles.ends(client, channels)
                begin = watched.look()
                count = await paced(client, channels, batch, seconds)
                cost = watched.cost(begin, watched.look(count))
                lost = count - (await roles.ends(client, channels) - stored)
                assert lost == 0, f"{count} messages were acknowledged, {-lost} more are stored"
                found[batch] = {"nodes": sum(cost[name] for name in cluster.nodes), **cost}
        return found
    finally:
        cluster.close()


def run(suite: Suite) -> None:
    """The roles in three nodes, then the same low load on clusters of each size."""
    rest = max(0.5, 2.0 * suite.plan.scale)
    found: dict[int, list[dict[int, dict[str, float]]]] = {size: [] for size in SIZES}
    played = []
    for turn in range(suite.plan.long_repeat):
        for size in SIZES:
            print(f"S1 {turn + 1}: {size} nodes", flush=True)
            with scratch() as folder:
                seconds = max(0.5, 5 * suite.plan.seconds)
                found[size].append(uvloop.run(costs(folder, size, seconds, rest / 2)))
        print(f"S1 {turn + 1}: roles", flush=True)
        with scratch() as folder:
            played.append(uvloop.run(roles.repetition(folder, _as_roles(suite, rest))))
    _report(suite, found, played)


def _as_roles(suite: Suite, rest: float) -> argparse.Namespace:
    """What the program of the roles takes: its own defaults, but for the times."""
    given = roles.parsed([])
    given.warm_up, given.seconds = max(0.3, 2 * suite.plan.warm_up), max(0.5, 4 * suite.plan.seconds)
    given.settle = given.idle = rest
    given.batch = list(roles.WINDOWS) if suite.plan.full else [100, 1_000]
    return given


def _report(suite: Suite, found: dict[int, list[dict[int, dict[str, float]]]], played: list[dict[str, Any]]) -> None:
    rows = []
    for batch in BATCHES:
        one = [costs[batch]["nodes"] for costs in found[1]]
        for size in SIZES:
            total = [costs[batch]["nodes"] for costs in found[size]]
            client = [costs[batch]["client"] for costs in found[size]]
            what = f"{size} node{'s' * (size > 1)}, {min(size, 3)} copies, batch {batch:,}"
            rows.append({"what": what, "values": [total, paired(total, one), client]})
    note = (
        f"Paced at {', '.join(f'{rate:,.0f} messages/s in batches of {batch:,}' for batch, rate in RATES.items())}; "
        "quorum, 128 B; less what the nodes take when idle. *k* is the cost over that of one node (T2); with three "
        "copies it is T3. A capacity of N cores derived from it is cores over cost, and no measurement."
    )
    suite.figures["S1"] = {"columns": ("CPU of all nodes µs/msg", "k", "client µs/msg"), "rows": rows, "note": note}
    batches = sorted({run["batch"] for run in played[0]["runs"]})
    by_batch = [[roles.roles(one["runs"], batch) for one in played] for batch in batches]
    suite.figures["roles"] = {
        "columns": [f"batch {batch:,}" for batch in batches],
        "rows": [{"what": role, "values": [[one[role] for one in f] for f in by_batch]} for role in by_batch[0][0]],
        "note": "CPU µs a message, three nodes, as fast as one producer goes (T3); the producer goes to the leader, or "
        "by an entry node that leads none of the channels.",
    }
    at = {size: [costs[1_000]["nodes"] for costs in found[size]] for size in SIZES}
    suite.name_target("S1 5 over 3", paired(at[5], at[3]))
    suite.name_target("T3 over T2", paired(at[3], at[1]))
    suite.name_target("entry added us", [one["entry, added"] for one in by_batch[-1]])
