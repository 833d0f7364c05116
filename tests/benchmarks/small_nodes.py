"""S2: the speed-up of small equal nodes: each gets a tenth of one core, the clients have the other core."""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import uvloop

from ringpost.client.api import connect
from ringpost.client.cli.bench_parts import Load, Producer, Stop
from ringpost.client.options import Options
from tests.benchmarks import control_groups, roles
from tests.benchmarks.measure import scratch
from tests.benchmarks.report.stats import paired
from tests.benchmarks.suite import Suite
from tests.system.local import LocalCluster

SIZES = (1, 3, 5)
SHARE = 0.1
BATCH, WINDOW, PAYLOAD = 100, 16, 128
CHANNELS_A_NODE = 2


async def saturated(folder: Path, size: int, seconds: float) -> tuple[float, float, float]:
    """Messages acknowledged a second, share of a core that the client took, and that a node took on average."""
    cluster = LocalCluster(folder, size, "--replication-factor", "1", "--min-isr", "1")
    nodes_core, client_core = sorted(os.sched_getaffinity(0))[:2]
    own = os.sched_getaffinity(0)
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        channels = await cluster.channels_on_all_nodes("s2", CHANNELS_A_NODE)
        pids = [node.process.pid for node in cluster.nodes.values()]
        for pid in pids:
            psutil.Process(pid).cpu_affinity([nodes_core])
        os.sched_setaffinity(0, {client_core})
        with control_groups.limited(pids, SHARE):
            return await _pushed(cluster, channels, seconds)
    finally:
        os.sched_setaffinity(0, own)
        cluster.close()


async def _pushed(cluster: LocalCluster, channels: list[str], seconds: float) -> tuple[float, float, float]:
    """Every channel has a producer of its own that keeps its window full. Raises when a message got lost."""
    warm_up = 4.0
    load = Load(PAYLOAD, BATCH, 0, warm_up + seconds + 0.5, "quorum", 1, 1, WINDOW)
    watched = roles.Watched(cluster)
    acknowledged = 0

    def answered(count: int) -> None:
        nonlocal acknowledged
        acknowledged += count

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(cluster.address("n1"), options=Options()))
        producing = [
            asyncio.create_task(Producer(client, load, [channel]).run(Stop(load), answered)) for channel in channels
        ]
        await asyncio.sleep(warm_up)
        begin, cpu, at = watched.look(acknowledged), time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        end = watched.look(acknowledged)
        client_share = (time.process_time() - cpu) / (time.perf_counter() - at)
        await asyncio.gather(*producing)
        lost = acknowledged - await roles.ends(client, channels)
        assert lost == 0, f"{acknowledged} messages were acknowledged, {-lost} more are stored"
    span = end.at - begin.at
    nodes = sum(end.cpu[name] - begin.cpu[name] for name in cluster.nodes) / len(cluster.nodes) / span
    return (end.acknowledged - begin.acknowledged) / span, client_share, nodes


def run(suite: Suite) -> None:
    """One, three and five nodes, interleaved."""
    if reason := control_groups.missing() or ("" if len(os.sched_getaffinity(0)) > 1 else "it needs two cores"):
        suite.skipped["S2"] = reason
        return
    seconds = max(1.0, 3 * suite.plan.scale)
    found: dict[int, list[tuple[float, float, float]]] = {size: [] for size in SIZES}
    for turn in range(suite.plan.long_repeat):
        for size in SIZES:
            print(f"S2 {turn + 1}: {size} nodes", flush=True)
            with scratch() as folder:
                found[size].append(uvloop.run(saturated(folder, size, seconds)))
    rates = {size: [rate for rate, _, _ in runs] for size, runs in found.items()}
    speed_up = {size: paired(rates[size], rates[1]) for size in SIZES}
    rows = [
        {
            "what": f"{size} node{'s' * (size > 1)}",
            "values": [rates[size], speed_up[size], *([100 * one[at] for one in found[size]] for at in (1, 2))],
        }
        for size in SIZES
    ]
    suite.figures["S2"] = {
        "columns": ("messages/s", "speed-up", "client % of a core", "a node % of a core"),
        "rows": rows,
        "note": f"Each node may take {SHARE:.0%} of one core (control group, period {PERIOD_MS:g} ms), the client the "
        f"other core. One copy, fsynced (T2), 128 B, batches of {BATCH}, {WINDOW} unanswered on each of two channels a "
        "node. Where the client's core is full the nodes are not the limit.",
    }
    points = [(size, *_around(rates[size])) for size in SIZES]
    curves = {"Ringpost, one copy": points, "linear": [(size, *[size * points[0][1]] * 3) for size in SIZES]}
    chart = {"title": "Small equal nodes, saturated", "x": "nodes", "y": "messages/s", "curves": curves}
    suite.figures.setdefault("charts", {})["s2-rate"] = {**chart, "log_x": False, "log_y": False}
    suite.name_target("S2 3 nodes", speed_up[3])
    suite.name_target("S2 5 nodes", speed_up[5])


PERIOD_MS = control_groups.PERIOD_US / 1e3


def _around(values: list[float]) -> tuple[float, float, float]:
    return sorted(values)[len(values) // 2], min(values), max(values)
