"""What must be true of groups (V7): a small, obvious model of what the committed frames say, message by message.

Every replica's state is compared with it at every position; so are answers and deliveries, where they are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringpost.internal.v1.record_pb2 import (
    ChannelRecord,
    DeadLetterFrame,
    GroupRecord,
    GroupSnapshot,
    SettleRecord,
    ShardSnapshot,
    TrimRecord,
)
from ringpost.node.groups.ranges import pairs
from ringpost.node.groups.voids import Voids
from ringpost.node.journal.frame import FrameType, Header
from ringpost.v1.group_pb2 import GroupConfig
from ringpost.v1.publish_pb2 import Batch
from tests.simulation.kernel import Violation

if TYPE_CHECKING:
    from tests.simulation.contents import Content
    from tests.simulation.machine import Machine

FAILURES_KEPT = 8


class Failed(NamedTuple):
    """How often a message has failed, until when it waits, and the latest reasons."""

    attempt: int
    not_before_us: int
    reasons: tuple[str, ...]


class GroupModel:
    """One group, as its committed frames have left it."""

    def __init__(self, name: str, config: GroupConfig, start: int, created_us: int) -> None:
        self.name = name
        self.config = config
        self.created_us = created_us
        self.settled = set(range(start))
        self.failed: dict[int, Failed] = {}
        self.rejected = 0
        self.paused = False
        self.box = 0  # the number of its channel
        self.box_first = self.box_end = 0
        self.letters: dict[int, int] = {}  # by number: the offset, of what is in the box
        self.void: set[int] = set()
        self.back: set[int] = set()  # offsets that came back from the dead letters
        self.settled_at: dict[int, int] = dict.fromkeys(range(start), 0)  # by offset: the last position that did it
        self.confirmed: set[int] = set()  # offsets whose settlement somebody was told of

    def settle(self, position: int, offset: int) -> bool:
        """Whether it was not settled before."""
        self.settled_at[offset] = position
        self.failed.pop(offset, None)
        self.back.discard(offset)
        new = offset not in self.settled
        self.settled.add(offset)
        return new

    def fail(self, offset: int, attempt: int, not_before_us: int, reasons: Iterable[str]) -> None:
        """A delivery has failed, of a message that is not settled."""
        if offset not in self.settled:
            before = self.failed.get(offset, Failed(0, 0, ()))
            kept = (*before.reasons, *reasons)[-FAILURES_KEPT:]
            self.failed[offset] = Failed(max(attempt, before.attempt), not_before_us, kept)

    def bury(self, position: int, number: int, offset: int) -> None:
        """A letter is stored; it counts if the message was not settled."""
        if self.settle(position, offset):
            self.rejected += 1
            self.letters[number] = offset

    def redrive(self, number: int, offset: int) -> bool:
        """A letter leaves the box; whether its message is pending again: not when a seek has dealt with it since."""
        if self.letters.get(number) != offset:
            return False  # it has gone
        del self.letters[number]
        if number in self.void:
            return False
        self.settled.discard(offset)
        self.confirmed.discard(offset)
        self.back.add(offset)
        return True

    def seek(self, position: int, to: int, first: int) -> None:
        """All below is settled, nothing from here on; `first` is the oldest message that there is."""
        self.settled = set(range(max(to, first)))
        self.settled_at.update(dict.fromkeys(self.settled, position))
        self.failed.clear()
        self.back.clear()
        self.confirmed = {offset for offset in self.confirmed if offset in self.settled}
        self.void |= {number for number, offset in self.letters.items() if offset >= to}

    def state(self) -> tuple[Any, ...]:
        """To be compared."""
        failed = tuple((offset, *self.failed[offset]) for offset in sorted(self.failed))
        letters = tuple(sorted(self.letters))
        void = tuple(sorted(self.void.intersection(letters)))
        config = self.config.SerializeToString(deterministic=True)
        return (self.name, frozenset(self.settled), failed, self.rejected, letters, void, self.paused, config)


class GroupTruth:
    """The groups of one shard."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.position = 0
        self.channel = 0
        self.first = self.end = 0
        self.keys: list[bytes] = []
        self.messages: list[bytes] = []
        self.groups: dict[str, GroupModel] = {}
        self.offsets: dict[tuple[int, int], int] = {}  # of every letter that ever was, by box and number
        self.counts: Counter[str] = Counter()
        self._states: list[tuple[Any, ...]] = [()]

    # -- what is committed ------------------------------------------------------------------------------------------

    def commit(self, content: Content) -> None:
        """The next frame of the shard is committed."""
        header, body = content.header, content.body
        self.position = header.position
        changed = True
        if header.type == FrameType.CONFIG:
            self._config(header, ChannelRecord.FromString(body))
        elif header.type == FrameType.DATA and header.channel == self.channel:
            self._data(header, body)
            changed = False
        elif header.type == FrameType.DATA:
            self._letters(header, body)
        elif header.type == FrameType.SETTLE:
            self._settle(SettleRecord.FromString(body))
        elif header.type == FrameType.GROUP:
            self._group(header, GroupRecord.FromString(body))
        elif header.type == FrameType.TRIM:
            self._trim(header.channel, TrimRecord.FromString(body).first_offset)
        else:
            changed = False
        self._states.append(self._state() if changed else self._states[-1])

    def _state(self) -> tuple[Any, ...]:
        return tuple(self.groups[name].state() for name in sorted(self.groups))

    def _config(self, header: Header, record: ChannelRecord) -> None:
        if not record.box_of:
            self.channel = self.channel or header.position
        elif record.channel == 0:
            group = self.groups[record.name.split(".")[1]]
            group.box = header.position

    def _data(self, header: Header, body: bytes) -> None:
        for message in Batch.FromString(body).messages:
            self.keys.append(message.key)
            self.messages.append(message.data)
        self.end += header.count

    def _letters(self, header: Header, body: bytes) -> None:
        group = next(group for group in self.groups.values() if group.box == header.channel)
        for number, letter in enumerate(DeadLetterFrame.FromString(body).letters, header.base_offset):
            if letter.message.data != self.messages[letter.offset]:
                raise Violation(f"V7: letter {number} of {group.name} is not message {letter.offset}")
            if 0 < group.config.max_attempts < letter.attempts:
                raise Violation(f"V7: letter {number} of {group.name} after {letter.attempts} attempts")
            group.bury(self.position, number, letter.offset)
            self.offsets[header.channel, number] = letter.offset
            self.counts["dead letters"] += 1
        group.box_end = header.base_offset + header.count

    def _settle(self, record: SettleRecord) -> None:
        group = self.groups.get(record.group)
        if group is None:
            return
        for offset in _each(record.acked):
            group.settle(self.position, offset)
        for offset in _each(record.rejected):
            group.rejected += group.settle(self.position, offset)
        for retry in record.retries:
            for offset in range(retry.first, retry.last + 1):
                if 0 < group.config.max_attempts <= retry.attempt:
                    raise Violation(f"V7: message {offset} of {group.name} is tried again after {retry.attempt}")
                group.fail(offset, retry.attempt, retry.not_before_us, [one.reason for one in retry.failures])

    def _group(self, header: Header, record: GroupRecord) -> None:
        change, group = record.WhichOneof("change"), self.groups.get(record.name)
        if change == "create_at" and group is None:
            self.groups[record.name] = GroupModel(
                record.name, record.config, max(record.create_at, self.first), header.time_us
            )
        elif group is None:
            return
        elif change == "deleted":
            del self.groups[record.name]
        elif change == "seek_to":
            group.seek(self.position, record.seek_to, self.first)
            self.counts["seeks"] += 1
        elif change == "configured":
            group.config = record.config
        elif change == "paused":
            group.paused = record.paused
        elif change == "letters":
            flat = record.letters.redriven
            for number, offset in zip(flat[::2], flat[1::2], strict=True):
                if offset >= self.first:
                    self.counts["redriven"] += group.redrive(number, offset)
            for number in _each(record.letters.dropped):
                group.letters.pop(number, None)

    def _trim(self, channel: int, first: int) -> None:
        if channel == self.channel:
            self.first = max(self.first, first)
            self.counts["trims"] += 1
        for group in self.groups.values():
            if channel == self.channel:
                for offset in range(first):
                    group.settle(self.position, offset)
            elif group.box == channel:
                group.box_first = max(group.box_first, first)
                group.letters = {number: offset for number, offset in group.letters.items() if number >= first}

    # -- replicas ---------------------------------------------------------------------------------------------------

    def compare(self, machine: Machine, position: int) -> None:
        """A replica has applied everything up to a position that is committed."""
        if machine.compared is self._states[position]:
            return  # nothing that groups know has changed
        snapshot = ShardSnapshot.FromString(machine.checkpoint())
        ends = {row.channel: row for row in snapshot.channels}
        boxes = {(row.box_of, row.name.split(".")[1]): row for row in snapshot.channels if row.box_of}
        rows = sorted((row for channel in ends.values() for row in channel.groups), key=lambda row: row.name)
        found = tuple(self._found(row, boxes.get((self.channel, row.name))) for row in rows)
        wanted = self._states[position]
        if found != wanted:
            what = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), (found, wanted))
            raise Violation(f"V7: {machine.log.replica_id} differs at {position}: {_difference(*what)}")
        machine.compared = wanted

    def _found(self, row: GroupSnapshot, box: Any) -> tuple[Any, ...]:
        settled = frozenset(range(row.settled_below)).union(_each(row.settled))
        failed = tuple(
            (offset, retry.attempt, retry.not_before_us, tuple(one.reason for one in retry.failures))
            for retry in row.retries
            for offset in range(retry.first, retry.last + 1)
        )
        gone, letters, void = set(_each(row.letters_gone)), tuple[int, ...](), tuple[int, ...]()
        if box is not None:
            voids = Voids(zip(row.seeks[::2], row.seeks[1::2], strict=True))
            letters = tuple(number for number in range(box.first_offset, box.end_offset) if number not in gone)
            void = tuple(number for number in letters if voids.void(number, self.offsets[box.channel, number]))
        config = row.config.SerializeToString(deterministic=True)
        return (row.name, settled, failed, row.rejected, letters, void, row.paused, config)


def _difference(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> str:
    """The first part that is not the same."""
    names = ("group", "settled", "failed", "rejected", "letters", "void", "paused", "config")
    for name, one, other in zip(names, found, wanted, strict=False):
        if one != other:
            return f"{found[0]}: {name} is {one}, should be {other}"
    return f"{found} should be {wanted}"


def _each(flat: Any) -> Iterable[int]:
    return (offset for first, last in pairs(flat) for offset in range(first, last + 1))
