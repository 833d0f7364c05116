"""The bookkeeping of `ringpost verify`: who published what, who saw what, and what that proves. Pure.

A *lane* is one producer on one channel; its messages are numbered from 0. The promises checked:
- an acknowledged message is seen by the replaying reader exactly once, by each group at least once, and the broker's
  books say in the end that no group has anything left to do;
- the reader sees a lane's numbers in order, offsets rising, and each at the offset that its acknowledgement named;
- a refused message (a definite error) is never seen;
- the group does not see a message again whose ack was confirmed.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from zlib import crc32

_HEAD = struct.Struct("<4sQIQI")
_MAGIC = b"RPVF"
HEAD_BYTES = _HEAD.size

_ACKED, _REFUSED = 1, 2
_SEEN, _SETTLED = 1, 2
_TO_ACKED = bytes(state == _ACKED for state in range(256))
_TO_SEEN = bytes(mark & _SEEN for mark in range(256))


def encode(run: int, producer: int, number: int, size: int) -> bytes:
    """A payload of `size` bytes (at least HEAD_BYTES) that proves itself. `run` is 64 bits."""
    filler = (crc32(number.to_bytes(8, "little"), producer) & 0xFFFFFFFF).to_bytes(4, "little")
    rest = (filler * ((size - HEAD_BYTES) // 4 + 1))[: max(0, size - HEAD_BYTES)]
    return _HEAD.pack(_MAGIC, run, producer, number, crc32(rest)) + rest


def decode(run: int, payload: bytes) -> tuple[int, int] | None:
    """(producer, number) of a payload of this run; None when it is not whole or of another run."""
    if len(payload) < HEAD_BYTES:
        return None
    magic, its_run, producer, number, check = _HEAD.unpack_from(payload)
    if magic != _MAGIC or its_run != run or crc32(memoryview(payload)[HEAD_BYTES:]) != check:
        return None
    return producer, number


@dataclass
class Lane:
    """Invariant: len(fate) == len(offsets) numbers were tried; fate[n] is 0 (open), _ACKED or _REFUSED.

    offsets[n] is where the broker said it is; -1 while it has said nothing.
    """

    fate: bytearray = field(default_factory=bytearray)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass
class _Seen:
    """Invariant: len(marks) == len(offsets); offsets[n] is where number n was seen first, -1 when it was not."""

    marks: bytearray = field(default_factory=bytearray)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    highest: int = -1

    def grow(self, number: int) -> None:
        more = number + 1 - len(self.marks)
        if more > 0:
            self.marks.extend(bytes(more))
            self.offsets.extend([-1] * more)


@dataclass(frozen=True)
class Report:
    """Counts of messages; pauses in seconds."""

    tried: int
    acked: int
    refused: int
    unanswered: int
    replayed: int
    group_acked: int
    redelivered: int
    lost: int
    lost_in_group: int
    unsettled: int
    duplicated: int
    reordered: int
    misplaced: int
    damaged: int
    phantom: int
    redelivered_after_ack: int
    longest_publish_pause: float
    longest_delivery_pause: float
    # By channel: between two acknowledgements of the same channel.
    channel_pauses: dict[str, float]

    @property
    def ok(self) -> bool:
        broken = self.lost + self.lost_in_group + self.unsettled + self.duplicated + self.reordered + self.misplaced
        return self.acked > 0 and broken + self.damaged + self.phantom + self.redelivered_after_ack == 0


class Pauses:
    """The longest time in which nothing happened, between the first and the last event."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._last: float | None = None

    def event(self, now: float) -> None:
        """`now`: seconds of a monotonic clock."""
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now


