"""CPU per message of each role with three replicas, and of an idle cluster; `python -m tests.benchmarks.roles --help`.

Three node processes and etcd on this machine, replication factor 3, durability QUORUM (fsynced on a majority: T3). All
channels are led by n1. First the producer goes to n1 directly: n1 leads, n2 and n3 follow. Then it goes to n2, which
leads none of the channels, and n2 passes everything on: what n2 costs beyond a follower of the first run is what being
the entry node costs.

CPU is utime + stime of all threads of a process over a steady window, less what the same process takes while the
cluster is idle; messages are those acknowledged within the window. Each repetition is a cluster of its own.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import uvloop

from ringpost.client.api import Client, connect
from ringpost.client.cli.bench_parts import Load, Producer, Stop
from ringpost.client.options import Options
from tests.benchmarks.measure import SCRATCH, cpu_seconds, machine, scratch
from tests.benchmarks.report.stats import spread
from tests.system.local import LocalCluster

LEADER, ENTRY, OTHER = "n1", "n2", "n3"
ETCD = "etcd"
DURABILITY = "quorum"
WINDOWS = {1: 256, 100: 64, 1_000: 16}  # calls that wait for their answer, over all channels
IDLE_TARGET = 2.0  # % of a core a node
FRAME_BYTES_MAX = 4 << 20
DRAIN_S = 0.5

Figures = dict[str, float]


class Moment(NamedTuple):
    """Seconds, CPU seconds of each process by name (`client` is this one), and messages acknowledged by then."""

    at: float
    cpu: dict[str, float]
    acknowledged: int


class Watched:
    """The processes of a cluster, and what their idling costs, in CPU seconds a second."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.processes = {name: node.process.pid for name, node in cluster.nodes.items()}
        self.processes |= {ETCD: cluster.etcd.members[0].pid, "client": os.getpid()}
        self.idle = dict.fromkeys(self.processes, 0.0)

    def look(self, acknowledged: int = 0) -> Moment:
        cpu = {name: cpu_seconds(pid) for name, pid in self.processes.items()}
        return Moment(time.perf_counter(), cpu, acknowledged)

    async def rest(self, seconds: float) -> Figures:
        """Nothing is asked of the cluster; % of a core of each process."""
        begin = self.look()
        await asyncio.sleep(seconds)
        end = self.look()
        self.idle = {name: (end.cpu[name] - begin.cpu[name]) / (end.at - begin.at) for name in self.processes}
        return {name: 100 * share for name, share in self.idle.items() if name != "client"}

    def cost(self, begin: Moment, end: Moment) -> Figures:
        """CPU µs of each process for a message acknowledged between the two, its idling subtracted."""
        count, seconds = end.acknowledged - begin.acknowledged, end.at - begin.at
        assert count, "nothing was acknowledged"
        return {
            name: max(end.cpu[name] - begin.cpu[name] - share * seconds, 0.0) * 1e6 / count
            for name, share in self.idle.items()
        }


class Case(NamedTuple):
    """One load: messages a frame, and the node that the producer goes to."""

    batch: int
    entry: str

    @property
    def way(self) -> str:
        return "direct" if self.entry == LEADER else "entry"


async def leaders(cluster: LocalCluster) -> dict[int, tuple[str, int]]:
    """Owner and epoch of each shard."""
    return {shard.shard: (shard.owner, shard.epoch) for shard in (await cluster.routes()).shards}


async def counted(cluster: LocalCluster) -> dict[str, Mapping[str, float]]:
    """Each node's own counters. Not within a window: the answer costs CPU."""
    return {name: await asyncio.to_thread(node.metrics) for name, node in cluster.nodes.items()}


def per_message(before: Mapping[str, float], after: Mapping[str, float], name: str, count: int) -> float:
    """Messages for one of what the counter counts."""
    return count / max(after[name] - before[name], 1.0)


