"""Whoever knows one address, and nothing of what owns what, publishes, reads and settles through a failover."""

import asyncio

import pytest

from tests.integration.broker import Client
from tests.system.local import LocalCluster
from tests.system.plain import PlainClient

pytestmark = pytest.mark.system


async def until(plain: PlainClient, more: int, seconds: float = 30.0) -> None:
    """Until so many messages more are acknowledged, and all that were are read and settled."""
    wanted = len(plain.acknowledged) + more
    async with asyncio.timeout(seconds):
        while len(plain.acknowledged) < wanted:
            await asyncio.sleep(0.02)
        wanted = len(plain.acknowledged)
        while len(plain.read) < wanted or len(plain.confirmed | plain.perhaps) < wanted:
            await asyncio.sleep(0.02)


async def test_a_node_that_owns_nothing_of_it_serves_through_a_failover(cluster: LocalCluster) -> None:
    (channel,) = await cluster.channels_on_all_nodes("one-address", 1, "n1")
    first = await cluster.leader_of(channel)
    entry = next(name for name in cluster.nodes if name != first)
    stop = asyncio.Event()
    async with Client(cluster.address(entry)) as client:
        plain = PlainClient(client, channel)
        publishing = asyncio.create_task(plain.publish(0xABCDEF, stop))
        rest = [asyncio.create_task(plain.subscribe(settle=settle)) for settle in (False, True)]
        await until(plain, 200)
        assert plain.owners == {first}
        cluster.kill(first)
        await until(plain, 200)
        second = await cluster.leader_of(channel)
        assert second != first
        # The entry node may lead it by now: through it and away from it again.
        await asyncio.to_thread(cluster.restart, first)
        await cluster.whole()
        await until(plain, 200)
        stop.set()
        await publishing
        await until(plain, 0)
        for task in rest:
            assert not task.done(), task.exception()
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
    assert second in plain.owners
    assert len(plain.confirmed) > 0.9 * len(plain.read), "hardly any ack was left without an answer"
    plain.check()
