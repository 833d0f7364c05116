"""S4: what many nodes would carry, *simulated*: the real placement, with the costs of the roles that this run measured.

There are no queues and no network in it: a node's load is the sum over its shards of what leading and following costs,
and the cluster is full when its busiest node has used one core.
"""

from array import array
from collections.abc import Sequence
from math import pow
from statistics import median

from ringpost.client.routes import shard_of
from ringpost.cluster.placement import Site, place
from tests.benchmarks.suite import Suite

NODES = (3, 5, 10, 30, 100)
SHARDS = 4_096
COPIES = 3
ZIPF = 1.1
CHANNELS = 10_000_000
SMALL_CHECK = 0.15


def shards_of(channels: int) -> "array[int]":
    """The shard of each channel."""
    return array("H", (shard_of(f"channel.{number}", SHARDS) for number in range(1, channels + 1)))


def shard_loads(shards: Sequence[int], exponent: float) -> list[float]:
    """The share of all messages that each shard gets; the n-th channel has n ** -exponent (0: all the same)."""
    loads = [0.0] * SHARDS
    for number, shard in enumerate(shards, 1):
        loads[shard] += pow(number, -exponent)
    total = sum(loads)
    return [load / total for load in loads]


def capacity(nodes: int, loads: Sequence[float], leader_us: float, follower_us: float, copies: int = COPIES) -> float:
    """Messages a second of the whole cluster when its busiest node has used one core."""
    sites = frozenset(Site(f"node-{number}") for number in range(1, nodes + 1))
    used = dict.fromkeys((site.node for site in sites), 0.0)
    for load, own in zip(loads, place(sites, frozenset(used), len(loads), copies), strict=True):
        for at, node in enumerate(own):
            used[node] += load * (follower_us if at else leader_us)
    return 1e6 / max(used.values())


def _cost(suite: Suite, role: str) -> float:
    """µs a message in the largest batches, from the table of the roles."""
    rows = suite.figures["roles"]["rows"]
    return float(median(next(row["values"][-1] for row in rows if row["what"] == role)))


def run(suite: Suite) -> None:
    """Needs the roles of S1 in the same run."""
    if "roles" not in suite.figures:
        suite.skipped["S4"] = "it takes its costs from S1, which was not measured in this run"
        return
    leader, follower = _cost(suite, "leader"), _cost(suite, "follower")
    channels = int(CHANNELS * min(1.0, suite.plan.scale)) if suite.plan.scale >= 1 else 100_000
    shards = shards_of(channels)
    kinds = {"all channels alike": shard_loads(shards, 0), f"Zipf {ZIPF}": shard_loads(shards, ZIPF)}
    rows = []
    for nodes in NODES:
        rates = [capacity(nodes, loads, leader, follower) for loads in kinds.values()]
        first = [capacity(NODES[0], loads, leader, follower) for loads in kinds.values()]
        values = [part for rate, base in zip(rates, first, strict=True) for part in ([rate], [rate / base])]
        rows.append({"what": f"{nodes} nodes, simulated", "values": values})
    columns = [f"{name}, {what}" for name in kinds for what in ("messages/s", f"over {NODES[0]} nodes")]
    note = (
        f"*Simulated*: {channels:,} channels in {SHARDS:,} shards, placed by the real placement, {COPIES} copies, "
        f"batches of 1,000 of 128 B; leading costs {leader:.2f} µs a message, following {follower:.2f} µs (measured "
        f"above); full when the busiest node has used one core. With Zipf {ZIPF} the busiest channel alone is "
        f"{_busiest(channels):.0%} of the load." + _checked(suite)
    )
    suite.figures["S4"] = {"columns": columns, "rows": rows, "note": note}


def _busiest(channels: int) -> float:
    """The share of the first channel."""
    return 1 / sum(pow(number, -ZIPF) for number in range(1, channels + 1))


def _checked(suite: Suite) -> str:
    """The same arithmetic against the small nodes of S2, where that was measured: channels there are spread evenly."""
    if "S2" not in suite.figures:
        return " Not checked against S2, which was not measured in this run."
    found = {row["what"]: median(row["values"][1]) for row in suite.figures["S2"]["rows"]}
    off = {nodes: found[f"{nodes} nodes"] / nodes - 1 for nodes in (3, 5)}
    close = all(abs(part) <= SMALL_CHECK for part in off.values())
    told = ", ".join(f"{nodes} nodes {part:+.0%}" for nodes, part in off.items())
    verdict = "within" if close else "**not within**"
    return (
        f" Against the measured speed-up of S2, where channels are spread evenly: {told}, {verdict} {SMALL_CHECK:.0%}."
    )
