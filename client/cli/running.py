"""How a command runs its coroutine, and what Ctrl-C does to it."""

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run_to_end(body: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end. Ctrl-C cancels it, so that it can clean up; then, or at a second one, KeyboardInterrupt.

    The event loop itself tells of the signal: asyncio's own handler would cancel in the midst of whatever runs, such
    as a timer between its look whether it is still wanted and its answer.
    """
    if threading.current_thread() is not threading.main_thread():
        return uvloop.run(body)  # no signal ever gets there
    return uvloop.run(_interruptible(body))


async def _interruptible(body: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(body)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        loop.remove_signal_handler(signal.SIGINT)
        task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
