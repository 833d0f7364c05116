"""The process that runs the workers: the port it holds, what it does when they end, what it says of their health."""

import asyncio
import contextlib
import gc
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ringpost.node import host_health, supervisor
from ringpost.node.binding import StartError
from ringpost.node.config import Config
from ringpost.node.host_health import HostHealth
from ringpost.node.supervisor import Process, Supervisor, hold_port
from ringpost.node.workers import Worker

# What a worker's process does in these tests.
SERVES = 'import json, sys; print(json.dumps({"event": "serving"}), flush=True); sys.stdin.read()'
ENDS = 'import json; print("noise"); print(json.dumps({"event": "serving"}), flush=True)'
CANNOT = "raise SystemExit(2)"


def listener(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    one.listen()
    return one


# -- the port ---------------------------------------------------------------------------------------------------------


def test_workers_listen_on_the_port_that_is_held_and_connections_reach_only_them() -> None:
    with contextlib.closing(hold_port("127.0.0.1:0")) as held:
        address = held.getsockname()
        with pytest.raises(ConnectionRefusedError), socket.create_connection(address, timeout=5):
            pass
        with contextlib.closing(listener(address[1])), contextlib.closing(listener(address[1])):
            for _ in range(20):
                socket.create_connection(address, timeout=5).close()


def test_nobody_else_gets_it_and_it_is_taken_from_nobody() -> None:
    with contextlib.closing(hold_port("127.0.0.1:0")) as held:
        port = held.getsockname()[1]
        with contextlib.closing(socket.socket()) as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with (
            contextlib.closing(listener(port)),
            pytest.raises(StartError, match=f"listen: cannot bind 127.0.0.1:{port}"),
        ):
            hold_port(f"127.0.0.1:{port}")


# -- a worker ---------------------------------------------------------------------------------------------------------


def process_of(program: str) -> Process:
    return Process(Worker("alpha-1", ()), (sys.executable, "-c", program))


async def test_a_worker_that_ends_is_started_again_until_it_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.node.workers.RESTART_S", (0.01, 0.02))
    process, starts = process_of(ENDS), 0

    def served() -> None:
        nonlocal starts
        starts += 1
        if starts == 3:
            process.stop()

    async with asyncio.timeout(60):
        await process.keep(served)
    assert starts == 3
    assert process.serving == {}


async def test_one_that_never_could_start_is_not_tried_again() -> None:
    process = process_of(CANNOT)
    async with asyncio.timeout(60):
        await process.keep(lambda: None)
    assert process.code == 2


async def test_a_worker_is_stopped_by_sigterm() -> None:
    process = process_of(SERVES)
    serves = asyncio.Event()
    kept = asyncio.ensure_future(process.keep(serves.set))
    async with asyncio.timeout(60):
        await serves.wait()
        process.stop()
        await kept
    assert process.code == -15


async def test_when_one_cannot_start_none_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "MODULE", "ringpost.node.nothing_of_that_name")
    config = Config(
        node="alpha", workers=2, coordination="etcd", data_dir=tmp_path, listen="127.0.0.1:0", http_listen="127.0.0.1:0"
    )
    async with asyncio.timeout(60):
        assert await Supervisor(config, ()).run() == 2
    assert capfd.readouterr().out == ""


async def test_without_a_store_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await Supervisor(Config(workers=2, data_dir=tmp_path, listen="127.0.0.1:0"), ()).run() == 2
    assert "set coordination to etcd" in capsys.readouterr().err


