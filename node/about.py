"""What a node says of itself: the API's NodeInfo and the metrics' Stats, from the same parts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from ringpost.cluster.view import View
from ringpost.node.cluster_stats import box_counts, lag_stats
from ringpost.node.config import Config
from ringpost.node.delivery.hub import Hub
from ringpost.node.journal.disk import DiskState
from ringpost.node.maintenance import Maintenance
from ringpost.node.metrics import Stats
from ringpost.node.services.publisher import Publisher
from ringpost.node.shard.lag import served_groups
from ringpost.node.storage import Storage, now_us
from ringpost.node.watch import LagGauge
from ringpost.v1.cluster_pb2 import NodeInfo, NodeLimits, NodeState

ALONE = "QUORUM means fsynced on this node: it is the only one, and losing its disk loses the messages"

_DISK_WORDS = {
    DiskState.OK: "ok",
    DiskState.WARN: "warn",
    DiskState.REFUSE: "refusing publishes",
    DiskState.FAIL: "failed",
}


def package_version() -> str:
    """Version of the installed package."""
    try:
        return version("ringpost")
    except PackageNotFoundError:
        return "0.0.0"


@dataclass
class About:
    """The parts that are asked."""

    config: Config
    storage: Storage
    publisher: Publisher
    hub: Hub
    maintenance: Maintenance
    lag: LagGauge
    address: str
    view: Callable[[], View | None] = lambda: None  # of a cluster
    cluster_stats: Callable[[], Mapping[str, Any]] = dict  # the fields of Stats about it
    state: NodeState.ValueType = NodeState.NODE_STATE_STARTING
    started_time_us: int = field(default_factory=now_us)
    _process: psutil.Process = field(default_factory=psutil.Process)

    @property
    def durability(self) -> str:
        """What QUORUM means here, in one sentence."""
        view = self.view()
        if view is None:
            return ALONE
        if view.min_isr == 1:
            return "QUORUM means fsynced on every in-sync copy, which may be one: losing its disk loses the messages"
        return (
            f"QUORUM means fsynced on every in-sync copy, {view.min_isr} at least of {view.replication_factor}: "
            "any one of them may be lost"
        )

    def node_info(self) -> NodeInfo:
        """For the API."""
        store, config = self.storage.store, self.config
        return NodeInfo(
            node=config.node,
            cluster_id=self.storage.identity.cluster_id,
            version=package_version(),
            state=self.state,
            boot=self.storage.identity.boot,
            started_time_us=self.started_time_us,
            address=self.address,
            durability=self.durability,
            channel_count=len(store),
            group_count=store.group_count,
            subscription_count=self.hub.subscriptions,
            journal_bytes=self.storage.journal.size_bytes,
            resident_bytes=self._process.memory_info().rss,
            cpu_seconds=time.process_time(),
            published_messages=self.publisher.counters.messages,
            delivered_messages=self.hub.counters.messages,
            limits=NodeLimits(
                max_message_bytes=config.max_message_bytes,
                max_batch_bytes=config.max_batch_bytes,
                max_batch_messages=config.max_batch_messages,
                auto_create_channels=config.auto_create_channels,
            ),
            quarantined_shards=[shard.number for shard in store.shards if shard.quarantined],
            disk=_DISK_WORDS[store.disk_state],
            lost_messages=store.lost_messages,
        )

    def stats(self) -> Stats:
        """For the metrics."""
        storage, store = self.storage, self.storage.store
        published, delivered, journal = self.publisher.counters, self.hub.counters, self.storage.journal
        segments = journal.segments()
        cache, schedules = store.log.cache, store.log.schedules
        return Stats(
            published_messages=published.messages,
            published_bytes=published.bytes,
            published_batches=published.batches,
            published_duplicates=published.duplicates,
            access_denials=dict(self.publisher.access.denied),
            publish_refusals=dict(published.refused),
            delivered_messages=delivered.messages,
            delivered_bytes=delivered.bytes,
            settled_messages=dict(delivered.settled),
            redelivered_messages=delivered.redeliveries,
            filtered_messages=dict(storage.reading.sieve.filtered),
            expired_messages=delivered.expired,
            streams={"publish": len(self.publisher.sessions), "subscribe": len(self.hub.sessions)},
            subscriptions=self.hub.subscriptions,
            channels=len(store),
            groups=store.group_count,
            message_ids=store.message_ids,
            subscriber_queue_bytes=sum(session.queued_bytes for session in self.hub.sessions),
            journal_fsyncs=journal.counters.fsyncs,
            journal_fsync_seconds=journal.counters.fsync_seconds,
            journal_written_bytes=journal.counters.bytes_written,
            journal_bytes=sum(segment.size_bytes for segment in segments),
            journal_segments=len(segments),
            journal_lag_bytes=journal.pending_bytes,
            checkpoints=self.maintenance.checkpoints_written,
            tail_cache_bytes=cache.bytes,
            tail_cache_hits=cache.hits,
            tail_cache_misses=cache.misses,
            disk_used_fraction=self.maintenance.disk_used,
            disk_state=int(store.disk_state),
            quarantined_shards=sum(1 for shard in store.shards if shard.quarantined),
            loop_lag_seconds=self.lag.lag_s,
            loop_lag_max_seconds=self.lag.lag_max_s,
            boots=storage.identity.boot,
            dead_lettered_messages=store.log.burials.letters,
            released_messages=schedules.released,
            released_batches=schedules.releases,
            release_lateness_seconds=schedules.late_us / 1e6,
            release_lateness_max_seconds=schedules.late_us_max / 1e6,
            scheduled_batches=schedules.entries,
            dead_letters=box_counts(store.boxes()),
            **lag_stats(served_groups(store), storage.reading, store.log.clock()),
            **self.cluster_stats(),
        )
