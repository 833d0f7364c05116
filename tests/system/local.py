"""Several nodes and an etcd as processes, their ports fixed over restarts, and what can be done to them.

What blocks is for `asyncio.to_thread`, or for moments when nothing else is to run.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Self, TypeVar

import grpc

from ringpost.client.routes import shard_of
from ringpost.cluster.placement import Site, place
from ringpost.v1.cluster_pb2 import (
    Desired,
    GetClusterRequest,
    GetClusterResponse,
    GetRoutesRequest,
    GetRoutesResponse,
    ListNodesRequest,
    Member,
    RemoveNodeRequest,
    SetNodeRequest,
)
from tests.etcd_server import EtcdServer, free_ports
from tests.integration.broker import Client, Node

_ASK_S = 2.0
_POLL_S = 0.05
T = TypeVar("T")


# Said of shards all of whose copies that count are down or silent at once, as these tests make them.
NOBODY_THERE = "no copy of these shards can be reached"


class LocalCluster:
    """Nodes n1, n2, … on one etcd. Leave it with `close`, whatever happened: nothing survives it."""

    def __init__(self, directory: Path, size: int = 3, *flags: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.nodes: dict[str, Node] = {}
        self.frozen: set[str] = set()
        self._flags = flags
        self._addresses: dict[str, str] = {}
        self.etcd = self._make_etcd()
        for _ in range(size):
            self._make()

    # -- life ---------------------------------------------------------------------------------------------------------

    def _make_etcd(self) -> EtcdServer:
        return EtcdServer(self.directory / "etcd")

    def _place(self, name: str) -> tuple[str, tuple[str, ...]]:
        """The host that a node listens on, and the command that starts it there."""
        return "127.0.0.1", ()

    def _make(self) -> str:
        name = f"n{len(self.nodes) + 1}"
        host, before = self._place(name)
        client, peer, http = (f"{host}:{port}" for port in free_ports(3))
        addresses = ("--listen", client, "--peer-listen", peer, "--http-listen", http)
        membership = ("--node", name, "--coordination", "etcd", "--etcd-endpoints", ",".join(self.etcd.endpoints))
        quick = ("--stop-grace-ms", "500")
        self._addresses[name] = client
        self.nodes[name] = Node(self.directory / name, *addresses, *membership, *quick, *self._flags, before=before)
        return name

    def start(self) -> Self:
        """Returns when all nodes serve; shards may not have leaders yet. Blocks."""
        self.etcd.start()
        self.start_nodes(self.nodes)
        return self

    def start_nodes(self, names: Iterable[str]) -> None:
        """Starts them at the same time, returns when all serve. Blocks."""
        names = list(names)
        for name in names:
            self.nodes[name].spawn()
        for name in names:
            self.nodes[name].wait_until_serving()

    def add(self) -> str:
        """Starts one node more; its name. Blocks."""
        name = self._make()
        self.nodes[name].start()
        return name

    def kill(self, *names: str) -> None:
        """SIGKILL to each, then waits for their ends. Blocks for a moment."""
        for name in names:
            self.nodes[name].signal(signal.SIGKILL)
        for name in names:
            self.nodes[name].kill()
            self.frozen.discard(name)

    def freeze(self, *names: str) -> None:
        """SIGSTOP."""
        for name in names:
            self.nodes[name].signal(signal.SIGSTOP)
            self.frozen.add(name)

    def thaw(self, *names: str) -> None:
        """SIGCONT."""
        for name in names:
            self.nodes[name].signal(signal.SIGCONT)
            self.frozen.discard(name)

    def restart(self, name: str) -> None:
        """SIGKILL if it runs, and start; returns when it serves. Blocks."""
        self.kill(name) if self.nodes[name].running else None
        self.nodes[name].start()

    def stop(self, name: str) -> int:
        """SIGTERM; its exit code. Blocks."""
        return self.nodes[name].stop()

    def forget(self, name: str) -> None:
        """A node that has left for good is not brought back by `heal`."""
        self.nodes.pop(name).kill()
        del self._addresses[name]

    def close(self) -> None:
        """Kills everything. Blocks."""
        for node in self.nodes.values():
            node.kill()
        self.etcd.close()

    # -- what it says of itself ---------------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """host:port for clients, also while the node is down."""
        return self._addresses[name]

    @property
    def addresses(self) -> list[str]:
        """Of all nodes, up or not."""
        return list(self._addresses.values())

    @property
    def up(self) -> list[str]:
        """Names of the nodes that run and are not frozen."""
        return [name for name, node in self.nodes.items() if node.running and name not in self.frozen]

    async def ask(self, question: Callable[[Client], Awaitable[T]], *names: str) -> T:
        """The first answer of any of these nodes (default: all that are up). Raises AioRpcError when none answers."""
        last: grpc.aio.AioRpcError | None = None
        for name in names or self.up:
            async with Client(self.address(name)) as client:
                try:
                    return await question(client)
                except grpc.aio.AioRpcError as error:
                    last = error
        assert last is not None, "no node is up"
        raise last

    async def status(self, *names: str) -> GetClusterResponse:
        return await self.ask(lambda c: c.cluster.GetCluster(GetClusterRequest(), timeout=_ASK_S), *names)

    async def routes(self, *names: str) -> GetRoutesResponse:
        return await self.ask(lambda c: c.cluster.GetRoutes(GetRoutesRequest(), timeout=_ASK_S), *names)

    async def members(self) -> dict[str, Member]:
        answer = await self.ask(lambda c: c.cluster.ListNodes(ListNodesRequest(), timeout=_ASK_S))
        return {member.node: member for member in answer.members}

    async def set_desired(self, name: str, desired: Desired.ValueType) -> None:
        await self.ask(lambda c: c.cluster.SetNode(SetNodeRequest(node=name, desired=desired), timeout=10))

    async def remove(self, name: str) -> None:
        await self.ask(lambda c: c.cluster.RemoveNode(RemoveNodeRequest(node=name), timeout=10))

    async def leader_of(self, channel: str) -> str:
        """Node that leads the channel's shard; empty while there is none."""
        routes = await self.routes()
        number = shard_of(channel, routes.shard_count)
        return next(shard.owner for shard in routes.shards if shard.shard == number)

    async def follower_of(self, channel: str) -> str:
        """A node with a copy of the channel's shard that counts, and that does not lead it."""
        routes = await self.routes()
        number = shard_of(channel, routes.shard_count)
        shard = next(shard for shard in routes.shards if shard.shard == number)
        return next(name for name in shard.in_sync if name != shard.owner)

    async def controller(self) -> str:
        return (await self.status()).controller

    async def channels_on_all_nodes(self, prefix: str, per_node: int, *nodes: str) -> list[str]:
        """Names of which each of these nodes (default: all that are up) leads `per_node`, once each leads something."""
        wanted = dict.fromkeys(nodes or self.up, per_node)

        async def all_lead() -> bool:
            return wanted.keys() <= {shard.owner for shard in (await self.routes()).shards}

        # A node that has come back leads again only after it was there for a while.
        await self.until(all_lead, f"each of {', '.join(wanted)} to lead a shard", 60)
        routes = await self.routes()
        owners = {shard.shard: shard.owner for shard in routes.shards}
        found: list[str] = []
        number = 0
        while any(wanted.values()):
            name = f"{prefix}.{number}"
            number += 1
            owner = owners[shard_of(name, routes.shard_count)]
            if wanted.get(owner):
                wanted[owner] -= 1
                found.append(name)
        return found

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, seconds: float) -> float:
        """Asks until it holds; how long that took. Nodes that do not answer are asked again."""
        begin = time.monotonic()
        while True:
            try:
                if await holds():
                    return time.monotonic() - begin
            except grpc.aio.AioRpcError as error:
                what = f"{what} (last: {error.code()} {error.details()})"[:300]
            assert time.monotonic() - begin < seconds, f"waited {seconds:g} s for: {what}\n{await self.describe()}"
            await asyncio.sleep(_POLL_S)

    async def serving(self, seconds: float = 30.0) -> float:
        """Until every shard has a leader, as each node that is up says; how long that took."""

        async def all_led() -> bool:
            answers = [await self.status(name) for name in self.up]
            return all(answer.shard_count and not answer.offline_shards for answer in answers)

        return await self.until(all_led, "a leader for every shard", seconds)

    async def whole(self, seconds: float = 60.0) -> float:
        """Until, beyond that, every shard has all its copies in sync and nothing moves; how long that took."""

        async def all_in_sync() -> bool:
            status = await self.status()
            calm = not (status.offline_shards or status.under_replicated_shards or status.moves)
            return calm and bool(status.shard_count and status.controller)

        return await self.until(all_in_sync, "every copy in sync", seconds)

    async def home(self, seconds: float = 60.0) -> float:
        """Until, beyond that, every shard is led by the node that shall lead it: no hand-over is to come."""

        async def all_home() -> bool:
            status, members = await self.status(), (await self.members()).values()
            sites = frozenset(Site(member.node, member.zone, 1, member.host) for member in members if member.alive)
            leading = frozenset(site.node for site in sites)
            placed = place(sites, leading, status.shard_count, status.replication_factor)
            owners = {shard.shard: shard.owner for shard in (await self.routes()).shards}
            return not status.moves and all(owners[shard] == wanted[0] for shard, wanted in enumerate(placed))

        return await self.until(all_home, "every shard led by the node that shall lead it", seconds)

    async def heal(self) -> None:
        """Ends every fault that is still there and waits until the cluster is whole."""
        for name in tuple(self.frozen):
            self.thaw(name)
        for member in self.etcd.members:
            if member.running:
                member.thaw()
            else:
                member.start()
        await asyncio.to_thread(self.etcd.wait)
        down = [name for name, node in self.nodes.items() if not node.running]
        for name in down:
            self.nodes[name].kill()
        await asyncio.to_thread(self.start_nodes, down)
        await self.serving(60.0)
        await self.whole()

    async def describe(self) -> str:
        """For a person who looks at a test that failed."""
        lines = [f"{name}: {'up' if name in self.up else 'not up'}" for name in self.nodes]
        for name in self.up:
            try:
                status = await self.status(name)
                lines.append(
                    f"{name} says: controller {status.controller!r}, offline {list(status.offline_shards)[:9]}, "
                    f"under-replicated {list(status.under_replicated_shards)[:9]}, moves {len(status.moves)}"
                )
                lines += [f"  {m.kind}: shard {m.shard}, {m.leader} leads, {m.node} moves" for m in status.moves[:5]]
            except (grpc.aio.AioRpcError, AssertionError) as error:
                lines.append(f"{name} says: {error}"[:300])
        for name, node in self.nodes.items():
            lines += [f"{name} logged: {line[:1000]}" for line in node.faults()[-5:]]
        return "\n".join(lines)

    def faults(self) -> list[str]:
        """What the nodes logged that tells of a fault of ours."""
        lines = [f"{name}: {line[:2000]}" for name, node in self.nodes.items() for line in node.faults()]
        return [line for line in lines if NOBODY_THERE not in line]
