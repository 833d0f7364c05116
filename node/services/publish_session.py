"""One PublishStream: of a client, or of another node that passes its clients' batches on."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.internal.v1.forward_pb2 import ForwardedHead, ForwardedPublishRequest
from ringpost.node import status
from ringpost.node.access.access import Access
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.access.grants import Verb
from ringpost.node.access.tokens import shown_token
from ringpost.node.bell import Bell
from ringpost.node.delivery.session import END_S
from ringpost.node.errors import InvalidRequest, RingpostError
from ringpost.node.routing.lane import Answer, Lane, Reply
from ringpost.node.routing.publish_link import METHOD, TOKENS_MAX
from ringpost.node.shard import batch as batches
from ringpost.node.tracing import is_sampled
from ringpost.v1.common_pb2 import DrainNotice
from ringpost.v1.publish_pb2 import PublishOpened, PublishResult, PublishStreamResponse

if TYPE_CHECKING:
    from ringpost.node.services.publisher import Publisher

_UNREADABLE = "the message is not an encoded ringpost.v1.PublishStreamRequest"


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Counts and bytes, all above 0: of one stream, and of the whole node (not yet durable)."""

    stream_batches: int = 256
    stream_bytes: int = 16 << 20
    node_bytes: int = 256 << 20


class PublishSession:
    """One PublishStream. `unanswered` batches and bytes are those whose answer has not been taken for writing."""

    forwarded = False

    def __init__(self, publisher: "Publisher", limits: PublishLimits, caller: Caller = ANYONE, peer: str = "") -> None:
        """`peer`: from where it came, for the log."""
        self.peer = peer
        self.publisher = publisher
        self.limits = limits
        self.caller = caller
        self._loop = asyncio.get_running_loop()
        self.ended: RingpostError | None = None
        self._results: list[tuple[int, int, Answer]] = []
        self._lane: Lane | None = None  # the way of the latest batch
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._half_closed = False
        self._drain: DrainNotice | None = None
        self._something = Bell()
        self._room = Bell()
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
            self._refuse_unreadable(message, InvalidRequest(_UNREADABLE))
            return
        if not request.HasField("publish"):
            self.end(InvalidRequest.of("command", "is not set; allowed is publish"))
            return
        correlation, size = request.correlation, len(message)
        self._unanswered += 1
        self._unanswered_bytes += size
        usage = self.caller.usage
        if usage.limited:
            publish = request.publish
            usage.publish(batches.entries(publish.batch, publish.count), size, self._loop.time())

        def reply(outcome: Answer) -> None:
            self._results.append((correlation, size, outcome))
            self._something.ring()

        self._take_in(message, request, reply)

    def _refuse_unreadable(self, message: bytes, error: RingpostError) -> None:  # see the other nodes'
        self.end(error)

    def _parse(self, message: bytes) -> Any:
        return envelope.PublishStreamRequest.FromString(message)

    def _take_in(self, message: bytes, request: Any, reply: Reply) -> None:
        publish, lanes = request.publish, self.publisher.lanes
        if publish.traceparent and self.publisher.tracing.on and is_sampled(publish.traceparent):
            reply = self.publisher.tracing.publish(publish, reply)
        if not self.caller.may(Verb.PUBLISH, publish.channel):
            reply(self._denied(self.caller, publish.channel))
        elif lanes is None:
            self._append(publish, reply)
        else:
            self._lane = lane = lanes.lane_for(publish.channel)
            self.publisher.route(lanes, lane, message, publish, reply, self.caller)

    def _denied(self, caller: Caller, channel: str) -> RingpostError:
        error = caller.denial(Verb.PUBLISH, channel)
        self.publisher.access.note_denial(error, caller=caller.name, method=METHOD, peer=self.peer)
        return error

    def check_access(self, access: Access) -> None:
        """By the rules of now: ends the stream of a token that does not count any more."""
        if self.ended is not None:
            return
        try:
            self.caller = access.renewed(self.caller)
        except RingpostError as error:
            access.note_denial(error, caller=self.caller.name, method=METHOD, peer=self.peer)
            self.end(error)

    def _append(self, publish: envelope.PublishRequest, reply: Reply) -> None:
        try:
            self.publisher.accept(publish, reply)
        except Exception as error:
            reply(status.known(error))

    @property
    def limited(self) -> bool:
        """Whether its principal has a rate, which all its streams share: of those that wait only one goes on."""
        return self.caller.usage.limited

    async def room(self) -> bool:
        """Returns when the stream, its principal and the node are below their bounds; False when it takes no more."""
        limits, lanes = self.limits, self.publisher.lanes
        while self.ended is None and not self._half_closed:
            waiting = None
            if self.publisher.journal_full:
                self.publisher.hold_up()
            elif self._lane is not None and lanes is not None and lanes.full(self._lane):
                pass  # it says when there is room
            elif wait := self.caller.usage.wait_s(self._loop.time()):
                waiting = self._loop.call_later(wait, self._room.ring)
            elif self._unanswered < limits.stream_batches and self._unanswered_bytes < limits.stream_bytes:
                return True
            await self._room.heard()
            if waiting is not None:
                waiting.cancel()
        return False

    def made_room(self) -> None:
        """The journal, or the way to a peer, has room again."""
        self._room.ring()

    def half_close(self) -> None:
        """No more batches; outstanding answers still leave."""
        self._half_closed = True
        self._something.ring()

    def close(self) -> None:
        """The stream is over; what is appended stays so."""
        self.publisher.sessions.discard(self)
        self._half_closed = True
        self._room.ring()

    def end(self, error: RingpostError) -> None:
        """Ends the stream with an error after the answers that are there."""
        if self.ended is None:
            self.ended = error
            self._loop.call_later(END_S, self.close)  # a client that does not read keeps nothing open
        self._something.ring()
        self._room.ring()

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """Says that the stream ends soon."""
        self._drain = DrainNotice(message="the node is draining", grace_ms=grace_ms, retry_after_ms=retry_after_ms)
        self._something.ring()

    async def next_message(self) -> bytes | None:
        """All that is to be said now, in one message."""
        while True:
            if self._results or self._drain is not None or self._opened is not None:
                return self._take().SerializeToString()
            if self.ended is not None:
                raise self.ended
            if self._half_closed and not self._unanswered:
                return None
            await self._something.heard()

    def _take(self) -> PublishStreamResponse:
        results, self._results = self._results, []
        message = PublishStreamResponse(opened=self._opened, drain=self._drain)
        self._opened = self._drain = None
        for correlation, size, outcome in results:
            self._unanswered -= 1
            self._unanswered_bytes -= size
            message.results.append(self._result(correlation, outcome))
        self._room.ring()
        return message

    def _result(self, correlation: int, outcome: Answer) -> PublishResult:
        if isinstance(outcome, RingpostError):
            return PublishResult(correlation=correlation, failure=status.failure(outcome))
        return PublishResult(correlation=correlation, stored=self.publisher.response(outcome))


