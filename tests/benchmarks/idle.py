"""S3: what a node takes when nobody asks anything of it, by number of nodes and of channels.

CPU over some seconds, of each node process and of etcd; resident memory (RSS) of a node. Channels are made by one
publish each, as in `scale_channels`; three copies of everything where there are three nodes. The tail cache is 1 MiB.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from tests.benchmarks import roles, scale_channels
from tests.benchmarks.measure import scratch
from tests.benchmarks.suite import Suite
from tests.system.local import LocalCluster

COLUMNS = ("a node, % of a core", "the busiest, % of a core", "etcd, % of a core", "a node, MiB")


class Case(NamedTuple):
    nodes: int
    channels: int

    def __str__(self) -> str:
        return f"{self.nodes} node{'s' * (self.nodes > 1)}, {self.channels:,} channels"


def cases(full: bool) -> Sequence[Case]:
    """First by nodes, then by channels."""
    if full:
        return [*(Case(nodes, 0) for nodes in (1, 3, 5, 10, 15)), *(Case(3, count) for count in (10_000, 100_000))]
    return [*(Case(nodes, 0) for nodes in (1, 3, 5)), Case(3, 10_000)]


async def resting(folder: Path, case: Case, seconds: float) -> tuple[float, float, float, float]:
    """The columns' figures."""
    copies = str(min(case.nodes, 3))
    flags = ("--replication-factor", copies, "--min-isr", str(min(case.nodes, 2)), *scale_channels.FLAGS)
    cluster = LocalCluster(folder, case.nodes, *flags)
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.home()
        await cluster.whole()
        if case.channels:
            await scale_channels.make_all(cluster.address("n1"), case.channels, scale_channels.PRODUCER)
        await asyncio.sleep(seconds)  # what a start and so many publishes leave to be done
        shares = await roles.Watched(cluster).rest(seconds)
        of_nodes = [shares[name] for name in cluster.nodes]
        memory = [psutil.Process(node.process.pid).memory_info().rss for node in cluster.nodes.values()]
        return sum(of_nodes) / case.nodes, max(of_nodes), shares[roles.ETCD], sum(memory) / case.nodes / 2**20
    finally:
        cluster.close()


def run(suite: Suite) -> None:
    """Each case in a cluster of its own, interleaved."""
    seconds = max(1.0, 5 * suite.plan.scale)
    chosen = cases(suite.plan.full)
    found: dict[Case, list[tuple[float, float, float, float]]] = {case: [] for case in chosen}
    for turn in range(suite.plan.long_repeat):
        for case in chosen:
            print(f"S3 {turn + 1}: {case}", flush=True)
            with scratch() as folder:
                found[case].append(uvloop.run(resting(folder, case, seconds)))
    suite.figures["S3"] = {
        "columns": COLUMNS,
        "rows": [
            {"what": str(case), "values": [[run[at] for run in runs] for at in range(len(COLUMNS))]}
            for case, runs in found.items()
        ],
        "note": f"Over {seconds:g} s in which nobody asks anything. All nodes, etcd and this program share the "
        "machine's cores, so with many nodes the figures have the cost of changing between processes in them.",
    }
