"""The Python client's subscriptions to patterns, on nodes in this process."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ringpost.client import Client, InvalidRequest, Message, connect
from ringpost.client.subscription import Subscription
from ringpost.v1.subscribe_pb2 import Outcome
from tests.node.routing.cluster import Nodes, running

CHANNELS = [f"orders.c{number}" for number in range(12)]


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


@pytest_asyncio.fixture(loop_scope="session")
async def mq(nodes: Nodes) -> AsyncIterator[Client]:
    async with connect([f"127.0.0.1:{server.port}" for server in nodes.servers.values()]) as mq:
        yield mq


async def publish(mq: Client, first: int, end: int, channels: list[str] = CHANNELS) -> None:
    for number in range(first, end):
        await asyncio.gather(*(mq.publish(channel, str(number)) for channel in channels))


async def take(subscription: Subscription, count: int, got: dict[str, list[int]]) -> None:
    async with asyncio.timeout(30):
        for _ in range(count):
            message = await anext(subscription)
            got.setdefault(message.channel, []).append(int(message.data))


async def test_a_subscription_to_a_pattern_names_each_message_s_channel(mq: Client) -> None:
    await publish(mq, 0, 3)
    got: dict[str, list[int]] = {}
    async with mq.subscription("orders.*", start="earliest") as subscription:
        await take(subscription, 36, got)
        await publish(mq, 0, 2, ["orders.later"])
        await take(subscription, 2, got)
    assert got == {**{channel: [0, 1, 2] for channel in CHANNELS}, "orders.later": [0, 1]}


async def test_broken_streams_lose_nothing_and_double_nothing_also_of_quiet_and_of_new_channels(
    nodes: Nodes, mq: Client
) -> None:
    await publish(mq, 0, 3)
    got: dict[str, list[int]] = {}
    busy, quiet = CHANNELS[:4], CHANNELS[4:]
    async with mq.subscription("orders.>") as subscription:
        for turn in range(1, 4):
            await publish(mq, 2 * turn + 1, 2 * turn + 3, busy)
            await take(subscription, 5, got)
            for server in nodes.servers.values():
                server.hub.end_all()
            await publish(mq, 0, 2, [f"orders.new.{turn}"])
            await take(subscription, 8 + 2 - 5, got)
        await publish(mq, 3, 5, quiet)
        await take(subscription, 16, got)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                raise AssertionError(f"{(await anext(subscription))} has come before")
    assert got == {
        **{channel: list(range(3, 9)) for channel in busy},
        **{channel: [3, 4] for channel in quiet},
        **{f"orders.new.{turn}": [0, 1] for turn in (1, 2, 3)},
    }


async def test_a_group_on_a_pattern_works_everything_off_through_broken_streams(nodes: Nodes, mq: Client) -> None:
    await publish(mq, 0, 20)
    done: Counter[tuple[str, int]] = Counter()
    all_done = asyncio.Event()

    async def work(message: Message) -> None:
        done[message.channel, message.offset] += 1
        await asyncio.sleep(0)
        if len(done) == 20 * len(CHANNELS):
            all_done.set()

    pools = [await mq.subscribe("orders.*", work, group="g", max_concurrency=5) for _ in range(2)]
    for _ in range(2):
        await asyncio.sleep(0.05)
        for server in nodes.servers.values():
            server.hub.end_all()
    async with asyncio.timeout(30):
        await all_done.wait()
    # An ack that a broken stream took with it is made good by another delivery, so the workers stay until all hold.
    async with asyncio.timeout(30):
        for channel in CHANNELS:
            while (await mq.groups.get(channel, "g")).settled_below < 20:
                await asyncio.sleep(0.02)
    for pool in pools:
        await pool.close()


async def test_nacks_and_whole_batches_are_settled_on_their_channel(mq: Client) -> None:
    await publish(mq, 0, 2)
    async with mq.subscription("orders.*", group="g") as subscription:
        attempts: Counter[str] = Counter()
        async with asyncio.timeout(30):
            async for batch in subscription.batches():
                attempts[batch.channel] += batch.count
                if batch.attempt == 1:
                    await batch.nack(0.01)
                else:
                    await batch.ack()
                if sum(attempts.values()) == 4 * len(CHANNELS):
                    break
        assert attempts == dict.fromkeys(CHANNELS, 4)
    assert {(await mq.groups.get(channel, "g")).settled_below for channel in CHANNELS} == {2}


async def test_a_filter_counts_for_every_channel_of_a_pattern(nodes: Nodes, mq: Client) -> None:
    await publish(mq, 0, 6)
    got: dict[str, list[int]] = {}
    async with mq.subscription("orders.*", start="earliest", filter='headers.take == "yes"') as subscription:
        for channel in [*CHANNELS, "orders.later"]:
            await mq.publish(channel, "7", headers={"take": "yes"})
        await take(subscription, len(CHANNELS) + 1, got)
        for server in nodes.servers.values():
            server.hub.end_all()
        await publish(mq, 8, 10)
        await mq.publish("orders.later", "10", headers={"take": "yes"})
        await take(subscription, 1, got)
    assert got == {**{channel: [7] for channel in CHANNELS}, "orders.later": [7, 10]}
    async with mq.subscription("orders.*", group="picky", start="earliest", filter="has(headers.take)") as subscription:
        async with asyncio.timeout(30):
            for _ in range(len(CHANNELS) + 2):
                await (await anext(subscription)).ack()
            for channel in CHANNELS:
                while (group := await mq.groups.get(channel, "picky")).settled_below < 9:
                    await asyncio.sleep(0.01)
                assert group.filtered == 8


async def test_deliveries_of_a_pattern_can_be_settled_by_their_tokens_on_any_node(mq: Client) -> None:
    await publish(mq, 0, 2)
    tokens: dict[str, list[bytes]] = {channel: [] for channel in CHANNELS}
    async with mq.subscription("orders.*", group="g", lease_tokens=True) as subscription:
        async with asyncio.timeout(30):
            for _ in range(2 * len(CHANNELS)):
                message = await anext(subscription)
                tokens[message.channel].append(message.lease_token)
        for channel in CHANNELS:
            settled = await mq.groups.settle(channel, "g", tokens=set(tokens[channel]))
            assert {one.outcome for one in settled} == {Outcome.OUTCOME_DONE}
    assert {(await mq.groups.get(channel, "g")).settled_below for channel in CHANNELS} == {2}


async def test_what_says_nothing_of_a_pattern_is_refused(mq: Client) -> None:
    with pytest.raises(InvalidRequest, match="on_gap"):
        mq.subscription("orders.*", on_gap=lambda *_: None)
    with pytest.raises(InvalidRequest, match=r"open\.pattern"):
        async with mq.subscription("orders.>.x"):
            pass
    with pytest.raises(InvalidRequest, match=r"start\.offset"):
        async with mq.subscription("orders.*", start=7):
            pass
