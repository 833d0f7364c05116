"""Watches the event loop: how late it runs what is due."""

import asyncio
from collections.abc import Callable

from ringpost.node import log
from ringpost.node.health import Health

INTERVAL_S = 0.25
LIMIT_S = 1.0
CALM = 8


class LagGauge:
    """Turns lags into a verdict. Pure.

    One lag of `limit_s` or more is too much; only `calm` smaller ones in a row are well again.
    `lag_s` is the last lag, `lag_max_s` the greatest so far, both in seconds and at least 0.
    """

    def __init__(self, limit_s: float = LIMIT_S, calm: int = CALM) -> None:
        self._limit_s = limit_s
        self._calm = calm
        self._calm_left = 0
        self.lag_s = 0.0
        self.lag_max_s = 0.0

    @property
    def ok(self) -> bool:
        """Whether the loop keeps up."""
        return self._calm_left == 0

    def observe(self, lag_s: float) -> bool:
        """Takes one lag; answers whether `ok` has changed."""
        was_ok = self.ok
        self.lag_s = max(0.0, lag_s)
        self.lag_max_s = max(self.lag_max_s, self.lag_s)
        if self.lag_s >= self._limit_s:
            self._calm_left = self._calm
        elif self._calm_left:
            self._calm_left -= 1
        return self.ok != was_ok


async def watch_loop(
    health: Health, gauge: LagGauge, clock: Callable[[], float], interval_s: float = INTERVAL_S
) -> None:
    """Keeps the health part `loop` up to date until it is cancelled. `clock` is monotonic seconds."""
    health.set_part("loop", True)
    while True:
        due = clock() + interval_s
        await asyncio.sleep(interval_s)
        if gauge.observe(clock() - due):
            health.set_part("loop", gauge.ok, f"the event loop was late by {gauge.lag_s:.2f} s")
            log.warning("loop.late" if not gauge.ok else "loop.on_time", lag_s=round(gauge.lag_s, 3))
