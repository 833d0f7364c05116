"""Idempotent producers of one channel: who has stored which sequence numbers at which offsets. Pure.

A producer numbers its messages per channel from 0. The table remembers for each producer the next number and the
latest runs of stored batches, so that a batch that is sent again gets its first offsets. It changes at append, not at
commit: a repeat of one that is still in flight then finds it and waits for the same commit.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ringpost.node.errors import AlreadyExists, Precondition

RUNS_MAX = 64
PRODUCERS_MAX = 10_000
SILENCE_US_MAX = 24 * 3600 * 1_000_000


class Run(NamedTuple):
    """`count` messages from sequence `first` lie at offsets from `offset` on."""

    first: int
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    offset: int


class Producer:
    """One producer's place in one channel. Invariant: runs ascend and end at or below `next_sequence`."""

    __slots__ = ("epoch", "last_time_us", "next_sequence", "runs")

    def __init__(self, epoch: int, next_sequence: int = 0, last_time_us: int = 0, runs: Iterable[Run] = ()) -> None:
        self.epoch = epoch
        self.next_sequence = next_sequence
        self.last_time_us = last_time_us
        self.runs = list(runs)

    def stored(self, first: int, count: int, offset: int, time_us: int) -> None:
        """Remembers a batch; runs whose offsets also follow each other become one."""
        last = self.runs[-1] if self.runs else None
        if last and last.first + last.count == first and last.offset + last.count == offset:
            self.runs[-1] = Run(last.first, last.count + count, last.offset)
        else:
            self.runs.append(Run(first, count, offset))
            del self.runs[:-RUNS_MAX]
        self.next_sequence = first + count
        self.last_time_us = time_us

    def copy(self) -> "Producer":
        """One that changes by itself."""
        return Producer(self.epoch, self.next_sequence, self.last_time_us, self.runs)

    def offset_of(self, first: int, count: int) -> int | None:
        """Where a stored batch begins, or None when that is no longer known."""
        for run in reversed(self.runs):
            if run.first <= first and first + count <= run.first + run.count:
                return run.offset + first - run.first
        return None


class ProducerTable:
    """All producers of a channel that spoke within the last day, at most 10,000, the longest silent first."""

    __slots__ = ("_ahead", "_producers")

    def __init__(self) -> None:
        self._producers: dict[int, Producer] = {}
        # In a cluster: producers with batches that are appended and not committed, as of the append, and how many.
        self._ahead: dict[int, tuple[Producer, int]] = {}

    def __len__(self) -> int:
        return len(self._producers)

    @property
    def settled(self) -> bool:
        """Whether all batches that count are committed, as far as that matters to the table."""
        return not self._ahead

    def check(self, producer: int, epoch: int, first: int, count: int, now_us: int) -> int | None:
        """None: a new batch, append it. A number: it is stored already and begins at that offset.

        Raises Precondition (PRODUCER_FENCED, UNKNOWN_PRODUCER, SEQUENCE_GAP) and AlreadyExists
        (DUPLICATE_TOO_OLD); nothing is changed.
        """
        ahead = self._ahead.get(producer)
        known = self._producers.get(producer) if ahead is None else ahead[0]
        if known is None or known.last_time_us + SILENCE_US_MAX < now_us:
            return self._check_first(first)
        if epoch < known.epoch:
            raise Precondition(
                f"producer_epoch: {epoch} is older than {known.epoch}; another instance of this producer took over",
                reason="PRODUCER_FENCED",
                metadata={"producer_epoch": str(known.epoch)},
            )
        if epoch > known.epoch:
            return self._check_first(first)
        if first == known.next_sequence:
            return None
        return self._check_repeat(known, first, count)

    @staticmethod
    def _check_first(first: int) -> None:
        if first != 0:
            raise Precondition(
                f"first_sequence: {first} from a producer that the channel does not know; begin a new producer_id at 0",
                reason="UNKNOWN_PRODUCER",
            )

    @staticmethod
    def _check_repeat(known: Producer, first: int, count: int) -> int:
        if first + count > known.next_sequence:
            raise Precondition(
                f"first_sequence: {first} with {count} messages does not continue at {known.next_sequence}",
                reason="SEQUENCE_GAP",
                metadata={"next_sequence": str(known.next_sequence)},
            )
        offset = known.offset_of(first, count)
        if offset is None:
            raise AlreadyExists(
                f"first_sequence: {first} is stored, too long ago to tell its offsets", reason="DUPLICATE_TOO_OLD"
            )
        return offset

    def stored(self, producer: int, epoch: int, first: int, count: int, offset: int, time_us: int) -> None:
        """Remembers an appended batch. Contained already or of an older epoch: changes nothing (replay)."""
        known = self._producers.pop(producer, None)
        if known is None or epoch > known.epoch or (first == 0 and known.last_time_us + SILENCE_US_MAX < time_us):
            known = Producer(epoch)
            if len(self._producers) >= PRODUCERS_MAX:
                del self._producers[next(iter(self._producers))]
        self._producers[producer] = known
        if epoch == known.epoch and first >= known.next_sequence:
            known.stored(first, count, offset, time_us)

    def appended(self, producer: int, epoch: int, first: int, count: int, offset: int, time_us: int) -> None:
        """In place of `stored`, where an appended batch may yet be lost: counts for `check` at once, for the rest when
        it is `committed`."""
        state, waiting = self._ahead.get(producer) or (None, 0)
        if state is None:
            known = self._producers.get(producer)
            state = Producer(epoch) if known is None else known.copy()
        if epoch > state.epoch or (first == 0 and state.last_time_us + SILENCE_US_MAX < time_us):
            state = Producer(epoch)
        state.stored(first, count, offset, time_us)
        self._ahead[producer] = (state, waiting + 1)

    def committed(self, producer: int, epoch: int, first: int, count: int, offset: int, time_us: int) -> None:
        """An appended batch is committed."""
        self.stored(producer, epoch, first, count, offset, time_us)
        state, waiting = self._ahead[producer]
        if waiting == 1:
            del self._ahead[producer]
        else:
            self._ahead[producer] = (state, waiting - 1)

    def lost(self, producer: int, epoch: int, first: int, count: int, time_us: int) -> None:
        """A stored batch is lost: the producer goes on behind it, and is not told of offsets if it sends it again."""
        known = self._producers.get(producer)
        if known is None or epoch > known.epoch:
            known = self._producers[producer] = Producer(epoch)
        if epoch == known.epoch and first >= known.next_sequence:
            known.next_sequence, known.last_time_us = first + count, time_us

    def forget_silent(self, now_us: int) -> None:
        """Drops who has been silent for a day."""
        for producer, state in list(self._producers.items()):
            if state.last_time_us + SILENCE_US_MAX < now_us:
                del self._producers[producer]

    def items(self) -> Iterable[tuple[int, Producer]]:
        """Producers, the longest silent first."""
        return self._producers.items()

    def restore(self, producer: int, state: Producer) -> None:
        """Puts a producer back from a snapshot; call in the order of `items`."""
        self._producers[producer] = state
