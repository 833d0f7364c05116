"""Real members in one process: real journals, real peer streams on loopback, a coordination store in memory."""

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from crc32c import crc32c

from ringpost.cluster.keys import shard_of
from ringpost.cluster.levels import OWN, Levels
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.cluster.placement import Site, place
from ringpost.cluster.view import NodeRef
from ringpost.node.config import Config
from ringpost.node.coordination import IdentityFacts, coordination_over
from ringpost.node.errors import RingpostError
from ringpost.node.journal.files import RealFiles
from ringpost.node.member import Member
from ringpost.node.shard.shard import Publish, Shard, Stored
from ringpost.node.storage import Opener, Storage
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message
from tests.node.replicas.relay import Relay

SHARDS = 4


class Node:
    """One member. `crash` forgets everything in memory at once, as SIGKILL does, but for what gRPC still holds."""

    def __init__(self, name: str, directory: Path, store: MemoryStore, **settings: Any) -> None:
        self.name = name
        self.directory = directory
        self._store = store
        self._levels = settings.pop("levels", OWN)
        self._settings = {"shard_count": SHARDS, "segment_bytes": 8 << 20, "lease_ttl_s": 2, **settings}
        self._port = 0
        self.relay = Relay()  # between this node and the others, where these call it
        self.running = False

    async def start(self) -> Self:
        config = Config(node=self.name, data_dir=self.directory, **self._settings)
        self.opener = Opener(
            config,
            RealFiles(),
            durable=lambda: self.member.replicator.durable(),  # noqa: PLW0108 - it is made later
            failed=lambda error: None,
            damaged=lambda what: None,
            clustered=True,
        )
        self.storage: Storage = await self.opener.open()
        identity = self.storage.identity
        facts = IdentityFacts(
            directory=identity.directory_id.hex(),
            replica_id=identity.replica_id,
            cluster_id=identity.cluster_id,
            boot=identity.boot,
            shard_count=SHARDS,
            joined=identity.view_revision > 0,
            revision_seen=identity.view_revision,
        )
        self.kv = MemoryKv(self._store)
        coordination = coordination_over(self.kv, config, facts, levels=self._levels)
        self.member = Member(self.storage, coordination, node=self.name)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((self.member.handlers(),))
        self._port = self.server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self.server.start()
        await self.relay.start(self._port)
        await self.member.join(NodeRef(self.name, "127.0.0.1:1", peer_address=f"127.0.0.1:{self.relay.port}"))
        self.running = True
        return self

    def replace(self, levels: Levels) -> None:
        """Another version of the program from the next start on."""
        self._levels = levels

    async def stop(self) -> None:
        """A clean end."""
        if not self.running:
            return
        self.running = False
        await self.relay.stop()
        await self.server.stop(0.1)
        await self.member.leave()
        await asyncio.to_thread(self.storage.close)

    @property
    def shards(self) -> list[Shard]:
        return self.storage.store.shards

    async def publish(self, channel: str, *texts: str, key: str = "", **how: Any) -> Stored:
        """Publishes one batch here, with one key; raises the error that it is answered with."""
        store = self.storage.store
        shard = store.shards[shard_of(channel, SHARDS)]
        shard.check_serving()
        batch = Batch(messages=[Message(key=key.encode(), data=text.encode()) for text in texts]).SerializeToString()
        done: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def reply(outcome: Stored | RingpostError) -> None:
            if isinstance(outcome, RingpostError):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

        how.setdefault("durability", Durability.DURABILITY_QUORUM)
        found = store.find_or_add(channel)
        found.shard.publish(found, Publish(batch, len(texts), crc32c(batch), **how), reply)
        return await done

    async def texts(self, channel: str) -> list[str]:
        """Everything that is committed here, as this copy has it."""
        shard = self.shards[shard_of(channel, SHARDS)]
        found: list[str] = []
        for one in shard.channels.values():
            if one.name == channel:
                for row in one.index.rows(0, one.committed_rows):
                    frame = await self.storage.reading.frame(one, row)
                    found += [message.data.decode() for message in Batch.FromString(frame.body).messages]
        return found


class Cluster:
    """Members n1, n2, … in folders below `folder`."""

    def __init__(self, folder: Path, count: int = 3, **settings: Any) -> None:
        self.store = MemoryStore(asyncio.get_running_loop())
        self._folder, self._settings = folder, settings
        self.nodes = {f"n{i}": self.make(f"n{i}") for i in range(1, count + 1)}

    def make(self, name: str) -> Node:
        return Node(name, self._folder / name, self.store, **self._settings)

    async def __aenter__(self) -> Self:
        os.makedirs(self._folder, exist_ok=True)
        await asyncio.gather(*(node.start() for node in self.nodes.values()))
        await self.until(self._home, "every shard is led by the node that shall lead it: no hand-over is to come")
        return self

    def _home(self) -> bool:
        views = [node.member.coordination.view for node in self.nodes.values()]
        alive = {name: ref for name, ref in views[0].nodes.items() if ref.alive}
        sites = frozenset(Site(name, ref.zone, 1, ref.host) for name, ref in alive.items())
        if len(sites) < len(self.nodes):
            return False
        placed = place(sites, frozenset(self.nodes), SHARDS, views[0].replication_factor)
        leaders = [self.leader(shard) for shard in range(SHARDS)]
        return [leader and leader.name for leader in leaders] == [wanted[0] for wanted in placed]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    def leader(self, shard: int) -> Node | None:
        """Who serves a shard now."""
        serving = [node for node in self.nodes.values() if node.running and node.shards[shard].replicated is not None]
        return next((node for node in serving if node.shards[shard].serving), None)

    def leader_of(self, channel: str) -> Node | None:
        return self.leader(shard_of(channel, SHARDS))

    async def until(self, condition: Any, what: str, seconds: float = 20.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"waited {seconds:g} s for: {what}") from None
