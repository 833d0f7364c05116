"""The message ids of scheduled batches, of a channel that deduplicates by them. Pure.

Such a batch has no offset yet, so its ids are held beside those of the channel, at places of their own: how many
scheduled messages came before, since there are ids. They count from when it was scheduled, not from when it is due.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ringpost.node.shard.seen_ids import SeenIds


class ScheduledRun(NamedTuple):
    """The ids of one scheduled batch."""

    time_us: int
    due_us: int
    ids: tuple[bytes, ...]


class ScheduledIds:
    """Invariant: `_dues` has place and time of each run in `_seen`; places below `_committed` are committed."""

    __slots__ = ("_committed", "_dues", "_end", "_seen")

    def __init__(self, runs: Iterable[ScheduledRun] = ()) -> None:
        """`runs` are committed."""
        self._seen = SeenIds()
        self._dues: deque[tuple[int, int]] = deque()
        self._end = self._committed = 0
        for run in runs:
            self.note(*run)
        self._committed = self._end

    def __len__(self) -> int:
        return len(self._seen)

    def find(self, ids: Sequence[bytes], since_us: int) -> int | None:
        """When the batch that has these ids is due, or was; None, or raises, as `SeenIds.find`."""
        place = self._seen.find(ids, since_us)
        if place is None:
            return None
        return self._dues[bisect_right(self._dues, place, key=lambda due: due[0]) - 1][1]

    def note(self, time_us: int, due_us: int, ids: tuple[bytes, ...]) -> None:
        """A batch is appended."""
        if any(ids):
            self._dues.append((self._end, due_us))
        self._seen.note(time_us, self._end, ids)
        self._end += len(ids)

    def commit(self, count: int, until_us: int) -> None:
        """So many more messages are committed: lets go of what was stored until a time, and the oldest of too many."""
        self._committed += count
        self.let_go(until_us)

    def let_go(self, until_us: int) -> None:
        """The same without news."""
        self._seen.let_go(until_us, self._committed)
        while len(self._dues) > self._seen.run_count:
            self._dues.popleft()

    def runs(self) -> Iterator[ScheduledRun]:
        """What is held and committed."""
        dues = dict(self._dues)
        for run in self._seen.runs(self._committed):
            yield ScheduledRun(run.time_us, dues[run.first], run.ids)
