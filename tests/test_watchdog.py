"""No test can stand still for ever, also not on uvloop."""

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import uvloop
from tests.watchdog import Watchdog

def pytest_configure(config):
    config.pluginmanager.register(Watchdog(config))

def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop}
"""
STANDS = """
import asyncio

async def waits_for_ever():
    await asyncio.Event().wait()

def test_that_fails():
    assert "this" == "that"

async def test_that_stands_still():
    await asyncio.gather(waits_for_ever())
"""


def test_a_test_that_stands_still_is_ended_and_tells_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_stands.py").write_text(STANDS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("PYTEST_ADDOPTS", None)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "test_stands.py::test_that_stands_still took longer than 1 s" in ended.stderr
    assert "await asyncio.Event().wait()" in ended.stderr
    assert "assert 'this' == 'that'" in ended.stderr
    assert "Thread" in ended.stderr
