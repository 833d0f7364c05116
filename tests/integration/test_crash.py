"""A node is killed thirty times under load; whatever it had promised is kept."""

import asyncio
import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from ringpost.v1.channel_pb2 import GetChannelRequest
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.group_pb2 import GetGroupRequest
from tests.integration.broker import Client, Node, until
from tests.integration.crash_load import Account, Admin, Member, Producer, World

KILLS = 32
SEED = 20_261
PROMISES_MAX = 500  # in one life of the node, before it is killed
# Small numbers, so that segments roll, checkpoints and reclaiming happen in each life of the node.
FLAGS = (
    *("--segment-bytes", "2MiB", "--max-batch-bytes", "1MiB", "--checkpoint-bytes", "1MiB"),
    *("--checkpoint-interval-s", "1", "--reclaim-interval-s", "1", "--reserve-bytes", "1MiB"),
)
LEADER, QUORUM = Durability.DURABILITY_LEADER, Durability.DURABILITY_QUORUM


async def check_kept(world: World, client: Client, producers: Iterable[Producer], since: dict[int, int]) -> None:
    """Every batch answered from index `since` (by producer) on is at its offset with its bytes."""
    for producer in producers:
        batches = producer.answered[since.get(producer.id, 0) :]
        promised = {offset + n: (sent.first + n, one) for offset, sent in batches for n, one in enumerate(sent.data)}
        if not promised:
            continue
        info = (await client.channels.GetChannel(GetChannelRequest(name=producer.channel))).channel
        found = {
            stored.offset: (stored.sequence, stored.message.data)
            async for stored in client.read(producer.channel, min(promised), min(max(promised) + 1, info.end_offset))
            if stored.producer_id == producer.id
        }
        for offset, what in promised.items():
            world.check(found.get(offset) == what, f"offset {offset} of {producer.channel}: lost or changed")


async def check_whole(world: World, client: Client, producers: list[Producer], accounts: list[Account]) -> int:
    """Each channel from end to end: no gap, no message twice, nobody's messages out of order, acks as told."""
    total = 0
    seen = {account.channel: account for account in accounts}
    for info in await client.all_channels():
        names = {producer.id: producer for producer in producers if producer.channel == info.name}
        next_sequence = dict.fromkeys(names, 0)
        expected = 0
        async for stored in client.read(info.name, info.first_offset, info.end_offset) if names else _nothing():
            where = f"offset {stored.offset} of {info.name}"
            world.check(stored.offset == expected, f"{where}: expected {expected}")
            world.check(stored.sequence == next_sequence[stored.producer_id], f"{where}: a message twice or missing")
            next_sequence[stored.producer_id] += 1
            if info.name in seen:
                same = seen[info.name].seen.get(stored.offset) == stored.message.data
                world.check(same, f"{where}: the group was not sent this message")
            expected += 1
        total += expected
        for number, producer in names.items():
            _, last = producer.answered[-1]
            sent = last.first + len(last.data)
            world.check(sent == next_sequence[number], f"producer {number}: {sent} sent, {next_sequence[number]} there")
    return total


async def _nothing():
    return
    yield


class Killer:
    """Kills the node at its moments and brings it back."""

    def __init__(self, world: World, node: Node, seed: int) -> None:
        self.kills = self.kills_in_recovery = 0
        self._world = world
        self._node = node
        self._random = random.Random(seed)

    async def life(self) -> None:
        """One life of the node that is running: it serves, gives promises, and is killed while it gives them."""
        dead = asyncio.Event()

        def kill() -> None:
            self._node.kill()
            dead.set()

        self._world.kill_after(self._random.randrange(1, PROMISES_MAX), kill)
        self._world.serve(self._node.address)
        async with asyncio.timeout(60):
            await dead.wait()
        self.kills += 1
        if self._random.random() < 0.2:
            await self._die_in_recovery()
        await asyncio.to_thread(self._node.start)

    async def _die_in_recovery(self) -> None:
        self._node.spawn()
        await asyncio.sleep(self._random.uniform(0.2, 0.8))
        self._node.kill()
        self.kills_in_recovery += 1


def make_load(world: World) -> tuple[list[Producer], list[Account], Admin]:
    """Two producers share a channel with a group, one has a channel with a group for itself, one has no group."""
    rows = ((101, "shared", QUORUM), (102, "shared", LEADER), (103, "own", QUORUM), (104, "plain", LEADER))
    producers = [Producer(world, *row) for row in rows]
    return producers, [Account(world, channel) for channel in ("shared", "own")], Admin(world)


@pytest.mark.long
async def test_every_promise_survives_thirty_kills(tmp_path: Path) -> None:
    started = time.monotonic()
    world = World()
    producers, accounts, admin = make_load(world)
    with Node(tmp_path / "n", *FLAGS) as node:
        killer = Killer(world, node, SEED)
        working = [asyncio.ensure_future(worker.run()) for worker in (*producers, admin)]
        consuming = [asyncio.ensure_future(Member(world, account).run()) for account in accounts for _ in range(2)]
        since: dict[int, int] = {}
        while killer.kills < KILLS:
            before = {producer.id: len(producer.answered) for producer in producers}
            await killer.life()
            async with Client(node.address) as client:
                await check_kept(world, client, producers, since)
                await admin.check(client)
            since = before
            assert world.problems == [], f"after kill {killer.kills}, seed {SEED}"

        world.stopping = True
        world.serve(node.address)
        await asyncio.gather(*working)
        async with Client(node.address) as client:
            for account in accounts:
                request = GetGroupRequest(channel=account.channel, name="g")
                await until(lambda r=request: _all_settled(client, r), f"{account.channel} to be consumed", 60)
            for task in consuming:
                task.cancel()
            messages = await check_whole(world, client, producers, accounts)
            await check_kept(world, client, producers, {})
        assert world.problems == []
        assert node.faults() == []

    print(
        f"\n{killer.kills} kills and {killer.kills_in_recovery} in recovery: {messages} messages, {world.promises} "
        f"answers, {sum(p.resent for p in producers)} batches sent again, {sum(len(a.confirmed) for a in accounts)} "
        f"acks, {admin.operations} changes of channels; {time.monotonic() - started:.0f} s; nothing lost or doubled"
    )


async def _all_settled(client: Client, request: GetGroupRequest) -> bool:
    group = (await client.groups.GetGroup(request)).group
    return group.pending == 0 and group.end_offset > 0
