"""The whole page of a run. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.benchmarks.job import rows_of
from tests.benchmarks.report.stats import spread
from tests.benchmarks.report.tables import by_tier, figures, table
from tests.benchmarks.report.targets import shown, targets

NOTES = (
    "**T0** volatile · **T1** written to the operating system · **T2** fsynced on one node · **T3** fsynced on a "
    "majority of three. Ringpost has no T1: beside a peer's T1 stands its T2, which promises more. RabbitMQ's classic "
    "queue counts as T1: it fsyncs in its own time. JetStream fsyncs every two minutes.",
    "*python*: each system's usual client, one process: Ringpost's own (frames of up to 4 MiB), nats-py, redis-py with "
    "hiredis, aio-pika. *lean*: a small Rust program that encodes once and does nothing with what comes, on one "
    "core.",
    "*batch × window*: messages handed over together, batches of a producer that are unanswered at a time. A batch is "
    "a frame in Ringpost, a pipeline or one write of single commands elsewhere. Nothing lingers. In the python "
    "column Ringpost's client joins single messages that wait into frames by itself; in the lean column each is a "
    "frame of its own.",
    "*broker CPU* is user and system time of all processes of the broker over the measured span. Client and broker "
    "share the machine. *of raw gRPC*: the rate as a share of bare frames or calls of the same size to a server that "
    "does nothing, by the same kind of client; above 100 % frames were joined. *wait*: until the answer; in fan-out "
    "until the last subscriber has the batch.",
)


def page(result: Mapping[str, Any], benches: Mapping[str, str], plots: str = "") -> str:
    """`benches`: titles by id, in the order of the page. `plots`: the folder of the plots as seen from the page."""
    rows, ceilings = rows_of(result["rows"]), result["ceilings"]
    lines = ["# Benchmarks", "", *_head(result), "", "## Calibration", "", *_calibration(ceilings)]
    for bench, title in benches.items():
        lines += _section(bench, title, result, list(by_tier(bench, rows, ceilings)), plots)
    lines += ["", "## Targets", "", *shown(targets(rows, ceilings, result["figures"]))]
    faults = result["faults"]
    lines += ["", "## Correctness", ""]
    lines += [f"- {fault}" for fault in faults] or [
        "Every message that was acknowledged was found, in every run above."
    ]
    return "\n".join(lines) + "\n"


def _section(bench: str, title: str, result: Mapping[str, Any], tables: list[str], folder: str) -> list[str]:
    """One benchmark; nothing where it was not asked for."""
    lines = tables
    if bench in result["skipped"]:
        lines = ["", f"Not in this run: {result['skipped'][bench]}"]
    if bench in result["figures"]:
        lines = [*lines, "", *figures(result["figures"][bench])]
    plots = [f"\n![{name}]({folder}{name})" for name in result["plots"] if name.startswith(bench.lower() + "-")]
    return ["", f"## {bench}: {title}", *lines, *plots] if lines else []


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    plan, peers = result["plan"], result["versions"]
    versions = ", ".join(f"{name} {number}" for name, number in peers.items()) or "no peers"
    yield f"`{result['command']}`, {result['date']}, {result['seconds'] / 60:.0f} minutes. {result['machine']};"
    yield f"{versions}. {plan['repeat']} interleaved repetitions of {plan['seconds']:g} s a case after"
    yield f"{plan['warm_up']:g} s of warming up: median (least to greatest)."
    if plan.get("name") == "smoke":
        yield from ("", "**A smoke run: it shows that everything runs. Its figures are too short to mean anything.**")
    for note in NOTES:
        yield from ("", note)


def _calibration(ceilings: Sequence[Mapping[str, float]]) -> list[str]:
    names = list(ceilings[0]) if ceilings else []
    return table(
        ("figure", "value"),
        [(name.replace("_", " "), spread([float(one[name]) for one in ceilings])) for name in names],
    )
