"""The unary services of the fake broker."""

from typing import TYPE_CHECKING

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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
    subscribe_pb2,
)
from tests.client.fake_group import FakeGroup

if TYPE_CHECKING:
    from tests.client.fake_broker import FakeBroker, FakeChannel


async def refuse(context, code: grpc.StatusCode, reason: str, message: str, **metadata: str) -> None:
    """Ends the call with a status that carries all three kinds of detail."""
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain="ringpost", metadata=metadata)
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=250_000_000))
    violation = error_details_pb2.BadRequest.FieldViolation(field="name", description=message)
    for detail in (info, retry, error_details_pb2.BadRequest(field_violations=[violation])):
        status.details.add().Pack(detail)
    await context.abort_with_status(rpc_status.to_status(status))


class _Service:
    def __init__(self, broker: "FakeBroker") -> None:
        self.broker = broker

    async def find(self, name: str, context) -> "FakeChannel":
        if name not in self.broker.channels:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "CHANNEL_NOT_FOUND", f"no channel {name}", channel=name)
        return self.broker.channels[name]


def _page(items: list, request) -> tuple[list, str]:
    begin = int(request.page_token or 0)
    end = begin + min(request.page_size or 100, 2)
    return items[begin:end], str(end) if end < len(items) else ""


class FakeChannels(_Service, channel_pb2_grpc.ChannelServiceServicer):
    def info(self, channel: "FakeChannel", config=None) -> channel_pb2.ChannelInfo:
        return channel_pb2.ChannelInfo(
            name=channel.name, config=config, first_offset=channel.first_offset, end_offset=channel.end_offset
        )

    async def AddChannel(self, request, context):
        if request.name in self.broker.channels:
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, "CHANNEL_EXISTS", "there is one")
        return channel_pb2.AddChannelResponse(channel=self.info(self.broker.channel(request.name), request.config))

    async def GetChannel(self, request, context):
        return channel_pb2.GetChannelResponse(channel=self.info(await self.find(request.name, context)))

    async def ListChannels(self, request, context):
        names = sorted(name for name in self.broker.channels if name.startswith(request.prefix))
        names, token = _page(names, request)
        found = [self.info(self.broker.channels[name]) for name in names]
        return channel_pb2.ListChannelsResponse(channels=found, next_page_token=token)

    async def SetChannel(self, request, context):
        channel = await self.find(request.name, context)
        return channel_pb2.SetChannelResponse(channel=self.info(channel, request.config))

    async def PurgeChannel(self, request, context):
        channel = await self.find(request.name, context)
        before = request.before_offset if request.HasField("before_offset") else channel.end_offset
        del channel.messages[: before - channel.first_offset]
        channel.first_offset = before
        return channel_pb2.PurgeChannelResponse(channel=self.info(channel))

    async def DeleteChannel(self, request, context):
        await self.find(request.name, context)
        del self.broker.channels[request.name]
        return channel_pb2.DeleteChannelResponse()


