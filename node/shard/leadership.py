"""Taking a shard up and laying it down: what changes beside its log when this node begins or ends to serve it."""

from ringpost.node.errors import Unavailable
from ringpost.node.shard.cluster_replay import adopt, clear_shard, load_shard
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.scheduling import arm_all
from ringpost.node.shard.shard import NOT_LEADER_RETRY_MS, Shard
from ringpost.node.shard.snapshot import snapshot_shard
from ringpost.node.shard.store import Store


def start_serving(store: Store, shard: Shard) -> None:
    """This node leads the shard, and everything before its epoch is committed."""
    replicated = shard.replicated
    assert replicated is not None
    replicated.serving = True
    store.include_shard(shard)
    now = shard.log.clock()
    for channel in shard.grouped.values():
        for group in (channel.groups or {}).values():
            group.arm(now)
    arm_all(shard)


def pause_serving(shard: Shard) -> None:
    """Nothing is taken for a while; what is there stays as it is."""
    assert shard.replicated is not None
    shard.replicated.serving = False


def stop_leading(store: Store, shard: Shard, leader: str) -> None:
    """Another node leads, or nobody does: goes back to what is committed, and waits for what the new leader says.

    Whoever waits for a frame is told that its outcome is open. `leader`: its id. Subscriptions are for the hub to move.
    """
    replicated = shard.replicated
    assert replicated is not None
    error = Unavailable(
        f"shard {shard.number} moved to {f'node {leader!r}' if leader else 'another node'}; the outcome is open",
        reason="LEADER_CHANGED",
        metadata={"shard": str(shard.number), "leader": leader},
        retry_after_ms=NOT_LEADER_RETRY_MS,
    )
    # Batches that go on to the new leader must be told in their order, before later ones are sent its way.
    replicated.fail_tail(error)
    replicated.serving = False
    store.exclude_shard(shard)
    for channel in shard.grouped.values():
        for group in (channel.groups or {}).values():
            group.retire(error)
    _back_to_committed(shard, replicated)


def _back_to_committed(shard: Shard, replicated: ReplicatedLog) -> None:
    """A snapshot knows what is committed only, so making the state from one forgets all that is not."""
    snapshot = snapshot_shard(shard)
    last_time_us, position, last_crc = shard.last_time_us, shard.position, shard.last_crc
    fresh = Shard(shard.number, shard.log, node=shard.node, clustered=True)
    load_shard(fresh, snapshot, replicated.replica_id)
    quarantined = shard.quarantined
    clear_shard(shard)
    adopt(shard, fresh)
    shard.quarantined = quarantined
    shard.replicated = replicated
    # The log itself is as it was: only the leader's own view of what is behind the committed mark is gone.
    shard.position, shard.last_crc, shard.last_time_us = position, last_crc, last_time_us
    shard.epoch = shard.started_epoch = replicated.epochs.last
