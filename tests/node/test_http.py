"""Scrapes, probes, hostile clients and a clean end, on a real port."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from urllib.request import urlopen

import pytest

from ringpost.node.health import PARTS, Health
from ringpost.node.http import THREADS_MAX, HttpServer, LoopHung, Page, Pages, call_on_loop
from ringpost.node.metrics import Stats


class Node:
    """A server with what it shows."""

    def __init__(self, request_seconds_max: float = 10.0) -> None:
        self.health = Health()
        self.stats: Callable[[], Stats] = lambda: Stats(published_messages=42)
        loop = asyncio.get_running_loop()
        pages = Pages(loop, self.snapshot, self.health, loop_seconds_max=0.5)
        self.server = HttpServer(pages, "127.0.0.1", 0, request_seconds_max)
        self.port = self.server.start()

    def snapshot(self) -> Stats:
        return self.stats()

    def fetch(self, method: str, path: str) -> tuple[HTTPResponse, bytes]:
        """One request; blocks."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    async def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        response, body = await asyncio.to_thread(self.fetch, method, path)
        return response.status, body

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    yield made
    await made.server.stop()


async def test_a_scrape(node: Node) -> None:
    def scrape() -> tuple[str, str]:
        with urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=10) as response:
            return response.headers["Content-Type"], response.read().decode()

    kind, text = await asyncio.to_thread(scrape)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "ringpost_published_messages_total 42.0\n" in text
    assert "# HELP ringpost_channels Channels on this node.\n" in text
    assert "process_resident_memory_bytes" in text


async def test_the_snapshot_is_made_on_the_loops_thread(node: Node) -> None:
    seen: list[threading.Thread] = []

    def stats() -> Stats:
        seen.append(threading.current_thread())
        return Stats()

    node.stats = stats
    await node.get("/metrics")
    assert seen == [threading.current_thread()]


async def test_probes_follow_the_nodes_life(node: Node) -> None:
    async def states() -> dict[str, int]:
        return {name: (await node.get(f"/health/{name}"))[0] for name in ("live", "startup", "ready", "storage")}

    assert await states() == {"live": 200, "startup": 503, "ready": 503, "storage": 503}
    for part in PARTS:
        node.health.set_part(part, True)
    assert await states() == {"live": 200, "startup": 200, "ready": 200, "storage": 200}
    node.health.set_part("disk", False, "98 % used")
    node.health.drain()
    assert await states() == {"live": 200, "startup": 200, "ready": 503, "storage": 503}
    _, body = await node.get("/health/storage")
    assert json.loads(body)["parts"]["disk"] == {"ok": False, "why": "98 % used"}


@pytest.mark.parametrize("path", ["/metrics", "/health/live", "/health/ready"])
async def test_a_hung_loop_is_503_everywhere(node: Node, path: str) -> None:
    answered = threading.Event()
    answer: list[int] = []

    def ask() -> None:
        response, body = node.fetch("GET", path)
        answer.append(response.status)
        assert b"did not answer" in body
        answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    # Blocks the loop, and so the answer, on purpose.
    assert answered.wait(10)  # noqa: ASYNC210, RUF100
    thread.join()
    assert answer == [503]


