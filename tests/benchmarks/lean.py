"""The lean load generator: builds it, and runs load jobs through it or through the Python clients."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.benchmarks.job import Found, Job
from tests.benchmarks.servers import Server

ROOT = Path(__file__).resolve().parents[2]
CRATE = Path(__file__).resolve().parent / "load"
PYTHON, LEAN = "python", "lean"


class JobFailed(RuntimeError):  # noqa: N818
    """A load generator ended with an error; its output is the text."""


def build() -> Path | None:
    """The program, built; None, and a line that says why, where that is not possible. The first build takes minutes."""
    if shutil.which("cargo") is None:
        print("cargo is not on the PATH: the lean column is left out. It needs Rust 1.88 or newer")
        return None
    program = CRATE / "target" / "release" / "ringpost-load"
    print(
        "building the lean load generator (minutes, the first time)" if not program.exists() else "", end="", flush=True
    )
    command = ("cargo", "build", "--quiet", "--release", "--target-dir", str(CRATE / "target"))
    done = subprocess.run(command, cwd=CRATE, check=False, capture_output=True, text=True)
    print()
    if done.returncode:
        print(f"the lean load generator does not build, its column is left out:\n{done.stderr[-2000:]}")
        return None
    return program


def run(column: str, jobs: Iterable[Job], server: Server, name: str) -> list[Found]:
    """Runs the jobs one after the other in one process, each on a channel of its own. Raises `JobFailed`."""
    filled = [
        replace(job, address=server.address, pids=server.pids, channel=f"bench.{name}.{number}")
        for number, job in enumerate(jobs)
    ]
    command = _command(column)
    given = json.dumps([asdict(job) for job in filled])
    done = subprocess.run((*command, given), check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(lines) != len(filled):
        failed = filled[min(len(lines), len(filled) - 1)]
        raise JobFailed(f"{column} {failed}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}")
    return [Found(**line) for line in lines]


def _command(column: str) -> Sequence[str]:
    if column == LEAN:
        return (str(CRATE / "target" / "release" / "ringpost-load"),)
    return (sys.executable, "-m", "tests.benchmarks.clients")
