"""Opening a subscription: finding the channel, the place to begin, the group."""

import asyncio
from functools import partial
from typing import NamedTuple

from ringpost.cluster.names import group_problem
from ringpost.node.delivery.certainty import SURE_S, becomes_sure
from ringpost.node.delivery.commands import check_mode_known
from ringpost.node.delivery.filtered import FilteredCursor
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.sources import Cursor, Membership, Source
from ringpost.node.delivery.subscription import Subscription
from ringpost.node.errors import InvalidRequest, NotFound, OutOfRange, RingpostError, Unavailable
from ringpost.node.filters.filter import checked
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.claims import Mint
from ringpost.node.shard.consumers import check_room, cursor_name, is_broadcast
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.modes import check_filter, check_mode
from ringpost.node.shard.reading import Reading, check_offset
from ringpost.node.shard.store import Store
from ringpost.v1.common_pb2 import Start
from ringpost.v1.group_pb2 import GroupConfig
from ringpost.v1.subscribe_pb2 import OpenSubscription


class Opening(NamedTuple):
    """A subscription that can begin. `ack_deadline_ms` is 0 without a group."""

    channel: Channel
    source: Source
    next_offset: int
    ack_deadline_ms: int


async def open_source(hub: Hub, subscription: Subscription, command: OpenSubscription) -> Opening:
    """Raises RingpostError when it cannot begin; what was made by first use stays."""
    if command.group and (problem := group_problem(command.group)) is not None:
        raise InvalidRequest.of("open.group", problem)
    check_mode_known(command)
    if command.pattern:  # which makes no channel
        channel = hub.store.find(command.channel, "open.channel")
    else:
        channel = find_or_add(hub.store, command.channel, command.start, "open.")
    if command.group:
        group = await _group(hub, channel, command)
        if is_broadcast(group):
            group = await _cursor(hub, group, command)
        if group.removed:
            raise NotFound(f"group {group.name!r} was deleted", reason="GROUP_DELETED")
        check_mode(group.name, group.settings.mode, command.mode)
        check_filter(group.name, group.settings.filter, command.filter)
        group.read_by(hub.reading, hub.spawn)
        member = hub.new_member()
        group.join(member, subscription)
        source = Membership(group, member, Mint(group, member) if command.lease_tokens else None)
        return Opening(channel, source, group.core.settled_below, group.settings.ack_deadline_ms)
    try:
        offset = await resolve_start(hub.reading, channel, command.start, channel.end_offset, "open.start")
    except OutOfRange:
        # Another node may lead by now, and have what the client has seen.
        await _know_for_sure(hub, channel)
        offset = await resolve_start(hub.reading, channel, command.start, channel.end_offset, "open.start")
    wanted = checked(command.filter, "open.filter")
    cursor = Cursor(channel, offset) if wanted is None else FilteredCursor(channel, offset, wanted)
    return Opening(channel, cursor, max(offset, channel.first_offset), 0)


async def _know_for_sure(hub: Hub, channel: Channel) -> None:
    """Waits until this node surely is the one that leads. Raises Unavailable when that takes too long."""
    end = asyncio.get_running_loop().time() + SURE_S
    if not await becomes_sure(partial(hub.may_deliver, channel.shard.number), end):
        message = f"whether channel {channel.name!r} ends here cannot be told now; open the subscription again"
        raise Unavailable(message, retry_after_ms=50)


def find_or_add(store: Store, name: str, start: Start, prefix: str) -> Channel:
    """The channel, made by first use, but not by a request that must fail because of its start.

    `prefix` is where `channel` and `start` are in the request.
    """
    if store.get(name) is None and store.makes_by_use(name):
        if start.WhichOneof("at") == "offset" and start.offset > 0:
            raise OutOfRange(
                f"{prefix}start.offset: {start.offset} is beyond the end offset 0 of the new channel {name!r}",
                metadata={"end_offset": "0", "first_offset": "0"},
            )
        _check_time(start, f"{prefix}start")
    return store.find_or_add(name, f"{prefix}channel")


async def _group(hub: Hub, channel: Channel, command: OpenSubscription) -> Group:
    has_start = command.start.WhichOneof("at") is not None
    known = (channel.groups or {}).get(command.group)
    if known is not None:
        if has_start and not command.pattern:
            raise InvalidRequest.of(
                "open.start", f"group {command.group!r} exists and knows its place; leave start unset or seek the group"
            )
        return known
    if not hub.store.limits.auto_create_channels:
        return hub.store.find_group(channel, command.group)
    hub.store.check_groups()
    start = await resolve_start(hub.reading, channel, command.start, channel.first_offset, "open.start")
    settings = GroupSettings.of(GroupConfig(mode=command.mode, filter=command.filter))
    return await make_group(channel, command.group, settings, start)


async def _cursor(hub: Hub, group: Group, command: OpenSubscription) -> Group:
    """The consumer's part of a broadcast group, made when it first comes, where the group says. Raises the refusals."""
    if group.removed:
        raise NotFound(f"group {group.name!r} was deleted", reason="GROUP_DELETED")
    check_mode(group.name, group.settings.mode, command.mode)
    if not command.consumer:
        raise InvalidRequest.of(
            "open.consumer",
            f"is empty; group {group.name!r} is in mode BROADCAST, where a consumer's name says whose place it is",
        )
    name = cursor_name(group.name, command.consumer)
    known = (group.channel.groups or {}).get(name)
    if known is not None:
        return known
    check_room(group)
    hub.store.check_groups()
    return await make_group(group.channel, name, group.next_settings, group.core.settled_below)


async def make_group(channel: Channel, name: str, settings: GroupSettings, start: int) -> Group:
    """Makes a group and waits until it is committed; one made meanwhile is taken as it is."""
    known = (channel.groups or {}).get(name)
    if known is not None:
        return known
    group_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    group = add_group(channel, name, settings, start, lambda error: resolve(group_done, error))
    await group_done
    return group


def resolve(future: "asyncio.Future[None]", error: RingpostError | None) -> None:
    """Ends a future with a commit's outcome, unless nobody waits any more."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


async def resolve_start(reading: Reading, channel: Channel, start: Start, unset: int, field: str) -> int:
    """The offset that a Start means now; `unset` when none of its fields is set. Raises OutOfRange, InvalidRequest."""
    at = start.WhichOneof("at")
    if at is None:
        return unset
    if at == "latest":
        return channel.end_offset
    if at == "offset":
        check_offset(channel, start.offset, f"{field}.offset")
        return start.offset
    if at == "time_us":
        _check_time(start, field)
        return await reading.offset_at(channel, start.time_us)
    return channel.first_offset


def _check_time(start: Start, field: str) -> None:
    if start.time_us < 0:
        raise InvalidRequest.of(f"{field}.time_us", f"is {start.time_us}; microseconds since 1970, not below 0")
