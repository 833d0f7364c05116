"""One timer for all groups: wakes each when its next lease or retry is due."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Protocol

from ringpost.node import log

Later = Callable[[float, Callable[[], None]], "Handle"]  # delay in seconds, what to call


class Handle(Protocol):
    """What `asyncio.loop.call_later` returns."""

    def cancel(self) -> None:
        """It will not be called."""


class Sleeper(Protocol):
    """Somebody to wake. `wake_at_us` belongs to `Deadlines`: 0, or when it is going to be woken."""

    wake_at_us: int

    def wake(self, now_us: int) -> None:
        """It is time; may call `Deadlines.set` again."""


class Deadlines:
    """A heap with lazily dropped entries. Precision is a millisecond: many sleepers share a wake-up."""

    def __init__(self, clock: Callable[[], int], later: Later) -> None:
        self._clock = clock
        self._later = later
        self._heap: list[tuple[int, int, Sleeper]] = []
        self._order = count()
        self._handle: Handle | None = None
        self._handle_at_us = 0
        self.closed = False

    def set(self, sleeper: Sleeper, due_us: int) -> None:
        """Wakes the sleeper at `due_us` unless it is going to be woken earlier anyway; nobody once this is closed."""
        if self.closed:
            return
        if sleeper.wake_at_us and sleeper.wake_at_us <= due_us:
            return
        sleeper.wake_at_us = due_us
        heapq.heappush(self._heap, (due_us, next(self._order), sleeper))
        self._arm()

    def close(self) -> None:
        """Wakes nobody any more."""
        self.closed = True
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if not self._heap:
            return
        due = self._heap[0][0]
        if self._handle is not None:
            if self._handle_at_us <= due:
                return
            self._handle.cancel()
        self._handle_at_us = due
        self._handle = self._later(max(due - self._clock(), 0) / 1e6 + 0.001, self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, sleeper = heapq.heappop(self._heap)
            if sleeper.wake_at_us == due:
                sleeper.wake_at_us = 0
                try:
                    sleeper.wake(now)
                except Exception as error:  # a fault of ours must not stop the timer of all others
                    log.error("deadline.incident", exception=error)
        self._arm()
