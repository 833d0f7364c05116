"""Writing dead letters: reads what groups give up, and appends it to their boxes. One frame of a group at a time."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from crc32c import crc32c

from ringpost.internal.v1.record_pb2 import DeadLetterFrame, GroupRecord, LetterChange
from ringpost.node import log
from ringpost.node.errors import DataLoss, RingpostError
from ringpost.node.groups.changes import Dying, Failure
from ringpost.node.groups.policy import cut
from ringpost.node.groups.retries import FAILURES_KEPT
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.boxes import Changed, box_of, bury, change_letters, find_or_make
from ringpost.node.shard.burial import Part, first_dying, take
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import ready_for
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.shard import Publish, Stored, ignore
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.dead_letter_pb2 import DeadLetter, FailedDelivery
from ringpost.v1.publish_pb2 import Batch

LETTERS_MAX = 200
FRAME_BYTES_MAX = 1 << 20
_AGAIN_US = 1_000_000  # after what could not be read or written

Spawn = Callable[[Coroutine[Any, Any, None]], object]
ChangedReply = Callable[[Changed | RingpostError], None]


class Gravedigger:
    """One a node. `check_room` raises when the disk takes no more messages; `spawn` runs a coroutine on the loop."""

    def __init__(self, reading: Reading, spawn: Spawn, check_room: Callable[[], None]) -> None:
        self._reading = reading
        self._spawn = spawn
        self._check_room = check_room

    def write(self, group: Group) -> None:
        """Something of the group is to be buried; goes on until nothing is left."""
        self._spawn(self._bury_next(group))

    async def _bury_next(self, group: Group) -> None:
        try:
            await self._bury(group)
        except RingpostError as error:
            self._fail(group, error)
        except Exception as error:  # a fault of ours, or of the disk, must not leave messages between life and death
            log.error("burial.incident", exception=error, channel=group.channel.name, group=group.name)
            self._fail(group, DataLoss(f"the message that was to be a dead letter cannot be read: {error}"))

    def _fail(self, group: Group, error: RingpostError) -> None:
        shard_log = group.channel.shard.log
        group.burying = False
        log.warning("burial.failed", channel=group.channel.name, group=group.name, error=error.message)
        shard_log.burials.fail(group, error)
        if not group.removed:
            group.expire_from_us = shard_log.clock() + _AGAIN_US
            shard_log.deadlines.set(group, group.expire_from_us)

    async def _bury(self, group: Group) -> None:
        letters: list[DeadLetter] = []
        offsets: list[int] = []
        looked = size = 0
        page = _Page(self._reading, group)
        for offset, dying, burial in first_dying(group, LETTERS_MAX):
            letter = await page.letter(offset, dying)
            if burial not in group.dying:  # a seek, or a new leader, has ended all that waited
                looked = 0
                break
            if letter is not None:
                length = letter.ByteSize()
                if letters and size + length > FRAME_BYTES_MAX:
                    break
                size += length
                letters.append(letter)
                offsets.append(offset)
            looked += 1
        if looked:
            self._append(group, letters, offsets, looked)
        else:
            self._go_on(group)

    def _go_on(self, group: Group) -> None:
        group.burying = bool(group.dying) and not group.removed
        if group.burying:
            self.write(group)

    def _append(self, group: Group, letters: list[DeadLetter], offsets: list[int], looked: int) -> None:
        if not letters:  # all of them are gone already
            self._stored([], group, offsets, take(group, looked))
            return
        self._check_room()
        ready_for(group)
        body = DeadLetterFrame(letters=letters).SerializeToString()
        publish = Publish(body, len(letters), crc32c(body), Durability.DURABILITY_QUORUM)
        box = find_or_make(group)
        parts = take(group, looked)
        try:
            box.shard.publish(box, publish, lambda outcome: self._stored(outcome, group, offsets, parts))
        except RingpostError as error:
            _end(group, parts, error)
            raise

    def _stored(
        self, outcome: Stored | list[object] | RingpostError, group: Group, offsets: list[int], parts: list[Part]
    ) -> None:
        """The frame is committed, or its outcome is open."""
        if isinstance(outcome, Stored):
            group.channel.shard.log.burials.letters += bury(group, outcome.first_offset, offsets)
        _end(group, parts, outcome if isinstance(outcome, RingpostError) else None)
        self._go_on(group)
        if not isinstance(outcome, RingpostError):
            group.settled()


def _end(group: Group, parts: list[Part], error: RingpostError | None) -> None:
    for burial, dying in parts:
        if error is not None:
            group.core.abort(burial.change(dying))
        burial.answer(burial.results if error is None else error)


class _Page:
    """Makes letters of messages; keeps the batch that the last one was in."""

    def __init__(self, reading: Reading, group: Group) -> None:
        self._reading = reading
        self._group = group
        self._frame: CachedFrame | None = None
        self._batch = Batch()

    async def letter(self, offset: int, dying: Dying) -> DeadLetter | None:
        """None for a message that is gone, or lost, meanwhile: that is settled without one. Raises DataLoss."""
        group = self._group
        frame = await self._find(offset)
        if frame is None:
            return None
        last = Failure(dying.attempt, dying.time_us, cut(dying.reason))
        failures = (*group.core.failures(offset), *((last,) if dying.attempt else ()))
        return DeadLetter(
            offset=offset,
            append_time_us=frame.time_us,
            message=self._batch.messages[offset - frame.base_offset],
            reason=dying.reason,
            attempts=failures[-1].attempt if failures else 0,
            dead_time_us=dying.time_us,
            failures=[
                FailedDelivery(attempt=one.attempt, time_us=one.time_us, reason=one.reason)
                for one in failures[-FAILURES_KEPT:]
            ],
        )

    async def _find(self, offset: int) -> CachedFrame | None:
        channel, frame = self._group.channel, self._frame
        if offset < channel.first_offset:
            return None
        if frame is not None and frame.base_offset <= offset < frame.base_offset + frame.count:
            return frame
        if (lost := channel.lost_at(offset)) is not None:
            self._group.pass_over(*lost)
            return None
        try:
            frame = await self._reading.frame(channel, channel.index.row(channel.index.find(offset)))
        except LookupError:
            return None
        self._frame, self._batch = frame, Batch.FromString(frame.body)
        return frame


# -- letters that leave -----------------------------------------------------------------------------------------------


def change(group: Group, letters: LetterChange, reply: ChangedReply) -> None:
    """Redrives and drops letters; `reply` is called once, when that is committed. Raises the definite errors."""
    group.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, letters=letters).SerializeToString()
    number, box = group.channel.number, box_of(group)
    action = partial(_changed, position=shard.position + 1)
    shard.log.append(shard, FrameType.GROUP, body, action, group, box, letters, reply, time_us=now, channel=number)


def _changed(
    error: RingpostError | None,
    group: Group,
    box: Channel | None,
    letters: LetterChange,
    reply: ChangedReply,
    *,
    position: int,
) -> None:
    if error is not None:
        reply(error)
        return
    done = change_letters(group, box, letters, position)
    _free(group)
    if not group.removed:
        group.settled()
    reply(done)


def _free(group: Group) -> None:
    """Gives up the room of letters that have gone, as far as nothing older is left."""
    box = box_of(group)
    if box is None:
        return
    kept_from = min(group.letters_gone.first_gap(box.first_offset), box.end_offset)
    if kept_from > max(box.first_offset, box.trim_to) and box.shard.serving:
        box.shard.trim(box, kept_from, ignore)
