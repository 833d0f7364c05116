"""Who settled what lately, as far as that costs next to nothing: a few entries for each group, in memory only."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from ringpost.node.groups.ranges import Range

KEPT = 16
RANGES_MAX = 16


class Settler(NamedTuple):
    """`consumer` None: somebody without a stream. `rejected`: otherwise acked."""

    time_us: int
    consumer: str | None
    rejected: bool


class Recent:
    """The latest `KEPT` settlements of up to `RANGES_MAX` ranges each; what is not among them is not remembered."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: deque[tuple[Settler, tuple[Range, ...]]] | None = None  # most groups of a start never settle

    def add(self, settler: Settler, ranges: Iterable[Range]) -> None:
        """These have been settled, durably."""
        kept = tuple(ranges)
        if 0 < len(kept) <= RANGES_MAX:
            if self._entries is None:
                self._entries = deque(maxlen=KEPT)
            self._entries.append((settler, kept))

    def find(self, offset: int) -> Settler | None:
        """Who settled it last, None when that is not remembered."""
        return next(
            (
                settler
                for settler, ranges in reversed(self._entries or ())
                if any(first <= offset <= last for first, last in ranges)
            ),
            None,
        )

    def forget(self) -> None:
        """What was settled is pending again, or was settled in another way."""
        self._entries = None
