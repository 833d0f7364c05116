"""Floods by whoever has no token: the node stays within memory and goes on serving those who have one."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringpost.client import connect as connect_client
from ringpost.node.access.tokens import token_hash
from tests.integration import reset_flood
from tests.integration.broker import MIB, Client, Node, gathered, publish, until
from tests.integration.raw_calls import Unfinished, headers_only

CONNECTIONS = 10_000
# About 13 KiB a connection when it says nothing, 17 KiB after an HTTP/2 beginning.
GROWTH_BYTES_MAX = 300 * MIB
SLOWEST_S = 3.0  # of a publish meanwhile; usually milliseconds
FLOOD_S, RESETS_MIN = 5.0, 10_000
PUBLISH, CHECK = "/ringpost.v1.PublisherService/Publish", "/grpc.health.v1.Health/Check"
ME = (("authorization", "Bearer me"),)

pytestmark = pytest.mark.long


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    file = tmp_path / "access.toml"
    file.write_text(f'[principals.me]\ntokens = ["sha256:{token_hash("me")}"]\npublish = [">"]\n')
    with Node(tmp_path / "n", "--access-file", str(file), "--connection-idle-max-s", "5") as made:
        yield made


async def slowest_publish(node: Node, count: int = 20) -> float:
    """Seconds, over a connection that is made for it."""
    slowest = 0.0
    async with Client(node.address) as client:
        for _ in range(count):
            begun = time.monotonic()
            await client.publisher.Publish(publish("orders", b"x").publish, metadata=ME, timeout=30)
            slowest = max(slowest, time.monotonic() - begun)
    return slowest


def connect(node: Node, first: bytes = b"") -> socket.socket:
    host, port = node.address.rsplit(":", 1)
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(first)
    return made


@pytest.mark.parametrize("first", [b"", reset_flood.BEGINNING], ids=["half open", "idle"])
async def test_ten_thousand_connections_that_do_nothing(node: Node, first: bytes) -> None:
    await slowest_publish(node)
    before = node.process.memory_info().rss
    connections = []
    try:
        connections += [await asyncio.to_thread(connect, node, first) for _ in range(CONNECTIONS)]
        slowest = await slowest_publish(node)
        assert node.process.num_fds() > CONNECTIONS, "all of them are there"
        assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX
        assert slowest < SLOWEST_S
        await until(lambda: node.process.num_fds() < 100, "the node has closed them", 30)
    finally:
        for one in connections:
            one.close()
    assert node.faults() == []


async def test_streams_that_are_reset_as_soon_as_they_begin(node: Node) -> None:
    """The "rapid reset" of CVE-2023-44487, against a call that has no token."""
    await slowest_publish(node)
    before = node.process.memory_info().rss
    host, port = node.address.rsplit(":", 1)
    program = (sys.executable, str(Path(reset_flood.__file__)), host, port, str(FLOOD_S))
    flood = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    flooding = asyncio.create_task(flood.communicate())
    slowest, clients = 0.0, 0
    # While too many calls wait, gRPC's server drops some of them by lot, whosesoever they are: with CANCELLED, after
    # which the client tries again. A stream that stands is not concerned.
    async with connect_client(node.address, token="me") as standing:
        while not flooding.done():
            begun = time.monotonic()
            await standing.publish("orders", "x")
            slowest = max(slowest, time.monotonic() - begun)
            async with connect_client(node.address, token="me") as another:
                await another.publish("orders", "y")
                clients += 1
    assert int((await flooding)[0]) >= RESETS_MIN
    assert slowest < SLOWEST_S
    assert clients > 0, "new ones get through meanwhile"
    assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX
    assert await slowest_publish(node) < 1.0, "all is well again"
    assert node.faults() == []


async def test_metadata_of_megabytes_and_tokens_without_end(node: Node) -> None:
    await slowest_publish(node)
    before = node.process.memory_info().rss
    async with Client(node.address, ("grpc.max_metadata_size", 64 * MIB)) as client:
        call = client.publisher.Publish
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(publish("a", b"x").publish, metadata=(("x", "y" * (8 * MIB)),), timeout=30)

        async def refused(number: int) -> None:
            token = f"{number:08}{'x' * 8_000}"
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(publish("a", b"x").publish, metadata=(("authorization", f"Bearer {token}"),), timeout=60)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED

        await gathered(map(refused, range(3_000)), 100)
    assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX
    assert await slowest_publish(node) < 1.0
    assert node.faults() == []


@pytest.mark.parametrize("path", [PUBLISH, CHECK])
async def test_calls_whose_request_never_comes(node: Node, path: str) -> None:
    """5,120 of them on 40 connections: each call ends, and so its connection is idle, and closed."""
    await slowest_publish(node)
    before = node.process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(40):
            one = stack.enter_context(connect(node))
            await asyncio.to_thread(one.sendall, headers_only(path, 128))
        await asyncio.sleep(2)  # while so many new calls wait, gRPC drops some by lot, whosesoever they are
        assert await slowest_publish(node) < SLOWEST_S
        await until(lambda: node.process.num_fds() < 50, "the node has closed them", 15)
        assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX / 2
    assert await slowest_publish(node) < 1.0
    assert node.faults() == []


@pytest.mark.parametrize("path", [PUBLISH, CHECK])
async def test_calls_without_a_request_take_no_connection_from_who_has_a_token(tmp_path: Path, path: str) -> None:
    file = tmp_path / "access.toml"
    file.write_text(f'[principals.me]\ntokens = ["sha256:{token_hash("me")}"]\npublish = [">"]\n')
    flags = ("--access-file", str(file), "--connections-max", "20", "--connection-idle-max-s", "2")
    with Node(tmp_path / "n", *flags) as node, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(node, headers_only(path, 1)))
        await asyncio.sleep(10)
        assert await slowest_publish(node, 1) < 5.0
        assert node.faults() == []


async def test_requests_that_are_never_whole(node: Node) -> None:
    """200 calls with all but the end of 4 MiB: without a token nothing of that is taken in."""
    await slowest_publish(node)
    before = node.process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(2):
            calls = Unfinished(stack.enter_context(connect(node)), PUBLISH, 100, 4 * MIB)
            await asyncio.to_thread(calls.send, 6)
        assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX / 3
        assert await slowest_publish(node) < 1.0
    assert node.faults() == []


async def test_watches_of_health_with_names_of_megabytes(node: Node) -> None:
    """Nothing of them stays, and nobody but their own address is kept from watching."""
    await slowest_publish(node)
    before = node.process.memory_info().rss
    async with Client(node.address) as client:
        stub = health_pb2_grpc.HealthStub(client.wire)
        for number in range(60):
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=f"{number:04}" * (MIB - 16)), timeout=10)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert await watch.code() is grpc.StatusCode.NOT_FOUND
        assert node.process.memory_info().rss - before < GROWTH_BYTES_MAX / 3
    async with Client(node.address) as client:
        stub = health_pb2_grpc.HealthStub(client.wire)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service="ready")) for _ in range(100)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Watch(health_pb2.HealthCheckRequest(service="ready")).read()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Check(health_pb2.HealthCheckRequest(service="ready"))).status
        for watch in watches:
            watch.cancel()
    assert node.faults() == []
