"""Filters on a real node: through kills and restarts, and over a backlog that holds nobody up."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ringpost.client import Client as Messages
from ringpost.client import InvalidRequest, OutMessage, Precondition, connect
from tests.integration.broker import Node, until

REGIONS = ("eu", "us", "us", "asia")
WANTED = 'headers.region == "eu" || key.startsWith("vip-")'


def orders(first: int, end: int) -> list[OutMessage]:
    """Every fourth is from the EU, every tenth is of a VIP, some are both."""
    return [
        OutMessage(str(n), key=f"vip-{n % 7}" if n % 10 == 0 else f"c-{n % 7}", headers={"region": REGIONS[n % 4]})
        for n in range(first, end)
    ]


def is_wanted(n: int) -> bool:
    return n % 4 == 0 or n % 10 == 0


async def take(mq: Messages, count: int, **how: Any) -> list[int]:
    """Reads so many, and acks them in a group."""
    found: list[int] = []
    async with asyncio.timeout(60), mq.subscription("orders", filter=WANTED, **how) as subscription:
        async for message in subscription:
            found.append(int(message.text()))
            if how.get("group"):
                await message.ack()
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("mode", ["shared", "key_ordered"])
async def test_a_group_with_a_filter_goes_on_after_the_node_was_killed(tmp_path: Path, mode: str) -> None:
    wanted = [n for n in range(400) if is_wanted(n)]
    with Node(tmp_path / "n") as node:
        async with connect(node.address) as mq:
            await mq.publish_many("orders", orders(0, 200))
            assert await take(mq, 10, start="earliest") == wanted[:10]
            half = len([n for n in wanted if n < 200])
            found = await take(mq, half - 5, group="g", mode=mode)
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        async with connect(node.address) as mq:
            await mq.publish_many("orders", orders(200, 400))
            found += await take(mq, len(wanted) - half + 5, group="g", mode=mode)
            assert sorted(found) == wanted
            if mode != "shared":
                assert [n for n in found if n % 10 == 0 and n % 7 == 0] == list(range(0, 400, 70))

            async def all_settled() -> bool:
                info = await mq.groups.get("orders", "g")
                return (info.pending, info.filtered, info.settled_below) == (0, 400 - len(wanted), 400)

            await until(all_settled, "what is filtered out counts as acked")
            with pytest.raises(Precondition, match="has filter"):
                async with mq.subscription("orders", group="g", filter="true") as other:
                    await other.opened()
            with pytest.raises(InvalidRequest, match="line 1, column 16: '=' has no meaning here"):
                await mq.groups.set("orders", "g", filter="headers.region =")
        assert node.faults() == []


@pytest.mark.long
async def test_a_filter_that_lets_nothing_through_holds_nobody_up(tmp_path: Path, record_property: Any) -> None:
    """While a backlog of 300,000 messages is looked at, for a subscription and a group, others publish as ever."""
    count = 300_000
    with Node(tmp_path / "n") as node:
        async with connect(node.address) as mq:
            entry = OutMessage(b"x" * 100, key="k", headers={"region": "us"})
            await mq.publish_many("orders", [entry] * count)
            await mq.groups.add("orders", "g", filter='headers.region == "eu"')
            searching = [
                mq.subscription("orders", filter='headers.region == "eu"', start="earliest"),
                mq.subscription("orders", group="g"),
            ]
            for one in searching:
                await one.opened()
            begun, latencies = time.monotonic(), []

            async def passed() -> bool:
                before = time.monotonic()
                await mq.publish("other", "one")
                latencies.append(time.monotonic() - before)
                metrics = await asyncio.to_thread(node.metrics)
                by = [metrics.get(f"ringpost_filtered_messages_total{{{by}}}", 0) for by in ("subscription", "group")]
                return by == [count, count]

            await until(passed, "all is looked at", 60)
            record_property("seconds", time.monotonic() - begun)
            record_property("publish_s_max", max(latencies))
            assert len(latencies) > 1
            assert (await mq.groups.get("orders", "g")).pending == 0
            for one in searching:
                await one.close()
        assert node.faults() == []
