"""The idempotent producer of one channel: a pure state machine. Events in, effects out; time and ids are arguments.

Batches of a channel are sent in order, at most `WINDOW` unanswered. Each transmission has its own correlation, so an
answer that belongs to an earlier stream is never mistaken for another one's.

    unsent --take--> outstanding --answered--> stored / failed / held --all outstanding answered--> unsent

A batch keeps its sequence numbers until it is *surely not stored*; it is never sent under others before that.
- The stream breaks: what is outstanding becomes `open` (may be stored) and is sent again, in order, same numbers.
- A batch is refused for now (RESOURCE_EXHAUSTED with a delay, NOT_APPENDED, NOT_LEADER, an open outcome): the channel
  *settles*, that is, sends nothing until every outstanding batch is answered (the later ones with SEQUENCE_GAP or
  UNKNOWN_PRODUCER, a consequence), waits, then sends them all again, in order, same numbers. Nothing is lost.
- The channel's owner changes: what is outstanding is waited for, or given up like that of a broken stream; only then
  the next batch goes to the new owner.
- A batch is refused for good: it fails (`outcome_open` if it is open) and leaves a *hole* in the numbers. When one of
  its messages may be at fault and it is surely not stored, its halves, without numbers yet, take its place instead, so
  that at last only the bad message fails; with DUPLICATE_IDS its parts that are stored and that are not, so that each
  gets its answer. A batch that expects an offset is never cut. The channel settles. When no batch is `open` any more,
  the rest is renumbered from 0 under a greater producer epoch, which fences whatever may still come late from an old
  stream. Open batches are first sent again under their old numbers: the answer is either their offsets or SEQUENCE_GAP,
  which proves that they are not stored (unless the batch that left the hole is open itself and might still arrive and
  let an old transmission in behind it: then they fail, `outcome_open`).
- SEQUENCE_GAP, UNKNOWN_PRODUCER without such a cause (the broker forgot the producer, or lost what was only in memory):
  the session is over. Batches that are open fail with an open outcome; the others, surely not stored, go on under a
  new producer id. PRODUCER_FENCED: everything that has numbers fails.
- A batch is not answered in time: it fails, `outcome_open` if any transmission's outcome is. It leaves a hole.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import grpc
from crc32c import crc32c

from ringpost.client.batch import cut
from ringpost.client.errors import SURELY_NOT, AlreadyExists, InvalidRequest, OffsetMismatch, RingpostError, Timeout
from ringpost.client.timing import AT_ONCE, Timing
from ringpost.v1 import publish_pb2

WINDOW: Final = 64
_MIN_RETRY_S = 0.05
# Above the most messages of a batch: a part of a batch keeps its place by the message that it begins with.
_ORDER_STEP = 1 << 16
_CONSEQUENCES = frozenset({"SEQUENCE_GAP", "UNKNOWN_PRODUCER"})


@dataclass(slots=True, eq=False)
class OutBatch:
    """One encoded batch on its way. `deadline` and all times here are seconds of one monotone clock."""

    payload: bytes
    count: int
    crc32c: int
    durability: int
    deadline: float
    # The sender's own; not looked at here.
    ticket: Any = None
    # Of a part of a batch: which of the batch's messages is its first.
    first: int = 0
    # None until sent for the first time, and after a renumbering.
    sequence: int | None = None
    order: int = 0
    # A transmission whose answer was lost: may be stored.
    open: bool = False
    # Answered with a consequence in this settling.
    gapped: bool = False
    last_error: RingpostError | None = None
    # The offset that its first message must get. Such a batch is stored whole or not at all, so it is never cut.
    expected_offset: int | None = None
    timing: Timing = AT_ONCE

    @property
    def whole(self) -> bool:
        """Whether it must not be cut: it has one message, or is stored whole or not at all."""
        return self.count == 1 or self.expected_offset is not None

    def halves(self, first: int = 0) -> "list[OutBatch]":
        """Its messages in two batches without numbers, `first` of them in the first one, half by default.

        Only for a batch that is surely not stored.
        """
        middle = first if 0 < first < self.count else self.count // 2
        end = cut(self.payload, middle)
        return [
            self._part(self.payload[:end], 0, middle),
            self._part(self.payload[end:], middle, self.count - middle),
        ]

    def _part(self, payload: bytes, first: int, count: int) -> "OutBatch":
        return OutBatch(
            payload,
            count,
            crc32c(payload),
            self.durability,
            self.deadline,
            self.ticket,
            first=self.first + first,
            order=self.order + first,
            last_error=self.last_error,
            timing=self.timing,
        )


class Stored(NamedTuple):
    """Effect: the batch is stored."""

    batch: OutBatch
    response: publish_pb2.PublishResponse


class Failed(NamedTuple):
    """Effect: the batch is given up; `error.outcome_open` says whether it may be stored all the same."""

    batch: OutBatch
    error: RingpostError


Effect: TypeAlias = Stored | Failed
Answer: TypeAlias = publish_pb2.PublishResponse | RingpostError


class Lane:
    """The producer of one channel. Invariant: len(outstanding) <= WINDOW; `unsent` is ordered by `order`."""

    __slots__ = (
        "_fenced",
        "_gap",
        "_held",
        "_hole",
        "_hole_open",
        "_new_id",
        "_next_sequence",
        "_orders",
        "_refused",
        "_settling",
        "channel",
        "outstanding",
        "producer_epoch",
        "producer_id",
        "resume_at",
        "unsent",
    )

    def __init__(self, channel: str, new_id: Callable[[], int]) -> None:
        self.channel = channel
        self.producer_id = new_id()
        self.producer_epoch = 0
        self.unsent: deque[OutBatch] = deque()
        self.outstanding: dict[int, OutBatch] = {}
        # While settling: no transmission before this time.
        self.resume_at = 0.0
        self._new_id = new_id
        self._next_sequence = 0
        self._orders = 0
        self._held: list[OutBatch] = []
        self._settling = False
        self._hole = False
        # What left the hole may still arrive late, from an old stream.
        self._hole_open = False
        self._refused = False
        self._gap: RingpostError | None = None
        self._fenced: RingpostError | None = None

    @property
    def pending(self) -> int:
        """Batches without a final outcome."""
        return len(self.unsent) + len(self.outstanding) + len(self._held)

    def batches(self) -> list[OutBatch]:
        """The batches without a final outcome, in no order."""
        return [*self.unsent, *self.outstanding.values(), *self._held]

    def enqueue(self, batch: OutBatch) -> None:
        """Event: a batch to send after all others."""
        self._orders += _ORDER_STEP
        batch.order = self._orders
        self.unsent.append(batch)

    def has_room(self, now: float) -> bool:
        """Whether another transmission may begin."""
        return not self._settling and now >= self.resume_at and len(self.outstanding) < WINDOW

    def take(self, correlation: int, now: float) -> OutBatch | None:
        """The next batch to send, now outstanding under `correlation` (fresh, above 0); None when none may be sent."""
        if not self.unsent or not self.has_room(now):
            return None
        batch = self.unsent[0]
        if self._hole and batch.sequence is None:
            # New numbers above a hole would only be refused; batches behind it may have old ones to be sent under.
            numbered = next((b for b in self.unsent if b.sequence is not None), None)
            if numbered is None:
                return None
            batch = numbered
        self.unsent.remove(batch)
        if batch.sequence is None:
            batch.sequence = self._next_sequence
            self._next_sequence += batch.count
        self.outstanding[correlation] = batch
        return batch

    def answered(self, correlation: int, answer: Answer, now: float) -> list[Effect]:
        """Event: the outcome of a transmission. Answers to transmissions of an earlier stream are ignored."""
        batch = self.outstanding.pop(correlation, None)
        if batch is None:
            return []
        if isinstance(answer, RingpostError):
            effects = self._judge(batch, answer, now)
        else:
            effects = [Stored(batch, answer)]
        if not self.outstanding:
            effects += self._settled()
        return effects

    def _judge(self, batch: OutBatch, error: RingpostError, now: float) -> list[Effect]:
        batch.last_error = error
        if isinstance(error, AlreadyExists) and error.reason != "DUPLICATE_IDS":
            return [Failed(batch, error)]
        self._settling = True
        if error.reason in _CONSEQUENCES:
            self._gap = self._gap or error
            batch.gapped = True
        elif error.reason == "PRODUCER_FENCED":
            self._fenced = error
        elif _is_temporary(error):
            self._refused = True
            batch.open |= error.outcome_open
            self.resume_at = max(self.resume_at, now + max(_MIN_RETRY_S, error.retry_after_ms / 1000))
        else:
            self._hole = True
            still_open = batch.open and not _refused_for_ever(batch, error)
            self._hole_open |= still_open
            if not _may_cut(batch, error):
                return [Failed(batch, _with_outcome(error, still_open))]
            self._held += batch.halves(_prefix(error))
            return []
        self._held.append(batch)
        return []

    def _settled(self) -> list[Effect]:
        """Nothing is outstanding: decide how to go on."""
        self._put_back(self._held)
        self._held = []
        effects: list[Effect] = []
        if self._settling:
            if self._fenced or (self._gap and not self._refused and not self._hole):
                effects = self._end_session()
            elif self._hole and self._gap:
                effects = self._judge_gapped(self._gap)
        self._clear_settling()
        self._renumber()
        return effects

    def _judge_gapped(self, gap: RingpostError) -> list[Effect]:
        """Open batches above a hole were refused: surely not stored, unless the hole may still be filled."""
        lost = [b for b in self.unsent if b.gapped and b.open] if self._hole_open else []
        self._remove(lost)
        for batch in self.unsent:
            batch.open &= not batch.gapped
        return [Failed(b, _session_over(gap, True)) for b in lost]

    def _clear_settling(self) -> None:
        self._settling = self._refused = False
        self._gap = self._fenced = None
        for batch in self.unsent:
            batch.gapped = False

    def _end_session(self) -> list[Effect]:
        error = self._fenced or self._gap
        assert error is not None
        fenced = self._fenced is not None
        lost = [b for b in self.unsent if b.open or (fenced and b.sequence is not None)]
        self._remove(lost)
        effects: list[Effect] = [Failed(b, _session_over(error, b.open)) for b in lost]
        self.producer_id = self._new_id()
        self.producer_epoch = -1
        self._hole = True
        return effects

    def _renumber(self) -> None:
        """Closes a hole, when that is safe. Only called with nothing outstanding."""
        if self._hole and not any(b.open for b in self.unsent):
            self.producer_epoch += 1
            self._next_sequence = 0
            self._hole = self._hole_open = False
            for batch in self.unsent:
                batch.sequence = None

    def stream_lost(self) -> list[Effect]:
        """Event: answers to what is outstanding will not come."""
        for batch in self.outstanding.values():
            batch.open = True
        self._put_back([*self.outstanding.values(), *self._held])
        self.outstanding.clear()
        self._held = []
        self.resume_at = 0.0
        effects = self._end_session() if self._fenced else []
        self._clear_settling()
        self._renumber()
        return effects

    def unanswered_since(self, now: float) -> bool:
        """Whether a sent batch is past its deadline: then the stream is to be cut, then `expire` called."""
        return any(b.deadline <= now for b in self.outstanding.values())

    def expire(self, now: float) -> list[Effect]:
        """Event: time passes. Gives up batches past their deadline that are not outstanding."""
        late = [b for b in (*self.unsent, *self._held) if b.deadline <= now]
        if late:
            self._drop(late)
        return [Failed(b, _expired(b)) for b in late]

    def bound(self, max_bytes: int) -> list[Effect]:
        """Event: the stream that begins takes no batch above `max_bytes`. Only called with nothing outstanding."""
        effects: list[Effect] = []
        while large := [b for b in self.unsent if len(b.payload) > max_bytes]:
            lost = [b for b in large if b.whole or b.open]
            parts = [part for b in large if not b.whole and not b.open for part in b.halves()]
            self._put_back(parts)
            self._drop(large)
            effects += [Failed(b, too_large(len(b.payload), max_bytes, b.open)) for b in lost]
        return effects

    def abort(self, error: RingpostError) -> list[Effect]:
        """Event: the connection is refused for good (or the client closes): gives up everything."""
        effects = self.stream_lost()
        late = list(self.unsent)
        self._drop(late)
        return effects + [Failed(b, _with_outcome(error, b.open)) for b in late]

    def _drop(self, batches: list[OutBatch]) -> None:
        self._remove(batches)
        self._hole |= any(b.sequence is not None for b in batches)
        self._hole_open |= any(b.open for b in batches)
        if not self.outstanding and not self._settling:
            self._renumber()

    def _remove(self, batches: list[OutBatch]) -> None:
        gone = set(batches)
        self.unsent = deque(b for b in self.unsent if b not in gone)
        self._held = [b for b in self._held if b not in gone]

    def _put_back(self, batches: list[OutBatch]) -> None:
        if batches:
            self.unsent = deque(sorted((*batches, *self.unsent), key=lambda b: b.order))


def _is_temporary(error: RingpostError) -> bool:
    if error.outcome_open or error.reason in SURELY_NOT:
        return True
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after_ms > 0


def _refused_for_ever(batch: OutBatch, error: RingpostError) -> bool:
    """Whether no transmission of the batch is stored, and none will be that still arrives.

    The broker looks at the numbers before it looks at ids and offsets, so what it refuses for these is not stored; and
    a late transmission would be refused again: its ids are known, its place is taken.
    """
    if error.reason == "DUPLICATE_IDS":
        return True
    return isinstance(error, OffsetMismatch) and error.next_offset > (batch.expected_offset or 0)


def _may_cut(batch: OutBatch, error: RingpostError) -> bool:
    """Whether parts of a refused batch may go out in its place."""
    if batch.whole:
        return False
    return error.reason == "DUPLICATE_IDS" or (_blames_messages(error) and not batch.open)


def _blames_messages(error: RingpostError) -> bool:
    """Whether the batch was refused for what some of its messages are."""
    if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
        return False
    return not error.violations or any("batch" in violation.field for violation in error.violations)


def _prefix(error: RingpostError) -> int:
    """How many of the first messages the broker would take by themselves; 0: it does not say."""
    said = error.metadata.get("prefix", "")
    return int(said) if said.isdecimal() else 0


def too_large(size: int, limit: int, outcome_open: bool = False) -> InvalidRequest:
    """What a message, or a batch that may be stored, above the node's `max_batch_bytes` fails with."""
    return InvalidRequest(
        f"{size:,} encoded bytes are too many; the node takes at most {limit:,}",
        reason="MESSAGE_TOO_LARGE",
        metadata={"limit": str(limit)},
        outcome_open=outcome_open,
    )


def _session_over(cause: RingpostError, outcome_open: bool) -> RingpostError:
    tail = "the batch may be stored" if outcome_open else "the batch is not stored"
    return type(cause)(
        f"the broker ended the producer's session ({cause.message}); {tail}",
        code=cause.code,
        reason=cause.reason,
        metadata=cause.metadata,
        outcome_open=outcome_open,
    )


def _expired(batch: OutBatch) -> RingpostError:
    cause = f"; last answer: {batch.last_error}" if batch.last_error else ""
    if batch.open:
        return Timeout(f"no answer before the publish timeout; the batch may be stored{cause}", outcome_open=True)
    if batch.last_error is not None and batch.last_error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return batch.last_error
    return Timeout(f"could not be sent before the publish timeout; the batch is not stored{cause}")


def _with_outcome(cause: RingpostError, outcome_open: bool) -> RingpostError:
    return cause if cause.outcome_open == outcome_open else cause.copy(outcome_open=outcome_open)
