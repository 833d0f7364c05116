"""Which message is the next of its key, and which of those may go out; worked out anew after each restart.

A key is a number other than 0 (a hash: two keys with one hash are kept in order together); 0 is no key.
"""

from bisect import insort
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

ANYBODY = -1  # no consumer has this number
NONE = -1  # no message
_COMPACT_MIN = 32


class _Queue:
    """The known messages of one key: `offsets[at:]`, ascending, but for `dead` or fewer of them that are settled.

    `out` is one that is out although older ones have come back; NONE: there is no such one. Nothing else of the key
    goes out until it has come back or is settled. Invariant: `offsets[at]` is not settled.
    """

    __slots__ = ("at", "dead", "key", "offsets", "out", "owner")

    def __init__(self, key: int, offset: int) -> None:
        self.key = key
        self.offsets = [offset]
        self.at = 0
        self.dead = 0
        self.out = NONE
        self.owner = ANYBODY


# In place of a queue for messages without a key: each is its own first one.
_FREE = _Queue(0, -1)


class KeyQueues:
    """The unsettled messages whose keys are known, by key. Offsets are added in ascending order; some come back."""

    def __init__(self) -> None:
        self._known: dict[int, _Queue] = {}
        self._queues: dict[int, _Queue] = {}

    def __len__(self) -> int:
        """Number of known messages."""
        return len(self._known)

    @property
    def keys(self) -> int:
        """Number of keys that have a known message."""
        return len(self._queues)

    def clear(self) -> None:
        self._known.clear()
        self._queues.clear()

    def add(self, offset: int, key: int) -> bool:
        """A message above all that were added before; True when no other of its key comes first."""
        if not key:
            self._known[offset] = _FREE
            return True
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = self._known[offset] = _Queue(key, offset)
            return True
        queue.offsets.append(offset)
        self._known[offset] = queue
        return False

    def bring_back(self, offset: int, key: int, is_out: Callable[[int], bool]) -> tuple[int, int]:
        """One that was settled is not any more: which may go out now, and which instead of that may not; or NONE."""
        queue = self._queues.get(key)
        if not key or queue is None:
            self.add(offset, key)
            return offset, NONE
        self._tidy(queue)
        before = queue.offsets[0]
        insort(queue.offsets, offset)
        self._known[offset] = queue
        if queue.out != NONE or before < offset:
            return NONE, NONE
        if is_out(before):
            queue.out = before
            return NONE, NONE
        return offset, before

    def returned(self, offset: int) -> int:
        """A known message is not out any more, nor settled: which of its key may go out now; NONE if it was not out."""
        queue = self._known[offset]
        if queue is _FREE:
            return offset
        if queue.out == offset:
            queue.out = NONE
        elif queue.out != NONE or queue.offsets[queue.at] != offset:
            return NONE
        return queue.offsets[queue.at]

    def remove(self, first: int, last: int) -> tuple[list[int], list[int]]:
        """first..last are settled: which known ones that were, and which thereby became the next of their keys."""
        gone = self.within(first, last)
        following: list[int] = []
        for offset in gone:
            queue = self._known.pop(offset)
            if queue is _FREE:
                continue
            offsets, at = queue.offsets, queue.at
            if offsets[at] != offset:
                queue.dead += 1
                if queue.out == offset:
                    queue.out = NONE
                    following.append(offsets[at])
                self._compact(queue)
            elif at + 1 == len(offsets):
                del self._queues[queue.key]
            else:
                self._advance(queue, following)
        if len(gone) > 1:  # of one key perhaps, and each in its turn the next
            following = [offset for offset in following if offset in self._known]
        return gone, following

    def _advance(self, queue: _Queue, following: list[int]) -> None:
        """The first one of several is settled."""
        offsets, at = queue.offsets, queue.at + 1
        while at < len(offsets) and offsets[at] not in self._known:
            at += 1
        if at == len(offsets):
            del self._queues[queue.key]
            return
        if queue.out == NONE:
            following.append(offsets[at])
        elif queue.out == offsets[at]:
            queue.out = NONE
        queue.at = at
        self._compact(queue)

    def _compact(self, queue: _Queue) -> None:
        gone = queue.at + queue.dead
        if gone > _COMPACT_MIN and 2 * gone > len(queue.offsets):
            self._tidy(queue)

    def _tidy(self, queue: _Queue) -> None:
        queue.offsets = [offset for offset in queue.offsets[queue.at :] if offset in self._known]
        queue.at = queue.dead = 0

    def is_next(self, offset: int) -> bool:
        """Whether the message is known and no other of its key comes first, or is out."""
        queue = self._known.get(offset)
        if queue is None or queue is _FREE:
            return queue is not None
        return queue.out == NONE and queue.offsets[queue.at] == offset

    def first_of(self, offset: int) -> int | None:
        """The one of the message's key that goes first, or is out; perhaps itself. None when it is not known."""
        queue = self._known.get(offset)
        if queue is None:
            return None
        if queue is _FREE:
            return offset
        return queue.offsets[queue.at] if queue.out == NONE else queue.out

    def within(self, first: int, last: int) -> list[int]:
        """The known ones of first..last, ascending."""
        if last - first < len(self._known):
            known = self._known
            return [offset for offset in range(first, last + 1) if offset in known]
        return sorted(offset for offset in self._known if first <= offset <= last)

    def owner(self, offset: int) -> int:
        """The consumer that had the known message's key last; ANYBODY when none had, or without a key."""
        return self._known[offset].owner

    def own(self, offsets: Iterable[int], consumer: int) -> None:
        """The consumer has the keys of these known messages now."""
        for offset in offsets:
            queue = self._known[offset]
            if queue is not _FREE:
                queue.owner = consumer


