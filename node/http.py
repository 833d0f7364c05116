"""Metrics and health over HTTP, on a port and threads of their own.

    /metrics           Prometheus
    /health/live       is the event loop alive?
    /health/ready      may clients come?
    /health/startup    is recovery over?
    /health/storage    is every shard well?

200 when SERVING, 503 when not; JSON says why. Every answer is made on the event loop's thread, so a loop that hangs
shows as 503 here, too. GET and HEAD only; a connection has one request, a few seconds, and one of a few threads.
Anybody may connect, and a probe that is not answered gets the node restarted: who has not asked anything yet gives way.
"""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from ringpost.node import log
from ringpost.node.health import Health
from ringpost.node.metrics import CONTENT_TYPE, Exposition, Stats

THREADS_MAX = 8
REQUEST_SECONDS_MAX = 10.0
LOOP_SECONDS_MAX = 2.0
_HANG_UP_SECONDS_MAX = 1.0
HEALTH_PATHS = {f"/health/{service}": service for service in ("live", "ready", "startup", "storage")}

_JSON = "application/json"
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
T = TypeVar("T")


class LoopHung(Exception):  # noqa: N818
    """The event loop did not answer in time, or is closed."""


class Page(NamedTuple):
    """One answer."""

    status: HTTPStatus
    content_type: str
    body: bytes


def call_on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], T], seconds_max: float) -> T:
    """Runs a short function on the loop's thread, from another one, and waits. Raises LoopHung, or what it raises."""
    result: Future[T] = Future()

    def run() -> None:
        # The caller may have given up by now.
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(function())
            except Exception as error:
                result.set_exception(error)

    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError as error:
        raise LoopHung("the event loop is closed") from error
    done, _ = wait((result,), seconds_max)
    if not done:
        result.cancel()
        raise LoopHung(f"the event loop did not answer within {seconds_max:g} s")
    return result.result()


class Pages:
    """What is answered to a path. Called on the HTTP threads; `snapshot` runs on the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        snapshot: Callable[[], Stats],
        health: Health,
        loop_seconds_max: float = LOOP_SECONDS_MAX,
    ) -> None:
        self._loop = loop
        self._snapshot = snapshot
        self._health = health
        self._seconds_max = loop_seconds_max
        self._exposition = Exposition()

    def page(self, path: str) -> Page:
        """The answer to GET `path`; never raises."""
        try:
            if path == "/metrics":
                stats = call_on_loop(self._loop, self._snapshot, self._seconds_max)
                return Page(HTTPStatus.OK, CONTENT_TYPE, self._exposition.render(stats))
            if service := HEALTH_PATHS.get(path):
                report = call_on_loop(self._loop, lambda: self._health.report(service), self._seconds_max)
                serving = report["status"] == "SERVING"
                return _json(HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE, report)
        except LoopHung as error:
            log.warning("http.loop_hung", path=path)
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "NOT_SERVING", "why": str(error)})
        except Exception as error:
            log.error("http.failed", exception=error, path=path)
            return _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "see the node's log"})
        return _json(HTTPStatus.NOT_FOUND, {"error": "no such page", "pages": ["/metrics", *HEALTH_PATHS]})


def _json(status: HTTPStatus, content: dict[str, Any]) -> Page:
    return Page(status, _JSON, json.dumps(content).encode() + b"\n")


class _Handler(BaseHTTPRequestHandler):
    server_version = "ringpost"
    sys_version = ""
    # Of one read; the whole request is bounded by the server's timer.
    timeout = REQUEST_SECONDS_MAX

    def parse_request(self) -> bool:
        """Its head is here; from now on the connection gives way to no other."""
        parsed = super().parse_request()
        cast(_Server, self.server).asked(self.connection)
        return parsed

    def do_GET(self) -> None:
        page = cast(_Server, self.server).pages.page(urlsplit(self.path).path)
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("http.request", line=format % args)


class _Server(ThreadingHTTPServer):
    """Bounded: of THREADS_MAX connections the oldest without a request gives way to a new one.

    Where all have asked, the new one is turned away at once.
    """

    daemon_threads = False
    block_on_close = True
    allow_reuse_port = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], pages: Pages, request_seconds_max: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.pages = pages
        self._request_seconds_max = request_seconds_max
        self._slots = threading.BoundedSemaphore(THREADS_MAX)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, bool] = {}  # the oldest first; whether it has asked, or was hung up
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the resolver for the machine's name, which may take seconds and is of no use.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not (self._slots.acquire(blocking=False) or self._make_room()):
            with contextlib.suppress(OSError):
                request.settimeout(0)
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        with self._lock:
            self._open[request] = False
        super().process_request(request, client_address)

    def asked(self, request: socket.socket) -> None:
        """The request is here. Called on the connection's thread."""
        with self._lock:
            if request in self._open:
                self._open[request] = True

    def _make_room(self) -> bool:
        """Whether a slot was taken from who has not asked anything yet."""
        with self._lock:
            silent = next((request for request, asked in self._open.items() if not asked), None)
            if silent is None:
                return False
            self._open[silent] = True
            _hang_up(silent)
        return self._slots.acquire(timeout=_HANG_UP_SECONDS_MAX)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # A client that sends a byte now and then would pass every timeout of a single read.
        deadline = threading.Timer(self._request_seconds_max, _hang_up, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            deadline.join()  # at once: it waits for nothing any more
            with self._lock:
                self._open.pop(request, None)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("http.connection_broke", client=str(client_address[0]))

    def hang_up(self) -> None:
        """Ends all connections."""
        with self._lock:
            for request in self._open:
                _hang_up(request)


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class HttpServer:
    """Serves `Pages` on (host, port); port 0 is a free one."""

    def __init__(self, pages: Pages, host: str, port: int, request_seconds_max: float = REQUEST_SECONDS_MAX) -> None:
        self._pages = pages
        self._address = (host, port)
        self._request_seconds_max = request_seconds_max
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Binds and serves; answers the bound port. Raises OSError."""
        self._server = _Server(self._address, self._pages, self._request_seconds_max)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="ringpost-http", daemon=True
        )
        self._thread.start()
        return self._server.server_port

    async def stop(self) -> None:
        """Ends all connections and threads. Idempotent."""
        if self._server is not None:
            # In a thread, because requests that are being answered wait for the loop.
            await asyncio.to_thread(self._stop, self._server)
            self._server = None

    def _stop(self, server: _Server) -> None:
        server.shutdown()
        server.hang_up()
        server.server_close()
        if self._thread is not None:
            self._thread.join()