class Ledger:
    """One run's book. Lanes are named (channel, producer); `groups` are those that read every channel."""

    def __init__(self, groups: Sequence[str] = ("",)) -> None:
        self.damaged = 0
        self.publish_pauses = Pauses()
        self.channel_pauses: dict[str, Pauses] = {}
        self.delivery_pauses = Pauses()
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._replay: dict[tuple[str, int], _Seen] = {}
        self._groups: dict[str, dict[tuple[str, int], _Seen]] = {group: {} for group in groups}
        self._next_offset: dict[str, int] = {}
        self._duplicated = self._reordered = self._redelivered = self._after_ack = 0

    @property
    def tried(self) -> int:
        """Messages begun so far, over all lanes."""
        return sum(len(lane.fate) for lane in self._lanes.values())

    def try_next(self, channel: str, producer: int) -> int:
        """The lane's next number, from now on open."""
        lane = self._lanes.setdefault((channel, producer), Lane())
        lane.fate.append(0)
        lane.offsets.append(-1)
        return len(lane.fate) - 1

    def acked(self, channel: str, producer: int, number: int, offset: int, now: float) -> None:
        """The broker confirmed it, at this offset."""
        lane = self._lanes[channel, producer]
        lane.fate[number], lane.offsets[number] = _ACKED, offset
        self.publish_pauses.event(now)
        self.channel_pauses.setdefault(channel, Pauses()).event(now)

    def refused(self, channel: str, producer: int, number: int) -> None:
        """The broker answered a definite error: it must not be stored."""
        self._lanes[channel, producer].fate[number] = _REFUSED

    def replayed(self, channel: str, producer: int, number: int, offset: int, now: float) -> None:
        """The ephemeral reader saw it at this offset."""
        self.delivery_pauses.event(now)
        seen = self._replay.setdefault((channel, producer), _Seen())
        seen.grow(number)
        if seen.marks[number]:
            self._duplicated += 1
        elif number < seen.highest or offset < self._next_offset.get(channel, 0):
            self._reordered += 1
        if not seen.marks[number]:
            seen.offsets[number] = offset
        seen.marks[number] = _SEEN
        seen.highest = max(seen.highest, number)
        self._next_offset[channel] = max(self._next_offset.get(channel, 0), offset + 1)

    def group_got(self, channel: str, producer: int, number: int, group: str = "") -> None:
        """A member of the group was given it."""
        seen = self._groups[group].setdefault((channel, producer), _Seen())
        seen.grow(number)
        if seen.marks[number] & _SETTLED:
            self._after_ack += 1
        elif seen.marks[number]:
            self._redelivered += 1
        seen.marks[number] |= _SEEN

    def group_acked(self, channel: str, producer: int, number: int, group: str = "") -> None:
        """The broker confirmed the group's ack."""
        self._groups[group][channel, producer].marks[number] |= _SETTLED

    def missing(self) -> tuple[int, int]:
        """Acknowledged messages that (the reader, the groups) have not seen so far, summed over the groups."""
        replay = grouped = 0
        for name, lane in self._lanes.items():
            replay += _count_missing(lane.fate, self._replay.get(name, _Seen()).marks)
            for seen in self._groups.values():
                grouped += _count_missing(lane.fate, seen.get(name, _Seen()).marks)
        return replay, grouped

    def report(self, unsettled: int = 0) -> Report:
        """`unsettled`: what the broker's books say that the group has still to do."""
        fates = [lane.fate for lane in self._lanes.values()]
        acked = sum(fate.count(_ACKED) for fate in fates)
        refused = sum(fate.count(_REFUSED) for fate in fates)
        lost, lost_in_group = self.missing()
        return Report(
            tried=self.tried,
            acked=acked,
            refused=refused,
            unanswered=sum(fate.count(0) for fate in fates),
            replayed=sum(len(seen.marks) - seen.marks.count(0) for seen in self._replay.values()),
            group_acked=sum(
                seen.marks.count(_SEEN | _SETTLED) for group in self._groups.values() for seen in group.values()
            ),
            redelivered=self._redelivered,
            lost=lost,
            lost_in_group=lost_in_group,
            unsettled=unsettled,
            duplicated=self._duplicated,
            reordered=self._reordered,
            misplaced=self._misplaced(),
            damaged=self.damaged,
            phantom=self._phantoms(),
            redelivered_after_ack=self._after_ack,
            longest_publish_pause=self.publish_pauses.longest,
            longest_delivery_pause=self.delivery_pauses.longest,
            channel_pauses={name: pauses.longest for name, pauses in sorted(self.channel_pauses.items())},
        )

    def _misplaced(self) -> int:
        return sum(
            1
            for name, seen in self._replay.items()
            if name in self._lanes
            for told, found in zip(self._lanes[name].offsets, seen.offsets, strict=False)
            if told >= 0 and found >= 0 and told != found
        )

    def _phantoms(self) -> int:
        return sum(
            sum(1 for number, mark in enumerate(seen.marks) if mark and self._is_phantom(name, number))
            for name, seen in self._replay.items()
        )

    def _is_phantom(self, name: tuple[str, int], number: int) -> bool:
        fate = self._lanes[name].fate if name in self._lanes else b""
        return number >= len(fate) or fate[number] == _REFUSED


def _count_missing(fate: bytearray, marks: bytearray) -> int:
    """Numbers that are acked and not seen; one big-integer operation, since it is polled."""
    acked = int.from_bytes(fate.translate(_TO_ACKED), "little")
    there = int.from_bytes(marks.translate(_TO_SEEN), "little")
    return (acked & ~there).bit_count()
