"""Requests that come, come late, or never: on a real server, with calls that no gRPC library makes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from ringpost.node import arrivals
from ringpost.node.arrivals import Arrivals, as_stream
from tests.integration.raw_calls import headers_only

PATH = "/test.Echo/Say"


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., object]]:
    servers = []

    async def start(made: Arrivals) -> int:
        async def echo(context) -> bytes:
            return await made.request(context)

        server = grpc.aio.server()
        servers.append(server)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Say": as_stream(echo)}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return port

    yield start
    for server in servers:
        await server.stop(None)


async def heard(connection: socket.socket, text: bytes) -> None:
    """Returns when the server has said that."""
    connection.setblocking(False)
    said = b""
    async with asyncio.timeout(10):
        while text not in said:
            said += await asyncio.get_running_loop().sock_recv(connection, 1 << 16)


async def begun(made: Arrivals, count: int) -> None:
    async with asyncio.timeout(10):
        while len(made) != count:
            await asyncio.sleep(0.01)


async def test_a_unary_client_sees_a_unary_call(serve) -> None:
    made = Arrivals()
    port = await serve(made)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary(PATH)(b"x" * 3_000_000) == b"x" * 3_000_000
        assert await channel.unary_unary(PATH)(b"") == b""
        stream = channel.stream_unary(PATH)()
        await stream.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(made) == 0


async def test_a_request_that_does_not_come_in_time_ends_its_call(serve, caplog: pytest.LogCaptureFixture) -> None:
    made = Arrivals(seconds_max=0.3)
    port = await serve(made)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(headers_only(PATH, 3))
        await begun(made, 3)
        await heard(connection, b"within 0.3 s")
        await begun(made, 0)
    assert caplog.records == []


async def test_a_call_whose_client_leaves_is_forgotten(serve, caplog: pytest.LogCaptureFixture) -> None:
    made = Arrivals(seconds_max=0.5)
    port = await serve(made)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(headers_only(PATH, 3))
        await begun(made, 3)
    await begun(made, 0)
    await asyncio.sleep(0.6)
    assert caplog.records == []


async def test_of_too_many_the_oldest_gives_way_to_a_new_one(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "_CROWDED_S", 0.2)
    made = Arrivals(count_max=2)
    port = await serve(made)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(headers_only(PATH, 4))
        await begun(made, 4)  # all of them have just begun
        await asyncio.sleep(0.3)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await channel.unary_unary(PATH)(b"x") == b"x"
        await heard(connection, b"2 others are waited for")
        await begun(made, 1)
