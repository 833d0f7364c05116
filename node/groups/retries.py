"""Messages that failed before: how often, until when they wait, and which are due."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from ringpost.node.groups.changes import Failure, Lease, Retry
from ringpost.node.groups.ranges import Range, RangeMap, RangeSet

FAILURES_KEPT = 8


class Failed(NamedTuple):
    """Failed for the `attempt`th time; waits until `not_before_us`. `failures` are the latest ones, in their order."""

    attempt: int
    not_before_us: int
    failures: tuple[Failure, ...] = ()


class RetryTable:
    """The failures are durable and change only by `put` and `drop`; what is due is worked out from them.

    Invariant: a failed range that is not busy is either in `_due` or noted in `_delayed`.
    """

    def __init__(self) -> None:
        self.failed: RangeMap[Failed] = RangeMap()
        self._due = RangeSet()
        self._delayed: list[tuple[int, int, int]] = []  # heap of (not before, first, last); may name too much

    def __iter__(self) -> Iterator[Retry]:
        return (Retry(first, last, *failed) for first, last, failed in self.failed)

    def put(self, retry: Retry) -> None:
        """Records a failure. The attempt never falls, also when the failed delivery began before a seek."""
        self._due.remove(retry.first, retry.last)
        for first, last, before in self.failed.pieces(retry.first, retry.last):
            attempt, failures = retry.attempt, retry.failures
            if before is not None:
                attempt = max(attempt, before.attempt)
                failures = (*before.failures, *failures)[-FAILURES_KEPT:]
            self.failed.assign(first, last, Failed(attempt, retry.not_before_us, failures))
        heappush(self._delayed, (retry.not_before_us, retry.first, retry.last))

    def drop(self, first: int, last: int) -> None:
        """The messages are settled."""
        if self.failed:
            self.failed.remove(first, last)
            self._due.remove(first, last)

    def drop_all(self) -> None:
        self.failed.clear()
        self._due.clear()
        self._delayed.clear()

    def wake(self, first: int, last: int) -> list[Range]:
        """The messages are not busy any more: those that failed before wait again. Returns those that never did."""
        fresh = []
        for start, end, failed in self.failed.pieces(first, last):
            if failed is None:
                fresh.append((start, end))
            else:
                heappush(self._delayed, (failed.not_before_us, start, end))
        return fresh

    def promote(self, now_us: int, busy: RangeSet) -> None:
        """Finds what has become due."""
        while self._delayed and self._delayed[0][0] <= now_us:
            _, first, last = heappop(self._delayed)
            for start, end, failed in self.failed.items(first, last):
                if failed.not_before_us <= now_us:
                    for gap in busy.gaps(start, end):
                        self._due.add(*gap)

    def hand_out(self, limit: int) -> list[Lease]:
        """Takes the lowest due messages, `limit` at most, for their next delivery."""
        leases = []
        for first, last in self._due.head(limit):
            self._due.remove(first, last)
            leases += [Lease(start, end, failed.attempt + 1) for start, end, failed in self.failed.items(first, last)]
        return leases

    def take_due(self, end: int) -> list[Range]:
        """Takes out the due messages below `end`; who takes them sees to it that they go out."""
        due = self._due.intersect(0, end - 1) if self._due.count else []
        for first, last in due:
            self._due.remove(first, last)
        return due

    def next_due_us(self) -> int | None:
        """When the next waiting message becomes due; what is due already does not count."""
        while self._delayed and not self._waits(self._delayed[0]):
            heappop(self._delayed)
        return self._delayed[0][0] if self._delayed else None

    def _waits(self, entry: tuple[int, int, int]) -> bool:
        not_before_us, first, last = entry
        return any(failed.not_before_us == not_before_us for _, _, failed in self.failed.items(first, last))
