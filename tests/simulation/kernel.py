"""Virtual time: events in order of time, in microseconds. What is equally early happens in order of its making."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Violation(AssertionError):  # noqa: N818
    """The world has seen what must never be."""


class Kernel:
    """The clock and the queue."""

    __slots__ = ("_count", "_heap", "now")

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when_us: int, call: Callable[..., None], *args: Any) -> None:
        """Calls at a time, now at the earliest."""
        self._count += 1
        heappush(self._heap, (when_us if when_us > self.now else self.now, self._count, call, args))

    def after(self, delay_us: int, call: Callable[..., None], *args: Any) -> None:
        """Calls after a delay."""
        self._count += 1
        heappush(self._heap, (self.now + delay_us, self._count, call, args))

    def run(self, until_us: int) -> None:
        """Lets time pass."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            self.now, _, call, args = heappop(heap)
            call(*args)
        self.now = until_us

    @property
    def events(self) -> int:
        """How many there were."""
        return self._count
