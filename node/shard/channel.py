"""A channel's row in its shard: what it is called, what it keeps, where its frames are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ringpost.node.journal.index import FrameIndex, Row
from ringpost.node.shard.producers import ProducerTable
from ringpost.v1.channel_pb2 import ChannelConfig

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group
    from ringpost.node.shard.shard import Shard


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """A channel's configuration. 0 means no limit."""

    retention_age_ms: int = 0
    retention_bytes: int = 0
    retention_messages: int = 0
    max_message_bytes: int = 0

    @property
    def retains_all(self) -> bool:
        """True when nothing is ever removed by itself."""
        return not (self.retention_age_ms or self.retention_bytes or self.retention_messages)

    def changed(self, config: ChannelConfig) -> "ChannelLimits":
        """These limits with the fields that are present in `config`."""
        given = {field.name: value for field, value in config.ListFields()}
        return ChannelLimits(**{name: given.get(name, getattr(self, name)) for name in self.__slots__})

    def message(self) -> ChannelConfig:
        """As the API shows it, every field present."""
        return ChannelConfig(**{name: getattr(self, name) for name in self.__slots__})


class Watcher(Protocol):
    """Somebody who wants to know of a channel's news: a subscription."""

    def advanced(self) -> None:
        """There may be something to deliver."""

    def removed(self, reason: str, message: str) -> None:
        """The channel (or the group) is gone."""


class Channel:
    """One channel.

    Invariant: first_offset <= end_offset <= next_offset. `end_offset` counts what is committed, and so visible;
    `next_offset` what is appended. `stored_bytes` are the bytes of all frames in the index.
    """

    __slots__ = (
        "created_time_us",
        "end_offset",
        "first_offset",
        "groups",
        "index",
        "limits",
        "lossy",
        "name",
        "next_limits",
        "next_offset",
        "number",
        "producers",
        "removed",
        "shard",
        "stored_bytes",
        "trim_to",
        "watchers",
    )

    def __init__(self, shard: "Shard", number: int, name: str, limits: ChannelLimits, created_time_us: int) -> None:
        self.shard = shard
        self.number = number
        self.name = name
        self.limits = limits
        self.next_limits = limits  # as of the last change that was appended
        self.created_time_us = created_time_us
        self.first_offset = 0
        self.end_offset = 0
        self.next_offset = 0
        self.trim_to = 0
        self.stored_bytes = 0
        self.removed = False
        self.lossy = False  # damage took some of its messages: there are index rows without a frame
        self.index = FrameIndex()
        self.producers: ProducerTable | None = None
        self.groups: dict[str, Group] | None = None
        self.watchers: set[Watcher] | None = None

    def watch(self, watcher: Watcher) -> None:
        """From now on the watcher hears of every advance."""
        if self.watchers is None:
            self.watchers = set()
        self.watchers.add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """The opposite of `watch`; unknown is fine."""
        if self.watchers is not None:
            self.watchers.discard(watcher)
            if not self.watchers:
                self.watchers = None

    def add_group(self, group: "Group") -> None:
        """The group belongs to the channel from now on."""
        if self.groups is None:
            self.groups = {}
        self.groups[group.name] = group
        self.shard.group_count += 1

    def drop_group(self, name: str) -> None:
        """The opposite; unknown is fine."""
        if self.groups and self.groups.pop(name, None) is not None:
            self.shard.group_count -= 1

    def keeps(self, row: Row) -> bool:
        """Whether the row is in the index as it is: neither trimmed nor moved to another address."""
        try:
            return self.index.row(self.index.find(row.base)) == row
        except LookupError:
            return False

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
