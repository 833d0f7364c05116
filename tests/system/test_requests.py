"""The owner is killed while requests are asked and messages with ids are published: each answered, each stored once."""

import asyncio
import random

import pytest

from ringpost.client import Client, Message, OutMessage, connect
from ringpost.v1.channel_pb2 import ChannelConfig
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system

ASKERS, PUBLISHERS = 8, 3
BATCH, IDS = 20, 2_000
TIMEOUT_S = 60.0


class Work:
    """What goes on until `stop`."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.answered = 0
        self.published = 0
        self.ids: set[str] = set()

    async def ask(self, mq: Client, who: int) -> None:
        number = 0
        while not self.stop.is_set():
            answer = await mq.request("prices", f"{who}:{number}", timeout=TIMEOUT_S)
            assert answer.text() == f"price of {who}:{number}"
            number += 1
            self.answered += 1

    async def publish(self, mq: Client, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stop.is_set():
            ids = [f"id-{chance.randrange(IDS)}" for _ in range(BATCH)]
            await mq.publish_many("ids", [OutMessage("x", message_id=one) for one in ids])
            self.published += BATCH
            self.ids.update(ids)
            await asyncio.sleep(0.05)

    async def progress(self) -> None:
        """A hundred answers and ten batches more."""
        answered, published = self.answered + 100, self.published + 10 * BATCH
        async with asyncio.timeout(TIMEOUT_S):
            while self.answered < answered or self.published < published:
                await asyncio.sleep(0.02)


async def price(message: Message) -> str:
    return f"price of {message.text()}"


async def ids_in(mq: Client, channel: str) -> list[str]:
    found: list[str] = []
    end = (await mq.channels.get(channel)).end_offset
    while len(found) < end:
        found += [stored.message.message_id for stored in await mq.messages.get(channel, len(found), 1_000)]
    return found


async def test_owners_are_killed_and_nothing_is_asked_or_stored_twice(own_cluster: LocalCluster) -> None:
    cluster, work = own_cluster, Work()
    addresses = [cluster.address(name) for name in cluster.nodes]
    async with connect(addresses) as asking, connect(addresses) as one, connect(addresses) as other:
        await one.channels.add("ids", ChannelConfig(dedup_window_ms=3_600_000))
        for mq in (one, other):
            await mq.respond("prices", price)
        async with asyncio.TaskGroup() as group:
            for who in range(ASKERS):
                group.create_task(work.ask(asking, who))
            for seed, mq in enumerate((one, other, one)[:PUBLISHERS]):
                group.create_task(work.publish(mq, seed))
            await work.progress()
            for channel in ("prices", "ids"):
                victim = await cluster.leader_of(channel)
                cluster.kill(victim)
                await work.progress()
                await asyncio.to_thread(cluster.restart, victim)
                await cluster.whole()
            work.stop.set()
        stored = await ids_in(one, "ids")
        assert sorted(stored) == sorted(work.ids)
    async with connect(addresses) as mq:
        assert [info.name async for info in mq.channels.list("_inbox.")] == []
