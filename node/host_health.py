"""Health of all workers of a host together, over HTTP: each is asked on its own port when somebody asks here.

    /health/live       the supervisor runs
    /health/ready      at least one worker may be sent clients: the shared address works
    /health/startup    all workers have started
    /health/storage    every worker says that of its shards

200 or 503; the JSON has what each worker answered, and where its own health and metrics are. GET and HEAD only; a
connection has one request, a few seconds, and a place among a few. Anybody may connect: who has not asked anything yet
gives way.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from ringpost.node.binding import StartError
from ringpost.node.options import split_address

CONNECTIONS_MAX = 64
_SECONDS_MAX = 3.0
_HEAD_BYTES_MAX = 16_384
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_ALL = ("/health/startup", "/health/storage")
READY = "/health/ready"
Workers = Mapping[str, Mapping[str, object]]


class HostHealth:
    """Serves from `start` to `stop`. `port` is 0 where there is no address."""

    def __init__(self, address: str, workers: Callable[[], Workers]) -> None:
        """`workers`: by node what it said when it began to serve, nothing while it does not."""
        self._address = address
        self._workers = workers
        self._server: asyncio.Server | None = None
        self._draining = False
        self._open: dict[asyncio.StreamWriter, bool] = {}  # the oldest first; whether it has asked
        self.port = 0

    async def start(self) -> None:
        """Raises StartError."""
        if not self._address:
            return
        host, port = split_address(self._address)
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=_HEAD_BYTES_MAX)
        except OSError as error:
            raise StartError(f"http_listen: cannot bind {self._address}: {error.strerror}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    def stop_being_ready(self) -> None:
        """The workers are about to stop."""
        self._draining = True

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX and not self._make_room():
            writer.write(_BUSY)  # fits into any socket's buffer
            writer.close()
            return
        self._open[writer] = False
        broken = (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        try:
            with contextlib.suppress(*broken):
                async with asyncio.timeout(2 * _SECONDS_MAX):
                    await self._serve(reader, writer)
        finally:
            self._open.pop(writer, None)
            _hang_up(writer)

    def _make_room(self) -> bool:
        """Whether one gave way that has not asked anything yet: the oldest."""
        silent = next((writer for writer, asked in self._open.items() if not asked), None)
        if silent is None:
            return False
        del self._open[silent]
        silent.transport.abort()
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self._open[writer] = True
        method, target, _ = head.split("\r\n", 1)[0].split(" ", 2)
        status, answer = await self._answer(method, urlsplit(target).path)
        body = json.dumps(answer).encode() + b"\n"
        lines = (
            f"HTTP/1.0 {status.value} {status.phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.transport.set_write_buffer_limits(0)
        writer.write("\r\n".join((*lines, "", "")).encode() + (body if method == "GET" else b""))
        await writer.drain()

    async def _answer(self, method: str, path: str) -> tuple[HTTPStatus, dict[str, object]]:
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, {"error": "GET and HEAD only"}
        workers = self._workers()
        places = {node: said.get("http", "") for node, said in workers.items()}
        if path == "/health/live":
            return HTTPStatus.OK, {"status": "SERVING"}
        if path != READY and path not in _ALL:
            return HTTPStatus.NOT_FOUND, {"error": "see /health/…; metrics are at each worker", "http": places}
        asked = await asyncio.gather(*(_ask(str(place), path) for place in places.values()))
        fine = not self._draining and any(asked) if path == READY else all(asked)
        words = {True: "SERVING", False: "NOT_SERVING"}
        found = {node: words[one] for node, one in zip(workers, asked, strict=True)}
        answer: dict[str, object] = {"status": words[fine], "workers": found, "http": places}
        return HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE, answer


def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Ends the connection now, also when its peer does not take what was written."""
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    else:
        writer.close()


async def _ask(address: str, path: str) -> bool:
    """Whether a worker says that it is well."""
    if not address:
        return False
    host, port = split_address(address)
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
