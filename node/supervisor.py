"""Runs the workers of one host: starts them, starts again what ends, passes signals on, says how the whole is.

The address that they share is held here by a socket that is bound and never listens: no other program gets the port
while workers come and go, and the kernel gives connections only to those who listen.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ringpost.node import log
from ringpost.node.binding import StartError
from ringpost.node.config import Config, ConfigError
from ringpost.node.host_health import HostHealth
from ringpost.node.options import split_address
from ringpost.node.workers import Restarts, Worker, workers_of

MODULE = "ringpost.node.worker"
_SPARE_S = 10.0  # what a worker gets beyond its own graces before it is killed


class Process:
    """One worker's process, again and again. `serving` is what it said of itself, empty while it does not serve."""

    def __init__(self, worker: Worker, command: Sequence[str]) -> None:
        self.worker = worker
        self.serving: dict[str, object] = {}
        self.pid = 0
        self.code = 0
        self._command = command
        self._restarts = Restarts()
        self._process: asyncio.subprocess.Process | None = None
        self._end = asyncio.Event()

    async def run_once(self, served: Callable[[], None]) -> float:
        """Runs it to its end; how long it served, in seconds. `served` is called once it does."""
        pipe = asyncio.subprocess.PIPE
        process = self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        self.pid = process.pid
        if self._end.is_set():
            process.terminate()
        begin = 0.0
        assert process.stdout is not None
        while line := await process.stdout.readline():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("event") == "serving":
                    self.serving, begin = said, time.monotonic()
                    served()
        self.code = await process.wait()
        self.serving, self.pid, self._process = {}, 0, None
        return time.monotonic() - begin if begin else 0.0

    async def keep(self, served: Callable[[], None]) -> None:
        """Runs it, again with a pause when it ends by itself, until `stop`; returns also when it never could start."""
        first = True
        while True:
            served_s = await self.run_once(served)
            if first and not served_s:
                return
            first = False
            pause_s = self._restarts.pause_s(served_s)
            if not self._end.is_set():
                log.warning("worker.ended", worker=self.worker.node, code=self.code, again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._end.wait()
                    return

    def stop(self) -> None:
        """SIGTERM, and it is not started again."""
        self._end.set()
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Nothing while it does not run."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class Supervisor:
    """One host's workers. `run` once."""

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        """`arguments` are those of the command line, which each worker gets, too."""
        self._config = config
        self._arguments = arguments
        self._stopped = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> int:
        """Exit code: 0 stopped as asked; 1 a worker ended badly meanwhile; 2 one of them could not start."""
        try:
            with contextlib.closing(hold_port(self._config.listen)) as held:
                return await self._run(held.getsockname()[1])
        except (ConfigError, StartError) as error:
            print(f"ringpost: {error}", file=sys.stderr)
            return 2

    async def _run(self, port: int) -> int:
        command = (sys.executable, "-m", MODULE, *self._arguments)
        workers = workers_of(self._config, port)
        self.processes = [Process(worker, (*command, *worker.flags)) for worker in workers]
        self._listen_to_signals()
        health = HostHealth(self._config.http_listen, lambda: {p.worker.node: p.serving for p in self.processes})
        await health.start()
        # 1. All at once: they find each other, and share what there is, as nodes of any cluster do.
        kept = [asyncio.ensure_future(process.keep(self._changed.set)) for process in self.processes]
        failed = not await self._all_serve(kept)
        # 2. Whole.
        if not failed and not self._stopped.is_set():
            print(json.dumps(self._serving_line(port, health.port)), flush=True)
            await self._stopped.wait()
        # 3. The end: all drain together, so that none is handed what another is about to give up.
        health.stop_being_ready()
        for process in self.processes:
            process.stop()
        grace_s = (self._config.drain_grace_ms * 2 + self._config.stop_grace_ms) / 1000 + _SPARE_S
        _, late = await asyncio.wait(kept, timeout=grace_s)
        for process in self.processes:
            process.signal(signal.SIGKILL)
        if late:
            await asyncio.wait(late)
        await health.stop()
        return 2 if failed else int(any(process.code for process in self.processes))

    async def _all_serve(self, kept: Sequence["asyncio.Future[None]"]) -> bool:
        """True when all have served; False when one ended before it did. Returns at once when asked to stop."""
        stopped = asyncio.ensure_future(self._stopped.wait())
        while not all(process.serving for process in self.processes):
            self._changed.clear()
            change = asyncio.ensure_future(self._changed.wait())
            watched: set[asyncio.Future[Any]] = {change, stopped, *kept}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
            if any(one.done() for one in kept):
                return False
            if self._stopped.is_set():
                break
        stopped.cancel()
        return True

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)

        def pass_on() -> None:
            for process in self.processes:
                if process.serving:
                    process.signal(signal.SIGHUP)

        loop.add_signal_handler(signal.SIGHUP, pass_on)

    def _serving_line(self, port: int, http_port: int) -> dict[str, object]:
        """What is said on standard output when all serve."""
        config = self._config
        return {
            "event": "serving",
            "node": config.node,
            "listen": f"{config.listen.rpartition(':')[0]}:{port}",
            "http": f"{config.http_listen.rpartition(':')[0]}:{http_port}" if http_port else "",
            "pid": os.getpid(),
            "workers": [process.serving for process in self.processes],
        }


def hold_port(address: str) -> socket.socket:
    """Takes the port for whoever of this user shares it, and for nobody else. Raises StartError.

    Port 0: a free one, which is then the socket's.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise OSError("this system cannot share a port among processes")
        with socket.socket(family, socket.SOCK_STREAM) as alone:
            # Without this another supervisor's port would be shared in silence.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise StartError(f"listen: cannot bind {address}: {error.strerror or error}") from error
    return held


def supervise(config: Config, arguments: Sequence[str]) -> int:
    """Runs until SIGTERM or SIGINT; the exit code."""
    log.configure(config.log_level, config.log_format)

    async def run() -> int:
        return await Supervisor(config, arguments).run()

    return asyncio.run(run())