# -- health -----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def http_of(*codes: int) -> AsyncIterator[dict[str, dict[str, object]]]:
    """Workers that answer with these codes, by node."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[str, dict[str, object]] = {}
        for number, code in enumerate(codes, 1):

            async def answer(reader: Any, writer: Any, code: int = code) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(f"HTTP/1.0 {code} X\r\n\r\n".encode())
                writer.close()

            server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
            found[f"alpha-{number}"] = {"http": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"}
        yield found


async def got(health: HostHealth, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), json.loads(body or b"{}")


@pytest.mark.parametrize(
    ("codes", "ready", "storage"), [((200, 200), 200, 200), ((200, 503), 200, 503), ((503, 503), 503, 503)]
)
async def test_one_ready_worker_is_enough_for_clients_and_damage_anywhere_is_told(
    codes: tuple[int, ...], ready: int, storage: int
) -> None:
    async with http_of(*codes) as workers:
        health = HostHealth("127.0.0.1:0", lambda: workers)
        await health.start()
        assert (await got(health, "/health/live"))[0] == 200
        status, answer = await got(health, "/health/ready")
        assert (status, list(answer["workers"])) == (ready, ["alpha-1", "alpha-2"])
        assert answer["http"] == {node: said["http"] for node, said in workers.items()}
        assert (await got(health, "/health/storage"))[0] == storage
        health.stop_being_ready()
        assert (await got(health, "/health/ready"))[0] == 503
        await health.stop()


async def test_a_worker_that_does_not_serve_is_not_ready_and_other_paths_say_where_to_look() -> None:
    health = HostHealth("127.0.0.1:0", lambda: {"alpha-1": {}, "alpha-2": {"http": "127.0.0.1:1"}})
    await health.start()
    status, answer = await got(health, "/health/ready")
    assert (status, set(answer["workers"].values())) == (503, {"NOT_SERVING"})
    assert (await got(health, "/metrics"))[0] == 404
    assert (await got(health, "/health/live", "HEAD"))[0] == 200
    assert (await got(health, "/health/live", "POST"))[0] == 405
    await health.stop()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Waits for the end of a connection on which nothing is said."""
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


async def test_who_asks_nothing_gives_way_to_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "CONNECTIONS_MAX", 3)
    health = HostHealth("127.0.0.1:0", dict)
    await health.start()
    silent = [await asyncio.open_connection("127.0.0.1", health.port) for _ in range(5)]
    assert (await got(health, "/health/live"))[0] == 200
    assert [await closed(reader) for reader, _ in silent[:3]] == [True] * 3
    silent[4][1].write(b"GET /health/live HTTP/1.0\r\n\r\n")
    assert (await silent[4][0].read()).startswith(b"HTTP/1.0 200")
    for _, writer in silent:
        writer.close()
    await health.stop()


async def test_where_all_have_asked_another_is_turned_away_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_health, "CONNECTIONS_MAX", 2)
    asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    slow = await asyncio.start_server(lambda _, writer: asked.put_nowait(writer), "127.0.0.1", 0)
    place = f"127.0.0.1:{slow.sockets[0].getsockname()[1]}"
    health = HostHealth("127.0.0.1:0", lambda: {"alpha-1": {"http": place}})
    await health.start()
    waiting = [asyncio.create_task(got(health, "/health/ready")) for _ in range(2)]
    workers = [await asked.get() for _ in waiting]
    reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
    assert (await reader.read()).startswith(b"HTTP/1.0 503"), "and before it has asked"
    writer.close()
    for worker in workers:
        worker.write(b"HTTP/1.0 200 OK\r\n\r\n")
        worker.close()
    assert [(await answer)[0] for answer in waiting] == [200, 200]
    assert (await got(health, "/health/live"))[0] == 200
    await health.stop()
    slow.close()


async def test_a_head_without_end_is_hung_up_on_and_no_incident() -> None:
    incidents: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: incidents.append(context))
    health = HostHealth("127.0.0.1:0", dict)
    await health.start()
    for said in (b"x" * 70_000, b"GET\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
        writer.write(said)
        assert await closed(reader)
        writer.close()
    del reader, writer
    gc.collect()
    assert (incidents, (await got(health, "/health/live"))[0]) == ([], 200)
    await health.stop()


async def test_no_address_no_port() -> None:
    health = HostHealth("", dict)
    await health.start()
    assert health.port == 0
    await health.stop()
