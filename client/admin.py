"""The unary services: channels, groups, messages, nodes, the cluster. Requests and answers are the API's messages."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TypeAlias

from ringpost.client.caller import Caller
from ringpost.client.checks import MAX_UINT64, check_name, refused, text_bytes, time_us_of, whole
from ringpost.client.modes import mode_value
from ringpost.client.settling import Settling
from ringpost.v1 import (
    channel_pb2,
    channel_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    common_pb2,
    group_pb2,
    group_pb2_grpc,
    message_pb2,
    message_pb2_grpc,
)

_PAGE = 1_000
_MAX_MESSAGES = 1_000

Start: TypeAlias = str | int | datetime | common_pb2.Start


def start_of(place: Start | None) -> common_pb2.Start | None:
    """ "earliest", "latest", an offset, a time (a datetime with a zone) as the protocol's `Start`.

    Raises `InvalidRequest`.
    """
    match place:
        case None | common_pb2.Start():
            return place
        case "earliest":
            return common_pb2.Start(earliest=True)
        case "latest":
            return common_pb2.Start(latest=True)
        case int() if not isinstance(place, bool):
            return common_pb2.Start(offset=whole("start", place, 0, MAX_UINT64))
        case datetime() if place.tzinfo is not None:
            return common_pb2.Start(time_us=time_us_of("start", place))
    raise refused("start", f'must be "earliest", "latest", an offset or a datetime with a time zone, not {place!r}')


class Channels:
    """Channels: named, ordered logs."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def add(self, name: str, config: channel_pb2.ChannelConfig | None = None) -> channel_pb2.ChannelInfo:
        """Makes a channel; a field left out of `config` has the node's default, 0 means no limit.

        Raises `AlreadyExists`, `InvalidRequest`.
        """
        check_name("name", name)
        request = channel_pb2.AddChannelRequest(name=name, config=config)
        answer = await self._caller.call(lambda c: channel_pb2_grpc.ChannelServiceStub(c).AddChannel, request)
        return answer.channel

    async def get(self, name: str) -> channel_pb2.ChannelInfo:
        """Raises `NotFound`."""
        check_name("name", name)
        request = channel_pb2.GetChannelRequest(name=name)
        answer = await self._caller.read(lambda c: channel_pb2_grpc.ChannelServiceStub(c).GetChannel, request)
        return answer.channel

    async def list(self, prefix: str = "") -> AsyncIterator[channel_pb2.ChannelInfo]:
        """The channels whose names begin so, in the order of their names; fetched page by page."""
        text_bytes("prefix", prefix)
        token = ""
        while True:
            request = channel_pb2.ListChannelsRequest(prefix=prefix, page_size=_PAGE, page_token=token)
            answer = await self._caller.read(lambda c: channel_pb2_grpc.ChannelServiceStub(c).ListChannels, request)
            for channel in answer.channels:
                yield channel
            token = answer.next_page_token
            if not token:
                return

    async def set(self, name: str, config: channel_pb2.ChannelConfig) -> channel_pb2.ChannelInfo:
        """Changes what `config` has set. Raises `NotFound`, `InvalidRequest`."""
        check_name("name", name)
        request = channel_pb2.SetChannelRequest(name=name, config=config)
        answer = await self._caller.call(lambda c: channel_pb2_grpc.ChannelServiceStub(c).SetChannel, request)
        return answer.channel

    async def purge(self, name: str, before_offset: int | None = None) -> channel_pb2.ChannelInfo:
        """Removes the messages below the offset; None: all that are there now. Raises `NotFound`, `OutOfRange`."""
        check_name("name", name)
        if before_offset is not None:
            whole("before_offset", before_offset, 0, MAX_UINT64)
        request = channel_pb2.PurgeChannelRequest(name=name, before_offset=before_offset)
        answer = await self._caller.call(lambda c: channel_pb2_grpc.ChannelServiceStub(c).PurgeChannel, request)
        return answer.channel

    async def delete(self, name: str) -> None:
        """Removes the channel with its messages and groups. Raises `NotFound`."""
        check_name("name", name)
        request = channel_pb2.DeleteChannelRequest(name=name)
        await self._caller.call(lambda c: channel_pb2_grpc.ChannelServiceStub(c).DeleteChannel, request)


