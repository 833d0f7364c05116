"""When a loop counts as late."""

import asyncio
import contextlib

import pytest

from ringpost.node.health import Health
from ringpost.node.watch import LagGauge, watch_loop


def test_one_great_lag_is_too_much_and_calm_is_well_again() -> None:
    gauge = LagGauge(limit_s=1.0, calm=3)
    assert [gauge.observe(lag) for lag in (0.1, 0.9, 1.0)] == [False, False, True]
    assert not gauge.ok
    assert [gauge.observe(lag) for lag in (0.1, 0.1, 0.1)] == [False, False, True]
    assert gauge.ok
    assert (gauge.lag_s, gauge.lag_max_s) == (0.1, 1.0)


def test_another_lag_begins_the_calm_again() -> None:
    gauge = LagGauge(limit_s=1.0, calm=2)
    assert [gauge.observe(lag) for lag in (2.0, 0.0, 5.0, 0.0)] == [True, False, False, False]
    assert not gauge.ok
    assert gauge.observe(0.0)


def test_a_timer_that_is_early_is_not_late() -> None:
    gauge = LagGauge()
    gauge.observe(-0.5)
    assert gauge.lag_s == 0.0


async def test_the_watcher_tells_health() -> None:
    """A clock that jumps stands for a loop that hung."""
    health = Health()
    changes: list[dict] = []
    heard = asyncio.Event()
    # Due times and arrivals in turn: on time, then 5 s late, then on time.
    times = iter([0.0, 0.001, 1.0, 6.0] + [7.0] * 100)

    class Spy(Health):
        def set_part(self, name: str, ok: bool, why: str = "") -> None:
            changes.append({"name": name, "ok": ok, "why": why})
            if len(changes) == 3:
                heard.set()

    health = Spy()
    task = asyncio.create_task(watch_loop(health, LagGauge(calm=2), lambda: next(times), interval_s=0.0))
    await asyncio.wait_for(heard.wait(), 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert [(change["name"], change["ok"]) for change in changes] == [("loop", True), ("loop", False), ("loop", True)]
    assert "late by 5.00 s" in changes[1]["why"]


@pytest.mark.parametrize("lags", [[0.0] * 100, [0.99] * 100])
def test_small_lags_change_nothing(lags: list[float]) -> None:
    gauge = LagGauge()
    assert not any(gauge.observe(lag) for lag in lags)
    assert gauge.ok
