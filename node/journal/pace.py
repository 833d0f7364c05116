"""How long the journal's writer lets a group grow. Pure.

While little comes a group is written at once: whoever published waits for one fsync and nothing else. While bytes come
fast an fsync of each batch costs the node more than it gives: each is a write, a flush, a turn of the event loop and an
answer. A short pause joins several of them, which at such a load is a small part of the time that a batch takes anyway.
"""

from math import exp
from typing import Final

BUSY_BYTES_PER_S: Final = 64 << 20
_MEMORY_S: Final = 0.05


class Pace:
    """`linger_s`: always, for a group that was waited for; `busy_linger_s`: for any, while bytes come fast."""

    def __init__(self, linger_s: float, busy_linger_s: float) -> None:
        self._linger_s = linger_s
        self._busy_linger_s = busy_linger_s
        self._per_s = 0.0
        self._at = 0.0

    def wrote(self, size: int, now: float) -> None:
        """Event: a group of so many bytes is on disk; `now` in seconds of a monotone clock."""
        self._per_s = self._per_s * exp((self._at - now) / _MEMORY_S) + size / _MEMORY_S
        self._at = now

    def linger_s(self, now: float, *, waited: bool) -> float:
        """Seconds that the next group may grow; `waited`: the writer had nothing to do before it came."""
        busy = self._per_s * exp((self._at - now) / _MEMORY_S) >= BUSY_BYTES_PER_S
        return max(self._busy_linger_s if busy else 0.0, self._linger_s if waited else 0.0)
