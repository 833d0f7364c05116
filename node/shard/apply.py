"""What a committed frame does to a shard's state: at recovery, and on a replica that follows.

The leader's own frames bring their effects with them (`node.shard.shard`); here the same effects come from the bytes.
"""

from typing import Protocol

from ringpost.internal.v1.record_pb2 import ChannelRecord, GroupRecord, SettleRecord, TrimRecord
from ringpost.node.journal.frame import DATA_TYPES, FRAME_OVERHEAD, FrameType, Header
from ringpost.node.shard.boxes import add_box, bury_frame, change_letters
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.channel_state import ChannelState, limits_of
from ringpost.node.shard.configure import apply_pause, apply_settings
from ringpost.node.shard.consumers import cursors_of, group_of, is_cursor
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import apply_seek, new_core
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.producers import ProducerTable
from ringpost.node.shard.scheduling import SCHEDULED, apply_release, apply_schedule
from ringpost.node.shard.settle_codec import decode_settle
from ringpost.node.shard.shard import Shard, apply_delete, apply_trim


class Catalog(Protocol):
    """Where channels are found by name."""

    def include(self, channel: Channel) -> None:
        """There is such a channel from now on."""

    def exclude(self, channel: Channel) -> None:
        """There is not any more."""

    def note_limits(self, channel: Channel) -> None:
        """Its configuration is another one."""


class NoCatalog:
    """For shards whose channels nobody looks for by name here: those that this node follows."""

    def include(self, channel: Channel) -> None:
        """Nobody looks."""

    def exclude(self, channel: Channel) -> None:
        """Nobody looked."""

    def note_limits(self, channel: Channel) -> None:
        """The leader retains."""


def apply_frame(shard: Shard, header: Header, address: int, body: bytes | memoryview, catalog: Catalog) -> str | None:
    """Applies a frame whose place in the chain was checked; what is wrong with it, or None."""
    kind = header.type
    if kind in DATA_TYPES:
        return _apply_data(shard, header, address, body)
    if kind == FrameType.EPOCH_START:
        return None
    if kind == FrameType.CONFIG:
        return _apply_config(shard, header, ChannelRecord.FromString(bytes(body)), catalog)
    channel = shard.channels.get(header.channel)
    if channel is None:
        return f"position {header.position} is for channel {header.channel}, which does not exist"
    if kind == FrameType.TRIM:
        first = TrimRecord.FromString(bytes(body)).first_offset
        channel.trim_to = max(channel.trim_to, first)
        apply_trim(channel, first)
    elif kind == FrameType.REPEAT:
        _apply_numbers(channel, header)
    elif kind == FrameType.SCHEDULE:
        apply_schedule(channel, header, address, body)
        if header.producer:
            _apply_numbers(channel, header, SCHEDULED + header.base_offset)
    elif kind == FrameType.GROUP:
        _apply_group(channel, header, GroupRecord.FromString(bytes(body)))
    elif kind == FrameType.SETTLE:
        record = SettleRecord.FromString(bytes(body))
        group = (channel.groups or {}).get(record.group)
        if group is not None:
            group.core.apply(decode_settle(record))
    else:
        return f"position {header.position} has type {kind}, which this version does not know"
    return None


def _apply_data(shard: Shard, header: Header, address: int, body: bytes | memoryview) -> str | None:
    channel = shard.channels.get(header.channel)
    if channel is None:
        return f"position {header.position} is for channel {header.channel}, which does not exist"
    if header.base_offset != channel.next_offset:
        return f"offset {header.base_offset} of channel {channel.name!r} follows {channel.next_offset - 1}"
    length = FRAME_OVERHEAD + header.body_length
    channel.index.append(header.base_offset, address, length)
    channel.stored_bytes += length
    channel.next_offset = channel.end_offset = header.base_offset + header.count
    shard.log.ledger.add(address, length)
    if header.type == FrameType.RELEASE:
        apply_release(channel, header.base_sequence)
    elif channel.limits.dedup_window_ms:
        channel.apply_ids(header.time_us, header.base_offset, bytes(body))
    if channel.box_of:
        bury_frame(channel, header.base_offset, body)
    if header.producer:
        _apply_numbers(channel, header)
    return None


def _apply_numbers(channel: Channel, header: Header, offset: int | None = None) -> None:
    """A producer's batch is stored at the base offset, now or before, or at what stands in place of it."""
    if channel.producers is None:
        channel.producers = ProducerTable()
    channel.producers.stored(
        header.producer,
        header.producer_epoch,
        header.base_sequence,
        header.count,
        header.base_offset if offset is None else offset,
        header.time_us,
    )


def _apply_config(shard: Shard, header: Header, record: ChannelRecord, catalog: Catalog) -> str | None:
    limits = limits_of(record.config)
    if record.channel == 0:
        channel = Channel(shard, header.position, record.name, ChannelState(limits, header.time_us))
        shard.channels[channel.number] = channel
        if record.box_of:
            channel.box_of = record.box_of
            add_box(channel)
        catalog.include(channel)
        return None
    known = shard.channels.get(record.channel)
    if known is None:
        return f"position {header.position} changes channel {record.channel}, which does not exist"
    if record.deleted:
        catalog.exclude(known)
        apply_delete(known)
    else:
        known.apply_limits(limits)
        known.next_limits = limits
        catalog.note_limits(known)
    return None


def _apply_group(channel: Channel, header: Header, record: GroupRecord) -> None:
    group = (channel.groups or {}).get(record.name)
    change = record.WhichOneof("change")
    if change == "deleted":
        for cursor in cursors_of(group) if group is not None else ():
            channel.drop_group(cursor.name)
        channel.drop_group(record.name)
        box = channel.shard.boxes.get((channel.number, record.name))
        if box is not None:
            apply_delete(box)
    elif change == "create_at" and group is None:
        settings = GroupSettings.of(record.config)
        core = new_core(settings, max(record.create_at, channel.first_offset))
        made = Group(channel, record.name, settings, core, header.time_us, header.position)
        made.paused = is_cursor(made) and (whole := group_of(made)) is not None and whole.paused
        channel.add_group(made)
    elif change == "seek_to" and group is not None:
        apply_seek(group, channel.shard.boxes.get((channel.number, record.name)), record.seek_to, header.position)
    elif change == "configured" and group is not None:
        group.next_settings = GroupSettings.of(record.config)
        apply_settings(group, group.next_settings)
    elif change == "letters" and group is not None:
        change_letters(group, channel.shard.boxes.get((channel.number, record.name)), record.letters, header.position)
    elif change == "paused" and group is not None:
        apply_pause(group, record.paused)
