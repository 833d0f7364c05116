"""A pattern is read, and worked off by a group, while nodes are killed and frozen and channels appear."""

import asyncio
import time
from collections import defaultdict

import pytest

from ringpost.client import Client, Message, connect
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system

CHANNELS = 60
WAIT_S = 90.0
FREEZE_S = 5.0


class Flood:
    """Publishes numbers to ever more channels until told to stop; `published` has how many each has acknowledged."""

    def __init__(self, mq: Client) -> None:
        self.published: dict[str, int] = {}
        self.stop = asyncio.Event()
        self._mq = mq

    async def run(self) -> None:
        while not self.stop.is_set():
            if len(self.published) < CHANNELS:
                self.published[f"orders.c{len(self.published)}"] = 0
            await asyncio.gather(*(self._one(channel) for channel in tuple(self.published)))
            await asyncio.sleep(0.02)

    async def _one(self, channel: str) -> None:
        await self._mq.publish(channel, str(self.published[channel]))
        self.published[channel] += 1


class Books:
    """What a reader and the workers of a group have had."""

    def __init__(self, flood: Flood) -> None:
        self.read: dict[str, list[int]] = defaultdict(list)
        self.worked: dict[str, set[int]] = defaultdict(set)
        self._flood = flood

    async def reading(self, mq: Client) -> None:
        async for message in mq.subscription("orders.*", start="earliest"):
            self.read[message.channel].append(int(message.data))

    async def work(self, message: Message) -> None:
        self.worked[message.channel].add(int(message.data))

    async def progress(self) -> None:
        """All that is published now has been read and worked off."""
        goal = dict(self._flood.published)
        end_s = time.monotonic() + WAIT_S
        while missing := self._missing(goal):
            assert time.monotonic() < end_s, missing
            await asyncio.sleep(0.05)

    def _missing(self, goal: dict[str, int]) -> dict[str, tuple[int, int, int]]:
        """By channel: how many are published, read and worked off."""
        counts = {name: (end, len(self.read[name]), len(self.worked[name])) for name, end in goal.items()}
        return {name: (end, *have) for name, (end, *have) in counts.items() if min(have) < end}


async def test_nodes_die_and_freeze_and_every_channel_is_read_whole_and_in_order(own_cluster: LocalCluster) -> None:
    cluster = own_cluster
    addresses = [cluster.address(name) for name in cluster.nodes]
    async with connect(addresses) as publishing, connect(addresses) as reading, connect(addresses) as working:
        flood = Flood(publishing)
        books = Books(flood)
        pools = [await working.subscribe("orders.>", books.work, group="g", max_concurrency=20) for _ in range(2)]
        tasks = [asyncio.ensure_future(flood.run()), asyncio.ensure_future(books.reading(reading))]
        for victim in cluster.nodes:
            await books.progress()
            assert not any(task.done() for task in tasks)
            cluster.kill(victim)
            await asyncio.sleep(1.0)
            await books.progress()
            await asyncio.to_thread(cluster.restart, victim)
            await cluster.whole()
        frozen = await cluster.leader_of("orders.c0")
        cluster.freeze(frozen)
        await asyncio.sleep(FREEZE_S)
        await books.progress()
        cluster.thaw(frozen)
        await cluster.whole()
        flood.stop.set()
        await tasks[0]
        await books.progress()
        for pool in pools:
            await pool.close()
        tasks[1].cancel()
        for channel, end in flood.published.items():
            assert books.read[channel] == list(range(end)), channel
            assert books.worked[channel] == set(range(end)), channel
            group = await publishing.groups.get(channel, "g")
            assert group.settled_below == end, "every ack that was confirmed stays"
    assert len(flood.published) == CHANNELS
    assert cluster.faults() == []
    print(f"{sum(flood.published.values())} messages on {CHANNELS} channels, three nodes killed, one frozen")
