"""Boxes of dead letters: hidden channels, each of one group, in the shard of the group's channel.

A box is made by its own CONFIG frame before its first letters, and deleted by the frame that deletes its group or
channel. What is here changes state as frames say, for leader, follower and replay.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ringpost.internal.v1.record_pb2 import ChannelRecord, DeadLetterFrame, LetterChange
from ringpost.node.groups.ranges import pairs
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.channel_state import ChannelState
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.shard import ignore


class Changed(NamedTuple):
    """What a change of letters has done."""

    redriven: int
    dropped: int


def box_of(group: Group) -> Channel | None:
    """The group's box, None while there is none, or when it is about to go."""
    box = group.channel.shard.boxes.get((group.channel.number, group.name))
    return None if box is None or box.removed else box


def limits_of(settings: GroupSettings) -> ChannelLimits:
    """What a group's configuration lets its box keep."""
    return ChannelLimits(retention_age_ms=settings.dead_letter_age_ms, retention_bytes=settings.dead_letter_bytes)


def find_or_make(group: Group) -> Channel:
    """The group's box, made now if need be, usable at once. Raises what keeps the shard from appending."""
    known = box_of(group)
    if known is not None:
        return known
    channel, shard = group.channel, group.channel.shard
    now = shard.ready_for(channel)
    limits = limits_of(group.next_settings)
    name = f"$dead.{group.name}.{channel.name}"
    record = ChannelRecord(name=name, config=limits.message(), box_of=channel.number)
    number = shard.position + 1
    shard.log.append(shard, FrameType.CONFIG, record.SerializeToString(), ignore, time_us=now)
    state = ChannelState(limits, now)
    state.box_of = channel.number
    return add_box(Channel(shard, number, name, state))


def add_box(box: Channel) -> Channel:
    """The shard has this box."""
    box.shard.channels[box.number] = box
    box.shard.boxes[box.box_of, group_name(box)] = box
    return box


def group_name(box: Channel) -> str:
    """The name of the group whose box it is."""
    return box.name.split(".", 2)[1]


def group_of(box: Channel) -> Group | None:
    """The group whose box it is."""
    channel = box.shard.channels.get(box.box_of)
    return None if channel is None else (channel.groups or {}).get(group_name(box))


# -- letters ----------------------------------------------------------------------------------------------------------


def count(group: Group) -> int:
    """Letters that are kept, and not lost."""
    box = box_of(group)
    if box is None:
        return 0
    lost = [(first, min(last, box.end_offset - 1)) for first, last in box.lost_ranges()]
    missing = [*group.letters_gone.intersect(box.first_offset, box.end_offset - 1)]
    missing += [gap for pair in lost for gap in group.letters_gone.gaps(*pair)]
    return box.end_offset - box.first_offset - sum(last - first + 1 for first, last in missing)


def bury(group: Group, first_number: int, offsets: Sequence[int]) -> int:
    """Letters of these offsets are committed, from a number on; returns how many messages that has settled."""
    buried = 0
    for number, offset in enumerate(offsets, first_number):
        if group.core.give_up(offset):
            buried += 1
        else:
            group.letters_gone.add(number, number)
    return buried


def bury_frame(box: Channel, first_number: int, body: bytes | memoryview) -> None:
    """A DATA frame of the box is committed."""
    group = group_of(box)
    if group is not None:
        bury(group, first_number, [letter.offset for letter in DeadLetterFrame.FromString(bytes(body)).letters])


def change_letters(group: Group, box: Channel | None, change: LetterChange, position: int) -> Changed:
    """A committed change: what it names leaves the box, as far as it is there; also a box that is about to go.

    `position` is that of its frame. A letter that is void (see `Voids`) brings nothing back.
    """
    if box is None:
        return Changed(0, 0)
    gone, redriven, dropped = group.letters_gone, 0, 0
    if box.first_offset:
        gone.remove(0, box.first_offset - 1)
    flat = change.redriven
    if flat:
        group.era = position
        group.recent.forget()
    for number, offset in zip(flat[::2], flat[1::2], strict=True):
        inside = box.first_offset <= number < box.end_offset and not gone.contains(number)
        if inside and offset >= group.channel.first_offset:
            gone.add(number, number)
            if not group.voids.void(number, offset):
                group.core.reopen(offset)
                group.look_again(offset)
                redriven += 1
    for first, last in pairs(change.dropped):
        for start, end in gone.gaps(max(first, box.first_offset), min(last, box.end_offset - 1)):
            gone.add(start, end)
            dropped += end - start + 1
    return Changed(redriven, dropped)
