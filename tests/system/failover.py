"""How long a shard that moves is not writable: SIGKILL, a leader frozen or cut off, a planned transfer.

Measured is the longest time without an acknowledged publish on the channels that the struck node led, from the
publishes' own times, beside the longest such time before the fault. A program, not a test: its figures depend on the
machine and on what else runs there; `--help` says how it is run. `--pause` below 0.02 saturates two cores, and then
measures queues. A leader that is cut off reaches no other node; etcd and the clients reach it. That needs root.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path
from statistics import median

import uvloop

from ringpost.v1.cluster_pb2 import Desired
from tests.system.load import Load
from tests.system.local import LocalCluster
from tests.system.netns import CutCluster

PER_NODE = 4
BEFORE_S = 1.0
TARGETS_S = {"kill": 1.5, "freeze": 9.0, "cut": 9.0, "transfer": 0.3}


async def kill(cluster: LocalCluster, victim: str) -> None:
    cluster.kill(victim)


async def freeze(cluster: LocalCluster, victim: str) -> None:
    cluster.freeze(victim)


async def cut(cluster: LocalCluster, victim: str) -> None:
    assert isinstance(cluster, CutCluster)
    await asyncio.to_thread(cluster.cut, victim, *(name for name in cluster.nodes if name != victim))


async def transfer(cluster: LocalCluster, victim: str) -> None:
    await cluster.set_desired(victim, Desired.DESIRED_REST)


async def undo(cluster: LocalCluster, how: str, victim: str) -> None:
    """Until the cluster is as it was before."""
    if how == "transfer":
        await cluster.set_desired(victim, Desired.DESIRED_ACTIVE)
    await cluster.heal()

    async def leads_again() -> bool:
        members = await cluster.members()
        least = 0.8 * 256 / len(cluster.nodes)
        return all(member.leader_count >= least for member in members.values())

    await cluster.until(leads_again, "leaders on all nodes", 60)


async def one(cluster: LocalCluster, how: str, victim: str, number: int, pause_s: float) -> tuple[float, float]:
    """One fault; the longest time without an acknowledged publish on a channel whose leader was struck.

    Second: the longest just before the fault.
    """
    loop = asyncio.get_running_loop()
    struck = await cluster.channels_on_all_nodes(f"{how}.{number}", PER_NODE, victim)
    async with Load(cluster.addresses, struck, pause_s=pause_s) as load:
        await asyncio.sleep(BEFORE_S)
        begin = loop.time()
        await {"kill": kill, "freeze": freeze, "cut": cut, "transfer": transfer}[how](cluster, victim)

        async def moved() -> bool:
            routes = await cluster.routes()
            return all(shard.owner != victim for shard in routes.shards)

        await cluster.until(moved, f"{victim} to lead nothing", 60)
        await load.progress(20, 60)
        usual = max(book.longest_pause(begin - BEFORE_S / 2, begin).seconds for book in load.books.values())
        return max(book.longest_pause(begin - BEFORE_S / 2, loop.time()).seconds for book in load.books.values()), usual


def distribution(times: list[float]) -> str:
    """min, median, p99 (the greatest of fewer than a hundred) and max."""
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"min {ordered[0]:.3f}  median {median(ordered):.3f}  p99 {p99:.3f}  max {ordered[-1]:.3f}"


async def measure(how: str, runs: int, directory: Path, pause_s: float) -> bool:
    """Whether the target was met."""
    cluster = (CutCluster if how == "cut" else LocalCluster)(directory / how)
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        times = []
        for number in range(runs):
            victim = f"n{number % len(cluster.nodes) + 1}"
            longest, usual = await one(cluster, how, victim, number, pause_s)
            times.append(longest)
            print(f"{how} {number + 1}/{runs}: {victim} {longest:.3f} s, before it {usual:.3f} s", flush=True)
            await undo(cluster, how, victim)
        print(f"{how}: {distribution(times)} s of {runs} runs; target p99 {TARGETS_S[how]:g} s", flush=True)
        return sorted(times)[min(len(times) - 1, int(0.99 * len(times)))] <= TARGETS_S[how]
    finally:
        cluster.close()


async def main(runs: int, hows: list[str], directory: Path, pause_s: float) -> int:
    met = [await measure(how, runs, directory, pause_s) for how in hows]
    return int(not all(met))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--only", choices=list(TARGETS_S), action="append", help="one kind; may be repeated")
    parser.add_argument("--pause", type=float, default=0.04, help="seconds between publishes of each of 12 producers")
    parser.add_argument("--keep", type=Path, help="directory for data and logs; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kinds = given.only or list(TARGETS_S)
        raise SystemExit(uvloop.run(main(given.runs, kinds, given.keep or Path(temporary), given.pause)))
