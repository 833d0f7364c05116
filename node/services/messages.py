"""MessageService."""

from typing import Any

import grpc

from ringpost.node.errors import InvalidRequest, OutOfRange
from ringpost.node.services.explain import explained
from ringpost.node.services.groups import check_name
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.consumers import SEPARATOR
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.node.status import translated
from ringpost.v1 import message_pb2 as api
from ringpost.v1.message_pb2_grpc import MessageServiceServicer
from ringpost.v1.publish_pb2 import Batch

Context = grpc.aio.ServicerContext[Any, Any]

MESSAGES_MAX = 1_000
RESPONSE_BYTES_MAX = 1 << 20


class Messages(MessageServiceServicer):
    """Reads single messages; here the node does open batches, for people."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self._store = store
        self._reading = reading

    @translated
    async def GetMessages(self, request: api.GetMessagesRequest, context: Context) -> api.GetMessagesResponse:
        channel = self._store.find(request.channel)
        wanted = request.max_messages or 1
        if wanted > MESSAGES_MAX:
            raise InvalidRequest.of("max_messages", f"is {wanted}, allowed are 1 to {MESSAGES_MAX}, or 0 for 1")
        if not channel.first_offset <= request.offset < channel.end_offset:
            raise OutOfRange(
                f"offset: {request.offset} is not among the kept messages "
                f"{channel.first_offset} to {channel.end_offset - 1} of channel {channel.name!r}"
                if channel.first_offset < channel.end_offset
                else f"offset: channel {channel.name!r} has no messages",
                metadata={"first_offset": str(channel.first_offset), "end_offset": str(channel.end_offset)},
            )
        response = api.GetMessagesResponse()
        await self._read(channel, request.offset, wanted, response)
        if not response.messages:
            raise OutOfRange(
                f"offset: {request.offset} of channel {channel.name!r} is no longer kept",
                metadata={"first_offset": str(channel.first_offset), "end_offset": str(channel.end_offset)},
            )
        return response

    @translated
    async def ExplainMessage(self, request: api.ExplainMessageRequest, context: Context) -> api.ExplainMessageResponse:
        self._store.find(request.channel)
        if request.group:
            name, slash, consumer = request.group.partition(SEPARATOR)
            for part in (name, consumer) if slash else (name,):
                check_name(part, "group")
        return await explained(self._store, self._reading, request.channel, request.offset, request.group)

    async def _read(self, channel: Channel, offset: int, wanted: int, response: api.GetMessagesResponse) -> None:
        size = 0
        end = min(channel.end_offset, offset + wanted)
        while offset < end:
            try:
                row = channel.index.row(channel.index.find(offset))
                if row.lost and response.messages:
                    return  # whoever asks for those is told
                frame = await self._reading.frame(channel, row)
            except LookupError:
                return  # trimmed meanwhile
            for index, message in enumerate(Batch.FromString(frame.body).messages):
                at = frame.base_offset + index
                if at < offset:
                    continue
                size += message.ByteSize() + 64
                if at >= end or (response.messages and size > RESPONSE_BYTES_MAX):
                    return
                response.messages.append(
                    api.StoredMessage(
                        channel=channel.name,
                        offset=at,
                        append_time_us=frame.time_us,
                        message=message,
                        producer_id=frame.producer,
                        sequence=frame.base_sequence + index if frame.producer else 0,
                    )
                )
            offset = frame.base_offset + frame.count
