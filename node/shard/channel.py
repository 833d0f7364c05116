"""A channel's row in its shard: what it is called, what it keeps, where its frames are."""

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ringpost.internal.v1.record_pb2 import ChannelSnapshot
from ringpost.node.journal.index import FrameIndex, Row
from ringpost.node.shard.channel_state import (
    ChannelLimits,
    ChannelState,
    Watcher,
    pack,
    row_of,
    state_of,
    unpack,
)
from ringpost.node.shard.producers import ProducerTable
from ringpost.node.shard.seen_ids import SeenIds, ids_of

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group
    from ringpost.node.shard.shard import Shard

__all__ = ["Channel", "ChannelLimits", "Watcher"]

# What is known of a packed channel: with anything else it would not have been packed.
_WHILE_PACKED: dict[str, object] = {
    "box_of": 0,
    "groups": None,
    "watchers": None,
    "seen": None,
    "removed": False,
    "lossy": False,
}
_Value = TypeVar("_Value")


class _Attribute(Protocol[_Value]):
    """An attribute of the state as one of the channel."""

    def __get__(self, channel: "Channel", owner: object = None) -> _Value: ...

    def __set__(self, channel: "Channel", value: _Value) -> None: ...


def _attribute(name: str) -> Any:
    """A property; `_state` of a packed channel comes from `__getattr__`, which unpacks it."""

    def known(channel: "Channel") -> Any:
        return getattr(channel._state, name) if channel.packed is None else _WHILE_PACKED[name]

    def change(channel: "Channel", value: Any) -> None:
        setattr(channel._state, name, value)

    return property(known if name in _WHILE_PACKED else attrgetter(f"_state.{name}"), change)