async def test_a_snapshot_that_fails_is_500_without_its_text(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Stats:
        raise RuntimeError("secret")

    node.stats = broken
    status, body = await node.get("/metrics")
    assert status == 500
    assert b"secret" not in body
    assert any(record.msg == "http.failed" for record in caplog.records)


async def test_other_paths_are_404_and_name_the_pages(node: Node) -> None:
    for path in ("/", "/health", "/health/x", "/metrics/", "/..%2f"):
        status, body = await node.get(path)
        assert status == 404, path
        assert "/metrics" in json.loads(body)["pages"]
    assert (await node.get("/metrics?x=1"))[0] == 200


async def test_head_has_no_body_and_other_methods_are_refused(node: Node) -> None:
    response, body = await asyncio.to_thread(node.fetch, "HEAD", "/metrics")
    assert (response.status, body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response, _ = await asyncio.to_thread(node.fetch, method, "/metrics")
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_garbage_is_a_bad_request(node: Node) -> None:
    def send(data: bytes) -> bytes:
        with node.connect() as client:
            client.sendall(data)
            return client.makefile("rb").read()

    assert b"400" in await asyncio.to_thread(send, b"\x16\x03\x01 nonsense here now\r\n\r\n")
    assert b"414" in await asyncio.to_thread(send, b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n")
    assert (await node.get("/health/live"))[0] == 200


async def test_silent_clients_take_bounded_threads_and_end() -> None:
    before = threading.active_count()
    node = Node(request_seconds_max=0.5)
    silent = [await asyncio.to_thread(node.connect) for _ in range(THREADS_MAX * 3)]
    assert threading.active_count() - before <= THREADS_MAX * 2 + 3, "each with its timer; the server, and this test's"
    # Their time is over: the server hangs up.
    for client in silent:
        assert await asyncio.to_thread(client.recv, 1) == b""
        client.close()
    await node.server.stop()


async def test_while_all_threads_are_busy_with_requests_more_are_turned_away() -> None:
    node = Node()
    go_on = threading.Event()
    node.server._pages.page = lambda _: (go_on.wait(10), Page(HTTPStatus.OK, "text/plain", b"done"))[1]  # type: ignore[method-assign]
    asking = [await asyncio.to_thread(node.connect) for _ in range(THREADS_MAX)]
    for one in asking:
        one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    await asyncio.sleep(0.3)
    refused = await asyncio.to_thread(node.connect)
    assert b"503" in await asyncio.to_thread(refused.recv, 1000)
    go_on.set()
    for one in asking:
        assert b"200" in await asyncio.to_thread(one.recv, 1000)
        one.close()
    refused.close()
    await node.server.stop()


async def test_a_client_that_drips_is_cut_off() -> None:
    """Each byte comes in time, the request never ends."""
    node = Node(request_seconds_max=0.3)

    def drip() -> bool:
        end = time.monotonic() + 5.0
        with node.connect() as client:
            client.settimeout(0.02)
            while time.monotonic() < end:
                try:
                    client.sendall(b"a")
                    if client.recv(1) == b"":
                        return True
                except TimeoutError:
                    continue
                except ConnectionError:
                    return True
        return False

    assert await asyncio.to_thread(drip)
    await node.server.stop()


async def test_stopping_ends_connections_and_threads() -> None:
    before = set(threading.enumerate())
    node = Node()
    clients = [await asyncio.to_thread(node.connect) for _ in range(3)]
    await node.get("/health/live")
    await node.server.stop()
    await node.server.stop()
    for client in clients:
        client.close()
    left = {thread for thread in threading.enumerate() if thread.name.startswith(("ringpost-http", "Thread-"))} - before
    assert left == set()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(node.connect)


async def test_a_taken_port_is_an_error(node: Node) -> None:
    pages = Pages(asyncio.get_running_loop(), Stats, Health())
    with pytest.raises(OSError, match="in use"):
        HttpServer(pages, "127.0.0.1", node.port).start()


def test_a_closed_loop_is_a_hung_one() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(LoopHung, match="closed"):
        call_on_loop(loop, lambda: 1, 1.0)


async def test_what_the_function_raises_comes_back() -> None:
    loop = asyncio.get_running_loop()

    def broken() -> int:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await asyncio.to_thread(call_on_loop, loop, broken, 5.0)
    assert await asyncio.to_thread(call_on_loop, loop, lambda: 7, 5.0) == 7


async def test_connections_without_a_request_keep_no_probe_out(node: Node) -> None:
    silent = [node.connect() for _ in range(THREADS_MAX * 3)]
    try:
        for _ in range(5):
            assert (await node.get("/health/live"))[0] == 200
        # The oldest were hung up, one for each that came after them.
        silent[0].settimeout(5)
        assert await asyncio.to_thread(silent[0].recv, 1) == b""
    finally:
        for one in silent:
            one.close()
