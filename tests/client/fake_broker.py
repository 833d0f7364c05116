"""A small broker in memory that speaks ringpost.v1 and misbehaves on command.

It keeps the promises of the protocol's comments that a client relies on (order, sequences, credit, leases), and nothing
else: no disk, no retention, no clock. What it was told is kept for the tests to look at.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from crc32c import crc32c

from ringpost.v1 import (
    channel_pb2_grpc,
    cluster_pb2_grpc,
    common_pb2,
    group_pb2_grpc,
    message_pb2_grpc,
    publish_pb2,
    publish_pb2_grpc,
    subscribe_pb2,
    subscribe_pb2_grpc,
)
from tests.client.fake_admin import FakeChannels, FakeCluster, FakeGroups, FakeMessages
from tests.client.fake_group import FakeGroup

if TYPE_CHECKING:
    from tests.client.fake_ring import FakeRing

NODE = "fake-1"
ACK_DEADLINE_MS = 30_000
_MAX_DELIVERED = 500
_END = "end"
_CUT = "cut"


def failure(code: grpc.StatusCode, reason: str, retry_after_ms: int = 0) -> common_pb2.Failure:
    return common_pb2.Failure(
        code=code.value[0], reason=reason, message=f"because the test says {reason}", retry_after_ms=retry_after_ms
    )


@dataclass
class FakeChannel:
    """A log, and what it knows of producers."""

    name: str
    messages: list[publish_pb2.Message] = field(default_factory=list)
    first_offset: int = 0
    # producer id → epoch, next sequence; (producer, epoch, first sequence) → first offset
    producers: dict[int, tuple[int, int]] = field(default_factory=dict)
    stored: dict[tuple[int, int, int], int] = field(default_factory=dict)
    groups: dict[str, FakeGroup] = field(default_factory=dict)

    @property
    def end_offset(self) -> int:
        return self.first_offset + len(self.messages)

    def payloads(self) -> list[bytes]:
        return [message.data for message in self.messages]

    def append(self, request: publish_pb2.PublishRequest) -> publish_pb2.PublishResponse | common_pb2.Failure:
        """Stores a batch, with the protocol's rules for idempotent producers."""
        producer, epoch, sequence = request.producer_id, request.producer_epoch, request.first_sequence
        duplicate = False
        first = self.end_offset
        if producer:
            known = self.producers.get(producer)
            if known is None and sequence > 0:
                return failure(grpc.StatusCode.FAILED_PRECONDITION, "UNKNOWN_PRODUCER")
            known_epoch, expected = known or (epoch, 0)
            if epoch < known_epoch:
                return failure(grpc.StatusCode.FAILED_PRECONDITION, "PRODUCER_FENCED")
            expected = 0 if epoch > known_epoch else expected
            if sequence > expected:
                return failure(grpc.StatusCode.FAILED_PRECONDITION, "SEQUENCE_GAP")
            if sequence < expected:
                first, duplicate = self.stored[producer, epoch, sequence], True
        if not duplicate and request.HasField("expected_offset") and request.expected_offset != first:
            refused = failure(grpc.StatusCode.FAILED_PRECONDITION, "OFFSET_MISMATCH")
            refused.metadata["next_offset"] = str(first)
            return refused
        if producer and not duplicate:
            self.producers[producer] = (epoch, sequence + len(request.batch.messages))
            self.stored[producer, epoch, sequence] = first
        if not duplicate:
            self.messages += request.batch.messages
        return publish_pb2.PublishResponse(
            channel=self.name,
            first_offset=first,
            count=len(request.batch.messages),
            durability=request.durability or common_pb2.DURABILITY_QUORUM,
            replicas=[NODE],
            duplicate=duplicate,
            append_time_us=1_000_000 + first,
            owner=NODE,
            epoch=1,
        )


@dataclass(eq=False)
class FakeSubscription:
    """One subscription on a stream."""

    request: subscribe_pb2.OpenSubscription
    channel: FakeChannel
    outbox: "asyncio.Queue[subscribe_pb2.SubscribeResponse | str]"
    next_offset: int
    sent_messages: int = 0
    sent_bytes: int = 0

    @property
    def group(self) -> FakeGroup | None:
        return self.channel.groups.get(self.request.group)

    @property
    def id(self) -> int:
        return self.request.subscription_id