class Groups(Settling):
    """Groups: named, durable subscriptions whose members share a channel's messages."""

    async def add(
        self,
        channel: str,
        name: str,
        *,
        start: Start | None = None,
        mode: str | None = None,
        filter: str | None = None,
        config: group_pb2.GroupConfig | None = None,
    ) -> group_pb2.GroupInfo:
        """Makes a group that begins at `start` (default: earliest).

        `mode`: "shared" (default), "key_ordered", "exclusive" or "failover"; it counts before `config.mode`.
        `filter`: only messages that this lets through are delivered, see `Client.subscription`; before `config.filter`.
        Raises `AlreadyExists`, `NotFound`, `OutOfRange`, `InvalidRequest`.
        """
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.AddGroupRequest(channel=channel, name=name, start=start_of(start), config=config)
        if mode is not None:
            request.config.mode = mode_value(mode)
        if filter is not None:
            request.config.filter = filter
        answer = await self._caller.call(lambda c: group_pb2_grpc.GroupServiceStub(c).AddGroup, request)
        return answer.group

    async def get(self, channel: str, name: str) -> group_pb2.GroupInfo:
        """Raises `NotFound`."""
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.GetGroupRequest(channel=channel, name=name)
        answer = await self._caller.read(lambda c: group_pb2_grpc.GroupServiceStub(c).GetGroup, request)
        return answer.group

    async def list(self, channel: str = "") -> AsyncIterator[group_pb2.GroupInfo]:
        """The channel's groups, of all channels when it is empty; fetched page by page."""
        text_bytes("channel", channel)
        token = ""
        while True:
            request = group_pb2.ListGroupsRequest(channel=channel, page_size=_PAGE, page_token=token)
            answer = await self._caller.read(lambda c: group_pb2_grpc.GroupServiceStub(c).ListGroups, request)
            for group in answer.groups:
                yield group
            token = answer.next_page_token
            if not token:
                return

    async def set(
        self,
        channel: str,
        name: str,
        config: group_pb2.GroupConfig | None = None,
        *,
        filter: str | None = None,
    ) -> group_pb2.GroupInfo:
        """Changes what is present in `config`, for what is leased or fails from now on. Raises `NotFound`.

        `filter`: for what is not settled yet and has not failed; "" for none. Its consumers come back by themselves.
        """
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.SetGroupRequest(channel=channel, name=name, config=config)
        if filter is not None:
            request.config.filter = filter
        answer = await self._caller.call(lambda c: group_pb2_grpc.GroupServiceStub(c).SetGroup, request)
        return answer.group

    async def seek(self, channel: str, name: str, to: Start, *, consumer: str = "") -> group_pb2.GroupInfo:
        """Moves the group: what is below counts as settled, the rest as never delivered. Raises `NotFound`.

        In mode "broadcast" it moves this `consumer`; without one, where new consumers begin.
        """
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.SeekGroupRequest(channel=channel, name=name, to=start_of(to), consumer=consumer)
        answer = await self._caller.call(lambda c: group_pb2_grpc.GroupServiceStub(c).SeekGroup, request)
        return answer.group

    async def pause(self, channel: str, name: str) -> group_pb2.GroupInfo:
        """The group hands out nothing until it is resumed; what is leased stays so. Raises `NotFound`."""
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.PauseGroupRequest(channel=channel, name=name)
        answer = await self._caller.repeat(lambda c: group_pb2_grpc.GroupServiceStub(c).PauseGroup, request)
        return answer.group

    async def resume(self, channel: str, name: str) -> group_pb2.GroupInfo:
        """Ends a pause. Raises `NotFound`."""
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.ResumeGroupRequest(channel=channel, name=name)
        answer = await self._caller.repeat(lambda c: group_pb2_grpc.GroupServiceStub(c).ResumeGroup, request)
        return answer.group

    async def delete(self, channel: str, name: str) -> None:
        """Removes the group. Raises `NotFound`."""
        check_name("channel", channel)
        check_name("name", name)
        request = group_pb2.DeleteGroupRequest(channel=channel, name=name)
        await self._caller.call(lambda c: group_pb2_grpc.GroupServiceStub(c).DeleteGroup, request)

    async def delete_consumer(self, channel: str, name: str, consumer: str) -> None:
        """Removes a consumer of a group in mode "broadcast", with its place. Raises `NotFound`, `Precondition`."""
        for field, value in (("channel", channel), ("name", name), ("consumer", consumer)):
            check_name(field, value)
        request = group_pb2.DeleteConsumerRequest(channel=channel, group=name, consumer=consumer)
        await self._caller.call(lambda c: group_pb2_grpc.GroupServiceStub(c).DeleteConsumer, request)


