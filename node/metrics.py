"""The node's counts: a plain snapshot and its Prometheus form. The fields of `Stats` are the table of all metrics."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

COUNTER = "counter"
GAUGE = "gauge"
NAMESPACE = "ringpost"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meaning(NamedTuple):
    """What one metric is. `label` is the name of its only label, "" for none."""

    kind: str
    unit: str
    text: str
    label: str


def count(unit: str, text: str) -> Any:
    """A number that only grows, 0 at the start of the process."""
    return dataclasses.field(default=0, metadata={"meaning": Meaning(COUNTER, unit, text, "")})


def gauge(unit: str, text: str) -> Any:
    """A number that goes up and down."""
    return dataclasses.field(default=0, metadata={"meaning": Meaning(GAUGE, unit, text, "")})


def counts(label: str, unit: str, text: str) -> Any:
    """Counters by one label."""
    return dataclasses.field(default_factory=dict, metadata={"meaning": Meaning(COUNTER, unit, text, label)})


def gauges(label: str, unit: str, text: str) -> Any:
    """Gauges by one label."""
    return dataclasses.field(default_factory=dict, metadata={"meaning": Meaning(GAUGE, unit, text, label)})


@dataclasses.dataclass(slots=True, kw_only=True)
class Stats:
    """The node at one moment. Made on the loop's thread, read on another, never changed in between."""

    published_messages: int = count("messages", "Messages appended (duplicates not counted).")
    published_bytes: int = count("bytes", "Encoded batches appended.")
    published_batches: int = count("batches", "Batches appended.")
    published_duplicates: int = count("batches", "Batches that were stored before and answered again.")
    publish_refusals: Mapping[str, int] = counts("reason", "batches", "Batches not appended, by the reason answered.")
    access_denials: Mapping[str, int] = counts("reason", "requests", "Refused for want of a token or a permission.")
    delivered_messages: int = count("messages", "Messages sent to subscribers, redeliveries included.")
    delivered_bytes: int = count("bytes", "Encoded batches sent to subscribers.")
    settled_messages: Mapping[str, int] = counts("outcome", "messages", "Messages in settlements, by outcome.")
    redelivered_messages: int = count("messages", "Messages sent with an attempt above 1.")

    filtered_messages: Mapping[str, int] = counts(
        "by", "messages", "Looked at and not let through by a filter: of a subscription, each counts, or of a group."
    )
    expired_messages: int = count("messages", "Messages passed over because their time to live was over.")
    dead_lettered_messages: int = count("messages", "Messages given up and kept as dead letters here.")

    released_messages: int = count("messages", "Delayed messages that were due and given their offsets here.")
    released_batches: int = count("batches", "The batches that they came in.")
    release_lateness_seconds: float = count("seconds", "How long after their times those were committed, summed.")
    release_lateness_max_seconds: float = gauge("seconds", "The same, the worst since the start.")
    scheduled_batches: int = gauge("batches", "Delayed batches held that are not due yet, copies included.")

    streams: Mapping[str, int] = gauges("kind", "streams", "Open streams: publish or subscribe.")
    subscriptions: int = gauge("subscriptions", "Open subscriptions.")
    channels: int = gauge("channels", "Channels on this node.")
    groups: int = gauge("groups", "Groups on this node.")
    message_ids: int = gauge("ids", "Message ids held to deduplicate by, some 160 bytes each, of channels served here.")
    subscriber_queue_bytes: int = gauge("bytes", "Deliveries waiting to be sent.")

    dead_letters: Mapping[str, int] = gauges(
        "group", "messages", "Dead letters kept, of the 50 groups led here with most: channel/group."
    )
    group_lag: Mapping[str, int] = gauges(
        "group", "messages", "Not settled yet, of the 50 groups led here with most: channel/group."
    )
    group_lag_bytes: Mapping[str, int] = gauges("group", "bytes", "About what they have on disk, of the same groups.")
    group_lag_seconds: Mapping[str, float] = gauges(
        "group", "seconds", "Age of the oldest of them, of the same groups; of none where it is not known."
    )

    nodes: Mapping[str, int] = gauges("state", "nodes", "Members of the cluster: alive or away.")
    unreachable_nodes: int = gauge("nodes", "Members that live and that this node cannot reach.")
    controller: int = gauge("nodes", "1 where this node is the controller.")
    lease_seconds: float = gauge("seconds", "For so long the session of this node surely lives.")
    replicas: Mapping[str, int] = gauges("role", "replicas", "Copies on this node: leader, follower or learner.")
    offline_shards: int = gauge("shards", "Shards of the cluster without a leader that lives.")
    under_replicated_shards: int = gauge("shards", "Shards of the cluster with fewer in-sync copies than wanted.")
    moves: int = gauge("moves", "Copies being made, handed over or taken away in the cluster.")
    uncommitted_frames: int = gauge("frames", "Frames that wait for followers, of the shard led here with most.")
    leaderships: int = count("leaderships", "Leaderships of shards begun here.")
    snapshots: Mapping[str, int] = counts("way", "snapshots", "Whole shards copied: sent or installed here.")
    forwarded_batches: int = count("batches", "Batches sent on to another node, which leads their shard.")
    upstream_subscriptions: int = gauge("subscriptions", "Subscriptions of this node at others, one may serve many.")

    journal_fsyncs: int = count("fsyncs", "Journal groups committed.")
    journal_fsync_seconds: float = count("seconds", "Time spent in writing and fsyncing the journal.")
    journal_written_bytes: int = count("bytes", "Bytes written to the journal, its own overhead included.")
    journal_bytes: int = gauge("bytes", "Size of the journal's segments.")
    journal_segments: int = gauge("segments", "Segments on disk.")
    journal_lag_bytes: int = gauge("bytes", "Appended and not yet durable.")
    checkpoints: int = count("checkpoints", "Checkpoints written.")
    tail_cache_bytes: int = gauge("bytes", "Frames in the tail cache.")
    tail_cache_hits: int = count("frames", "Frames read from the tail cache.")
    tail_cache_misses: int = count("frames", "Frames read from disk.")

    disk_used_fraction: float = gauge("fraction", "Used part of the journal's disk, 0 to 1.")
    disk_state: int = gauge("state", "0 ok, 1 warn, 2 refusing publishes, 3 failed.")
    quarantined_shards: int = gauge("shards", "Damaged shards that refuse work.")
    loop_lag_seconds: float = gauge("seconds", "How late the event loop ran its last check.")
    loop_lag_max_seconds: float = gauge("seconds", "The same, the worst since the start.")
    boots: int = gauge("starts", "How often this data directory was started.")


