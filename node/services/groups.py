"""GroupService."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from ringpost.cluster.names import group_problem
from ringpost.node.delivery.commands import check_ranges, check_reason
from ringpost.node.delivery.opening import find_or_add, resolve, resolve_start
from ringpost.node.errors import AlreadyExists, InvalidRequest, RingpostError
from ringpost.node.groups.changes import Ack, Reject
from ringpost.node.services.channels import decode_token, encode_token, page_size
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import (
    ACK_DEADLINE_MS_MAX,
    ACK_DEADLINE_MS_MIN,
    MAX_IN_FLIGHT_MAX,
    Group,
    GroupSettings,
    Results,
    add_group,
    delete_group,
    seek_group,
)
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.node.status import translated
from ringpost.v1 import group_pb2 as api
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2_grpc import GroupServiceServicer
from ringpost.v1.subscribe_pb2 import Outcome, SettledRange

Context = grpc.aio.ServicerContext[Any, Any]

_BETWEEN = "\n"  # in no name


class Groups(GroupServiceServicer):
    """Translates; shards and groups do the work."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self._store = store
        self._reading = reading

    @translated
    async def AddGroup(self, request: api.AddGroupRequest, context: Context) -> api.AddGroupResponse:
        check_name(request.name)
        check_config(request.config)
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
        return api.AddGroupResponse(group=info(group))

    @translated
    async def GetGroup(self, request: api.GetGroupRequest, context: Context) -> api.GetGroupResponse:
        return api.GetGroupResponse(group=info(self._find(request.channel, request.name)))

    @translated
    async def ListGroups(self, request: api.ListGroupsRequest, context: Context) -> api.ListGroupsResponse:
        size = page_size(request.page_size)
        channel, _, name = decode_token(request.page_token).partition(_BETWEEN)
        groups: list[Group] = []
        for row in self._channels(request.channel, channel):
            names = sorted(row.groups or ())
            known = row.groups or {}
            groups += [known[n] for n in names if row.name != channel or n > name]
            if len(groups) >= size:
                break
        page = groups[:size]
        token = encode_token(f"{page[-1].channel.name}{_BETWEEN}{page[-1].name}") if len(page) == size else ""
        return api.ListGroupsResponse(groups=[info(group) for group in page], next_page_token=token)

    def _channels(self, only: str, start: str) -> list[Channel]:
        if only:
            return [self._store.find(only)]
        led = (group.channel for group in self._store.groups() if self._store.leads(group.channel.shard.number))
        with_groups = {channel.name: channel for channel in led}
        return [with_groups[name] for name in sorted(with_groups) if name >= start]

    @translated
    async def SeekGroup(self, request: api.SeekGroupRequest, context: Context) -> api.SeekGroupResponse:
        group = self._find(request.channel, request.name)
        if request.to.WhichOneof("at") is None:
            raise InvalidRequest.of("to", "is not set; allowed are earliest, latest, offset, time_us")
        offset = await resolve_start(self._reading, group.channel, request.to, 0, "to")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        seek_group(group, max(offset, group.channel.first_offset), lambda error: resolve(done, error))
        await done
        return api.SeekGroupResponse(group=info(group))

    @translated
    async def DeleteGroup(self, request: api.DeleteGroupRequest, context: Context) -> api.DeleteGroupResponse:
        group = self._find(request.channel, request.name)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        delete_group(group, lambda error: resolve(done, error))
        await done
        return api.DeleteGroupResponse()

    @translated
    async def Settle(self, request: api.SettleMessagesRequest, context: Context) -> api.SettleMessagesResponse:
        check_ranges(request.ranges, "ranges")
        action = request.WhichOneof("action")
        if action is None:
            raise InvalidRequest.of("action", "is not set; allowed are ack, reject")
        check_reason(request.reject.reason, "reject.reason")
        group = self._find(request.channel, request.group, "group")
        done: asyncio.Future[Results] = asyncio.get_running_loop().create_future()

        def reply(outcome: Results | RingpostError) -> None:
            if done.done():
                return
            if isinstance(outcome, RingpostError):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)

        ranges = [(pair.first, pair.last) for pair in request.ranges]
        group.settle_any(Ack() if action == "ack" else Reject(request.reject.reason), ranges, reply)
        results = [
            SettledRange(range=OffsetRange(first=first, last=last), outcome=Outcome.ValueType(outcome))
            for first, last, outcome in await done
        ]
        return api.SettleMessagesResponse(results=results)

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


def check_config(config: api.GroupConfig) -> None:
    """Raises InvalidRequest naming the field."""
    if config.mode not in (api.GroupMode.GROUP_MODE_UNSPECIFIED, api.GroupMode.GROUP_MODE_SHARED):
        raise InvalidRequest.of("config.mode", f"is {config.mode}, allowed is GROUP_MODE_SHARED (1)")
    if config.HasField("ack_deadline_ms") and not ACK_DEADLINE_MS_MIN <= config.ack_deadline_ms <= ACK_DEADLINE_MS_MAX:
        raise InvalidRequest.of(
            "config.ack_deadline_ms",
            f"is {config.ack_deadline_ms}, allowed are {ACK_DEADLINE_MS_MIN} to {ACK_DEADLINE_MS_MAX}",
        )
    if config.HasField("max_in_flight") and not 1 <= config.max_in_flight <= MAX_IN_FLIGHT_MAX:
        raise InvalidRequest.of(
            "config.max_in_flight", f"is {config.max_in_flight}, allowed are 1 to {MAX_IN_FLIGHT_MAX}"
        )


def info(group: Group) -> api.GroupInfo:
    """A group as the API shows it."""
    core, end = group.core, group.channel.end_offset
    return api.GroupInfo(
        channel=group.channel.name,
        name=group.name,
        config=group.settings.message(),
        settled_below=core.settled_below,
        end_offset=end,
        pending=core.pending(end),
        in_flight=core.in_flight,
        to_redeliver=core.to_redeliver,
        rejected=core.rejected,
        members=[
            api.GroupMember(consumer=member.consumer, in_flight=core.in_flight_of(number))
            for number, member in group.members.items()
        ],
        created_time_us=group.created_time_us,
    )