class Channel:
    """One channel. It stays the same object for as long as it is there; its state is packed while nobody needs it.

    Invariant: there is either `packed` or `_state`. Asking for an attribute of the state unpacks it,
    unless the answer is known of every packed one.
    """

    __slots__ = ("_state", "name", "number", "packed", "shard")

    box_of: _Attribute[int] = _attribute("box_of")
    created_time_us: _Attribute[int] = _attribute("created_time_us")
    end_offset: _Attribute[int] = _attribute("end_offset")
    first_offset: _Attribute[int] = _attribute("first_offset")
    groups: "_Attribute[dict[str, Group] | None]" = _attribute("groups")
    index: _Attribute[FrameIndex] = _attribute("index")
    limits: _Attribute[ChannelLimits] = _attribute("limits")
    lossy: _Attribute[bool] = _attribute("lossy")
    next_limits: _Attribute[ChannelLimits] = _attribute("next_limits")
    next_offset: _Attribute[int] = _attribute("next_offset")
    producers: _Attribute[ProducerTable | None] = _attribute("producers")
    removed: _Attribute[bool] = _attribute("removed")
    seen: _Attribute[SeenIds | None] = _attribute("seen")
    stored_bytes: _Attribute[int] = _attribute("stored_bytes")
    trim_to: _Attribute[int] = _attribute("trim_to")
    watchers: _Attribute[set[Watcher] | None] = _attribute("watchers")

    def __init__(self, shard: "Shard", number: int, name: str, state: ChannelState | bytes) -> None:
        """`state` may be packed."""
        self.shard = shard
        self.number = number
        self.name = name
        if isinstance(state, bytes):
            self.packed: bytes | None = state
            return
        self.packed = None
        self._state = state
        shard.log.warm.add(self)

    def __getattr__(self, name: str) -> Any:
        if name != "_state" or self.packed is None:
            raise AttributeError(f"a channel has no {name!r}")
        state = self._state = state_of(unpack(self.packed))
        self.packed = None
        self.shard.log.warm.add(self)
        return state

    def cool(self) -> bool:
        """Packs the state if nobody needs it at hand; True: a change is on its way, so it cannot be packed yet."""
        if self.packed is not None or self._state.removed or self._state.needed:
            return False
        shard = self.shard
        if not self._state.settled or self.number > shard.committed or shard.leaving_groups:
            return True
        self.packed = pack(self.row())
        del self._state
        return False

    def row(self) -> ChannelSnapshot:
        """What is committed of it, without groups, of an unpacked channel."""
        if self._state.producers:
            self._state.producers.forget_silent(self.shard.last_time_us)
        if self._state.seen:
            self.let_ids_go(self.shard.last_time_us)
        return row_of(self.number, self.name, self._state)

    def peek(self) -> ChannelState:
        """The state to look at and not to change; a packed channel stays packed."""
        return self._state if self.packed is None else state_of(unpack(self.packed))

    def peek_index(self) -> FrameIndex:
        """The same for the index alone."""
        return self._state.index if self.packed is None else FrameIndex.from_bytes(unpack(self.packed).index)

    def watch(self, watcher: Watcher) -> None:
        """From now on the watcher hears of every advance."""
        state = self._state
        if state.watchers is None:
            state.watchers = set()
        state.watchers.add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """The opposite of `watch`; unknown is fine."""
        watchers = self.watchers
        if watchers is not None:
            watchers.discard(watcher)
            if not watchers:
                self.watchers = None
                self.shard.log.warm.add(self)

    # -- message ids ------------------------------------------------------------------------------------------------

    def note_ids(self, time_us: int, first: int, ids: tuple[bytes, ...]) -> None:
        """A batch with these ids is appended, or applied, where there is a window."""
        state = self._state
        if state.seen is None:
            state.seen = SeenIds()
        state.seen.note(time_us, first, ids)

    def let_ids_go(self, time_us: int) -> None:
        """Frames up to a time are committed: ids that fall out of the window, or do not fit in it, are forgotten."""
        state = self._state
        if state.seen is not None:
            state.seen.let_go(time_us - state.limits.dedup_window_ms * 1000, state.end_offset)

    def apply_ids(self, time_us: int, first: int, batch: bytes) -> None:
        """Both, for a committed batch of another's making; `end_offset` counts it already."""
        self.note_ids(time_us, first, ids_of(batch))
        self.let_ids_go(time_us)

    def apply_limits(self, limits: ChannelLimits) -> None:
        """Its configuration is another one, committed. Without a window the ids so far go; those behind it stay."""
        state = self._state
        state.limits = limits
        if not limits.dedup_window_ms and state.seen is not None:
            state.seen.let_go(1 << 63, state.end_offset)
            if not state.seen:
                state.seen = None
        if not limits.dedup_window_ms and self.number in self.shard.schedules:
            self.shard.schedules[self.number].forget_ids()

    def add_group(self, group: "Group") -> None:
        """The group belongs to the channel from now on."""
        state = self._state
        if state.groups is None:
            state.groups = {}
        state.groups[group.name] = group
        self.shard.group_count += 1
        self.shard.grouped[self.number] = self

    def drop_group(self, name: str) -> None:
        """The opposite; unknown is fine."""
        if self.groups and self.groups.pop(name, None) is not None:
            self.shard.group_count -= 1
            if not self.groups:
                self.shard.grouped.pop(self.number, None)
                self.shard.log.warm.add(self)

    def keeps(self, row: Row) -> bool:
        """Whether the row is in the index as it is: neither trimmed nor moved to another address."""
        try:
            return self.index.row(self.index.find(row.base)) == row
        except LookupError:
            return False

    def move_row(self, row: Row, address: int) -> bool:
        """The frame of a row was copied; False when it is not kept any more."""
        return not self.removed and self.index.move(row.base, address)

    def rows_in_segment(self, segment: int) -> Iterator[list[Row]]:
        """The rows whose frames lie in a segment; a packed channel stays packed."""
        return self.peek_index().rows_in_segment(segment)

    def lost_at(self, offset: int) -> tuple[int, int] | None:
        """The committed offsets first..last from `offset` on whose messages are lost; None when it is not."""
        if not self.lossy or not self.first_offset <= offset < self.end_offset:
            return None
        number = self.index.find(offset)
        end = offset
        while end < self.end_offset and self.index.row(number).lost:
            number, end = number + 1, self.end_of_row(number)
        return (offset, min(end, self.end_offset) - 1) if end > offset else None

    def lost_ranges(self) -> list[tuple[int, int]]:
        """All offsets first..last among the kept whose messages are lost, the newest first."""
        if not self.lossy:
            return []
        rows = ((self.index.row(number).base, self.end_of_row(number) - 1) for number in self.index.lost_rows())
        return [(max(first, self.first_offset), last) for first, last in rows if last >= self.first_offset]

    def newest(self, count: int) -> int:
        """The offset of the first of the newest `count` messages that are not lost; may be below 0."""
        offset = self.end_offset - count
        for first, last in self.lost_ranges():
            if last < offset:
                break
            offset -= last - first + 1
        return offset

    @property
    def committed_rows(self) -> int:
        """Number of index rows below `end_offset`: those that are durable and may be read."""
        if self.end_offset == self.next_offset:
            return len(self.index)
        return self.index.find(self.end_offset)

    def end_of_row(self, row: int) -> int:
        """Offset after the last message of an index row."""
        return self.index.row(row + 1)[0] if row + 1 < len(self.index) else self.next_offset