class FakeGroups(_Service, group_pb2_grpc.GroupServiceServicer):
    def info(self, channel: str, name: str, group: FakeGroup) -> group_pb2.GroupInfo:
        below, paused = group.settled_below, group.paused
        return group_pb2.GroupInfo(channel=channel, name=name, settled_below=below, paused=paused)

    async def AddGroup(self, request, context):
        channel = self.broker.channel(request.channel)
        if request.name in channel.groups:
            await refuse(context, grpc.StatusCode.ALREADY_EXISTS, "GROUP_EXISTS", "there is one")
        group = FakeGroup(self.broker.start_offset(channel, request.start, "earliest"))
        group.ack_deadline_ms = request.config.ack_deadline_ms or group.ack_deadline_ms
        channel.groups[request.name] = group
        return group_pb2.AddGroupResponse(group=self.info(request.channel, request.name, group))

    async def GetGroup(self, request, context):
        channel = await self.find(request.channel, context)
        if request.name not in channel.groups:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "GROUP_NOT_FOUND", "no such group")
        group = channel.groups[request.name]
        return group_pb2.GetGroupResponse(group=self.info(request.channel, request.name, group))

    async def ListGroups(self, request, context):
        channels = [self.broker.channels[request.channel]] if request.channel else self.broker.channels.values()
        found = [self.info(c.name, name, group) for c in channels for name, group in sorted(c.groups.items())]
        groups, token = _page(found, request)
        return group_pb2.ListGroupsResponse(groups=groups, next_page_token=token)

    async def SeekGroup(self, request, context):
        channel = await self.find(request.channel, context)
        group = channel.groups[request.name]
        group.settled_below = self.broker.start_offset(channel, request.to, "")
        group.settled.clear()
        return group_pb2.SeekGroupResponse(group=self.info(request.channel, request.name, group))

    async def Settle(self, request, context):
        channel = await self.find(request.channel, context)
        group = channel.groups[request.group]
        end, action = channel.first_offset + len(channel.messages), request.WhichOneof("action")
        results = [
            subscribe_pb2.SettledRange(
                range=common_pb2.OffsetRange(first=offset, last=offset), outcome=group.settle_any(offset, end, action)
            )
            for asked in request.ranges
            for offset in range(asked.first, asked.last + 1)
        ]
        return group_pb2.SettleMessagesResponse(results=results)

    async def PauseGroup(self, request, context):
        return group_pb2.PauseGroupResponse(group=await self._pause(request, context, True))

    async def ResumeGroup(self, request, context):
        return group_pb2.ResumeGroupResponse(group=await self._pause(request, context, False))

    async def _pause(self, request, context, paused: bool) -> group_pb2.GroupInfo:
        channel = await self.find(request.channel, context)
        group = channel.groups[request.name]
        group.paused = paused
        return self.info(request.channel, request.name, group)

    async def DeleteGroup(self, request, context):
        channel = await self.find(request.channel, context)
        del channel.groups[request.name]
        return group_pb2.DeleteGroupResponse()


class FakeMessages(_Service, message_pb2_grpc.MessageServiceServicer):
    async def GetMessages(self, request, context):
        channel = await self.find(request.channel, context)
        begin = request.offset - channel.first_offset
        if not 0 <= begin < len(channel.messages):
            await refuse(
                context,
                grpc.StatusCode.OUT_OF_RANGE,
                "OFFSET_OUT_OF_RANGE",
                "offset: beyond the end",
                end_offset=str(channel.end_offset),
            )
        found = [
            message_pb2.StoredMessage(channel=channel.name, offset=offset, message=message)
            for offset, message in enumerate(
                channel.messages[begin : begin + (request.max_messages or 1)], request.offset
            )
        ]
        return message_pb2.GetMessagesResponse(messages=found)


class FakeCluster(_Service, cluster_pb2_grpc.ClusterServiceServicer):
    async def GetRoutes(self, request, context):
        await self.broker.thawed.wait()
        if self.broker.ring is not None:
            return self.broker.ring.routes_of(self.broker, *request.channels)
        return cluster_pb2.GetRoutesResponse(cluster_id="fake", shard_count=256)

    async def GetNode(self, request, context):
        await self.broker.thawed.wait()
        await self.broker._authorize(context)
        return cluster_pb2.GetNodeResponse(
            node=cluster_pb2.NodeInfo(
                node=self.broker.node,
                state=cluster_pb2.NODE_STATE_SERVING,
                limits=cluster_pb2.NodeLimits(max_batch_bytes=self.broker.max_batch_bytes),
            )
        )

    async def ListNodes(self, request, context):
        return cluster_pb2.ListNodesResponse(members=self.broker.ring.members())

    async def SetNode(self, request, context):
        members = {member.node: member for member in self.broker.ring.members()}
        if request.node not in members:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND", f"no member {request.node}")
        self.broker.ring.set_desired(request.node, request.desired)
        members[request.node].desired = request.desired
        return cluster_pb2.SetNodeResponse(member=members[request.node])

    async def RemoveNode(self, request, context):
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "NODE_IN_USE", f"{request.node} lives; drain it")

    async def GetCluster(self, request, context):
        return self.broker.ring.cluster()

    async def AcceptLoss(self, request, context):
        if request.shard not in self.broker.ring.offline:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SHARD_HAS_LEADER", "the shard has a leader")
        self.broker.ring.offline.discard(request.shard)
        return cluster_pb2.AcceptLossResponse()
