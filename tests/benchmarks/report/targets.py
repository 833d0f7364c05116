"""The targets of speed, against what one run found. Pure."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.job import Row
from tests.benchmarks.report.stats import digits, frames_per_s, paired
from tests.benchmarks.report.tables import find, table

LEAST, MOST = "at least", "at most"


class Target(NamedTuple):
    """`figure` is None where it was not measured in this run; `bound` in the same unit."""

    what: str
    direction: str
    bound: float
    unit: str
    figure: float | None
    how: str = ""

    @property
    def met(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.direction == LEAST else self.figure <= self.bound

    @property
    def verdict(self) -> str:
        """Met, or missed and by how much, as a factor of the bound."""
        if self.figure is None:
            return "not measured"
        factor = self.figure / self.bound if self.direction == MOST else self.bound / max(self.figure, 1e-9)
        return f"met ({1 / max(factor, 1e-9):.2g} × better)" if self.met else f"**missed** ({factor:.2f} × off)"


class Finder:
    """Looks figures up in a result; each is a median over repetitions, ratios are paired by repetition."""

    def __init__(self, rows: Sequence[Row], ceilings: Sequence[dict[str, float]], figures: dict[str, Any]) -> None:
        self.rows, self.ceilings, self.figures = rows, ceilings, figures

    def values(
        self, figure: str, bench: str, system: str, column: str, tier: str = "", **parameters: Any
    ) -> list[float]:
        """`figure`: `per_s`, `broker_us` or `p50_ms`; empty where there is no such row."""
        row = find(self.rows, bench, system, column, tier, **parameters)
        if row is None:
            return []
        if figure == "p50_ms":
            return [run.wait_ms[0] for run in row.runs if run.wait_ms]
        return [float(getattr(run, figure)) for run in row.runs]

    def ceiling(self, name: str) -> list[float]:
        return [ceiling[name] for ceiling in self.ceilings if name in ceiling]

    def single(self, name: str) -> float | None:
        """A figure that a measuring program has named for its target."""
        value = self.figures.get("targets", {}).get(name)
        return None if value is None else float(value)


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


P1000: dict[str, Any] = {"load": "publish", "size": 128, "batch": 1_000, "window": 16, "producers": 1}
P100: dict[str, Any] = {"load": "publish", "size": 128, "batch": 100, "window": 16, "producers": 1}
ASYNC: dict[str, Any] = {"load": "publish", "size": 128, "batch": 1, "window": 1_000, "producers": 1}
PIPELINED: dict[str, Any] = {"load": "publish", "size": 128, "batch": 1_000, "window": 1, "producers": 1}
ONE: dict[str, Any] = {"load": "publish", "size": 128, "batch": 1, "window": 1, "producers": 1}
WORK: dict[str, Any] = {"load": "consume", "batch": 1, "subscribers": 1, "single_acks": False, "returned_percent": 0}


def against_peers(f: Finder) -> list[Target]:
    """Python clients on both sides."""
    ours = f.values("per_s", "B1", "ringpost", "python", "T2", **P1000)
    js = f.values("per_s", "B1", "nats JetStream", "python", **ASYNC)
    raw = [frames_per_s(ceiling, 128_000) * 1_000 for ceiling in f.ceilings]
    read = f.values("per_s", "B4", "ringpost", "python", "T2", **WORK)
    fetched = f.values("per_s", "B4", "nats JetStream", "python", **WORK)
    rabbit = f.values("per_s", "B1", "rabbitmq quorum", "python", **ASYNC)
    redis = f.values("per_s", "B1", "redis streams", "python", "T1", **PIPELINED)
    return [
        Target("T2 publish 128 B × 1,000 over nats-py JetStream async (T1)", LEAST, 15, "×", middle(paired(ours, js))),
        Target("the same over the raw gRPC stream", LEAST, 60, "%", _percent(paired(ours, raw))),
        Target("T2 consume with acks over nats-py fetch + ack (T1)", LEAST, 15, "×", middle(paired(read, fetched))),
        Target("T2 publish over aio-pika with quorum queues", LEAST, 10, "×", middle(paired(ours, rabbit))),
        Target("T2 publish over redis-py streams, pipelines of 1,000 (T1)", LEAST, 2, "×", middle(paired(ours, redis))),
    ]


def _percent(ratios: Sequence[float]) -> float | None:
    return 100 * median(ratios) if ratios else None


def broker_cost(f: Finder) -> list[Target]:
    """CPU of the broker, under the lean generator."""
    published = f.values("broker_us", "B1", "ringpost", "lean", "T2", **P1000)
    js = f.values("broker_us", "B1", "nats JetStream", "lean", **{**P100, "window": 10})
    kib = [
        us * 1e3 / 1_024
        for us in f.values("broker_us", "B1", "ringpost", "lean", "T2", **{**P1000, "size": 1_024, "window": 4})
    ]
    read = f.values("broker_us", "B4", "ringpost", "lean", "T2", **WORK)
    read_100 = f.values("broker_us", "B4", "ringpost", "lean", "T2", **{**WORK, "batch": 100})
    return [
        Target("broker CPU, T2, 128 B × 1,000, published", MOST, 0.7, "µs/msg", middle(published)),
        Target("broker CPU, T2, 128 B × 1,000, delivered and acknowledged", MOST, 0.5, "µs/msg", middle(read)),
        Target("nats-server JetStream's CPU over it, published", LEAST, 10, "×", middle(paired(js, published))),
        Target("broker CPU at 1 KiB × 1,000, published", MOST, 5, "ns/B", middle(kib)),
        Target("broker CPU, T2, batches of 100, published", MOST, 3, "µs/msg",
               middle(f.values("broker_us", "B1", "ringpost", "lean", "T2", **P100))),
        Target("broker CPU, batches of 100, delivered and acknowledged", MOST, 1.5, "µs/msg", middle(read_100)),
    ]  # fmt: skip


def times(f: Finder) -> list[Target]:
    ping = [us / 1e3 for us in f.ceiling("ping_pong_p50_us")]
    one = f.values("p50_ms", "B1", "ringpost", "python", "T0", **ONE)
    return [
        Target(
            "one publish in flight, p50, over raw ping-pong (T0: there is no T1)",
            MOST,
            1.5,
            "×",
            middle(paired(one, ping)),
        ),
        Target("end to end at half load, T2, p50 less one fdatasync", MOST, 2, "ms", f.single("half load p50 ms")),
        Target("the same, p99", MOST, 10, "ms", f.single("half load p99 ms")),
    ]


def many(f: Finder) -> list[Target]:
    """Fan-out and many small clients."""
    to_100: dict[str, Any] = {"load": "fanout", "subscribers": 100}
    rate = f.values("per_s", "B3", "ringpost", "lean", "T2", batch=1_000, **to_100)
    ours = f.values("broker_us", "B3", "ringpost", "lean", "T0", batch=100, **to_100)
    raw = f.values("broker_us", "B3", "grpc", "lean", batch=100, **to_100)
    calls = f.values("per_s", "unbatched", "ringpost", "lean", "T2")
    bare = f.values("per_s", "unbatched", "grpc", "lean")
    return [
        Target("fan-out to 100 subscribers, 128 B × 1,000", LEAST, 300_000, "deliveries/s", middle(rate)),
        Target("cost of a stream write in fan-out to 100, over raw gRPC", MOST, 1.3, "×", middle(paired(ours, raw))),
        Target(
            "unbatched publishes of 1,000 clients (50 in a smoke run), T2, over raw unary calls",
            LEAST,
            70,
            "%",
            _percent(paired(calls, bare)),
        ),
    ]


# What is named by a program of its own: (what, direction, bound, unit, its name).
NAMED: tuple[tuple[str, str, float, str, str], ...] = (
    ("three replicas (T3) over one node (T2), total CPU a message, batch 1,000", MOST, 3.5, "×", "T3 over T2"),
    ("entry node that owns nothing, added CPU, batch 1,000", MOST, 0.3, "µs/msg", "entry added us"),
    ("S1: 5 nodes over 3, total CPU a message", MOST, 1.05, "×", "S1 5 over 3"),
    ("S2: 3 small nodes over 1", LEAST, 2.7, "×", "S2 3 nodes"),
    ("S2: 5 small nodes over 1", LEAST, 4.3, "×", "S2 5 nodes"),
    ("1,000,000 channels: memory a channel", MOST, 500, "B", "channel bytes"),
    ("1,000,000 channels: restart", MOST, 15, "s", "restart s"),
    ("10,000 idle subscribers: memory each", MOST, 40, "KB", "subscriber kb"),
)

PARTS: tuple[Callable[[Finder], list[Target]], ...] = (against_peers, broker_cost, times, many)


def targets(rows: Sequence[Row], ceilings: Sequence[dict[str, float]], figures: dict[str, Any]) -> list[Target]:
    finder = Finder(rows, ceilings, figures)
    found = [target for part in PARTS for target in part(finder)]
    return found + [Target(w, d, bound, unit, finder.single(name)) for w, d, bound, unit, name in NAMED]


def shown(found: Sequence[Target]) -> list[str]:
    """As Markdown."""
    lines = []
    for target in found:
        figure = "–" if target.figure is None else f"{digits(target.figure)} {target.unit}"
        lines.append((target.what, f"{target.direction} {digits(target.bound)} {target.unit}", figure, target.verdict))
    return table(("target", "bound", "this run", ""), lines)
