"""PublisherService: decodes, checks, hands to the shard, gathers answers."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.node import status
from ringpost.node.access.access import Access
from ringpost.node.access.caller import Caller
from ringpost.node.access.grants import Verb
from ringpost.node.arrivals import Arrivals, as_stream
from ringpost.node.delivery.encode import varint
from ringpost.node.errors import Exhausted, InvalidRequest, Precondition, RingpostError, Unavailable
from ringpost.node.routing.lane import Answer, Lane, Reply
from ringpost.node.routing.lanes import Lanes
from ringpost.node.services.publish_session import ForwardedSession, PublishLimits, PublishSession
from ringpost.node.services.publish_time import check_delivery, check_ttl, until_deadline
from ringpost.node.services.refusals import ABOUT_THE_LOG, SureRefusals
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.node.shard import batch as batches
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.shard import Publish, PublishReply, Stored, check_expected
from ringpost.node.shard.store import Store
from ringpost.node.tls import peer_name
from ringpost.node.tracing import OFF, Tracing, is_sampled
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import PublishResponse

SERVICE = "ringpost.v1.PublisherService"
METHOD = f"/{SERVICE}/Publish"
STREAM_METHOD = f"/{SERVICE}/PublishStream"
PEER_STREAMS_MAX = 10_000
PEER_STREAM_BATCHES = 4_096
PEER_STREAM_BYTES = 64 << 20
_BUSY_RETRY_MS = 100
_DURABILITIES = frozenset(Durability.values())
_PUBLISH = b"\x12"  # PublishStreamRequest.publish, length-delimited


@dataclass(slots=True)
class PublishCounters:
    """Since the start."""

    messages: int = 0
    bytes: int = 0
    batches: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Publisher:
    """One a node."""

    def __init__(
        self,
        store: Store,
        limits: PublishLimits,
        gate: StreamGate,
        *,
        node: str,
        access: Access | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`access` None: everybody may publish everywhere."""
        self.store = store
        self.access = access or Access("")
        self.tracing = tracing or OFF
        self.gate = gate
        self.limits = limits
        self.arrivals = Arrivals()
        self.node = node
        self.lanes: Lanes | None = None  # set where there are other nodes
        self.peer_gate = StreamGate(PEER_STREAMS_MAX)
        self.peer_limits = PublishLimits(PEER_STREAM_BATCHES, PEER_STREAM_BYTES, limits.node_bytes)
        self.counters = PublishCounters()
        self._refusals: SureRefusals | None = None  # made by the first, in a cluster
        self.sessions: set[PublishSession] = set()
        self.draining = False
        self._held_up = False  # a stream waits for the journal

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server, with raw bytes in and out."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Publish": as_stream(self.publish),
                "PublishStream": grpc.stream_stream_rpc_method_handler(self.publish_stream),
            },
        )

    def peer_handlers(self) -> grpc.GenericRpcHandler:
        """The service as other nodes meet it."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Publish": grpc.unary_unary_rpc_method_handler(self.publish_forwarded),
                "PublishStream": grpc.stream_stream_rpc_method_handler(self.forwarded_stream),
            },
        )

    # -- calls ------------------------------------------------------------------------------------------------------

    async def publish(self, context: RawContext) -> bytes:
        """The unary call. Who calls is looked at before the request is read; see `node.arrivals`."""
        try:
            caller = await self.access.authenticate(context, METHOD)
            message = await self.arrivals.request(context)
            return await self._publish(message, self.lanes, caller, context.peer(), context.time_remaining())
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await status.abort(context, error)

    async def _publish(
        self, message: bytes, lanes: Lanes | None, caller: Caller, peer: str, left_s: float | None = None
    ) -> bytes:
        """`left_s`: seconds until the call's deadline; None: it has none."""
        request = _parsed(message)
        if request.not_after_deadline:
            message = until_deadline(message, request, left_s)
        self._admit(caller, peer, request)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(outcome: Answer) -> None:
            if future.done():
                return
            if isinstance(outcome, RingpostError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        reply: Reply = answered
        if request.traceparent and self.tracing.on and is_sampled(request.traceparent):
            reply = self.tracing.publish(request, answered)
        lane = None if lanes is None else lanes.lane_for(request.channel)
        if self.journal_full or (lane is not None and lanes is not None and lanes.full(lane)):
            raise Exhausted("the node is busy, nothing was appended", retry_after_ms=_BUSY_RETRY_MS)
        if lanes is None:
            self.accept(request, reply)
        else:
            self.route(lanes, lane, _as_command(message), request, reply, caller)
        answer = await future
        assert not isinstance(answer, RingpostError), "errors are raised"
        return self.response(answer).SerializeToString()

    def _admit(self, caller: Caller, peer: str, request: envelope.PublishRequest) -> None:
        """Raises PermissionDenied and Exhausted."""
        try:
            caller.require(Verb.PUBLISH, request.channel)
        except RingpostError as error:
            self.access.note_denial(error, caller=caller.name, method=METHOD, peer=peer)
            raise
        if caller.usage.limited:
            now = asyncio.get_running_loop().time()
            caller.usage.check_rate(now)
            caller.usage.publish(batches.entries(request.batch, request.count), len(request.batch), now)

    def route(
        self,
        lanes: Lanes,
        lane: Lane | None,
        payload: bytes,
        request: envelope.PublishRequest,
        reply: Reply,
        caller: Caller,
    ) -> None:
        """Takes a batch here, or the way that `lanes` named for it; `reply` is called once."""
        if lane is not None:
            lanes.submit(lane, payload, request, reply, caller)
            return
        guarded = lanes.guarded(payload, reply, caller)
        try:
            self.accept(request, guarded)
        except Exception as error:
            guarded(status.known(error))

    async def publish_forwarded(self, message: bytes, context: RawContext) -> bytes:
        """The unary call on the peer port, where nothing is passed on."""
        try:
            assert self.lanes is not None, "there are peers"
            request = _parsed(message)
            router = self.lanes.router
            if not router.here(router.shard(request.channel)):
                raise router.refusal(router.shard(request.channel))
            peer = peer_name(context)
            return await self._publish(message, None, await self.access.authenticate(context, METHOD, peer), peer)
        except Exception as error:
            await status.abort(context, error)

    async def publish_stream(self, _requests: object, context: RawContext) -> None:
        """The stream."""
        peer = context.peer()
        await serve(
            *(context, STREAM_METHOD, self.gate, self.access),
            lambda caller: PublishSession(self, self.limits, caller, peer),
        )

    async def forwarded_stream(self, _requests: object, context: RawContext) -> None:
        """The stream of another node, which has its own bound on what it sends."""
        peer = peer_name(context)
        await serve(
            context, STREAM_METHOD, self.peer_gate, None, lambda _: ForwardedSession(self, self.peer_limits, peer)
        )

    @property
    def journal_full(self) -> bool:
        """Whether as much waits for the disk as may; no batch is taken then."""
        return self.store.log.journal.pending_bytes >= self.limits.node_bytes

    def hold_up(self) -> None:
        """A stream waits until the journal has room."""
        self._held_up = True

    def made_room(self) -> None:
        """The journal has written something."""
        if self._held_up and not self.journal_full:
            self._held_up = False
            self.made_room_for_all()

    def made_room_for_all(self) -> None:
        """Streams that wait for room look again."""
        for session in self.sessions:
            session.made_room()

    def accept(self, request: envelope.PublishRequest, reply: PublishReply) -> None:
        """Checks and appends one batch; raises the definite errors, else calls `reply` once.

        In a cluster what says where the log stands (`ABOUT_THE_LOG`) is not raised but told, once it surely holds.
        """
        try:
            self._accept(request, reply)
        except RingpostError as error:
            self.counters.refused[error.reason] += 1
            if error.reason not in ABOUT_THE_LOG or self.lanes is None:
                raise
            router = self.lanes.router
            self._refusals = self._refusals or SureRefusals(router)
            self._refusals.tell(self.store.shards[router.shard(request.channel)], error, reply)

    def _accept(self, request: envelope.PublishRequest, reply: PublishReply) -> None:
        store = self.store
        if self.draining:
            raise Unavailable("the node is draining, nothing was appended", reason="NOT_APPENDED", retry_after_ms=500)
        batch = request.batch
        if len(batch) > store.limits.max_batch_bytes:
            raise InvalidRequest.of(
                "batch", f"is {len(batch)} bytes long, allowed are {store.limits.max_batch_bytes} (max_batch_bytes)"
            )
        name = request.channel
        known = store.get(name)
        message_bytes_max = store.limits.max_message_bytes
        if known is not None and known.limits.max_message_bytes:
            message_bytes_max = min(message_bytes_max, known.limits.max_message_bytes)
        count, crc = batches.check(
            batch,
            request.count,
            request.crc32c if request.HasField("crc32c") else None,
            message_bytes_max=message_bytes_max,
            messages_max=store.limits.max_batch_messages,
        )
        durability = request.durability or Durability.DURABILITY_QUORUM
        if durability not in _DURABILITIES:
            raise InvalidRequest.of("durability", f"is {durability}, allowed are MEMORY (1), LEADER (2), QUORUM (3)")
        store.check_disk()
        if known is None and request.producer_id and request.first_sequence:
            raise Precondition(
                f"first_sequence: {request.first_sequence} on a channel that does not exist; begin at 0",
                reason="UNKNOWN_PRODUCER",
            )
        expected = request.expected_offset if request.HasField("expected_offset") else None
        if known is None and expected:
            store.check_addable(name)
            check_expected(expected, 0)
        due, delay_us, ttl_ms = request.deliver_time_us, request.delay_ms * 1000, request.ttl_ms
        if ttl_ms or request.not_after_deadline:
            check_ttl(ttl_ms, not_after_deadline=request.not_after_deadline)
        if (due or delay_us) and check_delivery(request, store.log.clock()) and known is None:
            store.check_schedules()  # or else the channel would be made
        channel = store.find_or_add(name)
        publish = Publish(
            batch,
            count,
            crc,
            durability,
            request.producer_id,
            request.producer_epoch,
            request.first_sequence,
            expected,
            due,
            delay_us,
            ttl_ms,
        )
        appended = self._append(channel, publish, request, reply)
        counters = self.counters
        if not appended:
            counters.duplicates += 1
            return
        counters.batches += 1
        counters.messages += count
        counters.bytes += len(batch)

    def _append(
        self, channel: Channel, publish: Publish, request: envelope.PublishRequest, reply: PublishReply
    ) -> bool:
        """False when it is stored already."""
        if not (request.traceparent and self.tracing.on and is_sampled(request.traceparent)):
            return channel.shard.publish(channel, publish, reply)
        span, offset = self.tracing.store(request), channel.next_offset
        try:
            appended = channel.shard.publish(channel, publish, span.around(reply))
        except Exception as error:
            span.end(error)
            raise
        if appended and not (publish.due_us or publish.delay_us):
            shard = channel.shard
            self.tracing.stored(span, channel.name, offset, publish.count, shard.number, shard.position)
        return appended

    def response(self, stored: Stored | PublishResponse) -> PublishResponse:
        """What a client is told of a stored batch: by this node, or by the leader that took it."""
        if isinstance(stored, PublishResponse):
            return stored
        return PublishResponse(
            channel=stored.channel,
            first_offset=stored.first_offset,
            count=stored.count,
            durability=stored.durability,
            replicas=stored.replicas or (self.node,),
            duplicate=stored.duplicate,
            append_time_us=stored.time_us,
            owner=self.node,
            epoch=stored.epoch,
            scheduled_time_us=stored.scheduled_us,
        )

    def check_access(self) -> None:
        """Streams whose tokens do not count any more end. To be called about every half second."""
        for session in tuple(self.sessions):
            session.check_access(self.access)

    # -- the end ----------------------------------------------------------------------------------------------------

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """Streams are told that they end soon; they still take batches."""
        for session in tuple(self.sessions):
            session.drain(grace_ms, retry_after_ms)

    def end_all(self) -> None:
        """Takes nothing more and ends every stream with UNAVAILABLE."""
        self.draining = True
        for session in tuple(self.sessions):
            session.end(Unavailable("the node is stopping", reason="DRAINING", retry_after_ms=500))

    @property
    def clients_left(self) -> bool:
        """Whether a client's stream is open."""
        return any(not session.forwarded for session in self.sessions)


def _parsed(message: bytes) -> envelope.PublishRequest:
    try:
        return envelope.PublishRequest.FromString(message)
    except DecodeError:
        raise InvalidRequest("the request is not an encoded ringpost.v1.PublishRequest") from None


def _as_command(message: bytes) -> bytes:
    """An encoded PublishRequest as a PublishStreamRequest."""
    return b"".join((_PUBLISH, varint(len(message)), message))
