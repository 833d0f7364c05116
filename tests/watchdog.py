"""What a run of tests tells at once: each failure, and where a test stood that took too long, whose process is ended.

pytest-timeout's own way, an exception out of a signal's handler, does not end a test on uvloop: the loop catches
what a handler raises. And a run that is cut off must not take with it what it had found.
"""

import asyncio
import faulthandler
import gc
import os
import threading
from typing import Any

import psutil
import pytest


class Watchdog:
    """A plugin of pytest that writes to standard error as it was before pytest captured it."""

    def __init__(self, config: pytest.Config) -> None:
        self._out = os.fdopen(os.dup(2), "w")
        self._beside_others = hasattr(config, "workerinput")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._beside_others:
            print(f"\n{report.nodeid} failed in {report.when}: {report.longreprtext}", file=self._out, flush=True)

    def pytest_timeout_set_timer(self, item: Any, settings: Any) -> bool:
        """In the place of pytest-timeout's timer, with its limits."""
        timer = threading.Timer(settings.timeout, self._end, (item.nodeid, settings.timeout))
        timer.daemon = True

        def cancel() -> None:
            timer.cancel()
            timer.join()

        item.cancel_timeout = cancel
        timer.start()
        return True

    def _end(self, test: str, limit_s: float) -> None:
        print(f"\nTimeout: {test} took longer than {limit_s:g} s. Its tasks:", file=self._out)
        for task in (each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()):
            task.print_stack(file=self._out)
        print("Its threads:", file=self._out, flush=True)
        faulthandler.dump_traceback(self._out)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)
