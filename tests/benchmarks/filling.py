"""Fills a data directory with channels through the node's own storage, without gRPC: several times as quick."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from crc32c import crc32c

from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.view import NodeRef
from ringpost.node.config import Config
from ringpost.node.health import Health
from ringpost.node.journal.files import RealFiles
from ringpost.node.maintenance import Maintenance
from ringpost.node.shard.shard import Publish
from ringpost.node.storage import Opener, Storage
from ringpost.v1.common_pb2 import Durability

A_TURN = 2_000  # channels between two waits for the disk


def _ignore(_: object) -> None:
    """What the disk did is known by the wait for all."""


async def _all_durable(storage: Storage) -> None:
    done = asyncio.Event()
    storage.store.log.commits.after_all(lambda _: done.set())
    await done.wait()


async def fill(
    data_dir: Path, node: str, names: Callable[[int], str], count: int, batch: bytes, producer: int, rest_s: float
) -> float:
    """One batch of one message to each channel, then a checkpoint; the seconds of CPU. `rest_s`: pause of each turn."""
    config = Config(data_dir=data_dir, node=node, tail_cache_bytes=1 << 20)
    opener = Opener(config, RealFiles(), durable=lambda: None, failed=_ignore, damaged=_ignore)
    storage = await opener.open()
    with contextlib.closing(storage):
        who = storage.identity
        coordination = EmbeddedCoordination(
            cluster_id=who.cluster_id, replica_id=who.replica_id, shard_count=who.shard_count, boot=who.boot
        )
        storage.store.lead(await coordination.start(NodeRef(node, "127.0.0.1:1")), node)
        publish = Publish(batch, 1, crc32c(batch), Durability.DURABILITY_LEADER, producer, 1)
        begin = time.process_time()
        for number in range(count):
            channel = storage.store.find_or_add(names(number))
            channel.shard.publish(channel, publish, _ignore)
            if number % A_TURN == A_TURN - 1:
                await _all_durable(storage)
                await asyncio.sleep(rest_s)
        await _all_durable(storage)
        await Maintenance(storage, config, Health()).checkpoint()
        return time.process_time() - begin
