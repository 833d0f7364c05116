"""The frames that make, move and remove a group."""

from typing import Any

from ringpost.internal.v1.record_pb2 import GroupRecord
from ringpost.node.errors import RingpostError
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.consumers import cursors_of, group_of, is_cursor
from ringpost.node.shard.group import Group, check_there, group_moving
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.shard import Done, apply_delete
from ringpost.v1.common_pb2 import GroupMode


def new_core(settings: GroupSettings, settled_below: int, **state: Any) -> GroupCore:
    """The core of a group that begins at an offset; `state`: what else is known of it, as in `GroupState`."""
    kind = KeyedCore if settings.mode == GroupMode.GROUP_MODE_KEY_ORDERED else GroupCore
    return kind(
        settled_below=settled_below,
        ack_deadline_us=settings.ack_deadline_ms * 1000,
        max_in_flight=settings.max_in_flight,
        policy=settings.policy,
        **state,
    )


def ready_for(group: Group) -> int:
    """To be called before a frame about the group is appended. Raises NotFound when it was deleted."""
    check_there(group)
    return group.channel.shard.ready_for(group.channel)


def add_group(channel: Channel, name: str, settings: GroupSettings, start: int, done: Done) -> Group:
    """Makes a group that begins at `start`, usable at once; `done` when it is committed.

    Raises NotFound when the channel was deleted meanwhile.
    """
    shard = channel.shard
    now = shard.ready_for(channel)
    start = max(start, channel.first_offset)
    body = GroupRecord(name=name, config=settings.message(), create_at=start).SerializeToString()
    shard.log.append(shard, FrameType.GROUP, body, done, time_us=now, channel=channel.number)
    group = Group(channel, name, settings, new_core(settings, start), now, shard.position)
    group.paused = is_cursor(group) and (whole := group_of(group)) is not None and whole.paused
    channel.add_group(group)
    return group


def seek_group(group: Group, offset: int, done: Done) -> None:
    """Moves a group when committed. Raises NotFound when it was deleted meanwhile."""
    group.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, seek_to=offset).SerializeToString()
    number = group.channel.number
    box = shard.boxes.get((number, group.name))
    era = shard.position + 1
    shard.log.append(shard, FrameType.GROUP, body, _sought, group, box, offset, era, done, time_us=now, channel=number)
    shard.log.burials.fail(group, group_moving(group))
    group.seeks += 1


def _sought(error: RingpostError | None, group: Group, box: Channel | None, offset: int, era: int, done: Done) -> None:
    group.seeks -= 1
    if error is None:
        apply_seek(group, box, offset, era)
        for member in tuple(group.members.values()):
            member.moved(f"group {group.name!r} was moved; open the subscription again")
    if not group.seeks:
        group.resume()
    done(error)


def apply_seek(group: Group, box: Channel | None, offset: int, era: int) -> None:
    """A committed seek; `box` keeps the group's dead letters, if it has any; `era` is the position of its frame."""
    group.era = era
    group.recent.forget()
    group.core.seek(max(offset, group.channel.first_offset))
    group.look_again(0)
    if box is not None:
        group.voids.sought(box.end_offset, offset, box.first_offset)


def delete_group(group: Group, done: Done) -> None:
    """Removes a group at once, with its consumers; `done` when that is committed.

    Raises NotFound when it was deleted meanwhile.
    """
    cursors = cursors_of(group)
    for one in (*cursors, group):
        one.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, deleted=True).SerializeToString()
    number = group.channel.number
    box = shard.boxes.get((number, group.name))
    going = (*cursors, group)
    shard.log.append(shard, FrameType.GROUP, body, _deleted, group, going, box, done, time_us=now, channel=number)
    shard.close_box(group.channel, group.name)
    shard.leaving_groups.update(going)
    for one in going:
        group.channel.drop_group(one.name)
        one.remove("GROUP_DELETED", f"group {one.name!r} was deleted")


def _deleted(
    error: RingpostError | None, group: Group, gone: tuple[Group, ...], box: Channel | None, done: Done
) -> None:
    if error is None:  # or else they may stay: whoever goes back to what is committed must still find them
        group.channel.shard.leaving_groups.difference_update(gone)
        if box is not None:
            apply_delete(box)
    done(error)
