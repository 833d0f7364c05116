"""Changing a group's configuration; pausing it."""

from functools import partial

from ringpost.internal.v1.record_pb2 import GroupRecord
from ringpost.node.errors import RingpostError
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.boxes import box_of, limits_of
from ringpost.node.shard.consumers import cursors_of, parts_of
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import ready_for
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.shard import Done, ignore
from ringpost.v1.group_pb2 import GroupConfig


def set_group(group: Group, config: GroupConfig, done: Done) -> None:
    """Changes what is present in a checked configuration, when committed. Raises NotFound when it was deleted.

    Another filter counts from its commit on: until then nothing is handed out or looked at, and what the old one has
    kept back is in the log before.
    """
    settings = changed(group.next_settings, config)
    refiltered = [group, *cursors_of(group)] if settings.filter != group.next_settings.filter else []
    for one in refiltered:
        one.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, config=settings.message(), configured=True).SerializeToString()
    number = group.channel.number
    done = partial(_refiltered, refiltered, done) if refiltered else done
    shard.log.append(shard, FrameType.GROUP, body, _configured, group, settings, done, time_us=now, channel=number)
    group.next_settings = settings
    for one in refiltered:
        one.seeks += 1
    box = box_of(group)
    if box is not None and box.next_limits != limits_of(settings):
        shard.set_channel(box, limits_of(settings), ignore)


def pause_group(group: Group, paused: bool, done: Done) -> None:
    """Pauses or resumes a group when committed. Raises NotFound when it was deleted."""
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, paused=paused).SerializeToString()
    number = group.channel.number
    shard.log.append(shard, FrameType.GROUP, body, _paused, group, paused, done, time_us=now, channel=number)


def changed(settings: GroupSettings, config: GroupConfig) -> GroupSettings:
    """The settings with the fields that are present in a checked `config`; the mode stays."""
    merged = settings.message()
    mode = merged.mode
    if config.HasField("retry"):
        merged.ClearField("retry")
    merged.MergeFrom(config)
    merged.mode = mode
    return GroupSettings.of(merged)


def _configured(error: RingpostError | None, group: Group, settings: GroupSettings, done: Done) -> None:
    if error is None:
        apply_settings(group, settings)
    done(error)


def _refiltered(parts: list[Group], done: Done, error: RingpostError | None) -> None:
    """Leases end, and consumers come again: what they have not confirmed is looked at by the new filter."""
    for group in parts:
        group.seeks -= 1
        if not group.seeks:
            group.resume()  # what was settled meanwhile speaks of leases that there still are
        if error is None:
            for member in tuple(group.members.values()):
                member.moved(f"the filter of group {group.name!r} has changed; open the subscription again")
            group.scan = None
            if isinstance(group.core, KeyedCore):
                group.core.forget()
    done(error)


def _paused(error: RingpostError | None, group: Group, paused: bool, done: Done) -> None:
    if error is None:
        apply_pause(group, paused)
    done(error)


def apply_settings(group: Group, settings: GroupSettings) -> None:
    """The group has this configuration from now on, and its consumers have."""
    for one in parts_of(group):
        one.settings = settings
        one.core.configure(settings.ack_deadline_ms * 1000, settings.max_in_flight, settings.policy)


def apply_pause(group: Group, paused: bool) -> None:
    """The group is paused or resumed, and its consumers are."""
    for one in parts_of(group):
        one.paused = paused
        if not paused:
            one.kick()
