"""Ctrl-C while a command's coroutine runs."""

import subprocess
import sys

SCRIPT = """
import asyncio, os, signal
from ringpost.client.cli.running import run_to_end

async def body():
    loop = asyncio.get_running_loop()
    due = loop.create_future()

    def timer():
        if not due.cancelled():
            os.kill(os.getpid(), signal.SIGINT)
            due.set_result(None)

    loop.call_soon(timer)
    try:
        await due
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)
        CLEANING

try:
    run_to_end(body())
except KeyboardInterrupt:
    print("interrupted")
"""


def _ran(cleaning: str) -> tuple[str, str]:
    code = SCRIPT.replace("CLEANING", cleaning)
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    return ended.stdout, ended.stderr


def test_it_cuts_into_nothing_that_runs() -> None:
    assert _ran("") == ("cleaned up\ninterrupted\n", "")


def test_a_second_one_does_not_wait_for_the_cleaning() -> None:
    cleaning = "loop.call_soon(os.kill, os.getpid(), signal.SIGINT); await asyncio.sleep(60)"
    assert _ran(cleaning) == ("cleaned up\ninterrupted\n", "")
