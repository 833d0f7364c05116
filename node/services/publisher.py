"""PublisherService: decodes, checks, hands to the shard, gathers answers."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.node import status
from ringpost.node.errors import Exhausted, InvalidRequest, Precondition, RingpostError, Unavailable
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.node.shard import batch as batches
from ringpost.node.shard.shard import Publish, PublishReply, Stored
from ringpost.node.shard.store import Store
from ringpost.v1.common_pb2 import DrainNotice, Durability
from ringpost.v1.publish_pb2 import PublishOpened, PublishResponse, PublishResult, PublishStreamResponse

SERVICE = "ringpost.v1.PublisherService"
_BUSY_RETRY_MS = 100


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Counts and bytes, all above 0: of one stream, and of the whole node (not yet durable)."""

    stream_batches: int = 256
    stream_bytes: int = 16 << 20
    node_bytes: int = 256 << 20


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

    def __init__(self, store: Store, limits: PublishLimits, gate: StreamGate, *, node: str) -> None:
        self.store = store
        self.gate = gate
        self.limits = limits
        self.node = node
        self.counters = PublishCounters()
        self.sessions: set[PublishSession] = set()
        self.draining = False
        self._held_up = False  # a stream waits for the journal

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server, with raw bytes in and out."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Publish": grpc.unary_unary_rpc_method_handler(self.publish),
                "PublishStream": grpc.stream_stream_rpc_method_handler(self.publish_stream),
            },
        )

    # -- calls ------------------------------------------------------------------------------------------------------

    async def publish(self, message: bytes, context: RawContext) -> bytes:
        """The unary call."""
        try:
            return await self._publish(message)
        except Exception as error:
            await status.abort(context, error)

    async def _publish(self, message: bytes) -> bytes:
        try:
            request = envelope.PublishRequest.FromString(message)
        except DecodeError:
            raise InvalidRequest("the request is not an encoded ringpost.v1.PublishRequest") from None
        if self.journal_full:
            raise Exhausted("the node is busy, nothing was appended", retry_after_ms=_BUSY_RETRY_MS)
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def reply(outcome: Stored | RingpostError) -> None:
            if future.done():
                return
            if isinstance(outcome, RingpostError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.accept(request, reply)
        return self.response(await future).SerializeToString()

    async def publish_stream(self, _requests: object, context: RawContext) -> None:
        """The stream."""
        await serve(context, self.gate, lambda: PublishSession(self))

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
            for session in self.sessions:
                session.made_room()

    def accept(self, request: envelope.PublishRequest, reply: PublishReply) -> None:
        """Checks and appends one batch; raises the definite errors, else calls `reply` once."""
        try:
            self._accept(request, reply)
        except RingpostError as error:
            self.counters.refused[error.reason] += 1
            raise

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
        if durability not in Durability.values():
            raise InvalidRequest.of("durability", f"is {durability}, allowed are MEMORY (1), LEADER (2), QUORUM (3)")
        store.check_disk()
        if known is None and request.producer_id and request.first_sequence:
            raise Precondition(
                f"first_sequence: {request.first_sequence} on a channel that does not exist; begin at 0",
                reason="UNKNOWN_PRODUCER",
            )
        channel = store.find_or_add(name)
        publish = Publish(
            batch,
            count,
            crc,
            durability,
            request.producer_id,
            request.producer_epoch,
            request.first_sequence,
        )
        appended = channel.shard.publish(channel, publish, reply)
        counters = self.counters
        if not appended:
            counters.duplicates += 1
            return
        counters.batches += 1
        counters.messages += count
        counters.bytes += len(batch)

    def response(self, stored: Stored) -> PublishResponse:
        """What a client is told of a stored batch."""
        return PublishResponse(
            channel=stored.channel,
            first_offset=stored.first_offset,
            count=stored.count,
            durability=stored.durability,
            replicas=(self.node,),
            duplicate=stored.duplicate,
            append_time_us=stored.time_us,
            owner=self.node,
            epoch=stored.epoch,
        )

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


class PublishSession:
    """One PublishStream. `unanswered` batches and bytes are those whose answer has not been taken for writing."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.ended: RingpostError | None = None
        self._results: list[tuple[int, int, Stored | RingpostError]] = []
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._half_closed = False
        self._drain: DrainNotice | None = None
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        limits = publisher.limits
        self._opened: PublishOpened | None = PublishOpened(
            node=publisher.node,
            max_unanswered_batches=limits.stream_batches,
            max_unanswered_bytes=limits.stream_bytes,
            max_batch_bytes=publisher.store.limits.max_batch_bytes,
        )
        publisher.sessions.add(self)

    def handle_raw(self, message: bytes) -> None:
        """One batch: appended, or answered with its failure."""
        try:
            request = envelope.PublishStreamRequest.FromString(message)
        except DecodeError:
            self.end(InvalidRequest("the message is not an encoded ringpost.v1.PublishStreamRequest"))
            return
        if request.WhichOneof("command") is None:
            self.end(InvalidRequest.of("command", "is not set; allowed is publish"))
            return
        correlation, size = request.correlation, len(message)
        self._unanswered += 1
        self._unanswered_bytes += size

        def reply(outcome: Stored | RingpostError) -> None:
            self._results.append((correlation, size, outcome))
            self._something.set()

        try:
            self.publisher.accept(request.publish, reply)
        except Exception as error:
            self._results.append((correlation, size, status.known(error)))
            self._something.set()

    async def room(self) -> None:
        """Returns when the stream and the node are below their bounds."""
        limits = self.publisher.limits
        while self.ended is None and not self._half_closed:
            if self.publisher.journal_full:
                self.publisher.hold_up()
            elif self._unanswered < limits.stream_batches and self._unanswered_bytes < limits.stream_bytes:
                return
            self._room.clear()
            await self._room.wait()

    def made_room(self) -> None:
        """The journal has room again."""
        self._room.set()

    def half_close(self) -> None:
        """No more batches; outstanding answers still leave."""
        self._half_closed = True
        self._something.set()

    def close(self) -> None:
        """The stream is over; what is appended stays so."""
        self.publisher.sessions.discard(self)
        self._half_closed = True
        self._room.set()

    def end(self, error: RingpostError) -> None:
        """Ends the stream with an error after the answers that are there."""
        if self.ended is None:
            self.ended = error
        self._something.set()
        self._room.set()

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """Says that the stream ends soon."""
        self._drain = DrainNotice(message="the node is draining", grace_ms=grace_ms, retry_after_ms=retry_after_ms)
        self._something.set()

    async def next_message(self) -> bytes | None:
        """All that is to be said now, in one message."""
        while True:
            if self._results or self._drain is not None or self._opened is not None:
                return self._take().SerializeToString()
            if self.ended is not None:
                raise self.ended
            if self._half_closed and not self._unanswered:
                return None
            self._something.clear()
            await self._something.wait()

    def _take(self) -> PublishStreamResponse:
        results, self._results = self._results, []
        message = PublishStreamResponse(opened=self._opened, drain=self._drain)
        self._opened = self._drain = None
        for correlation, size, outcome in results:
            self._unanswered -= 1
            self._unanswered_bytes -= size
            message.results.append(self._result(correlation, outcome))
        self._room.set()
        return message

    def _result(self, correlation: int, outcome: Stored | RingpostError) -> PublishResult:
        if isinstance(outcome, RingpostError):
            return PublishResult(correlation=correlation, failure=status.failure(outcome))
        return PublishResult(correlation=correlation, stored=self.publisher.response(outcome))