class Ready:
    """Messages that may go out, the lowest first, each put by for the consumer that is preferred for it.

    Invariant: every offset of `_offsets` is in a heap. Heaps may name more: what was withdrawn, or put by twice.
    """

    def __init__(self) -> None:
        self._offsets: set[int] = set()
        self._heaps: dict[int, list[int]] = {ANYBODY: []}  # by consumer

    def __len__(self) -> int:
        return len(self._offsets)

    def clear(self) -> None:
        self._offsets.clear()
        for heap in self._heaps.values():
            heap.clear()

    def attach(self, consumer: int) -> None:
        self._heaps[consumer] = []

    def detach(self, consumer: int) -> None:
        """What was put by for the consumer is for anybody."""
        self._heaps[ANYBODY] += self._heaps.pop(consumer)
        heapify(self._heaps[ANYBODY])

    def count_for(self, consumer: int) -> int:
        """About how many are put by for the consumer."""
        return min(len(self._heaps[consumer]), len(self._offsets))

    def add(self, offset: int, consumer: int) -> None:
        """May go out, preferably to the consumer; to anybody when that one is not attached."""
        if offset not in self._offsets:
            self._offsets.add(offset)
            heappush(self._heaps.get(consumer, self._heaps[ANYBODY]), offset)

    def discard(self, offsets: Iterable[int]) -> None:
        """May not go out any more."""
        self._offsets.difference_update(offsets)

    def take(self, consumer: int, limit: int, own_max: int) -> list[int]:
        """Takes out `limit` at most, ascending: of its own up to `own_max`, then anybody's, then those of others."""
        found = self._pop(self._heaps[consumer], min(limit, own_max))
        found += self._pop(self._heaps[ANYBODY], limit - len(found))
        if len(found) < limit and self._offsets:
            for heap in self._heaps.values():
                found += self._pop(heap, limit - len(found))
        return sorted(found)

    def _pop(self, heap: list[int], limit: int) -> list[int]:
        found: list[int] = []
        while heap and len(found) < limit:
            offset = heappop(heap)
            if offset in self._offsets:
                self._offsets.remove(offset)
                found.append(offset)
        return found