class FakeBroker(publish_pb2_grpc.PublisherServiceServicer, subscribe_pb2_grpc.SubscriberServiceServicer):
    """Start it, use it, stop it; `address` stays the same over `restart`."""

    def __init__(self, node: str = NODE, ring: "FakeRing | None" = None) -> None:
        self.node = node
        # Of a cluster: what its nodes share.
        self.ring = ring
        self.address = "127.0.0.1:0"
        self.channels: dict[str, FakeChannel] = {} if ring is None else ring.channels
        # Cleared: the process is stopped, as by SIGSTOP; it reads and answers nothing.
        self.thawed = asyncio.Event()
        self.thawed.set()
        # What the tests may set.
        self.refuse: Callable[[publish_pb2.PublishRequest], common_pb2.Failure | None] = lambda _: None
        self.refuse_open: Callable[[subscribe_pb2.OpenSubscription], common_pb2.Failure | None] = lambda _: None
        # Cleared: publishes are stored and not answered, settlements not settled.
        self.answering = asyncio.Event()
        self.answering.set()
        self.required_token = ""
        self.corrupt_crc = False
        self.heartbeats = True
        self.max_batch_bytes = 1 << 20
        # What the tests may look at.
        self.publishes: list[publish_pb2.PublishRequest] = []
        self.settles: list[subscribe_pb2.Settle] = []
        self.opens: list[subscribe_pb2.OpenSubscription] = []
        self.credits: list[subscribe_pb2.GrantCredit] = []
        self.closes = 0
        self.publish_streams = 0
        self.metadata: dict[str, str] = {}
        self.changed = asyncio.Condition()
        self._outboxes: set[asyncio.Queue[object]] = set()
        self._subscriptions: list[FakeSubscription] = []
        self._server: grpc.aio.Server | None = None

    # -- life and misbehaviour ------------------------------------------------------------------------------------

    async def start(self) -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        publish_pb2_grpc.add_PublisherServiceServicer_to_server(self, server)
        subscribe_pb2_grpc.add_SubscriberServiceServicer_to_server(self, server)
        channel_pb2_grpc.add_ChannelServiceServicer_to_server(FakeChannels(self), server)
        group_pb2_grpc.add_GroupServiceServicer_to_server(FakeGroups(self), server)
        message_pb2_grpc.add_MessageServiceServicer_to_server(FakeMessages(self), server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(FakeCluster(self), server)
        port = server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def cut(self) -> None:
        """Ends every stream with UNAVAILABLE."""
        for outbox in self._outboxes:
            outbox.put_nowait(_CUT)

    def drain(self, grace_ms: int = 1_000) -> None:
        """Tells every stream to leave."""
        notice = common_pb2.DrainNotice(message="the test says so", grace_ms=grace_ms)
        for outbox in self._outboxes:
            outbox.put_nowait(notice)

    def expire_leases(self, channel: str, group: str) -> None:
        self.channels[channel].groups[group].expire()
        self._pump()

    def gap(self, channel: str, first: int, last: int) -> None:
        missing = common_pb2.OffsetRange(first=first, last=last)
        for sub in self._subscriptions:
            if sub.channel.name == channel:
                gap = subscribe_pb2.Gap(subscription_id=sub.id, missing=missing)
                sub.outbox.put_nowait(subscribe_pb2.SubscribeResponse(gap=gap))

    def end_subscriptions(self, reason: str) -> None:
        """Ends every subscription, and with it its leases, while its stream goes on."""
        for sub in list(self._subscriptions):
            ended = failure(grpc.StatusCode.UNAVAILABLE, reason)
            closed = subscribe_pb2.Closed(subscription_id=sub.id, failure=ended)
            sub.outbox.put_nowait(subscribe_pb2.SubscribeResponse(closed=closed))
            self._release(sub)

    def channel(self, name: str) -> FakeChannel:
        """The channel, made by first use."""
        if name not in self.channels:
            self.channels[name] = FakeChannel(name)
        return self.channels[name]

    def put(self, channel: str, *payloads: bytes) -> None:
        """Publishes without a client."""
        self.channel(channel).messages += [publish_pb2.Message(data=data) for data in payloads]
        self._pump()

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until something that the broker sees makes the condition true."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: bool(condition())), 10)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _authorize(self, context: grpc.aio.ServicerContext) -> None:
        self.metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        if self.required_token and self.metadata.get("authorization") != f"Bearer {self.required_token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "token: missing or wrong")

    # -- publishing -----------------------------------------------------------------------------------------------

    async def Publish(self, request, context):
        answer = self._publish(request)
        if isinstance(answer, common_pb2.Failure):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, answer.message)
        return answer

    def _publish(self, request: publish_pb2.PublishRequest) -> publish_pb2.PublishResponse | common_pb2.Failure:
        self.publishes.append(request)
        encoded = request.batch.SerializeToString()
        assert request.count == len(request.batch.messages)
        assert not request.HasField("crc32c") or request.crc32c == crc32c(encoded)
        refused = self.refuse(request) or (self.ring and self.ring.refusal(self, request.channel))
        if refused:
            return refused
        answer = self.channel(request.channel).append(request)
        if isinstance(answer, publish_pb2.PublishResponse):
            answer.owner, answer.epoch = self._owner(request.channel)
        return answer

    def _owner(self, channel: str) -> tuple[str, int]:
        return (self.node, 1) if self.ring is None else self.ring.owner(channel)

    async def PublishStream(self, request_iterator, context) -> AsyncIterator[publish_pb2.PublishStreamResponse]:
        await self.thawed.wait()
        await self._authorize(context)
        self.publish_streams += 1
        opened = publish_pb2.PublishOpened(node=NODE, max_unanswered_batches=1_000)
        opened.max_batch_bytes = self.max_batch_bytes
        yield publish_pb2.PublishStreamResponse(opened=opened)
        outbox: asyncio.Queue[object] = asyncio.Queue()
        reader = asyncio.create_task(self._read_publishes(request_iterator, outbox))
        async for item in self._outgoing(outbox, reader, context):
            if isinstance(item, common_pb2.DrainNotice):
                yield publish_pb2.PublishStreamResponse(drain=item)
            else:
                yield publish_pb2.PublishStreamResponse(results=[item])

    async def _read_publishes(self, requests, outbox) -> None:
        async for request in requests:
            await self.thawed.wait()
            answer = self._publish(request.publish)
            self._pump()
            await self._notify()
            await self.answering.wait()
            result = publish_pb2.PublishResult(correlation=request.correlation)
            if isinstance(answer, common_pb2.Failure):
                result.failure.CopyFrom(answer)
            else:
                result.stored.CopyFrom(answer)
            outbox.put_nowait(result)
        outbox.put_nowait(_END)

    async def _outgoing(self, outbox, reader, context) -> AsyncIterator[object]:
        """What a stream's reader and the test put into its outbox, until one says that it is over."""
        self._outboxes.add(outbox)
        try:
            while (item := await outbox.get()) != _END:
                await self.thawed.wait()
                if item == _CUT:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
                yield item
        finally:
            self._outboxes.discard(outbox)
            reader.cancel()

    # -- subscribing ----------------------------------------------------------------------------------------------

    async def Subscribe(self, request_iterator, context) -> AsyncIterator[subscribe_pb2.SubscribeResponse]:
        await self.thawed.wait()
        await self._authorize(context)
        outbox: asyncio.Queue[object] = asyncio.Queue()
        mine: dict[int, FakeSubscription] = {}
        reader = asyncio.create_task(self._read_commands(request_iterator, outbox, mine))
        beats = asyncio.create_task(self._beat(outbox, mine))
        try:
            async for item in self._outgoing(outbox, reader, context):
                is_notice = isinstance(item, common_pb2.DrainNotice)
                yield subscribe_pb2.SubscribeResponse(drain=item) if is_notice else item
        finally:
            beats.cancel()
            for sub in mine.values():
                self._release(sub)

    async def _beat(self, outbox, mine: dict[int, FakeSubscription]) -> None:
        while True:
            interval = min((sub.request.heartbeat_interval_ms for sub in mine.values()), default=1_000)
            await asyncio.sleep(interval / 1000)
            if self.heartbeats:
                outbox.put_nowait(subscribe_pb2.SubscribeResponse(heartbeat=subscribe_pb2.Heartbeat(node_time_us=1)))

    async def _read_commands(self, commands, outbox, mine: dict[int, FakeSubscription]) -> None:
        async for command in commands:
            match command.WhichOneof("command"):
                case "open":
                    self._open(command.open, outbox, mine)
                case "credit":
                    self.credits.append(command.credit)
                    mine[command.credit.subscription_id].request.credit.CopyFrom(command.credit.credit)
                case "settle":
                    self.settles.append(command.settle)
                    await self._notify()
                    await self.answering.wait()
                    self._settle(mine[command.settle.subscription_id], command.settle)
                case "close":
                    self.closes += 1
                    if (sub := mine.pop(command.close.subscription_id, None)) is not None:
                        self._release(sub)
                    closed = subscribe_pb2.Closed(subscription_id=command.close.subscription_id)
                    outbox.put_nowait(subscribe_pb2.SubscribeResponse(closed=closed))
            self._pump()
            await self._notify()
        outbox.put_nowait(_END)

    def _open(self, request: subscribe_pb2.OpenSubscription, outbox, mine: dict[int, FakeSubscription]) -> None:
        self.opens.append(subscribe_pb2.OpenSubscription.FromString(request.SerializeToString()))
        refused = self.refuse_open(request)
        channel = self.channel(request.channel)
        if request.group and request.group in channel.groups and request.HasField("start"):
            refused = failure(grpc.StatusCode.INVALID_ARGUMENT, "START_OF_EXISTING_GROUP")
        if refused is not None:
            closed = subscribe_pb2.Closed(subscription_id=request.subscription_id, failure=refused)
            outbox.put_nowait(subscribe_pb2.SubscribeResponse(closed=closed))
            return
        start = self.start_offset(channel, request.start, "earliest" if request.group else "latest")
        if request.group:
            channel.groups.setdefault(request.group, FakeGroup(start))
        sub = mine[request.subscription_id] = FakeSubscription(request, channel, outbox, start)
        self._subscriptions.append(sub)
        opened = subscribe_pb2.Opened(
            subscription_id=sub.id,
            next_offset=sub.group.settled_below if sub.group else start,
            end_offset=channel.end_offset,
            ack_deadline_ms=sub.group.ack_deadline_ms if sub.group else 0,
        )
        opened.owner, opened.epoch = self._owner(request.channel)
        outbox.put_nowait(subscribe_pb2.SubscribeResponse(opened=opened))

    @staticmethod
    def start_offset(channel: FakeChannel, start: common_pb2.Start, default: str) -> int:
        match start.WhichOneof("at") or default:
            case "offset":
                return start.offset
            case "earliest":
                return channel.first_offset
            case _:
                return channel.end_offset

    def _settle(self, sub: FakeSubscription, settle: subscribe_pb2.Settle) -> None:
        assert sub.group is not None
        settled = subscribe_pb2.Settled(subscription_id=sub.id, correlation=settle.correlation)
        for asked in settle.ranges:
            below = (o for o, holder in sub.group.leases.items() if holder is sub and o < asked.first)
            for offset in (*(sorted(below) if settle.cumulative else ()), *range(asked.first, asked.last + 1)):
                outcome = sub.group.settle(sub, offset, settle.WhichOneof("action") or "")
                settled.results.add(range=common_pb2.OffsetRange(first=offset, last=offset), outcome=outcome)
        sub.outbox.put_nowait(subscribe_pb2.SubscribeResponse(settled=settled))

    def _release(self, sub: FakeSubscription) -> None:
        self._subscriptions = [other for other in self._subscriptions if other is not sub]
        if sub.group is not None:
            sub.group.release(sub)
        self._pump()

    def _pump(self) -> None:
        """Delivers what credit allows, on every node of the ring."""
        for broker in (self,) if self.ring is None else self.ring.nodes:
            broker.pump_own()

    def pump_own(self) -> None:
        for sub in self._subscriptions:
            while (run := self._next_run(sub))[1]:
                self._deliver(sub, *run)

    def _next_run(self, sub: FakeSubscription) -> tuple[int, int, int]:
        """first offset, count (0: nothing to send), attempt"""
        credit = sub.request.credit
        room = min(credit.messages - sub.sent_messages, _MAX_DELIVERED)
        if room <= 0 or sub.sent_bytes >= credit.bytes:
            return 0, 0, 0
        if sub.group is not None:
            return sub.group.lease(sub, sub.channel.end_offset, room)
        first = sub.next_offset
        count = max(0, min(room, sub.channel.end_offset - first))
        sub.next_offset += count
        return first, count, 0

    def _deliver(self, sub: FakeSubscription, first: int, count: int, attempt: int) -> None:
        start = first - sub.channel.first_offset
        batch = publish_pb2.Batch(messages=sub.channel.messages[start : start + count])
        encoded = batch.SerializeToString()
        sub.sent_messages += count
        sub.sent_bytes += len(encoded)
        delivered = subscribe_pb2.DeliveredBatch(
            first_offset=first,
            count=count,
            append_time_us=1_000_000 + first,
            crc32c=crc32c(encoded) ^ self.corrupt_crc,
            batch=batch,
            attempt=attempt,
            lease_ms=ACK_DEADLINE_MS if attempt else 0,
        )
        deliver = subscribe_pb2.Deliver(subscription_id=sub.id, batches=[delivered])
        sub.outbox.put_nowait(subscribe_pb2.SubscribeResponse(deliver=deliver))

    def settled_actions(self) -> dict[str, int]:
        """How many messages were settled how, over all requests."""
        counts: dict[str, int] = defaultdict(int)
        for settle in self.settles:
            for asked in settle.ranges:
                counts[settle.WhichOneof("action") or ""] += asked.last - asked.first + 1
        return dict(counts)
