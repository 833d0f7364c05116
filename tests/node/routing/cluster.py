"""Several real nodes in this process, on loopback, with a coordination that says what a test wants it to say.

One copy of a shard lives on one node. `World.assign` moves leaderships just so, and the new leader has whatever its own
directory holds; `Nodes.hand_over` first brings the new leader what the old one has, as replication would.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ringpost.cluster.coordination import Coordination, Proposal
from ringpost.cluster.keys import shard_of
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, ShardRecord, Tombstone, View
from ringpost.node.config import Config
from ringpost.node.server import Server
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.shard import Publish, Shard
from ringpost.v1.common_pb2 import Durability
from tests.integration.broker import Client

SHARDS = 12


class World:
    """The one truth: nodes and shards. Every change is a new view, shown to all nodes that do not look away."""

    def __init__(self, shard_count: int = SHARDS) -> None:
        self.shard_count = shard_count
        self.revision = 1
        self.sessions = 0
        self.nodes: dict[str, NodeRef] = {}
        self.leaders: dict[int, tuple[str, int] | None] = dict.fromkeys(range(shard_count))  # node and session
        self.epochs = [0] * shard_count
        self.coordinations: dict[str, StubCoordination] = {}

    def view(self) -> View:
        return View(
            revision=self.revision,
            cluster_id="0" * 32,
            shard_count=self.shard_count,
            nodes=dict(self.nodes),
            shards=tuple(self._record(shard) for shard in range(self.shard_count)),
        )

    def _record(self, shard: int) -> ShardRecord:
        led = self.leaders[shard]
        node = led[0] if led else "nobody"
        copy = f"copy-on-{node}"
        leader = Leader(node, copy, led[1]) if led else None
        return ShardRecord(shard, self.epochs[shard], leader, (copy,), (Replica(node, copy),), 1, self.revision)

    def changed(self) -> None:
        self.revision += 1
        for coordination in tuple(self.coordinations.values()):
            coordination.look()

    def assign(self, leaders: Mapping[int, str | None]) -> None:
        """Elects leaders: a new epoch for each of these shards, unless it is to have none."""
        for shard, node in leaders.items():
            self.leaders[shard] = None if node is None else (node, self.nodes[node].session)
            self.epochs[shard] += node is not None
        self.changed()

    def spread(self) -> None:
        """Shard 0 to the first node, shard 1 to the second …"""
        names = sorted(self.nodes)
        self.assign({shard: names[shard % len(names)] for shard in range(self.shard_count)})

    def channel(self, shard: int, number: int = 0) -> str:
        """The name of a channel in a shard; another one for each number."""
        names = (f"c{n}" for n in range(100_000))
        fitting = (name for name in names if shard_of(name, self.shard_count) == shard)
        return next(name for n, name in enumerate(fitting) if n == number)


class StubCoordination(Coordination):
    """One node's view of the world. `blind`: it sees no news for now."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._node = node
        self._view: View | None = None
        self._session = 0
        self._watchers: list[Callable[[View], None]] = []
        self.blind = False

    async def start(self, member: NodeRef) -> View:
        self._world.sessions += 1
        self._session = self._world.sessions
        self._world.nodes[self._node] = replace(member, session=self._session)
        self._world.coordinations[self._node] = self
        self._world.changed()
        return self.view

    def look(self) -> None:
        if not self.blind:
            self._view = self._world.view()
            for watcher in self._watchers:
                watcher(self._view)

    @property
    def name(self) -> str:
        return "stub"

    @property
    def view(self) -> View:
        assert self._view is not None, "started"
        return self._view

    @property
    def session(self) -> int:
        return self._session

    def watch(self, callback: Callable[[View], None]) -> Callable[[], None]:
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    async def refresh(self) -> View:
        return self.view

    async def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> Proposal:
        return Proposal.CONFLICT

    async def report_lost(self, shards: frozenset[int]) -> None:
        """Nobody asks."""

    async def remove_tombs(self, tombs: Sequence[Tombstone]) -> None:
        """Nobody asks."""

    async def report_unreachable(self, nodes: frozenset[str]) -> None:
        """Nobody asks."""

    async def set_desired(self, node: str, desired: Desired) -> None:
        """Nobody asks."""

    async def remove_node(self, node: str) -> None:
        """Nobody asks."""

    async def close(self) -> None:
        self._watchers.clear()
        if self._world.coordinations.get(self._node) is self:
            del self._world.coordinations[self._node]
            self._world.nodes[self._node] = replace(self._world.nodes[self._node], session=0)
            self._world.changed()


