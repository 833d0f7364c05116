"""Which messages of a frame filters let through: looked at once for all who have the same filter, a little at a time.

However many subscriptions and groups have filters, and whatever there is to look at, the loop is held for about
`SLICE_NS` in a turn: who wants to look when that is used up waits in a line, of which one is called in each turn.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import NamedTuple, Protocol

from ringpost.node.filters.filter import Filter
from ringpost.node.groups.ranges import Range, append_range
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.shard.batch import Cutter
from ringpost.v1.publish_pb2 import Batch, Message

SLICE_NS = 1_000_000
CHUNK = 1_000  # messages of a large frame that are opened at a time
_STEP = 4  # messages between two looks at the clock
_OPENED_MAX, _OPENED_BYTES_MAX = 8, 512 << 10
_KNOWN_MAX = 256
RUNS_MAX = 1_000  # told at a time
_RUNS_HELD_MAX = 100_000  # some 120 bytes each


class Waiter(Protocol):
    """Who has something to look at."""

    def advanced(self) -> None:
        """It is the waiter's turn: it should ask again, in this turn of the loop or the next."""


class Sifted(NamedTuple):
    """Offsets first..last that are let through, ascending, of all that were looked at, which is those below `end`."""

    runs: list[Range]
    end: int

    def below(self, end: int) -> "Sifted":
        """What of it is below an offset."""
        if self.end <= end:
            return self
        return Sifted([(first, min(last, end - 1)) for first, last in self.runs if first < end], end)


class _Known:
    """What is known of a frame from `first` on, below `end`."""

    __slots__ = ("end", "first", "runs")

    def __init__(self, first: int) -> None:
        self.first = self.end = first
        self.runs: list[Range] = []

    def since(self, offset: int) -> Sifted:
        """From an offset on, `RUNS_MAX` runs at most."""
        at = bisect_left(self.runs, (offset, offset))
        if at and self.runs[at - 1][1] >= offset:
            at -= 1
        runs, end = self.runs[at : at + RUNS_MAX], self.end
        if at + RUNS_MAX < len(self.runs):
            end = self.runs[at + RUNS_MAX][0]
        if runs and runs[0][0] < offset:
            runs[0] = offset, runs[0][1]
        return Sifted(runs, end)


class Sieve:
    """One a node, on the loop's thread.

    Invariant: while anybody waits a turn is on its way, which calls the one who has waited longest.
    """

    def __init__(self, clock_ns: Callable[[], int] = perf_counter_ns) -> None:
        self.filtered = {"subscription": 0, "group": 0}  # messages not let through since the start, by who looked
        self._clock_ns = clock_ns
        self._deadline = 0
        self._opens = 0  # batches opened in this slice
        self._turn_comes = False
        self._called: Waiter | None = None  # whose turn it is
        self._begun = False  # whether that one has looked at something
        self._waiting: dict[Waiter, None] = {}
        self._known: dict[tuple[int, str], _Known] = {}
        self._runs_held = 0  # in all of them
        self._opened: dict[tuple[int, int], Sequence[Message]] = {}
        self._cutter = Cutter(8)

    def sift(self, waiter: Waiter, address: int, frame: CachedFrame, offset: int, wanted: Filter) -> Sifted | None:
        """What is known of the frame's messages from an offset on, looking further if nothing is and there is time.

        None: there was none; the waiter is told when to ask again.
        """
        key = address, wanted.text
        known = self._known.get(key)
        if known is not None and known.first <= offset < known.end:
            return known.since(offset)
        if not self._admitted(waiter):
            return None
        if known is None or offset != known.end:
            known = self._begin(key, offset)
        before, frame_end = len(known.runs), frame.base_offset + frame.count
        while known.end < frame_end:
            self._look(address, frame, known, wanted)
            if self._clock_ns() >= self._deadline:
                break
        self._runs_held += len(known.runs) - before
        while self._runs_held > _RUNS_HELD_MAX and len(self._known) > 1:
            self._forget(next(iter(self._known)))
        return known.since(offset)

    def _begin(self, key: tuple[int, str], offset: int) -> _Known:
        if key in self._known:
            self._forget(key)
        if len(self._known) >= _KNOWN_MAX:
            self._forget(next(iter(self._known)))
        known = self._known[key] = _Known(offset)
        return known

    def _forget(self, key: tuple[int, str]) -> None:
        self._runs_held -= len(self._known.pop(key).runs)

    def _admitted(self, waiter: Waiter) -> bool:
        """Whether there is time to look."""
        if self._called is waiter and not self._begun:
            self._begun = True
            self._begin_slice()
        elif self._called is waiter or not (self._waiting or self._called):
            if not self._turn_comes:
                self._begin_slice()
            elif self._clock_ns() >= self._deadline:
                self.wait(waiter)
                return False
        else:
            self.wait(waiter)
            return False
        self._come()
        return True

    def _begin_slice(self) -> None:
        self._deadline = self._clock_ns() + SLICE_NS
        self._opens = 0

    def wait(self, waiter: Waiter) -> None:
        """It is told when it is its turn."""
        self._waiting[waiter] = None
        self._come()

    def _come(self) -> None:
        if not self._turn_comes:
            self._turn_comes = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_comes = self._begun = False
        self._called = next(iter(self._waiting), None)
        if self._called is not None:
            del self._waiting[self._called]
            self._called.advanced()  # which asks before the turn is over, as that is to come behind it
            self._come()

    def _look(self, address: int, frame: CachedFrame, known: _Known, wanted: Filter) -> None:
        """At the rest of one chunk, as far as the time goes."""
        at = known.end - frame.base_offset
        chunk, inside = divmod(at, CHUNK)
        messages = self._open(address, frame, chunk)
        while inside < len(messages):
            for message in messages[inside : inside + _STEP]:
                if wanted.matches(message):
                    append_range(known.runs, known.end, known.end)
                known.end += 1
            inside += _STEP
            if self._clock_ns() >= self._deadline:
                break

    def messages(self, address: int, frame: CachedFrame, first: int, end: int) -> list[Message]:
        """Those from `first` on below `end`, which were just looked at."""
        found: list[Message] = []
        while first < end:
            chunk, inside = divmod(first - frame.base_offset, CHUNK)
            found += self._open(address, frame, chunk)[inside : inside + end - first]
            first = frame.base_offset + (chunk + 1) * CHUNK
        return found

    def _open(self, address: int, frame: CachedFrame, chunk: int) -> Sequence[Message]:
        messages = self._opened.get((address, chunk))
        if messages is not None:
            return messages
        body = frame.body
        if frame.count > CHUNK:
            first = chunk * CHUNK
            body = self._cutter.cut(address, body, first, min(first + CHUNK, frame.count) - 1)
        messages = Batch.FromString(body).messages
        # What was opened first is also looked at, or many who wait would open the same again and again.
        if not self._opens:
            self._deadline = max(self._deadline, self._clock_ns() + SLICE_NS // 2)
        self._opens += 1
        if len(body) <= _OPENED_BYTES_MAX:
            if len(self._opened) >= _OPENED_MAX:
                del self._opened[next(iter(self._opened))]
            self._opened[address, chunk] = messages
        return messages
