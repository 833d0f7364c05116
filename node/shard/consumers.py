"""Broadcast groups: every consumer, by its name, has a durable cursor of its own and gets every message.

A cursor is a group of the channel like any other, with its own core, frames, leases and retries; its name is
`GROUP/CONSUMER`, which no user can give to a group. The group itself hands out nothing: it says where new consumers
begin, and its configuration and its pause are those of its cursors. It is deleted with them, by one frame.
"""

from ringpost.node.errors import Exhausted, InvalidRequest, NotFound
from ringpost.node.groups.lease_token import LeaseToken, group_identity
from ringpost.node.shard.group import Group
from ringpost.v1.common_pb2 import GroupMode

SEPARATOR = "/"


def cursor_name(group: str, consumer: str) -> str:
    """The name that a consumer's cursor has among the groups of the channel."""
    return f"{group}{SEPARATOR}{consumer}"


def is_cursor(group: Group) -> bool:
    """Whether it is one consumer's part of a broadcast group."""
    return SEPARATOR in group.name


def consumer_of(cursor: Group) -> str:
    """Whose it is."""
    return cursor.name.partition(SEPARATOR)[2]


def is_broadcast(group: Group) -> bool:
    """Whether it is a broadcast group itself."""
    return group.settings.mode == GroupMode.GROUP_MODE_BROADCAST and not is_cursor(group)


def cursors_of(group: Group) -> list[Group]:
    """Those of a broadcast group, by name; none of any other."""
    if not is_broadcast(group):
        return []
    groups, prefix = group.channel.groups or {}, cursor_name(group.name, "")
    return [groups[name] for name in sorted(groups) if name.startswith(prefix)]


def parts_of(group: Group) -> list[Group]:
    """The group and all that its changes are for; also what an uncommitted frame deletes, as that may yet stay."""
    if not is_broadcast(group):
        return [group]
    channel, prefix = group.channel, cursor_name(group.name, "")
    leaving = (one for one in channel.shard.leaving_groups if one.channel is channel and one.name.startswith(prefix))
    return [group, *cursors_of(group), *leaving]


def group_of(cursor: Group) -> Group | None:
    """The broadcast group that it belongs to."""
    return (cursor.channel.groups or {}).get(cursor.name.partition(SEPARATOR)[0])


def find_cursor(group: Group, consumer: str, field: str) -> Group:
    """The part of the group that the consumer has: its cursor, or the whole group in the other modes.

    Raises InvalidRequest, NotFound.
    """
    if not is_broadcast(group):
        if consumer:
            raise InvalidRequest.of(field, f"is set, and group {group.name!r} is not in mode BROADCAST; leave it unset")
        return group
    if not consumer:
        raise InvalidRequest.of(field, f"is empty; in group {group.name!r} (BROADCAST) each consumer has its own place")
    found = (group.channel.groups or {}).get(cursor_name(group.name, consumer))
    if found is None:
        raise NotFound(
            f"group {group.name!r} of channel {group.channel.name!r} has no consumer {consumer!r}",
            reason="CONSUMER_NOT_FOUND",
            metadata={"channel": group.channel.name, "group": group.name, "consumer": consumer},
        )
    return found


def claimed_cursor(group: Group, token: LeaseToken) -> Group:
    """The part of the group that a lease token is of; the whole group in the other modes, and when it is of none."""
    found = (one for one in cursors_of(group) if group_identity(one.name, one.created_time_us) == token.group)
    return next(found, group)


def check_room(group: Group) -> None:
    """Raises Exhausted when the group has all the consumers that it may have."""
    most = group.settings.max_consumers
    if len(cursors_of(group)) >= most:
        raise Exhausted(
            f"open.consumer: group {group.name!r} has its {most:,} consumers (max_consumers); delete an unused one",
            reason="CONSUMER_LIMIT",
        )


class IdleConsumers:
    """Finds cursors that nobody has used for as long as their group allows. Pure; counts from when it first looked.

    `_since`: how many members a cursor had had by when it was first seen without one. Whoever comes and goes between
    two looks has used it, too.
    """

    def __init__(self) -> None:
        self._since: dict[Group, tuple[int, int]] = {}

    def is_over(self, cursor: Group, now_us: int) -> bool:
        """Whether to remove it. To be asked again and again."""
        if cursor.members or not cursor.settings.consumer_expiry_ms:
            self._since.pop(cursor, None)
            return False
        joined, since_us = self._since.get(cursor, (-1, 0))
        if joined != cursor.joined:
            self._since[cursor] = cursor.joined, now_us
            return False
        return since_us + cursor.settings.consumer_expiry_ms * 1000 <= now_us

    def forget_removed(self) -> None:
        """Drops what is remembered of cursors that are gone."""
        for cursor in [cursor for cursor in self._since if cursor.removed]:
            del self._since[cursor]