class Nodes:
    """The nodes that run, by name, and a client of each."""

    def __init__(self, world: World, directory: Path, settings: Mapping[str, Any]) -> None:
        self.world = world
        self.servers: dict[str, Server] = {}
        self.clients: dict[str, Client] = {}
        self._directory = directory
        self._settings = settings
        self._stack = AsyncExitStack()

    async def start(self, name: str) -> None:
        config = Config(
            **{
                "node": name,
                "data_dir": self._directory / name,
                "listen": "127.0.0.1:0",
                "peer_listen": "127.0.0.1:0",
                "http_listen": "",
                "shard_count": self.world.shard_count,
                "segment_bytes": 16 << 20,
                "reserve_bytes": 4096,
                "drain_grace_ms": 0,
                "stop_grace_ms": 100,
                **self._settings,
            }
        )
        server = Server(config, coordinate=lambda storage: StubCoordination(self.world, name))
        await server.start()
        self.servers[name] = server
        self.clients[name] = await self._stack.enter_async_context(Client(f"127.0.0.1:{server.port}"))

    async def kill(self, name: str) -> None:
        """Its connections break without a word; what it has stored stays. The world learns of it from the test."""
        server = self.servers.pop(name)
        self.world.coordinations.pop(name)
        assert server._peer_grpc is not None
        await server._peer_grpc.stop(0)
        await server.stop()

    async def stop(self) -> None:
        await self._stack.aclose()
        for name in tuple(self.servers):
            await self.servers.pop(name).stop()

    def channel(self, node: str, number: int = 0) -> str:
        """A channel in a shard that the node leads."""
        shard = next(s for s, led in self.world.leaders.items() if led and led[0] == node)
        return self.world.channel(shard, number)

    def shard(self, channel: str) -> int:
        return shard_of(channel, self.world.shard_count)

    def stored(self, node: str, channel: str) -> Channel:
        found = self.servers[node].storage.store.get(channel)
        assert found is not None, f"{node} knows {channel}"
        return found

    # -- moving a shard with what is in it --------------------------------------------------------------------------

    async def hand_over(self, shard: int, to: str) -> None:
        """The shard's leader is first nobody, until everything is durable and copied, then `to`."""
        led = self.world.leaders[shard]
        assert led is not None, "somebody leads"
        self.world.assign({shard: None})
        source, target = (self.servers[name].storage for name in (led[0], to))
        while source.journal.pending_bytes or source.store.log.settlements._changed:
            await asyncio.sleep(0.001)
        theirs = target.store.shards[shard]
        theirs.lead(self.world.epochs[shard] + 1, self.world.nodes[to].session)
        for channel in source.store.shards[shard].channels.values():
            _copy(source.store.log.cache.get, channel, target.store.get(channel.name) or _made(target.store, channel))
        while target.journal.pending_bytes:
            await asyncio.sleep(0.001)
        self.world.assign({shard: to})


def _made(store: Any, channel: Channel) -> Channel:
    made: Channel = store.add(channel.name, channel.limits, _ignore)
    return made


def _copy(cached: Callable[[int], Any], source: Channel, target: Channel) -> None:
    shard: Shard = target.shard
    for number in range(len(source.index)):
        frame = cached(source.index.row(number).address)
        if frame.base_offset >= target.next_offset:
            batch = Publish(
                *(frame.body, frame.count, frame.body_crc, Durability.DURABILITY_QUORUM),
                *(frame.producer, 0, frame.base_sequence),
            )
            shard.publish(target, batch, _ignore)
    for name, group in (source.groups or {}).items():
        if name not in (target.groups or {}):
            add_group(target, name, group.settings, group.core.settled_below, _ignore)


def _ignore(outcome: object) -> None:
    """Nobody waits."""


@asynccontextmanager
async def running(directory: Path, names: Iterable[str] = ("n1", "n2", "n3"), **settings: Any) -> AsyncIterator[Nodes]:
    """Nodes that lead every third shard each."""
    nodes = Nodes(World(), directory, settings)
    try:
        for name in names:
            await nodes.start(name)
        nodes.world.spread()
        yield nodes
    finally:
        await nodes.stop()
