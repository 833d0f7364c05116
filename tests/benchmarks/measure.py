"""What the benchmark programs share: CPU of processes over a span, an own directory, one JSON object as the answer."""

import ctypes
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

SCRATCH = Path(__file__).resolve().parents[2] / ".benchmarks"
_LIBC = ctypes.CDLL(None, use_errno=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, also of those that have ended; exact to the scheduler's clock.

    Raises `ProcessLookupError`.
    """
    clock = ctypes.c_int()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(f"no process {pid}")
    return time.clock_gettime(clock.value)


class Span:
    """Seconds, and CPU seconds of other processes and of this one, from its making until `stop`."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._broker, self._client = self._cpu(), time.process_time()
        self._begin = time.perf_counter()
        self.seconds = self.cpu_seconds = self.client_seconds = 0.0

    def _cpu(self) -> float:
        return sum(map(cpu_seconds, self._pids))

    def stop(self) -> Self:
        self.seconds = time.perf_counter() - self._begin
        self.cpu_seconds = self._cpu() - self._broker
        self.client_seconds = time.process_time() - self._client
        return self

    def per_s(self, count: int) -> float:
        return count / self.seconds

    def cpu_us(self, count: int) -> float:
        return self.cpu_seconds * 1e6 / count


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk of the repository: a temporary folder of the system may be memory."""
    SCRATCH.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=SCRATCH, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def payload(size: int) -> bytes:
    """Incompressible."""
    return os.urandom(size)


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(v, 3) if isinstance(v, float) else v for name, v in figures.items()}


def report(figures: dict[str, Any]) -> None:
    print(json.dumps(rounded(figures)))


def machine(packages: Iterable[str] = ("ringpost", "grpcio")) -> str:
    """Where and with what a figure was measured, in one line."""
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}, {versions}"
