"""What every test shares: the event loop that the node runs on, no test that stands still, no silent skip in CI."""

import os
import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator, Mapping
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.watchdog import Watchdog

# A CI that starts us in the background has Ctrl-C ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of us.
settings.register_profile("ringpost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ringpost")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Watchdog(config))


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], AbstractEventLoop]]:
    """Async tests run on uvloop, as the node does."""
    return {"uvloop": uvloop.new_event_loop}


def _refuse_skip(report: Any) -> Any:
    """With RINGPOST_CI set a skip is a failure: there everything that a test needs can be installed."""
    if os.environ.get("RINGPOST_CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which RINGPOST_CI forbids: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _refuse_skip((yield))