async def one(watched: Watched, case: Case, channels: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Runs a case from its warming up to its last answer. Raises when a message got lost or a leader changed."""
    cluster = watched.cluster
    options = Options(
        routing="any", max_batch_messages=case.batch, max_batch_bytes=FRAME_BYTES_MAX, publish_timeout=30.0
    )
    total = given.warm_up + given.seconds + DRAIN_S
    load = Load(given.size, case.batch, 0, total, DURABILITY, len(channels), 1, given.window or WINDOWS[case.batch])
    acknowledged = 0

    def answered(count: int) -> None:
        nonlocal acknowledged
        acknowledged += count

    led, before = await leaders(cluster), await counted(cluster)
    async with connect(cluster.address(case.entry), options=options) as client:
        stored = await ends(client, channels)
        producing = asyncio.create_task(Producer(client, load, channels).run(Stop(load), answered))
        await asyncio.sleep(given.warm_up)
        begin = watched.look(acknowledged)
        await asyncio.sleep(given.seconds)
        end = watched.look(acknowledged)
        await producing  # raises the first error
        lost = acknowledged - (await ends(client, channels) - stored)
    after = await counted(cluster)
    assert lost == 0, f"{acknowledged} messages were acknowledged, {-lost} more are stored"
    assert await leaders(cluster) == led, "a leader changed meanwhile"
    batches, fsyncs = "ringpost_published_batches_total", "ringpost_journal_fsyncs_total"
    return {
        "batch": case.batch,
        "way": case.way,
        "window": load.window,
        "messages": end.acknowledged - begin.acknowledged,
        "per_s": (end.acknowledged - begin.acknowledged) / (end.at - begin.at),
        "cpu_us": watched.cost(begin, end),
        "messages_a_batch": per_message(before[LEADER], after[LEADER], batches, acknowledged),
        "messages_an_fsync": {n: per_message(before[n], after[n], fsyncs, acknowledged) for n in cluster.nodes},
    }


async def ends(client: Client, channels: Sequence[str]) -> int:
    """How many messages the channels have ever had."""
    return sum([(await client.channels.get(channel)).end_offset for channel in channels])


async def repetition(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    """A new cluster: first idle, then each case once."""
    cluster = LocalCluster(directory)
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        channels = await cluster.channels_on_all_nodes("roles", given.channels, LEADER)
        await asyncio.sleep(given.settle)
        watched = Watched(cluster)
        idle = await watched.rest(given.idle)
        async with connect(cluster.address(LEADER)) as client:
            for channel in channels:
                await client.channels.add(channel)
        runs = []
        for batch in given.batch:
            for entry in (LEADER, ENTRY):
                runs.append(await one(watched, Case(batch, entry), channels, given))
                print(told(runs[-1]), flush=True)
        assert not cluster.faults(), "\n".join(cluster.faults())
        return {"idle_percent": idle, "runs": runs}
    finally:
        cluster.close()


def told(run: Mapping[str, Any]) -> str:
    costs = "  ".join(f"{name} {us:.2f}" for name, us in run["cpu_us"].items())
    return f"  batch {run['batch']:>5} {run['way']:<6} {run['per_s']:>9,.0f} msg/s  CPU µs/msg: {costs}"


def roles(runs: Sequence[Mapping[str, Any]], batch: int) -> dict[str, float]:
    """The cost of each role at a batch size, of one repetition."""
    direct, passed = (
        next(r["cpu_us"] for r in runs if (r["batch"], r["way"]) == (batch, way)) for way in ("direct", "entry")
    )
    follower = mean((direct[ENTRY], direct[OTHER]))
    return {
        "leader": direct[LEADER],
        "follower": follower,
        "entry, added": passed[ENTRY] - follower,
        "leader behind an entry": passed[LEADER],
        "follower behind an entry": passed[OTHER],
        "client": direct["client"],
        "cluster, direct": sum(direct[node] for node in (LEADER, ENTRY, OTHER)),
        "cluster, by an entry": sum(passed[node] for node in (LEADER, ENTRY, OTHER)),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The whole page."""
    repeats, given = result["repetitions"], result["parameters"]
    lines = [
        "# CPU µs per message by role, three replicas",
        "",
        f"{result['machine']}; all processes and the producer on this one machine. Durability QUORUM, fsynced on a "
        f"majority of three (T3); payload {given['size']} B; {given['channels']} channels, all led by one node; "
        f"{len(repeats)} repetitions of {given['seconds']:g} s a case: median (least to greatest).",
        "",
        "| role | " + " | ".join(f"batch {batch:,}" for batch in given["batch"]) + " |",
        "|---|" + "---|" * len(given["batch"]),
    ]
    by_batch = [[roles(one["runs"], batch) for one in repeats] for batch in given["batch"]]
    for role in by_batch[0][0]:
        cells = [spread([one[role] for one in found]) for found in by_batch]
        lines += [f"| {role} | " + " | ".join(cells) + " |"]
    runs = [[[r for r in one["runs"] if r["batch"] == batch] for one in repeats] for batch in given["batch"]]
    for way, what in ((0, "direct"), (1, "by an entry")):
        lines.append(f"| msg/s, {what} | " + " | ".join(_rate(found, way) for found in runs) + " |")
    lines.append("| messages a frame / an fsync of the leader | " + " | ".join(map(_joined, runs)) + " |")
    lines += ["", *_notes(result)]
    return "\n".join(lines) + "\n"


def _rate(found: Sequence[Sequence[Mapping[str, Any]]], way: int) -> str:
    return f"{median([one[way]['per_s'] for one in found]):,.0f}"


def _joined(found: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    direct = [one[0] for one in found]
    fsync = median([run["messages_an_fsync"][LEADER] for run in direct])
    return f"{median([run['messages_a_batch'] for run in direct]):,.1f} / {fsync:,.0f}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    given, repeats = result["parameters"], result["repetitions"]
    idle = {name: spread([one["idle_percent"][name] for one in repeats]) for name in repeats[0]["idle_percent"]}
    windows = ", ".join(f"{given['window'] or WINDOWS[batch]} at batch {batch:,}" for batch in given["batch"])
    return [
        f"Idle, 256 shards, over {given['idle']:g} s, % of a core: "
        + ", ".join(f"{name} {share}" for name, share in idle.items())
        + f"; target below {IDLE_TARGET:g} a node. etcd is one member that does not fsync.",
        "",
        "*Entry, added*: what the node that the producer goes to, and that leads nothing, costs in the second run, "
        "less a follower of the first run; that node follows, too. Idle CPU is subtracted everywhere. "
        f"*Calls unanswered*: {windows}. Frames are as the producer sends them, nothing lingers; the nodes may join "
        "frames in a message, and do in an fsync. No message was lost or stored twice, no leader changed.",
    ]


async def main(given: argparse.Namespace) -> int:
    result: dict[str, Any] = {"machine": machine(), "parameters": vars(given) | {"json": None}, "repetitions": []}
    for number in range(given.repeat):
        print(f"repetition {number + 1} of {given.repeat}", flush=True)
        with scratch() as folder:
            result["repetitions"].append(await repetition(folder, given))
    SCRATCH.mkdir(exist_ok=True)
    (given.json or SCRATCH / "roles.json").write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    worst = max(one["idle_percent"][node] for one in result["repetitions"] for node in (LEADER, ENTRY, OTHER))
    return int(worst >= IDLE_TARGET)


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """`words` None: those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="repetitions, each with a new cluster (default 5)")
    parser.add_argument("--batch", type=int, action="append", choices=list(WINDOWS), help="one size; may be repeated")
    parser.add_argument("--size", type=int, default=128, help="bytes of payload (default 128)")
    parser.add_argument("--channels", type=int, default=4, help="all led by one node (default 4)")
    parser.add_argument("--window", type=int, default=0, help=f"calls unanswered (default by batch: {WINDOWS})")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before each window (default 2)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each window (default 8)")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds of rest before the idle CPU (default 5)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of idling that are measured (default 10)")
    parser.add_argument("--json", type=Path, help="where the figures go (default .benchmarks/roles.json)")
    given = parser.parse_args(words)
    given.batch = given.batch or list(WINDOWS)
    return given


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        raise SystemExit(uvloop.run(main(parsed())))