class Messages:
    """Looking at single messages."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def get(self, channel: str, offset: int, max_messages: int = 1) -> list[message_pb2.StoredMessage]:
        """Up to `max_messages` (1 to 1,000) messages from the offset on, as many as fit into one answer.

        Raises `NotFound`, `OutOfRange`, `DataLoss`.
        """
        check_name("channel", channel)
        whole("offset", offset, 0, MAX_UINT64)
        whole("max_messages", max_messages, 1, _MAX_MESSAGES)
        request = message_pb2.GetMessagesRequest(channel=channel, offset=offset, max_messages=max_messages)
        answer = await self._caller.read(lambda c: message_pb2_grpc.MessageServiceStub(c).GetMessages, request)
        return list(answer.messages)

    async def explain(self, channel: str, offset: int, group: str = "") -> message_pb2.ExplainMessageResponse:
        """Where a message is, and why it is not being delivered now: to each group of the channel, or to one.

        Any offset (0 to 2**64-1) has an answer. Raises `NotFound`.
        """
        check_name("channel", channel)
        whole("offset", offset, 0, MAX_UINT64)
        if group:
            check_name("group", group)
        request = message_pb2.ExplainMessageRequest(channel=channel, offset=offset, group=group)
        return await self._caller.read(lambda c: message_pb2_grpc.MessageServiceStub(c).ExplainMessage, request)


class Node:
    """The node that answers, or another one that it knows."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def info(self, within: float | None = None, node: str = "") -> cluster_pb2.NodeInfo:
        """About `node` (default: whichever answers). Waits up to `within` seconds (default: request_timeout).

        Raises `NotFound` for a node that is no member, `Unavailable` for one that does not answer.
        """
        request = cluster_pb2.GetNodeRequest(node=node)
        answer = await self._caller.read(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).GetNode, request, within)
        return answer.node

    async def routes(self, *channels: str) -> cluster_pb2.GetRoutesResponse:
        """Who owns the shards of these channels; of all shards when none is given."""
        for channel in channels:
            check_name("channels", channel)
        request = cluster_pb2.GetRoutesRequest(channels=channels)
        return await self._caller.read(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).GetRoutes, request)


_DESIRED = {
    "active": cluster_pb2.DESIRED_ACTIVE,
    "drain": cluster_pb2.DESIRED_DRAIN,
    "rest": cluster_pb2.DESIRED_REST,
}


class Cluster:
    """The members, and how the cluster is."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def status(self) -> cluster_pb2.GetClusterResponse:
        """Controller, shards without a leader or with too few copies, moves on their way."""
        request = cluster_pb2.GetClusterRequest()
        return await self._caller.read(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).GetCluster, request)

    async def nodes(self) -> list[cluster_pb2.Member]:
        """Every member, by id."""
        request = cluster_pb2.ListNodesRequest()
        answer = await self._caller.read(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).ListNodes, request)
        return list(answer.members)

    async def routes(self, *channels: str) -> cluster_pb2.GetRoutesResponse:
        """Who leads the shards of these channels and who has copies; all shards when none is given."""
        request = cluster_pb2.GetRoutesRequest(channels=channels)
        return await self._caller.read(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).GetRoutes, request)

    async def set_node(self, node: str, desired: str) -> cluster_pb2.Member:
        """Says what is wanted of a member: "active", "drain" (hold nothing) or "rest" (lead nothing).

        Returns when that is noted; `nodes` and `status` show how far it is. Raises `NotFound`, `Precondition`.
        """
        if desired not in _DESIRED:
            raise ValueError(f'desired: "active", "drain" or "rest", not {desired!r}')
        request = cluster_pb2.SetNodeRequest(node=node, desired=_DESIRED[desired])
        answer = await self._caller.call(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).SetNode, request)
        return answer.member

    async def remove_node(self, node: str) -> None:
        """Removes a member that is not alive and holds nothing. Raises `NotFound`, `Precondition`."""
        request = cluster_pb2.RemoveNodeRequest(node=node)
        await self._caller.call(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).RemoveNode, request)

    async def accept_loss(self, shard: int, node: str) -> None:
        """Makes the copy on `node` lead a shard whose in-sync copies are all gone: their other messages are lost.

        Raises `Precondition` while the shard has a leader, or when the node has no copy.
        """
        request = cluster_pb2.AcceptLossRequest(shard=shard, node=node)
        await self._caller.call(lambda c: cluster_pb2_grpc.ClusterServiceStub(c).AcceptLoss, request)
