"""Patterns while shards move, streams between nodes break and credit comes in small bits, by seeds."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.node.routing.cluster import Nodes, running
from tests.node.routing.pattern_reader import EARLIEST, PatternReader, fill
from tests.node.routing.test_patterns import CHANNELS

STEPS = 60


class Storm:
    """What happens, and how far each channel has come."""

    def __init__(self, nodes: Nodes, chance: random.Random, readers: list[PatternReader]) -> None:
        self.ends = dict.fromkeys(CHANNELS, 0)
        self._nodes = nodes
        self._chance = chance
        self._readers = readers
        self._granted = 0

    async def step(self) -> None:
        chance, names = self._chance, sorted(self._nodes.servers)
        channel, count = chance.choice(CHANNELS), chance.randint(1, 30)
        end = self.ends[channel]
        client = self._nodes.clients[chance.choice(names)]
        await fill(client, channel, end, end + count, step=chance.choice([1, 10, 100]))
        self.ends[channel] += count
        self._granted += chance.randint(0, 40)
        for reader in self._readers:
            await reader.grant(self._granted)
        if chance.random() < 0.5:
            await self._nodes.hand_over(chance.randrange(self._nodes.world.shard_count), chance.choice(names))
        if chance.random() < 0.15:
            self._break_streams_between_nodes()

    def _break_streams_between_nodes(self) -> None:
        for server in self._nodes.servers.values():
            for session in tuple(server.hub.sessions):
                if session.forwarded:
                    session.end_unavailable("a storm")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
async def test_every_channel_comes_whole_and_once(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr("ringpost.node.delivery.fan.LOAN_S", chance.choice([0.05, 3.0]))
    async with running(tmp_path) as nodes:
        for channel in CHANNELS:
            await fill(nodes.clients["n1"], channel, 0, 0)
        readers = [PatternReader(nodes.clients[name], "orders.*", start=EARLIEST, credit=0) for name in ("n1", "n2")]
        worker = PatternReader(nodes.clients["n3"], "orders.*", group="g", credit=0)
        storm = Storm(nodes, chance, [*readers, worker])
        for reader in (*readers, worker):
            await reader.open()
        for _ in range(STEPS):
            await storm.step()
        everything = {channel: list(range(end)) for channel, end in storm.ends.items() if end}
        for reader in (*readers, worker):
            await reader.grant(1_000_000)
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.until(lambda it: len(it.order) >= sum(storm.ends.values())))
            group.create_task(
                worker.until(lambda it: {name: sorted(set(texts)) for name, texts in it.got.items()} == everything)
            )
        for reader in readers:
            assert reader.got == everything
            assert (reader.gone, reader.gaps, reader.closed) == ([], [], None)
