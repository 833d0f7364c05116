"""One run of the program under test."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Self

from ringpost.client.testing.conformance.contract import Broken, Printed, require

_FIRST_LINES, _LAST_LINES = 5, 20


class Program:
    """Started when entered; killed on leaving when it still runs then."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str | None], seconds: float) -> None:
        self.printed = Printed()
        self._command = list(command)
        self._environ = environ
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._threads = ThreadPoolExecutor(2)
        self._readers: list[asyncio.Future[None]] = []
        self._first_errors: list[str] = []
        self._last_errors: deque[str] = deque(maxlen=_LAST_LINES)
        self._news = asyncio.Event()

    @property
    def errors(self) -> str:
        """The beginning and the end of what it wrote to standard error."""
        return "".join((*self._first_errors, *self._last_errors))

    async def __aenter__(self) -> Self:
        environ = {**os.environ, **{name: value for name, value in self._environ.items() if value is not None}}
        for name in (name for name, value in self._environ.items() if value is None):
            environ.pop(name, None)
        # Not the event loop's own subprocesses: uvloop forks, and gRPC's threads do not survive that.
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
        self._readers = [self._reader(self._process.stdout, self._take), self._reader(self._process.stderr, self._note)]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            # With what it may have started: the program may be a script around the client.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        # What is cancelled here would leave its thread behind.
        await asyncio.wait(self._readers)
        await asyncio.to_thread(self._process.wait)
        self._threads.shutdown()

    def _reader(self, pipe: IO[bytes] | None, take: Callable[[str], None]) -> "asyncio.Future[None]":
        """Done at the end of the pipe, or when a line was refused."""
        assert pipe is not None
        loop = asyncio.get_running_loop()

        async def on_loop(line: str) -> None:
            take(line)

        def read() -> None:
            with pipe:
                for line in pipe:
                    asyncio.run_coroutine_threadsafe(on_loop(line.decode(errors="replace")), loop).result()

        reading = loop.run_in_executor(self._threads, read)
        reading.add_done_callback(lambda _: self._news.set())
        return reading

    def _take(self, line: str) -> None:
        self.printed.take(line)
        self._news.set()

    def _note(self, line: str) -> None:
        (self._first_errors if len(self._first_errors) < _FIRST_LINES else self._last_errors).append(line)

    async def until(self, holds: Callable[[Printed], bool], what: str) -> None:
        """Waits until what it printed is such. Raises `Broken` when it ends before, or takes too long."""
        reader = self._readers[0]
        try:
            async with asyncio.timeout(self._seconds):
                while not holds(self.printed):
                    self._news.clear()
                    if reader.done():
                        reader.result()
                        raise Broken(f"the program ended before {what}: {_short(self.errors)}")
                    await self._news.wait()
        except TimeoutError:
            raise Broken(f"after {self._seconds:g} s not yet {what}: {self._state()}") from None

    async def end(self) -> int:
        """Waits for its end; the exit code. Raises `Broken` when it goes on, or has printed nonsense."""
        assert self._process is not None
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.wait(self._readers)
                for reader in self._readers:
                    reader.result()
                return await asyncio.to_thread(self._process.wait)
        except TimeoutError:
            raise Broken(f"still runs after {self._seconds:g} s: {self._state()}") from None

    async def success(self) -> Printed:
        """Waits for its end, which must be with code 0; what it printed."""
        code = await self.end()
        require(code == 0, f"exit code {code}: {self._state()}")
        return self.printed

    async def failure(self, within: float) -> str:
        """Waits for its end, which must be with another code and soon; its standard error."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        code = await self.end()
        took = loop.time() - begin
        require(code != 0, "exit code 0 for an error that trying again cannot mend")
        require(took < within, f"gave up only after {took:.1f} s: such an error is not worth another try")
        return self.errors

    def _state(self) -> str:
        done = self.printed
        counts = f"{len(done.stored)} stored, {len(done.got)} received, {len(done.acked)} acked"
        return f"{counts}; standard error: {_short(self.errors)}"


def _short(errors: str) -> str:
    text = errors.strip()
    return (text if len(text) < 1_200 else f"{text[:600]} … {text[-600:]}") or "empty"
