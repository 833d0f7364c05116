"""The broker as a child process, and the pytest plugin around it, with the real node and the real client."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringpost.client import Client, NotFound, connect
from ringpost.client.testing.broker import BrokerFailed, BrokerProcess


async def test_the_first_five_minutes(ringpost_broker: BrokerProcess) -> None:
    async with connect(ringpost_broker.address) as mq:
        seen = asyncio.Queue[bytes]()
        await mq.subscribe("channel1", lambda message: seen.put_nowait(message.data), start="earliest")
        receipt = await mq.publish("channel1", "hello world", key="42")
        assert (receipt.offset, receipt.durability, receipt.replicas) == (0, "quorum", ("test-1",))
        assert await asyncio.wait_for(seen.get(), 10) == b"hello world"

        async for message in mq.subscription("channel1", group="billing"):
            assert (message.data, message.key, message.attempt) == (b"hello world", b"42", 1)
            await message.ack()
            break
        assert (await mq.groups.get("channel1", "billing")).settled_below == 1


async def test_a_crash_loses_doubles_and_reorders_nothing(ringpost_broker: BrokerProcess) -> None:
    wanted = [b"%d" % n for n in range(20_000)]
    async with connect(ringpost_broker.address) as mq:
        publishing = asyncio.create_task(_publish(mq, wanted))
        for _ in range(2):
            await asyncio.sleep(0.1)
            ringpost_broker.kill()
            await asyncio.to_thread(ringpost_broker.start)
        await asyncio.wait_for(publishing, 60)
        found: list[bytes] = []
        async with mq.subscription("orders", start="earliest") as subscription:
            async for batch in subscription.batches():
                assert batch.first_offset == len(found)
                found += batch.payloads()
                if len(found) >= len(wanted):
                    break
    assert found == wanted


async def _publish(mq: Client, payloads: list[bytes]) -> None:
    for start in range(0, len(payloads), 200):
        await mq.publish_many("orders", payloads[start : start + 200])
        await asyncio.sleep(0.002)


async def test_a_group_s_work_survives_a_crash(ringpost_broker: BrokerProcess) -> None:
    done: set[int] = set()
    midway = asyncio.Event()

    async def handler(message) -> None:
        done.add(int(message.data))
        if len(done) == 500:
            midway.set()

    async with connect(ringpost_broker.address) as mq:
        await mq.publish_many("work", [str(n) for n in range(2_000)])
        async with await mq.subscribe("work", handler, group="workers", prefetch=100):
            await asyncio.wait_for(midway.wait(), 30)
            ringpost_broker.kill()
            await asyncio.to_thread(ringpost_broker.start)
            await asyncio.wait_for(_settled(mq, 2_000), 30)
    assert done == set(range(2_000))


async def _settled(mq: Client, end: int) -> None:
    """Returns when the group has settled everything: acks that the crash took are given again at the redelivery."""
    while (await mq.groups.get("work", "workers")).settled_below < end:
        await asyncio.sleep(0.02)


def test_stop_and_restart_keep_address_and_data(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", node="mine").start()
    address, first = broker.address, broker.pid
    broker.restart()
    assert (broker.address, broker.running) == (address, True)
    assert broker.pid != first
    broker.stop()
    assert (broker.running, broker.pid) == (False, None)
    assert any(broker.data_dir.iterdir())


def test_temporary_data_are_removed() -> None:
    with BrokerProcess() as broker:
        data_dir = broker.data_dir
        assert data_dir.exists()
        with pytest.raises(BrokerFailed, match="already"):
            broker.start()
    assert not data_dir.exists()


def test_a_failed_start_leaves_no_temporary_data() -> None:
    broker = BrokerProcess(arguments=("--no-such-flag",))
    with pytest.raises(BrokerFailed), broker:
        raise AssertionError("the node started")
    assert not broker.data_dir.exists()


def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", arguments=("--no-such-flag",))
    with pytest.raises(BrokerFailed, match="no-such-flag"):
        broker.start()
    assert not broker.running


async def test_the_factory_makes_brokers_that_share_nothing(
    ringpost_broker_factory: Callable[..., BrokerProcess],
) -> None:
    brokers = [ringpost_broker_factory(node=f"n{n}") for n in range(2)]
    async with connect(brokers[0].address) as one, connect(brokers[1].address) as other:
        await one.publish("orders", "a")
        with pytest.raises(NotFound):
            await other.channels.get("orders")
    for broker in brokers:
        broker.stop()


def test_importing_the_plugin_does_not_import_grpc() -> None:
    code = "import sys, ringpost.client.testing.plugin; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
