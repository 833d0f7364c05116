"""Keeps a client's picture of the cluster fresh: asks for routes, looks after nodes that do not answer."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

import grpc

from ringpost.client.connection import Connections
from ringpost.client.errors import InvalidRequest, RingpostError, from_rpc_error
from ringpost.client.routes import Routes
from ringpost.v1 import cluster_pb2, cluster_pb2_grpc

_log = logging.getLogger(__name__)
_ROLE: Final = "admin"
# A node that lives answers in milliseconds.
PROBE_S: Final = 1.5
# Least time between two rounds of questions.
_PACE_S: Final = 0.1
# GetRoutes takes so many names; above it all shards are asked for.
_MAX_NAMES: Final = 1_000
# A suspect is not asked again before.
_SUSPECT_S: Final = 1.0
# How a call to a node ends that is not there.
_SILENT: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)


class Router:
    """Says where calls go. `direct`: whether owners are to be learned; otherwise any of the given addresses."""

    def __init__(self, connections: Connections, *, direct: bool) -> None:
        self.routes = Routes(connections.addresses)
        # Called when the answers of `address` may have changed.
        self.on_change: Callable[[], None] = lambda: None
        self._connections = connections
        self._direct = direct
        self._names: dict[str, None] = {}
        self._streams: dict[object, tuple[str, Callable[[], None]]] = {}
        self._suspects: set[str] = set()
        self._asked: dict[str, float] = {}
        self._wanted = False
        self._turn = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self, timeout: float) -> None:
        """Asks for all routes once, for at most `timeout` seconds. Without an answer any node will do."""
        if self._direct:
            await self._ask_routes(self.routes.fallback(), (), timeout)
            if self.routes.next_due() is not None:
                self.refresh()

    def address(self, channel: str) -> str:
        """Where to send what concerns the channel."""
        if channel not in self._names and len(self._names) <= _MAX_NAMES:
            self._names[channel] = None
        return self.routes.target(channel)

    def any_address(self, spread: int = 0) -> str:
        """Where to send what any node answers, by `spread` to this one or that."""
        return self.routes.fallback(spread)

    def delay(self, address: str) -> float:
        """Seconds to wait before the address is tried again."""
        return self.routes.delay(address, monotonic())

    # -- news -----------------------------------------------------------------------------------------------------

    def note(self, channel: str, owner: str, epoch: int) -> None:
        """An answer named the channel's owner."""
        if self._direct and self.routes.note(channel, owner, epoch):
            self.refresh()
            self.on_change()

    def heed(self, channel: str, error: RingpostError) -> None:
        """An answer refused: it may say who owns the channel."""
        if error.reason != "NOT_LEADER":
            return
        epoch = error.metadata.get("epoch", "")
        self.note(channel, error.metadata.get("leader", ""), int(epoch) if epoch.isdecimal() else 0)
        self.refresh()

    def refresh(self) -> None:
        """The routes may be old: asks for them soon."""
        self._wanted = True
        self._tend_soon()

    def failed(self, address: str) -> None:
        """A call or stream to the address broke, or it takes no more work. Others are used until it answers."""
        self.routes.failed(address, monotonic())
        self.refresh()
        self.on_change()

    def worked(self, address: str) -> None:
        """The address takes work."""
        before = self.routes.version
        self.routes.worked(address)
        if self.routes.version != before:
            self.on_change()

    def suspect(self, address: str) -> None:
        """The address owes answers for long: asks it, and cuts every stream to it when it says nothing.

        One that says that it lives may be cut off from the others, so another is asked who owns what.
        """
        now = monotonic()
        if self.routes.several and now - self._asked.get(address, 0.0) >= _SUSPECT_S:
            self._asked[address] = now
            self._suspects.add(address)
            self.refresh()

    def watch(self, stream: object, address: str, cut: Callable[[], None]) -> None:
        """`cut` is called when the address turns out to be dead, until `unwatch`."""
        self._streams[stream] = (address, cut)

    def unwatch(self, stream: object) -> None:
        self._streams.pop(stream, None)

    # -- the task -------------------------------------------------------------------------------------------------

    def _tend_soon(self) -> None:
        if self._closed or not self.routes.several:
            self._wanted = False
            return
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tend(), name="ringpost-router")

    async def _tend(self) -> None:
        """Rounds of questions while there is something to find out."""
        try:
            while not self._closed and (self._wanted or self._suspects or self.routes.next_due() is not None):
                self._wake.clear()
                await self._round()
                await asyncio.sleep(_PACE_S)
                await self._rest()
        except Exception:
            _log.exception("the routes are not kept fresh for a bug of this client")
        finally:
            self._task = None

    async def _rest(self) -> None:
        """Until there is news, or a node that is down is to be asked again."""
        due = self.routes.next_due()
        if due is None or self._wanted or self._suspects:
            return
        try:
            async with asyncio.timeout(max(0.0, due - monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _round(self) -> None:
        """One round: whoever is down or suspected is asked how it is, one that answers for the routes."""
        suspects, self._suspects = self._suspects, set()
        wanted, self._wanted = self._wanted, False
        doubtful = {*suspects, *self.routes.due(monotonic())}
        before = self.routes.version
        questions = [self._probe(address) for address in doubtful]
        sound = [address for address in self.routes.up if address not in doubtful]
        if wanted and self._direct and sound:
            # One after the other: what a node that is cut off from the others says stays old.
            self._turn += 1
            questions.append(self._ask_routes(sound[self._turn % len(sound)], tuple(self._names), PROBE_S))
        await asyncio.gather(*questions)
        if self.routes.version != before:
            self.on_change()

    async def _probe(self, address: str) -> None:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._connections.channel(_ROLE, address))
        try:
            answer = await stub.GetNode(
                cluster_pb2.GetNodeRequest(), timeout=PROBE_S, metadata=self._connections.metadata
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENT:
                self._give_up(address, from_rpc_error(error))
                return
        except InvalidRequest:
            return  # the token cannot be sent; calls and streams say so
        else:
            if answer.node.state != cluster_pb2.NODE_STATE_SERVING and address not in self.routes.up:
                self.routes.failed(address, monotonic())
                return
        if address not in self.routes.up:
            self.routes.worked(address)
            self._wanted = True

    def _give_up(self, address: str, error: RingpostError) -> None:
        _log.info("%s does not answer: %s", address, error)
        self.routes.failed(address, monotonic())
        if not self.routes.up:
            return  # No other would do better.
        for where, cut in list(self._streams.values()):
            if where == address:
                cut()

    async def _ask_routes(self, address: str, names: tuple[str, ...], timeout: float) -> None:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._connections.channel(_ROLE, address))
        request = cluster_pb2.GetRoutesRequest(channels=names if len(names) <= _MAX_NAMES else ())
        try:
            answer = await stub.GetRoutes(request, timeout=timeout, metadata=self._connections.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENT:
                self._give_up(address, from_rpc_error(error))
            return
        except InvalidRequest:
            return
        self.routes.learn(answer)

    async def close(self) -> None:
        """Asks no more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
