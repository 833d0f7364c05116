"""B9: what each durability costs: rate, CPU, fsyncs a second and messages an fsync, of one node."""

from dataclasses import replace

from tests.benchmarks import lean
from tests.benchmarks.job import Found, Job
from tests.benchmarks.loads import Shape, replicated
from tests.benchmarks.measure import scratch
from tests.benchmarks.servers import Server
from tests.benchmarks.suite import Suite
from tests.integration.broker import Node

LEVELS = {"T0": "memory", "T2": "quorum"}
SHAPES: tuple[Shape, ...] = ((1, 1_000, 1), (100, 16, 1), (1_000, 16, 1), (100, 4, 8))
FSYNCS, MESSAGES = "ringpost_journal_fsyncs_total", "ringpost_published_messages_total"
COLUMNS = ("messages/s", "broker CPU µs/msg", "fsyncs/s", "messages an fsync", "answer p50 ms", "answer p99 ms")


def run(suite: Suite) -> None:
    """One case at a time, the node's own counters before and after it."""
    able = [
        (tier, Job(system="ringpost", load="publish", batch=b, window=w, producers=p, durability=level))
        for b, w, p in SHAPES
        for tier, level in LEVELS.items()
    ]
    found: list[list[tuple[Found, float, float]]] = [[] for _ in able]
    for turn in range(suite.plan.repeat):
        for at, (_, job) in enumerate(able):
            with scratch() as folder, Node(folder / "data") as node:
                found[at].append(_one(suite, job, node, f"b9-{turn}"))
    rows = []
    for (tier, job), runs in zip(able, found, strict=True):
        said = f"{tier}, {job.batch} × {job.window}" + (f", {job.producers} producers" if job.producers > 1 else "")
        values = [
            [one.per_s for one, _, _ in runs],
            [one.broker_us for one, _, _ in runs],
            [rate for _, rate, _ in runs],
            [each for _, _, each in runs],
            *([one.wait_ms[n] for one, _, _ in runs] for n in (0, 1)),
        ]
        rows.append({"what": said, "values": values})
        suite.faults += [f"B9 {said}: {one.missing} messages are missing" for one, _, _ in runs if one.missing]
    suite.measure("B9", replicated(suite), suite.plan.long_repeat)
    note = "Python client, 128 B. At T0 nothing waits for the fsync, and it happens all the same. T3 is above."
    suite.figures["B9"] = {"columns": COLUMNS, "rows": rows, "note": note}


def _one(suite: Suite, job: Job, node: Node, name: str) -> tuple[Found, float, float]:
    """What was found, fsyncs a second and messages an fsync."""
    job = replace(job, seconds=suite.plan.seconds, warm_up=suite.plan.warm_up)
    server = Server([node.address], [node.process.pid])
    before = node.metrics()
    (found,) = lean.run(lean.PYTHON, [job], server, name)
    after = node.metrics()
    syncs = after[FSYNCS] - before[FSYNCS]
    each = found.acknowledged / max(syncs, 1)
    return found, found.per_s / each, each
