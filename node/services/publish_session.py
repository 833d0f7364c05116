"""One PublishStream: of a client, or of another node that passes its clients' batches on."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.internal.v1.forward_pb2 import ForwardedPublishRequest
from ringpost.node import status
from ringpost.node.errors import InvalidRequest, RingpostError
from ringpost.node.routing.lane import Answer, Lane, Reply
from ringpost.v1.common_pb2 import DrainNotice
from ringpost.v1.publish_pb2 import PublishOpened, PublishResult, PublishStreamResponse

if TYPE_CHECKING:
    from ringpost.node.services.publisher import Publisher


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Counts and bytes, all above 0: of one stream, and of the whole node (not yet durable)."""

    stream_batches: int = 256
    stream_bytes: int = 16 << 20
    node_bytes: int = 256 << 20


class PublishSession:
    """One PublishStream. `unanswered` batches and bytes are those whose answer has not been taken for writing."""

    forwarded = False

    def __init__(self, publisher: "Publisher", limits: PublishLimits) -> None:
        self.publisher = publisher
        self.limits = limits
        self.ended: RingpostError | None = None
        self._results: list[tuple[int, int, Answer]] = []
        self._lane: Lane | None = None  # the way of the latest batch
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._half_closed = False
        self._drain: DrainNotice | None = None
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._opened: PublishOpened | None = PublishOpened(
            node=publisher.node,
            max_unanswered_batches=limits.stream_batches,
            max_unanswered_bytes=limits.stream_bytes,
            max_batch_bytes=publisher.store.limits.max_batch_bytes,
        )
        publisher.sessions.add(self)

    def handle_raw(self, message: bytes) -> None:
        """One batch: appended or passed on, or answered with its failure."""
        try:
            request = self._parse(message)
        except DecodeError:
            self.end(InvalidRequest("the message is not an encoded ringpost.v1.PublishStreamRequest"))
            return
        if not request.HasField("publish"):
            self.end(InvalidRequest.of("command", "is not set; allowed is publish"))
            return
        correlation, size = request.correlation, len(message)
        self._unanswered += 1
        self._unanswered_bytes += size

        def reply(outcome: Answer) -> None:
            self._results.append((correlation, size, outcome))
            self._something.set()

        self._take_in(message, request, reply)

    def _parse(self, message: bytes) -> Any:
        return envelope.PublishStreamRequest.FromString(message)

    def _take_in(self, message: bytes, request: Any, reply: Reply) -> None:
        lanes = self.publisher.lanes
        if lanes is None:
            self._append(request.publish, reply)
            return
        publish = request.publish
        self._lane = lane = lanes.lane_for(publish.channel)
        self.publisher.route(lanes, lane, message, publish, reply)

    def _append(self, publish: envelope.PublishRequest, reply: Reply) -> None:
        try:
            self.publisher.accept(publish, reply)
        except Exception as error:
            reply(status.known(error))

    async def room(self) -> None:
        """Returns when the stream and the node are below their bounds."""
        limits, lanes = self.limits, self.publisher.lanes
        while self.ended is None and not self._half_closed:
            if self.publisher.journal_full:
                self.publisher.hold_up()
            elif self._lane is not None and lanes is not None and lanes.full(self._lane):
                pass  # it says when there is room
            elif self._unanswered < limits.stream_batches and self._unanswered_bytes < limits.stream_bytes:
                return
            self._room.clear()
            await self._room.wait()

    def made_room(self) -> None:
        """The journal, or the way to a peer, has room again."""
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

    def _result(self, correlation: int, outcome: Answer) -> PublishResult:
        if isinstance(outcome, RingpostError):
            return PublishResult(correlation=correlation, failure=status.failure(outcome))
        return PublishResult(correlation=correlation, stored=self.publisher.response(outcome))


class ForwardedSession(PublishSession):
    """Another node's stream: nothing is passed on again, and what is not for this leader is refused in order."""

    forwarded = True

    def __init__(self, publisher: "Publisher", limits: PublishLimits) -> None:
        super().__init__(publisher, limits)
        self._refused: dict[int, int] = {}  # by shard: the greatest attempt that was refused

    def _parse(self, message: bytes) -> Any:
        return ForwardedPublishRequest.FromString(message)

    def _take_in(self, message: bytes, request: Any, reply: Reply) -> None:
        lanes = self.publisher.lanes
        assert lanes is not None, "there are peers"
        shard = lanes.router.shard(request.publish.channel)
        if request.attempt <= self._refused.get(shard, -1) or not lanes.router.leads_in(shard, request.epoch):
            self._refused[shard] = max(request.attempt, self._refused.get(shard, -1))
            reply(lanes.router.refusal(shard))
            return
        self._append(request.publish, reply)
