"""grpc.health.v1, which answers everybody: probes have no tokens. So nothing here may grow by what a stranger sends."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv6Address
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ringpost.node.arrivals import Arrivals, as_stream
from ringpost.node.health import SERVICES, Health

WATCHERS_MAX = 1_000
ADDRESS_WATCHERS_MAX = 100
SERVICE = "grpc.health.v1.Health"
# A probe's request is a few bytes behind its headers.
_SECONDS_MAX, _COUNT_MAX = 5.0, 64
_States = health_pb2.HealthCheckResponse
_Watch = asyncio.Event  # set when there may be something to say


class HealthService:
    """Tells a `Health`. A slow watcher delays nobody; it gets the state, not each change."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._arrivals = Arrivals(seconds_max=_SECONDS_MAX, count_max=_COUNT_MAX)
        self._watchers: dict[str, dict[_Watch, None]] = {}  # by the address that they come from, the oldest first
        self._given_way: set[_Watch] = set()
        self._closed = False

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server."""
        methods: dict[str, Any] = {
            "Check": as_stream(partial(self._serve, self.check)),
            "List": as_stream(partial(self._serve, self.list)),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def close(self) -> None:
        """Ends all watches with UNAVAILABLE, after the last state was written: a stop need not wait for them."""
        self._closed = True
        for watchers in self._watchers.values():
            for watch in watchers:
                watch.set()

    async def _serve(self, serve: Callable[[str, Any], Awaitable[bytes]], context: Any) -> bytes:
        return await serve(await self._service(context), context)

    async def _watch(self, _requests: object, context: Any) -> None:
        await self.watch(await self._service(context), context)

    async def _service(self, context: Any) -> str:
        """The service that is asked for; of the request nothing else is kept."""
        message = await self._arrivals.request(context)
        try:
            service = str(health_pb2.HealthCheckRequest.FromString(message).service)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not an encoded HealthCheckRequest")
        return service if service in SERVICES else "unknown"

    async def check(self, service: str, context: Any) -> bytes:
        """The state of one service; NOT_FOUND for an unknown one."""
        if service not in SERVICES:
            await _refuse_unknown(context)
        return bytes(self._answer(service).SerializeToString())

    async def list(self, _service: str, _context: Any) -> bytes:
        """The states of all services."""
        states = {service: self._answer(service) for service in SERVICES}
        return bytes(health_pb2.HealthListResponse(statuses=states).SerializeToString())

    async def watch(self, service: str, context: Any) -> None:
        """The state now and after each change. Ends with the call; at once after SERVICE_UNKNOWN: the services that
        there are never change."""
        if service not in SERVICES:
            await context.write(_States(status=_States.SERVICE_UNKNOWN).SerializeToString())
            await _refuse_unknown(context)
        address = _address(context.peer())
        if len(self._watchers.get(address, ())) >= ADDRESS_WATCHERS_MAX:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"more than {ADDRESS_WATCHERS_MAX} watches from one address; use Check, or watch once a process",
            )
        self._make_room()
        watch = _Watch()
        end = self._health.listen(watch.set)
        self._watchers.setdefault(address, {})[watch] = None
        try:
            await self._tell(watch, service, context)
        finally:
            self._leave(address, watch)
            end()
        why = "the node is stopping" if self._closed else f"the node has its {WATCHERS_MAX} watches; use Check"
        await context.abort(grpc.StatusCode.UNAVAILABLE, why)

    async def _tell(self, watch: _Watch, service: str, context: Any) -> None:
        last = None
        while watch not in self._given_way:
            watch.clear()
            answer = self._answer(service)
            if answer != last:
                await context.write(answer.SerializeToString())
                last = answer
            if self._closed:
                return
            await watch.wait()

    def _make_room(self) -> None:
        """Of too many watches the oldest of the address that has most of them gives way."""
        if sum(map(len, self._watchers.values())) < WATCHERS_MAX:
            return
        address = max(self._watchers, key=lambda one: len(self._watchers[one]))
        watch = next(iter(self._watchers[address]))
        self._leave(address, watch)
        self._given_way.add(watch)
        watch.set()

    def _leave(self, address: str, watch: _Watch) -> None:
        self._given_way.discard(watch)
        watchers = self._watchers.get(address, {})
        watchers.pop(watch, None)
        if not watchers:
            self._watchers.pop(address, None)

    def _answer(self, service: str) -> Any:
        return _States(status=_States.SERVING if self._health.serving(service) else _States.NOT_SERVING)


async def _refuse_unknown(context: Any) -> None:
    known = ", ".join(service or '""' for service in SERVICES)
    await context.abort(grpc.StatusCode.NOT_FOUND, f"service: unknown; there are {known}")


def _address(peer: str) -> str:
    """What a stranger cannot have many of, of gRPC's `ipv4:1.2.3.4:5`: the IPv4 address, or half of an IPv6 one."""
    kind, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0]
    if kind != "ipv6":
        return host
    try:
        found = IPv6Address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host
    return str(found.ipv4_mapped or found.packed[:8].hex())
