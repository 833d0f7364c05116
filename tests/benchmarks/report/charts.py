"""Which curves are drawn, of which rows. Pure; `plots` draws them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.job import Row


class Chart(NamedTuple):
    """`curves`: points (x, median, least, greatest) by name. `name` is the file's, without its ending."""

    name: str
    title: str
    x: str
    y: str
    curves: dict[str, list[tuple[float, float, float, float]]]
    log_x: bool = True
    log_y: bool = True


def point(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
    return x, median(values), min(values), max(values)


def _curves(rows: Iterable[Row], x: str, figure: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """One curve for each system, durability and column; where two rows share a point, the one with more unanswered."""
    found: dict[str, dict[float, tuple[float, float, float, float]]] = {}
    for row in sorted(rows, key=lambda row: -row.parameters["window"]):
        name = f"{row.system} {row.tier}" if row.system != "grpc" else "raw gRPC"
        values = [float(getattr(run, figure)) for run in row.runs]
        found.setdefault(name, {}).setdefault(row.parameters[x], point(row.parameters[x], values))
    return {name: [points[at] for at in sorted(points)] for name, points in sorted(found.items())}


def charts(rows: Sequence[Row], figures: Mapping[str, Any]) -> Iterator[Chart]:
    """Those for which there is something to draw."""
    batch, to, cost = "messages a batch", "subscribers", "broker CPU, µs a message"
    for column in ("lean", "python"):
        b1 = [row for row in rows if (row.bench, row.column) == ("B1", column)]
        b1 = [row for row in b1 if (row.parameters["size"], row.parameters["producers"]) == (128, 1)]
        title = f"Publish 128 B, one {column} producer"
        yield Chart(f"b1-cost-{column}", title, batch, cost, _curves(b1, "batch", "broker_us"))
        yield Chart(f"b1-rate-{column}", title, batch, "messages/s", _curves(b1, "batch", "per_s"))
    b3 = [row for row in rows if row.bench == "B3" and row.parameters["batch"] == 100]
    fan = "Fan-out, 128 B in batches of 100"
    yield Chart("b3-cost", fan, to, "broker CPU, µs a delivery", _curves(b3, "subscribers", "broker_us"))
    yield Chart("b3-rate", fan, to, "deliveries/s", _curves(b3, "subscribers", "per_s"))
    for name, drawn in figures.get("charts", {}).items():
        yield Chart(name, **drawn)
