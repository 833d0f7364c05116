"""Order per key in a group whose leader is killed twice, with consumers on all nodes that join, leave and crash."""

import asyncio
import contextlib
import random
import time
from typing import Any

import grpc
import pytest

from ringpost.v1.common_pb2 import GroupMode
from tests.integration.broker import Client
from tests.integration.key_load import CHANNEL, Account, Publisher, Upheaval, make_group
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system
KEYS, MESSAGES, SEED = 100, 200, 20_261
TOTAL = KEYS * MESSAGES


async def keep_publishing(cluster: LocalCluster, publisher: Publisher, count: int) -> None:
    """So many messages, in small steps, through whichever node is up."""
    end, chance = publisher.at + count, random.Random(SEED)
    while publisher.at < end:
        async with Client(cluster.address(chance.choice(cluster.up))) as client:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await publisher.publish(client, min(1_000, end - publisher.at))


async def test_no_key_is_out_of_order_while_leaders_die(own_cluster: LocalCluster, record_property: Any) -> None:
    cluster, chance = own_cluster, random.Random(SEED)
    account, publisher = Account(KEYS, MESSAGES), Publisher(KEYS, MESSAGES, SEED, batch=200)
    await keep_publishing(cluster, publisher, TOTAL // 2)
    async with Client(cluster.address("n1")) as client:
        await make_group(client)
    begun = time.monotonic()
    publishing = asyncio.ensure_future(keep_publishing(cluster, publisher, TOTAL - TOTAL // 2))
    upheaval = Upheaval(lambda: cluster.address(chance.choice(cluster.up)), account, publisher)
    kills, killed = [TOTAL // 4, TOTAL // 2], []
    while not account.done:
        assert not account.problems
        assert time.monotonic() < begun + 150, f"{len(account.acked)} acked"
        await upheaval.step()
        await asyncio.sleep(0.15)
        if kills and len(account.acked) > kills[0]:
            kills.pop(0)
            killed.append(await cluster.leader_of(CHANNEL))
            await asyncio.to_thread(cluster.kill, killed[-1])
            await cluster.serving()
            await asyncio.to_thread(cluster.restart, killed[-1])
    await publishing
    async with Client(cluster.address("n1")) as client:
        info = await upheaval.settled(client)
    await upheaval.all_cut()
    assert info.settled_below == info.end_offset == TOTAL
    assert info.config.mode == GroupMode.GROUP_MODE_KEY_ORDERED
    assert account.problems == []
    assert len(killed) == 2
    assert cluster.faults() == []
    record_property("upheaval", f"{upheaval.counts}, killed {killed}")
    print(f"{time.monotonic() - begun:.1f} s, {account.deliveries} deliveries, {upheaval.counts}, killed {killed}")
