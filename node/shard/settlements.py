"""When groups write their SETTLE frames: at the end of the loop turn when it is quiet, every few ms when it is not."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ringpost.node.shard.deadlines import Later

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group


class Settlements:
    """Collects the groups that have something to store. `linger_us` is the least time between two rounds."""

    def __init__(
        self, clock: Callable[[], int], later: Later, soon: Callable[[Callable[[], None]], object], *, linger_us: int
    ) -> None:
        self._clock = clock
        self._later = later
        self._soon = soon
        self._linger_us = linger_us
        self._changed: list[Group] = []
        self._last_us = 0

    def changed(self, group: "Group") -> None:
        """The group has its first unstored settlement."""
        self._changed.append(group)
        if len(self._changed) > 1:
            return
        wait = self._last_us + self._linger_us - self._clock()
        if 0 < wait <= self._linger_us:
            self._later(wait / 1e6, self.flush)
        else:
            self._soon(self.flush)

    def flush(self) -> None:
        """Every such group writes now."""
        groups, self._changed = self._changed, []
        self._last_us = self._clock()
        for group in groups:
            group.flush()
