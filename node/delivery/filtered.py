"""An ephemeral subscription with a filter: a cursor that passes over what the filter does not let through."""

from collections import deque
from typing import TYPE_CHECKING

from ringpost.node.delivery.sources import Cursor, Wanted
from ringpost.node.filters.filter import Filter
from ringpost.node.groups.ranges import Range
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.sieve import Sifted

if TYPE_CHECKING:
    from ringpost.node.delivery.subscription import Subscription


class FilteredCursor(Cursor):
    """Invariant: everything below `offset` is sent, filtered out or missing; of what is from there to below `_looked`
    exactly `_runs` are let through, and `offset` is the first of those.
    """

    def __init__(self, channel: Channel, offset: int, wanted: Filter) -> None:
        super().__init__(channel, offset)
        self.filter = wanted
        self._looked = offset
        self._runs: deque[Range] = deque()

    def next(self, messages_max: int, now_us: int) -> Wanted | None:  # noqa: ARG002  # time is for leases
        if not self._runs:
            return None
        first, last = self._runs[0]
        return Wanted(first, min(last, first + messages_max - 1), 0, 0)

    @property
    def knows(self) -> bool:
        """Whether it is known what comes next."""
        return bool(self._runs)

    @property
    def behind(self) -> bool:
        """Whether there is something to look at, or to send."""
        return self.offset < self._channel.end_offset

    @property
    def at_gap(self) -> bool:
        """Whether what comes next is missing."""
        return self.offset < self._channel.first_offset or self._channel.lost_at(self.offset) is not None

    def unknown(self) -> Wanted | None:
        """What is to be looked at next; None at the end of the channel."""
        return super().next(1 << 62, 0)

    def learn(self, sifted: Sifted) -> int:
        """What was found out of `unknown`; returns how many messages were filtered out."""
        passed = sifted.end - self._looked - sum(last - first + 1 for first, last in sifted.runs)
        self._looked = sifted.end
        self._runs.extend(sifted.runs)
        self._settle()
        return passed

    def skip_gap(self) -> Range | None:
        missing = super().skip_gap()
        if missing is not None:
            while self._runs and self._runs[0][1] < self.offset:
                self._runs.popleft()
            if self._runs:
                self._runs[0] = max(self._runs[0][0], self.offset), self._runs[0][1]
            self._looked = max(self._looked, self.offset)
            self._settle()
        return missing

    def sent(self, last: int) -> None:
        end = self._runs[0][1]
        if last < end:
            self._runs[0] = last + 1, end
        else:
            self._runs.popleft()
        self._settle()

    def _settle(self) -> None:
        self.offset = self._runs[0][0] if self._runs else self._looked


def look_ahead(subscription: "Subscription", source: FilteredCursor, *, may_skip: bool) -> bool:
    """Finds the next message that is let through, if there is one, and time; False when there is nothing to send now.

    `may_skip`: whether a gap may be told now.
    """
    sieve = subscription.hub.reading.sieve
    while not source.knows:
        wanted = source.unknown()
        if wanted is None:
            return False
        found = subscription.find(wanted)
        if found is None:
            # What is lost is a gap, which begins where the look has come to; otherwise it is being read.
            if may_skip and subscription.skip_gaps():
                continue
            return False
        sifted = sieve.sift(subscription, *found, wanted.first, source.filter)
        if sifted is None:
            return False
        sieve.filtered["subscription"] += source.learn(sifted)
    return True
