"""What changes of a channel, and how it is packed into a few bytes while nobody is interested. Pure.

`packed` bytes are an encoded ShardSnapshot that has this one channel and nothing else. So a shard's part of a
checkpoint is what it says of itself and then the packed bytes of its channels, one after another: protobuf adds up
what is repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ringpost.internal.v1.record_pb2 import ChannelSnapshot, ProducerSnapshot, SeenSnapshot, ShardSnapshot
from ringpost.node.journal.index import ROW_BYTES, FrameIndex
from ringpost.node.shard.producers import Producer, ProducerTable, Run
from ringpost.node.shard.seen_ids import SeenIds, SeenRun
from ringpost.v1.channel_pb2 import ChannelConfig

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """A channel's configuration. 0 means no limit, and no deduplication by message ids."""

    retention_age_ms: int = 0
    retention_bytes: int = 0
    retention_messages: int = 0
    max_message_bytes: int = 0
    dedup_window_ms: int = 0

    @property
    def retains_all(self) -> bool:
        """True when nothing is ever removed by itself."""
        return not (self.retention_age_ms or self.retention_bytes or self.retention_messages)

    @property
    def lets_be(self) -> bool:
        """True when time changes nothing of a channel: nothing is removed, no id is remembered for a while."""
        return self.retains_all and not self.dedup_window_ms

    def changed(self, config: ChannelConfig) -> "ChannelLimits":
        """These limits with the fields that are present in `config`."""
        given = {field.name: value for field, value in config.ListFields()}
        return ChannelLimits(**{name: given.get(name, getattr(self, name)) for name in self.__slots__})

    def message(self) -> ChannelConfig:
        """As the API shows it, every field present."""
        return ChannelConfig(**{name: getattr(self, name) for name in self.__slots__})


NO_LIMITS = ChannelLimits()


def limits_of(config: ChannelConfig) -> ChannelLimits:
    """`NO_LIMITS.changed(config)`; the same object for all that have none."""
    limits = ChannelLimits(
        config.retention_age_ms,
        config.retention_bytes,
        config.retention_messages,
        config.max_message_bytes,
        config.dedup_window_ms,
    )
    return NO_LIMITS if limits == NO_LIMITS else limits


class Watcher(Protocol):
    """Somebody who wants to know of a channel's news: a subscription."""

    def advanced(self) -> None:
        """There may be something to deliver."""

    def removed(self, reason: str, message: str) -> None:
        """The channel (or the group) is gone."""


class ChannelState:
    """Invariant: first_offset <= end_offset <= next_offset. `end_offset` counts what is committed, and so visible;
    `next_offset` what is appended. `stored_bytes` are the bytes of all frames in the index.
    """

    __slots__ = (
        "box_of",
        "created_time_us",
        "end_offset",
        "first_offset",
        "groups",
        "index",
        "limits",
        "lossy",
        "next_limits",
        "next_offset",
        "producers",
        "removed",
        "seen",
        "stored_bytes",
        "trim_to",
        "watchers",
    )

    def __init__(self, limits: ChannelLimits, created_time_us: int) -> None:
        self.limits = limits
        self.next_limits = limits  # as of the last change that was appended
        self.created_time_us = created_time_us
        self.first_offset = 0
        self.end_offset = 0
        self.next_offset = 0
        self.trim_to = 0
        self.stored_bytes = 0
        self.removed = False
        self.box_of = 0  # number of the channel whose group's dead letters it keeps
        self.lossy = False  # damage took some of its messages: there are index rows without a frame
        self.index = FrameIndex()
        self.producers: ProducerTable | None = None
        self.seen: SeenIds | None = None  # made by the first id, where there is a window
        self.groups: dict[str, Group] | None = None
        self.watchers: set[Watcher] | None = None

    @property
    def needed(self) -> bool:
        """Whether somebody is there who wants it at hand: it is looked at more often than it would pay to pack it."""
        return bool(self.groups or self.watchers or self.lossy or self.box_of) or not self.limits.lets_be

    @property
    def settled(self) -> bool:
        """Whether no change is on its way: all that was appended is committed."""
        return (
            self.next_offset == self.end_offset
            and self.trim_to == self.first_offset
            and self.next_limits == self.limits
            and (self.producers is None or self.producers.settled)
        )


def row_of(number: int, name: str, state: ChannelState) -> ChannelSnapshot:
    """What is committed of a channel, without its groups."""
    rows = state.index.to_bytes()
    if state.next_offset > state.end_offset:
        rows = rows[: state.index.find(state.end_offset) * ROW_BYTES]
    row = ChannelSnapshot(
        channel=number,
        name=name,
        created_time_us=state.created_time_us,
        first_offset=state.first_offset,
        end_offset=state.end_offset,
        index=rows,
        box_of=state.box_of,
    )
    if state.limits != NO_LIMITS:
        row.config.CopyFrom(state.limits.message())
    if state.producers:
        row.producers.extend(_producers(state.producers))
    if state.seen:
        runs = state.seen.runs(state.end_offset)
        row.seen.extend(SeenSnapshot(time_us=run.time_us, first_offset=run.first, ids=run.ids) for run in runs)
    return row


def _producers(table: ProducerTable) -> Iterator[ProducerSnapshot]:
    for producer, known in table.items():
        yield ProducerSnapshot(
            producer=producer,
            epoch=known.epoch,
            next_sequence=known.next_sequence,
            last_time_us=known.last_time_us,
            runs=[number for run in known.runs for number in run],
        )


def state_of(row: ChannelSnapshot) -> ChannelState:
    """The inverse of `row_of`. Raises ValueError for index rows that are none."""
    limits = limits_of(row.config) if row.HasField("config") else NO_LIMITS
    state = ChannelState(limits, row.created_time_us)
    state.box_of = row.box_of
    state.first_offset = state.trim_to = row.first_offset
    state.next_offset = state.end_offset = row.end_offset
    if row.index:
        state.index = FrameIndex.from_bytes(row.index)
        state.stored_bytes = sum(state.index.bytes_by_segment().values())
        state.lossy = any(True for _ in state.index.lost_rows())
    if row.producers:
        state.producers = ProducerTable()
        for producer in row.producers:
            runs = (Run(*producer.runs[at : at + 3]) for at in range(0, len(producer.runs), 3))
            known = Producer(producer.epoch, producer.next_sequence, producer.last_time_us, runs)
            state.producers.restore(producer.producer, known)
    if row.seen:
        state.seen = SeenIds([SeenRun(run.time_us, run.first_offset, tuple(run.ids)) for run in row.seen])
    return state


def pack(row: ChannelSnapshot) -> bytes:
    """A row as packed bytes."""
    return ShardSnapshot(channels=(row,)).SerializeToString()


def unpack(packed: bytes) -> ChannelSnapshot:
    """The inverse of `pack`."""
    (row,) = ShardSnapshot.FromString(packed).channels
    return row
