"""What a benchmark says: figures of one run, with every parameter it ran with. Pure but for the clock in `Meter`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ringpost.client.api import Client
from ringpost.client.cli.output import Output
from ringpost.client.cli.stats import Latency, per
from ringpost.client.cli.units import show_bytes, show_seconds
from ringpost.v1 import cluster_pb2


class Usage(NamedTuple):
    """What one run took. `deliveries` counts each subscriber's copy. CPU in seconds.

    `strangers`: messages that the node took or delivered meanwhile beyond this run's; above 0 the broker's CPU is not
    this run's alone.
    """

    seconds: float
    client_cpu: float
    broker_cpu: float
    broker_memory: int
    published: int
    delivered: int
    strangers: int


class Meter:
    """Measures between `start` and `stop`: time, CPU of this process, CPU and counters of the node that answers."""

    def __init__(self, mq: Client) -> None:
        self._mq = mq
        self._node = cluster_pb2.NodeInfo()
        self._begin = self._cpu = 0.0

    async def start(self) -> None:
        self._node = await self._mq.node.info()
        self._cpu, self._begin = time.process_time(), time.perf_counter()

    async def stop(self, published: int, delivered: int) -> Usage:
        """The arguments are what this run knows it did."""
        seconds, cpu = time.perf_counter() - self._begin, time.process_time() - self._cpu
        node = await self._mq.node.info()
        strangers = (node.published_messages - self._node.published_messages - published) + (
            node.delivered_messages - self._node.delivered_messages - delivered
        )
        return Usage(
            seconds=seconds,
            client_cpu=cpu,
            broker_cpu=node.cpu_seconds - self._node.cpu_seconds,
            broker_memory=node.resident_bytes,
            published=published,
            delivered=delivered,
            strangers=max(0, strangers),
        )


@dataclass(frozen=True)
class Result:
    """One finished benchmark. `latency`: by what was measured; `extra`: figures of one kind of load only."""

    name: str
    parameters: Mapping[str, Any]
    usage: Usage
    latency: Mapping[str, Latency] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Every figure and every parameter; the figures' names end with their unit."""
        usage = self.usage
        count = max(usage.published, usage.delivered)
        size = int(self.parameters["size"])
        return {
            "benchmark": self.name,
            "parameters": dict(self.parameters),
            "seconds": round(usage.seconds, 3),
            "published": usage.published,
            "delivered": usage.delivered,
            "published_per_s": round(per(usage.published, usage.seconds)),
            "delivered_per_s": round(per(usage.delivered, usage.seconds)),
            "mb_per_s": round(per(count * size, usage.seconds) / 1e6, 2),
            "broker_cpu_us_per_message": round(per(usage.broker_cpu * 1e6, count), 3),
            "client_cpu_us_per_message": round(per(usage.client_cpu * 1e6, count), 3),
            "broker_cpu_seconds": round(usage.broker_cpu, 3),
            "client_cpu_seconds": round(usage.client_cpu, 3),
            "broker_memory_bytes": usage.broker_memory,
            "other_messages_meanwhile": usage.strangers,
            **{f"{name}_ms": latency.as_ms() for name, latency in self.latency.items()},
            **self.extra,
        }

    def print(self, output: Output) -> None:
        """As rows for a person or as one JSON object."""
        data = self.as_json()
        output.details([*self._rows(data), *self._latency_rows(), *self._doubts()], data)

    def _rows(self, data: Mapping[str, Any]) -> list[tuple[str, object]]:
        usage = self.usage
        rows: list[tuple[str, object]] = [
            ("benchmark", self.name),
            ("with", ", ".join(f"{name} {_shown(name, value)}" for name, value in self.parameters.items())),
            ("took", show_seconds(usage.seconds)),
        ]
        for verb, count in (("published", usage.published), ("delivered", usage.delivered)):
            if count:
                rows.append((verb, f"{count:,} messages, {data[f'{verb}_per_s']:,} msg/s"))
        rows += [
            ("throughput", f"{data['mb_per_s']:,} MB/s"),
            ("broker CPU", f"{data['broker_cpu_us_per_message']} µs {self._counted}"),
            ("client CPU", f"{data['client_cpu_us_per_message']} µs {self._counted}"),
            ("broker memory", show_bytes(usage.broker_memory)),
        ]
        return rows + [(name.replace("_", " "), value) for name, value in self.extra.items()]

    @property
    def _counted(self) -> str:
        """What the CPU is divided by: deliveries when each message went to several."""
        published, delivered = self.usage.published, self.usage.delivered
        if published and delivered > published:
            return "a delivery, the publish shared out"
        return "a message, published and delivered" if published and delivered else "a message"

    def _latency_rows(self) -> list[tuple[str, object]]:
        return [
            (
                name.replace("_", " "),
                f"p50 {show_seconds(found.p50)}, p99 {show_seconds(found.p99)}, p99.9 {show_seconds(found.p999)},"
                f" max {show_seconds(found.max)}",
            )
            for name, found in self.latency.items()
        ]

    def _doubts(self) -> list[tuple[str, object]]:
        if not self.usage.strangers:
            return []
        return [
            ("note", f"the node handled {self.usage.strangers:,} messages of others meanwhile; its CPU includes them")
        ]


def _shown(name: str, value: object) -> str:
    return show_bytes(value) if name == "size" and isinstance(value, int) else str(value)
