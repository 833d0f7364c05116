"""A durable group that keeps order per key (mode KEY_ORDERED), as a pure state machine over offsets.

It is a group like any other, and what is durable of it is the same. But only the lowest unsettled message of each key
is handed out, and only while it is not out already: so the next of a key goes out when the one before is settled, and
one that failed holds back its own key for as long as it waits. Messages without a key are free of order.

The group has to be told keys: `unknown` is the lowest offset whose key it wants to know next, `learn` tells. Nothing is
handed out before its key is known. That is soft: after a restart keys are learned again from `settled_below` on.
"""

from typing import Any

from ringpost.node.groups.changes import Lease, Retry
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keys import NONE, KeyQueues, Ready
from ringpost.node.groups.leases import Hold
from ringpost.node.groups.ranges import Range, RangeSet
from ringpost.node.groups.standing import Standing

LOOK_AHEAD = 100_000


class KeyedCore(GroupCore):
    """See the module. Invariants: whatever is leased or settling is known, and alone of its key so; the next of its
    key, unless older ones have come back since; `ready` holds exactly the messages that `take` may hand out, but for
    failed ones that became due since the last look.
    """

    def __init__(self, *, look_ahead: int = LOOK_AHEAD, **group: Any) -> None:
        """`look_ahead`: most unsettled messages whose keys are kept; may be passed by what is told at one time.

        `group`: as `GroupCore`.
        """
        self._look_ahead = look_ahead
        self._keys = KeyQueues()
        self.ready = Ready()
        self._known_end = 0  # all unsettled messages below are known, but for those
        self._reopened = RangeSet()  # that came back, and whose keys must be known before anything else goes out
        self._still_out = RangeSet()  # whose settlements were on their way when keys were forgotten
        super().__init__(**group)

    # --- keys

    def unknown(self, end_offset: int) -> int | None:
        """The lowest unsettled offset below the committed end whose key is not known; None while enough is known."""
        if self._reopened:
            return self._reopened.first
        if len(self._keys) >= self._look_ahead:
            return None
        self._known_end = self._settled.first_gap(self._known_end)
        return self._known_end if self._known_end < self._fresh_end(end_offset) else None

    @property
    def stalled(self) -> bool:
        """Whether nothing goes out until the key at `unknown` is known."""
        return bool(self._reopened)

    def learn(self, first: int, keys: list[int]) -> None:
        """The keys of the committed messages from `first` on; 0 for one without a key. What is known is passed over.

        `first` must not be above `unknown`.
        """
        assert first <= self._known_end, f"the keys from {self._known_end} to {first} would stay unknown"
        end = first + len(keys)
        if self._reopened:
            self._learn_again(first, keys)
        for low, high in self._settled.gaps(self._known_end, end - 1):
            for start, stop in self._kept_back.gaps(low, high) if self._kept_back else ((low, high),):
                for offset in range(start, stop + 1):
                    if self._keys.add(offset, keys[offset - first]) and not self._is_still_out(offset):
                        self._offer(offset)
        self._known_end = max(self._known_end, end)

    def _is_still_out(self, offset: int) -> bool:
        """Whether a settlement of the message is on its way since before the keys were forgotten."""
        return bool(self._still_out) and self._still_out.contains(offset) and self._leases.busy.contains(offset)

    def forget(self) -> None:
        """Keys are learned anew, because a filter is another one. There must be no leases."""
        self._forget()
        self._still_out = RangeSet(self._leases.busy)

    def keep_back(self, first: int, last: int) -> list[Range]:
        """The same as of any group, but for those whose keys are known: those are let through already."""
        wanted = [*self._reopened.intersect(first, last), (max(first, self._known_end), last)]
        ranges = [pair for low, high in wanted if low <= high for pair in super(KeyedCore, self).keep_back(low, high)]
        for pair in ranges:
            self._reopened.remove(*pair)
        return ranges

    def _give_back(self, first: int, last: int) -> list[Range]:
        ranges = super()._give_back(first, last)
        for low, high in ranges:
            if low < self._known_end:
                self._reopened.add(low, min(high, self._known_end - 1))
        return ranges

    def _learn_again(self, first: int, keys: list[int]) -> None:
        end = first + len(keys)
        for low, high in self._reopened.intersect(first, end - 1):
            for offset in range(low, high + 1):
                ready, withdrawn = self._keys.bring_back(offset, keys[offset - first], self._leases.busy.contains)
                if withdrawn != NONE:
                    self.ready.discard((withdrawn,))
                if ready != NONE:
                    self._offer(ready)
        self._reopened.remove(first, end - 1)

    def _forget(self) -> None:
        self._reopened.clear()
        self._keys.clear()
        self.ready.clear()
        self._still_out.clear()
        self._known_end = 0

    keeps_order = True

    def standing(self, offset: int) -> Standing:
        standing = super().standing(offset)
        first = self._keys.first_of(offset)
        if first not in (None, offset):
            return standing._replace(before=first)
        if standing.settled or (not self.stalled and (first is not None or offset < self._known_end)):
            return standing._replace(before=None)
        return standing._replace(before=self._reopened.first if self.stalled else self._known_end, key_known=False)

    # --- delivery

    def attach(self, consumer: int) -> None:
        super().attach(consumer)
        self.ready.attach(consumer)

    def detach(self, consumer: int) -> bool:
        self.ready.detach(consumer)
        freed = super().detach(consumer)
        if not self._leases.members and not self.in_flight:
            self._forget()  # memory for nobody
        return freed

    def share(self, consumer: int, end_offset: int, now_us: int) -> int:  # noqa: ARG002
        self._promote(now_us)
        of_all = -(-len(self.ready) // len(self._leases.members))
        return max(of_all, min(self.ready.count_for(consumer), self._own_max(consumer)))

    def preferred(self, consumer: int) -> int:
        return self.ready.count_for(consumer)

    def take(
        self,
        consumer: int,
        max_messages: int,
        end_offset: int,  # noqa: ARG002
        now_us: int,
    ) -> list[Lease]:
        """Leases up to `max_messages` that are the next of their keys and wait for nothing, in order of offset.

        First of the keys that the consumer had last, but of those no more than its part of all keys.
        """
        assert consumer in self._leases.members, f"consumer {consumer} is not attached"
        room = min(max_messages, self._max_in_flight - self.in_flight)
        if room <= 0 or self.stalled:
            return []
        self._promote(now_us)
        offsets = self.ready.take(consumer, room, self._own_max(consumer))
        self._keys.own(offsets, consumer)
        leases = self._runs(offsets)
        deadline_us = now_us + self._ack_deadline_us
        for first, last, attempt in leases:
            self._not_fresh.add(first, last)
            self._leases.grant(consumer, first, last, Hold(attempt, deadline_us))
        return leases

    def _own_max(self, consumer: int) -> int:
        """How many keys more the consumer may have before it has more than its part."""
        part = -(-self._keys.keys // len(self._leases.members))
        return max(0, part - self.in_flight_of(consumer))

    def _runs(self, offsets: list[int]) -> list[Lease]:
        """Messages that go out, as runs of neighbours; those that failed as far as they failed together."""
        runs: list[list[int]] = []
        for offset in offsets:
            if runs and runs[-1][1] == offset - 1:
                runs[-1][1] = offset
            else:
                runs.append([offset, offset])
        pieces = (piece for first, last in runs for piece in self._retries.failed.pieces(first, last))
        return [Lease(first, last, 1 if failed is None else failed.attempt + 1) for first, last, failed in pieces]

    def _promote(self, now_us: int) -> None:
        self._retries.promote(now_us, self._leases.busy)
        for first, last in self._retries.take_due(self._known_end):
            for offset in range(first, last + 1):
                if self._keys.is_next(offset):  # another's time comes when it is the next
                    self.ready.add(offset, self._keys.owner(offset))

    def _offer(self, offset: int) -> None:
        """The message has become the next of its key, or is free again: it may go out, unless it waits for its time."""
        if not self._retries.failed or self._retries.wake(offset, offset):
            self.ready.add(offset, self._keys.owner(offset))

    # --- what changes the next of a key

    def seek(self, offset: int) -> None:
        self._forget()
        super().seek(offset)

    def reopen(self, offset: int) -> None:
        if offset < self._known_end and self._settled.contains(offset):
            self._reopened.add(offset, offset)
        super().reopen(offset)

    def _close(self, first: int, last: int) -> int:
        newly = super()._close(first, last)
        if self._reopened:
            self._reopened.remove(first, last)
        gone, following = self._keys.remove(first, last)
        self.ready.discard(gone)
        for offset in following:
            self._offer(offset)
        return newly

    def _fail(self, retry: Retry) -> None:
        super()._fail(retry)
        known = self._keys.within(retry.first, retry.last)
        self.ready.discard(known)
        for offset in known:
            following = self._keys.returned(offset)
            if following not in (NONE, offset):
                self._offer(following)

    def _release(self, freed: list[Range]) -> bool:
        released = super()._release(freed)
        for first, last in freed:
            for offset in self._keys.within(first, last):
                following = self._keys.returned(offset)
                if following != NONE:
                    self._offer(following)
        return released
