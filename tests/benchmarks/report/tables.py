"""Rows of cases as Markdown, one table for each durability. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.job import Row
from tests.benchmarks.report.stats import digits, frames_per_s, paired, spread

TIERS = {
    "–": "Ceiling: raw gRPC, a Python server that does nothing, bytes that nobody parses",
    "T0": "T0: volatile",
    "T1": "T1: written to the operating system",
    "T2": "T2: fsynced on one node",
    "T3": "T3: fsynced on a majority of three",
    "T3-without-fsync": "T3 without fsync: in the operating system of a majority of three",
}
COSTS = ("broker CPU µs/msg", "client CPU µs/msg")
HEADER = ("system", "client", "load", "messages/s", *COSTS, "of raw gRPC", "wait ms, p50 / p99")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def find(rows: Iterable[Row], bench: str, system: str, column: str, tier: str = "", **parameters: Any) -> Row | None:
    """The first row of that kind with these parameters."""
    for row in rows:
        right = (row.bench, row.system, row.column) == (bench, system, column) and tier in ("", row.tier)
        if right and all(row.parameters[name] == value for name, value in parameters.items()):
            return row
    return None


def described(parameters: Mapping[str, Any]) -> str:
    """The load in words."""
    said = [f"{parameters['load']}", f"{parameters['size']:,} B"]
    if parameters["load"] in ("publish", "fanout"):
        said.append(f"{parameters['batch']} × {parameters['window']}")
    if parameters["load"] == "consume" and parameters["batch"] > 1:
        said.append(f"stored in batches of {parameters['batch']:,}")
    if parameters["producers"] > 1:
        said.append(f"{parameters['producers']:,} producers")
    if parameters["load"] == "fanout":
        said.append(f"to {parameters['subscribers']:,}")
    elif parameters["subscribers"] > 1:
        said.append(f"{parameters['subscribers']} workers")
    if parameters["single_acks"]:
        said.append("single acks")
    if parameters["returned_percent"]:
        said.append(f"{parameters['returned_percent']} % returned")
    return ", ".join(said)


def share(row: Row, rows: Sequence[Row], ceilings: Sequence[Mapping[str, float]]) -> str:
    """The rate as a share of what raw gRPC carries in frames of one batch each; empty where it was not measured."""
    if row.system != "ringpost" or row.parameters["load"] == "consume":
        return ""
    same = {name: row.parameters[name] for name in ("load", "size", "batch", "producers", "subscribers")}
    if row.column == "lean":
        raw = find(rows, row.bench, "grpc", "lean", **same)
        ratios = paired([run.per_s for run in row.runs], [run.per_s for run in raw.runs]) if raw else []
    else:
        batch = row.parameters["batch"]
        limits = [frames_per_s(ceiling, batch * row.parameters["size"]) * batch for ceiling in ceilings]
        ratios = paired([run.per_s for run in row.runs], limits) if row.parameters["producers"] == 1 else []
    return f"{median(ratios):.0%}" if ratios else ""


def waits(row: Row) -> str:
    taken = [run.wait_ms for run in row.runs if run.wait_ms]
    return " / ".join(digits(median(run[at] for run in taken)) for at in (0, 1)) if taken else ""


def cells(row: Row, rows: Sequence[Row], ceilings: Sequence[Mapping[str, float]], stronger: bool) -> list[str]:
    return [
        f"{row.system}, at {row.tier}" if stronger else row.system,
        row.column,
        described(row.parameters),
        spread([run.per_s for run in row.runs]),
        spread([run.broker_us for run in row.runs]),
        spread([run.client_us for run in row.runs]),
        share(row, rows, ceilings),
        waits(row),
    ]


def by_tier(bench: str, rows: Sequence[Row], ceilings: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """The tables of one benchmark. Ringpost has no T1: its T2 stands beside a peer's T1, and says so."""
    own = [row for row in rows if row.bench == bench]
    for tier, heading in TIERS.items():
        shown = [row for row in own if row.tier == tier]
        if not shown:
            continue
        borrowed = [row for row in own if tier == "T1" and row.system == "ringpost" and row.tier == "T2"]
        yield from ("", f"### {bench}, {heading}", "")
        lines = [cells(row, own, ceilings, False) for row in shown] + [
            cells(row, own, ceilings, True) for row in borrowed
        ]
        yield from table(HEADER, lines)


def figures(found: Mapping[str, Any]) -> Iterator[str]:
    """A table of figures that are no rows of load: `columns`, `rows` of a label and lists of values, `note`."""
    header = ("", *found["columns"])
    lines = [
        [row["what"], *(value if isinstance(value, str) else spread(value) for value in row["values"])]
        for row in found["rows"]
    ]
    yield from table(header, lines)
    if found.get("note"):
        yield from ("", found["note"])