class Row(NamedTuple):
    """One metric as the table of metrics has it."""

    name: str
    meaning: Meaning


def _row(field: dataclasses.Field[Any]) -> Row:
    meaning: Meaning = field.metadata["meaning"]
    suffix = "_total" if meaning.kind == COUNTER else ""
    return Row(f"{NAMESPACE}_{field.name}{suffix}", meaning)


ROWS = {field.name: _row(field) for field in dataclasses.fields(Stats)}


def metrics_table() -> str:
    """All metrics as a Markdown table: name, type, unit, meaning."""
    lines = ["| metric | type | unit | meaning |", "|---|---|---|---|"]
    for row in ROWS.values():
        kind, unit, text, label = row.meaning
        name = f"{row.name}{{{label}}}" if label else row.name
        lines.append(f"| `{name}` | {kind} | {unit} | {text} |")
    return "\n".join(lines) + "\n"


class _StatsCollector(Collector):
    """Yields a snapshot's metrics, then the process's."""

    def __init__(self, stats: Stats, process: ProcessCollector) -> None:
        self._stats = stats
        self._process = process

    def collect(self) -> Iterator[Metric]:
        for attribute, row in ROWS.items():
            family = CounterMetricFamily if row.meaning.kind == COUNTER else GaugeMetricFamily
            metric = family(row.name, row.meaning.text, labels=[row.meaning.label] if row.meaning.label else [])
            value = getattr(self._stats, attribute)
            for labels, number in sorted(value.items()) if row.meaning.label else (("", value),):
                metric.add_metric([labels] if row.meaning.label else [], number)
            yield metric
        yield from self._process.collect()


class Exposition:
    """Writes snapshots in Prometheus' text format, with CPU, memory and descriptors of the process."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def render(self, stats: Stats) -> bytes:
        """The answer to a scrape, of CONTENT_TYPE."""
        return generate_latest(_StatsCollector(stats, self._process))
