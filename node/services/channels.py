"""ChannelService."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from ringpost.node.access.caller import Caller
from ringpost.node.access.guard import current
from ringpost.node.delivery.opening import resolve
from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.seen_ids import WINDOW_MS_MAX, WINDOW_MS_MIN
from ringpost.node.shard.store import Store
from ringpost.node.status import translated
from ringpost.v1 import channel_pb2 as api
from ringpost.v1.channel_pb2_grpc import ChannelServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
TURN_CHANNELS = 1_000  # looked at in one turn of the loop: below a millisecond


class Channels(ChannelServiceServicer):
    """Translates; the store and the shards do the work."""

    def __init__(self, store: Store, *, node: str) -> None:
        self._store = store
        self._node = node

    def info(self, channel: Channel) -> api.ChannelInfo:
        """A channel as the API shows it."""
        state = channel.peek()
        schedule = channel.shard.schedules.get(channel.number)
        return api.ChannelInfo(
            name=channel.name,
            config=state.limits.message(),
            first_offset=state.first_offset,
            end_offset=state.end_offset,
            stored_bytes=state.stored_bytes,
            created_time_us=state.created_time_us,
            group_count=len(state.groups or ()),
            subscription_count=len(state.watchers or ()),
            shard=channel.shard.number,
            owner=self._node,
            epoch=channel.shard.epoch,
            damaged=bool(channel.shard.quarantined),
            scheduled=0 if schedule is None else schedule.table.messages,
            next_scheduled_time_us=0 if schedule is None else schedule.table.next_due_us or 0,
        )

    @translated
    async def AddChannel(self, request: api.AddChannelRequest, context: Context) -> api.AddChannelResponse:
        limits = self._store.limits.new_channel.changed(request.config)
        self._check(limits)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel = self._store.add(request.name, limits, lambda error: resolve(done, error))
        await done
        return api.AddChannelResponse(channel=self.info(channel))

    @translated
    async def GetChannel(self, request: api.GetChannelRequest, context: Context) -> api.GetChannelResponse:
        return api.GetChannelResponse(channel=self.info(self._store.find(request.name, "name")))

    @translated
    async def ListChannels(self, request: api.ListChannelsRequest, context: Context) -> api.ListChannelsResponse:
        size = page_size(request.page_size)
        channels = await self._visible(request.prefix, decode_token(request.page_token), size)
        token = encode_token(channels[-1].name) if len(channels) == size else ""
        return api.ListChannelsResponse(channels=[self.info(channel) for channel in channels], next_page_token=token)

    async def _visible(self, prefix: str, after: str, size: int) -> list[Channel]:
        """The next channels in shards that this node leads, as far as the caller may see them."""
        caller = current()
        found: list[Channel] = []
        if caller.sees_none:
            return found
        # At first as many as are wanted, which is all that most callers need; then however few of them this one may
        # see, others have their turn in between.
        turn = size
        while page := self._store.page(prefix, after, turn):
            found += [channel for channel in page if self._sees(caller, channel)]
            if len(found) >= size or len(page) < turn:
                break
            after, turn = page[-1].name, TURN_CHANNELS
            await asyncio.sleep(0)
        return found[:size]

    def _sees(self, caller: Caller, channel: Channel) -> bool:
        return self._store.leads(channel.shard.number) and caller.may_see(channel.name)

    @translated
    async def SetChannel(self, request: api.SetChannelRequest, context: Context) -> api.SetChannelResponse:
        channel = self._store.find(request.name, "name")
        limits = channel.next_limits.changed(request.config)
        self._check(limits)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._store.set(channel, limits, lambda error: resolve(done, error))
        await done
        return api.SetChannelResponse(channel=self.info(channel))

    @translated
    async def PurgeChannel(self, request: api.PurgeChannelRequest, context: Context) -> api.PurgeChannelResponse:
        channel = self._store.find(request.name, "name")
        before = request.before_offset if request.HasField("before_offset") else channel.end_offset
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.shard.trim(channel, before, lambda error: resolve(done, error))
        await done
        return api.PurgeChannelResponse(channel=self.info(channel))

    @translated
    async def DeleteChannel(self, request: api.DeleteChannelRequest, context: Context) -> api.DeleteChannelResponse:
        channel = self._store.find(request.name, "name")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._store.delete(channel, lambda error: resolve(done, error))
        await done
        return api.DeleteChannelResponse()

    def _check(self, limits: ChannelLimits) -> None:
        greatest = self._store.limits.max_message_bytes
        if limits.max_message_bytes > greatest:
            raise InvalidRequest.of(
                "config.max_message_bytes", f"is {limits.max_message_bytes}, allowed are 1 to {greatest}, or 0"
            )
        if limits.dedup_window_ms and not WINDOW_MS_MIN <= limits.dedup_window_ms <= WINDOW_MS_MAX:
            raise InvalidRequest.of(
                "config.dedup_window_ms",
                f"is {limits.dedup_window_ms}, allowed are {WINDOW_MS_MIN} to {WINDOW_MS_MAX}, or 0 for none",
            )


def merge_channels(request: api.ListChannelsRequest, pages: Sequence[api.ListChannelsResponse]) -> Message:
    """One page of the pages of several nodes."""
    size = page_size(request.page_size)
    rows = sorted((row for page in pages for row in page.channels), key=lambda row: row.name)[:size]
    token = encode_token(rows[-1].name) if len(rows) == size else ""
    return api.ListChannelsResponse(channels=rows, next_page_token=token)


def page_size(wanted: int) -> int:
    """How many rows a page has. Raises InvalidRequest."""
    if wanted > PAGE_SIZE_MAX:
        raise InvalidRequest.of("page_size", f"is {wanted}, allowed are 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE}")
    return wanted or PAGE_SIZE


def encode_token(place: str) -> str:
    """A page token that says after what the next page begins."""
    return base64.urlsafe_b64encode(place.encode()).decode()


def decode_token(token: str) -> str:
    """The inverse. Raises InvalidRequest."""
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise InvalidRequest.of("page_token", "is not one that this service gave") from None