class ForwardedSession(PublishSession):
    """Another node's stream: nothing is passed on again, and what is not for this leader is refused in order."""

    forwarded = True

    def __init__(self, publisher: "Publisher", limits: PublishLimits, peer: str) -> None:
        super().__init__(publisher, limits, peer=peer)
        self._refused: dict[int, int] = {}  # by shard: the greatest attempt that was refused
        self._tokens: dict[int, str] = {}  # by number: of the other node's clients

    def _parse(self, message: bytes) -> Any:
        return ForwardedPublishRequest.FromString(message)

    def _refuse_unreadable(self, message: bytes, error: RingpostError) -> None:
        """The stream is that of many clients: one of them may not end it."""
        try:
            correlation = ForwardedHead.FromString(message).correlation
        except DecodeError:
            self.end(error)
            return
        self._unanswered += 1
        self._results.append((correlation, 0, error))
        self._something.ring()

    def _take_in(self, message: bytes, request: Any, reply: Reply) -> None:
        lanes = self.publisher.lanes
        assert lanes is not None, "there are peers"
        if request.token and request.token_number < TOKENS_MAX:
            # Before anything is refused: the other node shows it only once.
            self._tokens[request.token_number] = shown_token(request.token)
        shard = lanes.router.shard(request.publish.channel)
        if request.attempt <= self._refused.get(shard, -1) or not lanes.router.leads_in(shard, request.epoch):
            self._refused[shard] = max(request.attempt, self._refused.get(shard, -1))
            reply(lanes.router.refusal(shard))
            return
        if self.publisher.access.on and (error := self._problem(request)) is not None:
            reply(error)
            return
        if request.traceparent and request.traceparent.isascii():
            request.publish.traceparent = request.traceparent.decode()
        self._append(request.publish, reply)

    def _problem(self, request: ForwardedPublishRequest) -> RingpostError | None:
        """Why the client of the other node may not publish this, by the token that it has shown there."""
        access, channel = self.publisher.access, request.publish.channel
        try:
            caller = access.verify(self._tokens.get(request.token_number, ""))
        except RingpostError as error:
            access.note_denial(error, method=METHOD, peer=self.peer)
            return error
        return None if caller.may(Verb.PUBLISH, channel) else self._denied(caller, channel)

    def check_access(self, access: Access) -> None:
        """Each batch is checked by its own token."""
