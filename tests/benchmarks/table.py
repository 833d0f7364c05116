"""The Markdown of a comparison: medians with ranges, one table for each durability contract. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from ceiling import LARGE, SMALL

Runs = Sequence[Mapping[str, Any]]

# (what the row measures, figure of the rate, of the broker's CPU, of the client's CPU)
JETSTREAM_ROWS = (
    ("publish", "published_per_s", "publish_server_cpu_us", None),
    ("fetch and ack", "consumed_per_s", "consume_server_cpu_us", None),
)
RINGPOST_ROWS = {
    "pub": ("publish", "published_per_s", "broker_cpu_us_per_message", "client_cpu_us_per_message"),
    "pubsub": ("publish and deliver", "delivered_per_s", "broker_cpu_us_per_message", "client_cpu_us_per_message"),
    "group": ("publish, group, ack", "delivered_per_s", "broker_cpu_us_per_message", "client_cpu_us_per_message"),
}


def spread(runs: Runs, figure: str | None, show: Callable[[float], str]) -> str:
    """`median (least to greatest)`."""
    if figure is None:
        return ""
    values = [float(run[figure]) for run in runs]
    return f"{show(median(values))} ({show(min(values))} to {show(max(values))})"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def exact(value: float) -> str:
    return f"{value:,.2f}"


def frames_per_s(ceiling: Runs, frame_bytes: int) -> float:
    """How many stream messages of this size a client can upload, on the line between the two that were measured."""
    small, large = (1 / median(float(run[f"upload_{name}_per_s"]) for run in ceiling) for name in ("small", "large"))
    seconds = small + (large - small) * (frame_bytes - SMALL) / (LARGE - SMALL)
    return 1 / max(seconds, min(small, large))


def rows(case: Mapping[str, Any], ceiling: Runs) -> Iterator[str]:
    ringpost = case["system"] == "ringpost"
    batch, size, runs = case["batch"], case["size"], case["runs"]
    for what, rate, broker, client in [RINGPOST_ROWS[case["load"]]] if ringpost else JETSTREAM_ROWS:
        share = ""
        if ringpost:
            most = frames_per_s(ceiling, batch * size) * batch
            share = f"{median(float(run[rate]) for run in runs) / most:.0%}"
        cells = [case["system"], what, f"{size:,} B", str(batch), str(case["window"]), spread(runs, rate, whole), share]
        yield "| " + " | ".join([*cells, spread(runs, broker, exact), spread(runs, client, exact)]) + " |"


def markdown(result: Mapping[str, Any]) -> str:
    """The whole page."""
    ceiling, machine, versions = result["ceiling"], result["machine"], result["versions"]
    lines = [
        "# Ringpost beside the gRPC ceiling and NATS",
        "",
        f"{machine['cores']} cores, {machine['system']}, Python {machine['python']}; Ringpost {versions['ringpost']}, "
        f"grpcio {versions['grpcio']}, nats-server {versions['nats']}. {len(ceiling)} interleaved repetitions: "
        "median (least to greatest). Client and server share the machine.",
        "",
        "## Ceiling: a server that does nothing, bytes that nobody parses",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {spread(ceiling, name, exact)} |" for name in ceiling[0]),
    ]
    header = "| system | load | payload | batch | window | msg/s | of ceiling | broker CPU µs/msg | client CPU µs/msg |"
    for contract in sorted({case["contract"] for case in result["cases"]}):
        lines += ["", f"## {contract}", "", header, "|" + "---|" * 9]
        for case in result["cases"]:
            if case["contract"] == contract:
                lines += rows(case, ceiling)
    lines += [
        "",
        "*Of ceiling*: the rate as a share of what uploading bare frames of one batch each would reach. Above "
        "100 % means that the client joined several calls in one frame. *Window*: calls that wait for their answer "
        "at a time; nothing lingers.",
    ]
    return "\n".join(lines) + "\n"
