"""Brokers in containers for users' tests: one node, and a cluster whose nodes are killed, frozen and cut off."""

import asyncio

import pytest

from ringpost.client import Options, connect
from ringpost.client.testing.broker import BrokerFailed

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("images"), pytest.mark.timeout(300)]
ANY = Options(routing="any")


async def test_a_node_serves_keeps_its_messages_and_drains() -> None:
    from ringpost.client.testing.containers import RingpostContainer

    with RingpostContainer(settings={"RINGPOST_MAX_MESSAGE_BYTES": "64KiB"}) as broker:
        async with connect(broker.address) as mq:
            await mq.publish("orders", "a")
            assert (await mq.node.info()).limits.max_message_bytes == 64 << 10
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.restart)
        async with connect(broker.address) as mq:
            assert (await mq.channels.get("orders")).end_offset == 1
        await asyncio.to_thread(broker.restart)
        assert "node.stopped" in broker.log, "it had its time to stop"


async def test_a_node_that_does_not_serve_says_why() -> None:
    from ringpost.client.testing.containers import RingpostContainer

    with pytest.raises(BrokerFailed, match="RINGPOST_NONSENSE is not a setting"):
        await asyncio.to_thread(RingpostContainer(settings={"RINGPOST_NONSENSE": "1"}).start)


async def test_a_node_that_ends_between_two_questions_says_why_too() -> None:
    from ringpost.client.testing.containers import RingpostContainer

    class EndsMeanwhile(RingpostContainer):
        asked = False

        def _status(self) -> str:
            if self.asked:
                return super()._status()
            self.asked = True
            self.get_wrapped_container().wait()
            return "running"

    with pytest.raises(BrokerFailed, match="RINGPOST_NONSENSE is not a setting"):
        await asyncio.to_thread(EndsMeanwhile(settings={"RINGPOST_NONSENSE": "1"}).start)


async def test_a_cluster_goes_on_without_the_container_that_is_killed_frozen_or_cut_off() -> None:
    from ringpost.client.testing.containers import RingpostCluster

    with RingpostCluster(3) as cluster:
        first, second, third = cluster.nodes
        async with connect(first.address, options=ANY) as mq:
            await _whole(mq)
            for victim, harm, heal in (
                (second, second.kill, second.restart),
                (third, third.pause, third.unpause),
                (second, lambda: cluster.cut(second), lambda: cluster.join(second)),
            ):
                await asyncio.to_thread(harm)
                for n in range(12):
                    receipt = await mq.publish(f"c{n}", victim.node)
                    assert receipt.owner != victim.node
                await asyncio.to_thread(heal)
                await _whole(mq)
            ends = [(await mq.channels.get(f"c{n}")).end_offset for n in range(12)]
            assert ends == [3] * 12
        assert len(set(cluster.addresses)) == 3


async def _whole(mq) -> None:
    async with asyncio.timeout(60):
        while True:
            status = await mq.cluster.status()
            if status.shard_count and not (status.offline_shards or status.under_replicated_shards):
                return
            await asyncio.sleep(0.2)
