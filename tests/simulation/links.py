"""Whom a process can reach: what it tells the store, by which the controller sees that a leader is cut off."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.etcd import View
    from tests.simulation.process import Process

TICK_US = 100_000
SILENCE_US = 2_500_000


class LinkWatch:
    """One a process; looks at each tick."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._answered: dict[str, int] = {}  # when another node last answered
        self._looked_us = process.now
        self._reporting = False

    def look(self) -> None:
        """Tells the store who has not answered for too long; who was frozen itself gives everybody time to."""
        process = self._process
        now, world, view = process.now, process.world, process.view
        slept, self._looked_us = now - self._looked_us - TICK_US, now
        for node in world.nodes:
            other = world.process(node)
            answers = other is not None and not other.frozen and world.net.reaches(process.node, node)
            self._answered[node] = now if answers else self._answered.get(node, now) + max(0, slept)
        if view is None or not process.session or self._reporting or process.node not in view.sessions:
            return
        late = (node for node, at in self._answered.items() if at + SILENCE_US <= now and node in view.sessions)
        unreachable = frozenset(late) - {process.node}
        if unreachable != view.unreachable.get(process.node, frozenset()):
            self._reporting = True
            report = partial(world.etcd.report, process.node, process.session, unreachable)
            world.etcd.call(process, report, self._reported)

    def _reported(self, _: Any, view: View | None) -> None:
        self._reporting = False
        if view is not None:
            self._process.on_view(view)
