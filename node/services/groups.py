"""GroupService."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from ringpost.cluster.names import group_problem
from ringpost.node.access.caller import Caller
from ringpost.node.access.grants import Verb
from ringpost.node.access.guard import current
from ringpost.node.delivery.opening import find_or_add, resolve, resolve_start
from ringpost.node.errors import AlreadyExists, InvalidRequest, PermissionDenied, Precondition
from ringpost.node.filters.filter import checked
from ringpost.node.services.channels import TURN_CHANNELS, decode_token, encode_token, page_size
from ringpost.node.services.group_info import check_consumers, info, slowest_of
from ringpost.node.services.retry_checks import check_retry
from ringpost.node.services.settling import check_settlement, settled
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.configure import pause_group, set_group
from ringpost.node.shard.consumers import claimed_cursor, find_cursor, is_broadcast, is_cursor
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import (
    ACK_DEADLINE_MS_MAX,
    ACK_DEADLINE_MS_MIN,
    DEAD_LETTER_AGE_MS,
    DEAD_LETTER_BYTES,
    MAX_IN_FLIGHT_MAX,
    GroupSettings,
)
from ringpost.node.shard.lag import age_us, known_age_us
from ringpost.node.shard.modes import modes_allowed
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.node.status import translated
from ringpost.v1 import group_pb2 as api
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2_grpc import GroupServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

_BETWEEN = "\n"  # in no name
_LIST_READS_MAX = 100
_TURN_GROUPS = 100


class Groups(GroupServiceServicer):
    """Translates; shards and groups do the work."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self._store = store
        self._reading = reading

    @translated
    async def AddGroup(self, request: api.AddGroupRequest, context: Context) -> api.AddGroupResponse:
        check_name(request.name)
        check_config(request.config)
        check_dead_letter_room(request.config, current(), request.channel)
        channel = find_or_add(self._store, request.channel, request.start, "")
        start = await resolve_start(self._reading, channel, request.start, channel.first_offset, "start")
        self._store.check_groups()
        if request.name in (channel.groups or {}):
            raise AlreadyExists(
                f"name: there is a group {request.name!r} on channel {channel.name!r} already", reason="GROUP_EXISTS"
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        settings = GroupSettings.of(request.config)
        group = add_group(channel, request.name, settings, start, lambda error: resolve(done, error))
        await done
        return api.AddGroupResponse(group=await self._shown(group))

    @translated
    async def GetGroup(self, request: api.GetGroupRequest, context: Context) -> api.GetGroupResponse:
        return api.GetGroupResponse(group=await self._shown(self._find(request.channel, request.name)))

    @translated
    async def ListGroups(self, request: api.ListGroupsRequest, context: Context) -> api.ListGroupsResponse:
        size = page_size(request.page_size)
        channel, _, name = decode_token(request.page_token).partition(_BETWEEN)
        groups: list[Group] = []
        async for row in self._channels(request.channel, channel):
            known = row.groups or {}
            names = (n for n in sorted(known) if row.name != channel or n > name)
            groups += [known[n] for n in names if not is_cursor(known[n])]
            if len(groups) >= size:
                break
        page = groups[:size]
        token = encode_token(f"{page[-1].channel.name}{_BETWEEN}{page[-1].name}") if len(page) == size else ""
        return api.ListGroupsResponse(groups=await self._all_shown(page), next_page_token=token)

    async def _all_shown(self, groups: list[Group]) -> list[api.GroupInfo]:
        reads, now = 0, self._store.log.clock()
        shown = []
        for number, group in enumerate(groups, 1):
            slowest = slowest_of(group)
            age = known_age_us(slowest, self._reading, now)
            if age is None and reads < _LIST_READS_MAX:
                reads += 1
                age = await age_us(slowest, self._reading, now)
            shown.append(info(group, age))
            if number % _TURN_GROUPS == 0:
                await asyncio.sleep(0)
        return shown

    async def _shown(self, group: Group) -> api.GroupInfo:
        age = await age_us(slowest_of(group), self._reading, self._store.log.clock())
        return info(group, age, consumers=True)

    async def _channels(self, only: str, start: str) -> AsyncIterator[Channel]:
        """The channels with groups that the caller may consume: one, or all from `start` on, by name."""
        caller = current()
        if only:
            caller.require(Verb.CONSUME, only)
            yield self._store.find(only)
            return
        grouped = {group.channel.name: group.channel for group in self._store.groups()}
        for number, name in enumerate(sorted(name for name in grouped if name >= start), 1):
            channel = grouped[name]
            if self._store.leads(channel.shard.number) and caller.may(Verb.CONSUME, name):
                yield channel
            if number % TURN_CHANNELS == 0:
                await asyncio.sleep(0)

    @translated
    async def SeekGroup(self, request: api.SeekGroupRequest, context: Context) -> api.SeekGroupResponse:
        group = self._find(request.channel, request.name)
        if request.to.WhichOneof("at") is None:
            raise InvalidRequest.of("to", "is not set; allowed are earliest, latest, offset, time_us")
        moved = find_cursor(group, request.consumer, "consumer") if request.consumer else group
        offset = await resolve_start(self._reading, group.channel, request.to, 0, "to")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seek_group(moved, max(offset, group.channel.first_offset), lambda error: resolve(done, error))
        await done
        return api.SeekGroupResponse(group=await self._shown(group))

    @translated
    async def SetGroup(self, request: api.SetGroupRequest, context: Context) -> api.SetGroupResponse:
        group = self._find(request.channel, request.name)
        check_config(request.config, group.settings.mode)
        if request.config.mode not in (0, group.settings.message().mode):
            raise InvalidRequest.of("config.mode", "is fixed when the group is made; make another group")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        set_group(group, request.config, lambda error: resolve(done, error))
        await done
        return api.SetGroupResponse(group=await self._shown(group))

    @translated
    async def PauseGroup(self, request: api.PauseGroupRequest, context: Context) -> api.PauseGroupResponse:
        return api.PauseGroupResponse(group=await self._pause(request.channel, request.name, True))

    @translated
    async def ResumeGroup(self, request: api.ResumeGroupRequest, context: Context) -> api.ResumeGroupResponse:
        return api.ResumeGroupResponse(group=await self._pause(request.channel, request.name, False))

    async def _pause(self, channel: str, name: str, paused: bool) -> api.GroupInfo:
        group = self._find(channel, name)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pause_group(group, paused, lambda error: resolve(done, error))
        await done
        return await self._shown(group)

    @translated
    async def DeleteGroup(self, request: api.DeleteGroupRequest, context: Context) -> api.DeleteGroupResponse:
        group = self._find(request.channel, request.name)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delete_group(group, lambda error: resolve(done, error))
        await done
        return api.DeleteGroupResponse()

    @translated
    async def Settle(self, request: api.SettleMessagesRequest, context: Context) -> api.SettleMessagesResponse:
        tokens = check_settlement(request)
        group = self._find(request.channel, request.group, "group")
        if tokens and not request.consumer:
            group = claimed_cursor(group, tokens[0])
        else:
            group = find_cursor(group, request.consumer, "consumer")
        return await settled(group, request, tokens)

    @translated
    async def DeleteConsumer(self, request: api.DeleteConsumerRequest, context: Context) -> api.DeleteConsumerResponse:
        group = self._find(request.channel, request.group, "group")
        if not is_broadcast(group):
            mode = GroupMode.Name(group.settings.mode)
            message = f"group {group.name!r} has mode {mode}; only a broadcast group's consumers can be deleted"
            raise Precondition(message, reason="GROUP_MODE", metadata={"mode": mode})
        cursor = find_cursor(group, request.consumer, "consumer")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delete_group(cursor, lambda error: resolve(done, error))
        await done
        return api.DeleteConsumerResponse()

    def _find(self, channel: str, name: str, field: str = "name") -> Group:
        found = self._store.find(channel)
        check_name(name, field)
        return self._store.find_group(found, name)


def merge_groups(request: api.ListGroupsRequest, pages: Sequence[api.ListGroupsResponse]) -> Message:
    """One page of the pages of several nodes."""
    size = page_size(request.page_size)
    rows = sorted((row for page in pages for row in page.groups), key=lambda row: (row.channel, row.name))[:size]
    token = encode_token(f"{rows[-1].channel}{_BETWEEN}{rows[-1].name}") if len(rows) == size else ""
    return api.ListGroupsResponse(groups=rows, next_page_token=token)


def check_name(name: str, field: str = "name") -> None:
    """Raises InvalidRequest for what cannot be a group's name."""
    if (problem := group_problem(name)) is not None:
        raise InvalidRequest.of(field, problem)


def check_config(config: api.GroupConfig, mode: int = 0) -> None:
    """Raises InvalidRequest naming the field. `mode`: of a group that there is."""
    if config.mode not in GroupMode.values():
        raise InvalidRequest.of("config.mode", f"is {config.mode}, allowed are {modes_allowed()}")
    if config.HasField("ack_deadline_ms") and not ACK_DEADLINE_MS_MIN <= config.ack_deadline_ms <= ACK_DEADLINE_MS_MAX:
        raise InvalidRequest.of(
            "config.ack_deadline_ms",
            f"is {config.ack_deadline_ms}, allowed are {ACK_DEADLINE_MS_MIN} to {ACK_DEADLINE_MS_MAX}",
        )
    if config.HasField("max_in_flight") and not 1 <= config.max_in_flight <= MAX_IN_FLIGHT_MAX:
        raise InvalidRequest.of(
            "config.max_in_flight", f"is {config.max_in_flight}, allowed are 1 to {MAX_IN_FLIGHT_MAX}"
        )
    checked(config.filter, "config.filter")
    check_retry(config)
    check_consumers(config, mode or config.mode)


def check_dead_letter_room(config: api.GroupConfig, caller: Caller, channel: str) -> None:
    """Raises PermissionDenied where a group would keep more than by default, and the caller may not manage the channel.

    Whoever consumes may make a group, and a group's dead letters take disk that the channel's own retention does not
    bound.
    """
    settings = GroupSettings.of(config)
    for field, value, default in (
        ("dead_letter_bytes", settings.dead_letter_bytes, DEAD_LETTER_BYTES),
        ("dead_letter_age_ms", settings.dead_letter_age_ms, DEAD_LETTER_AGE_MS),
    ):
        if not 0 < value <= default and not caller.may(Verb.MANAGE, channel):
            denial = caller.denial(Verb.MANAGE, channel)
            what = "0, without bound" if not value else f"{value}, above the default"
            message = f"config.{field}: is {what}; that needs manage, and 1 to {default} do not ({denial.message})"
            raise PermissionDenied(message, metadata=denial.metadata)
