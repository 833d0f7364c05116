"""The message ids of a channel that deduplicates by them: which were stored lately, and where. Pure.

Ids are noted at the append, so that a repeat of a message that is still in flight is found, and let go only as frames
commit: what is committed says what a window holds, the same on every copy. Looking asks for the time besides, so what
is held longer than its window does no harm.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Final, NamedTuple

from ringpost.node.errors import AlreadyExists
from ringpost.v1.publish_pb2 import Batch

IDS_MAX: Final = 100_000
WINDOW_MS_MIN: Final = 1_000
WINDOW_MS_MAX: Final = 24 * 3600 * 1000
_PLAIN_BYTES_MAX = 64
_HASHED = b"\xff"  # begins no UTF-8
_COMPACT_FROM = 1_024


class SeenRun(NamedTuple):
    """The ids of one stored batch, b"" for a message without one; `first` is the offset of its first message."""

    time_us: int
    first: int
    ids: tuple[bytes, ...]


_time_of = attrgetter("time_us")


def ids_of(batch: bytes) -> tuple[bytes, ...]:
    """The ids of a valid encoded batch's messages, long ones as their hashes: at most 64 bytes each."""
    return tuple(_short(message.message_id) for message in Batch.FromString(batch).messages)


def _short(message_id: str) -> bytes:
    plain = message_id.encode()
    return plain if len(plain) <= _PLAIN_BYTES_MAX else _HASHED + blake2b(plain, digest_size=32).digest()


class SeenIds:
    """Invariants: runs ascend in offset and time; `_places` has each id once, at the latest offset that was noted;
    `_kept` messages are in the runs from `_head` to `_committed`, at most IDS_MAX, or one run. The runs name
    `_named` ids, more than `_places` where one is there twice or lost.
    """

    __slots__ = ("_committed", "_head", "_kept", "_named", "_places", "_runs")

    def __init__(self, runs: Sequence[SeenRun] = ()) -> None:
        self._runs: list[SeenRun] = []
        self._head = self._committed = self._kept = self._named = 0
        self._places: dict[bytes, int] = {}
        for run in runs:
            self.note(*run)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def run_count(self) -> int:
        """Batches whose ids are held, those that are not committed included."""
        return len(self._runs) - self._head

    def find(self, ids: Sequence[bytes], since_us: int) -> int | None:
        """None: none of these was stored after `since_us`. An offset: all were, one behind the other from there on.

        Raises AlreadyExists (DUPLICATE_IDS) for everything between; nothing is changed.
        """
        oldest = self._oldest(since_us)
        first = self._place(ids[0], oldest)
        whole = 1
        fresh = set(ids[:1])
        for number in ids[1:]:
            place = self._place(number, oldest)
            if place is None and number and number in fresh:
                break
            if place != (None if first is None else first + whole):
                break
            fresh.add(number)
            whole += 1
        if whole == len(ids):
            return first
        raise _mixed(0 if first is not None else whole, whole, len(ids))

    def _oldest(self, since_us: int) -> int:
        """The offset from which on everything was stored after that time; beyond all where nothing was."""
        at = bisect_right(self._runs, since_us, lo=self._head, key=_time_of)
        return self._runs[at].first if at < len(self._runs) else 1 << 64

    def _place(self, number: bytes, oldest: int) -> int | None:
        place = self._places.get(number) if number else None
        return place if place is not None and place >= oldest else None

    def note(self, time_us: int, first: int, ids: tuple[bytes, ...]) -> None:
        """A batch is appended; without any id it need not be remembered."""
        if not any(ids):
            return
        self._runs.append(SeenRun(time_us, first, ids))
        self._named += len(ids) - ids.count(b"")
        places = self._places
        for offset, number in enumerate(ids, first):
            if number:
                places[number] = offset

    def let_go(self, until_us: int, end: int) -> None:
        """All below offset `end` is committed: drops what was stored until a time, and the oldest of too many."""
        runs = self._runs
        while self._committed < len(runs) and runs[self._committed].first < end:
            self._kept += len(runs[self._committed].ids)
            self._committed += 1
        while self._head < self._committed:
            run = runs[self._head]
            if run.time_us > until_us and (self._kept <= IDS_MAX or self._head + 1 == self._committed):
                break
            self._forget(run)
            self._kept -= len(run.ids)
            self._head += 1
        if self._head > _COMPACT_FROM and self._head * 2 > len(runs):
            del runs[: self._head]
            self._committed -= self._head
            self._head = 0

    def _forget(self, run: SeenRun) -> None:
        self._named -= len(run.ids) - run.ids.count(b"")
        places = self._places
        for offset, number in enumerate(run.ids, run.first):
            if places.get(number) == offset:
                del places[number]

    def lose(self, first: int, last: int) -> None:
        """The messages at these offsets are lost: who sends them again is not told that they are stored."""
        for number in [number for number, place in self._places.items() if first <= place <= last]:
            del self._places[number]

    def runs(self, end: int) -> Iterator[SeenRun]:
        """What is held of offsets below `end`, to be noted again in this order."""
        places = self._places
        all_count = self._named == len(places)
        for run in self._runs[self._head :]:
            if run.first >= end:
                return
            if all_count:
                yield run
                continue
            ids = tuple(n if places.get(n) == offset else b"" for offset, n in enumerate(run.ids, run.first))
            if any(ids):
                yield run._replace(ids=ids)


def _mixed(index: int, whole: int, count: int) -> AlreadyExists:
    return AlreadyExists(
        f"batch.messages[{index}].message_id: was stored within the channel's dedup_window_ms, or is there twice, and "
        f"not all {count} messages were stored in this order; publish the first {whole} and the others apart",
        reason="DUPLICATE_IDS",
        metadata={"index": str(index), "prefix": str(whole)},
    )
