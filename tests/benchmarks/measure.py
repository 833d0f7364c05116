"""What the benchmark programs share: CPU of a process over a span, an own directory, one JSON object as the answer."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

SCRATCH = Path(__file__).resolve().parents[2] / ".benchmarks"


class Span:
    """Seconds, and CPU seconds of another process, from its making until `stop`."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._cpu_begin = self._cpu()
        self._begin = time.perf_counter()
        self.seconds = self.cpu_seconds = 0.0

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def stop(self) -> "Span":
        self.seconds = time.perf_counter() - self._begin
        self.cpu_seconds = self._cpu() - self._cpu_begin
        return self

    def per_s(self, count: int) -> float:
        return count / self.seconds

    def cpu_us(self, count: int) -> float:
        return self.cpu_seconds * 1e6 / count


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk of the repository: a temporary folder of the system may be memory."""
    SCRATCH.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=SCRATCH) as folder:
        yield Path(folder)


def payload(size: int) -> bytes:
    """Incompressible."""
    return os.urandom(size)


def report(figures: dict[str, Any]) -> None:
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in figures.items()}))


def machine() -> str:
    """Where and with what a figure was measured, in one line."""
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    versions = f"Python {platform.python_version()}, Ringpost {version('ringpost')}, grpcio {version('grpcio')}"
    return f"{os.cpu_count()} cores, {system}, {versions}"
