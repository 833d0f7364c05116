import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Ran]


def run_cli(
    *arguments: str,
    addr: str,
    home: Path,
    stdin: str = "",
    seconds: float = 60,
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """`ringpost …` as a user runs it: a process of its own, no terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "ringpost.client.cli", *arguments],
        input=stdin.encode(),
        capture_output=True,
        env={**os.environ, "RINGPOST_ADDR": addr, "RINGPOST_HOME": str(home), **(environment or {})},
        timeout=seconds,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def cli(ringpost_session_broker: Any, tmp_path: Path) -> Cli:
    """Runs commands against the session's broker."""

    def run(*arguments: str, stdin: str = "", seconds: float = 60) -> Ran:
        return run_cli(*arguments, addr=ringpost_session_broker.address, home=tmp_path, stdin=stdin, seconds=seconds)

    return run
