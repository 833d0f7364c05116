"""One Subscribe stream: its subscriptions, what waits to be sent, how it ends.

The shell around it (`services.subscriber`) reads commands and calls `handle`, waits for `next_message` and writes.
Nothing here waits; work that must (an offset by time) runs as a task of the hub.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from ringpost.cluster.names import consumer_problem
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.access.grants import Verb
from ringpost.node.bell import Bell
from ringpost.node.delivery.borrowing import Borrowing
from ringpost.node.delivery.commands import RANGES_MAX, check_pattern, check_settle, check_settled_channel
from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.filtered import FilteredCursor
from ringpost.node.delivery.flow import Flow, PatternFlow
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.opening import Opening, open_source
from ringpost.node.delivery.sources import Cursor
from ringpost.node.delivery.subscription import Subscription
from ringpost.node.errors import Exhausted, InvalidRequest, NotFound, NotLeader, RingpostError, Unavailable
from ringpost.node.filters.filter import checked
from ringpost.node.groups.changes import Outcome
from ringpost.node.shard.channel import Channel
from ringpost.node.status import failure, known
from ringpost.v1.common_pb2 import DrainNotice, OffsetRange
from ringpost.v1.subscribe_pb2 import (
    Closed,
    Gap,
    GrantCredit,
    Heartbeat,
    Opened,
    OpenSubscription,
    Settle,
    Settled,
    SettledRange,
    SubscribeRequest,
    SubscribeResponse,
)
from ringpost.v1.subscribe_pb2 import Outcome as OutcomeMessage

METHOD = "/ringpost.v1.SubscriberService/Subscribe"
END_S = 1.0  # that a stream has for its last words


class Session:
    """State of one stream, of a client or (`forwarded`) of another node, for which nothing is relayed again.

    Invariant: `queued_bytes` is the length of all messages in the queue. Nothing is collected while it is at the bound,
    and no command is read while it is, or while too many settlements are unanswered.
    """

    __slots__ = (
        "_asked",
        "_closed",
        "_half_closed",
        "_last_sent",
        "_loop",
        "_pump_soon",
        "_queue",
        "_ready",
        "_room",
        "_something",
        "caller",
        "ended",
        "hub",
        "pattern_channels",
        "peer",
        "queued_bytes",
        "settlements_max",
        "subscriptions",
        "subscriptions_max",
        "unanswered",
    )
    forwarded = False
    limited = False  # nothing that other streams take holds up a command
    ranges_max = RANGES_MAX

    def __init__(self, hub: Hub, caller: Caller = ANYONE, peer: str = "") -> None:
        """`peer`: from where it came, for the log."""
        self.hub = hub
        self.caller = caller
        self.peer = peer
        self.subscriptions_max = hub.limits.subscriptions_per_stream
        self.settlements_max = hub.limits.settlements_per_stream
        self.subscriptions: dict[int, Flow] = {}
        self.queued_bytes = 0
        self.pattern_channels = 0  # of all its patterns together
        self.unanswered = 0
        self.ended: RingpostError | None = None
        self._queue: deque[bytes] | None = None  # an idle stream has no use for the two
        self._ready: deque[Flow] | None = None
        self._loop = asyncio.get_running_loop()
        self._something = Bell()
        self._room = Bell()
        self._pump_soon = False
        self._half_closed = False
        self._closed = False
        self._asked: dict[int, tuple[str, float]] = {}  # each subscription's channel, and longest silence in seconds
        self._last_sent = self._loop.time()
        hub.sessions.add(self)

    # -- the stream's shell -----------------------------------------------------------------------------------------

    async def next_message(self) -> bytes | None:
        """What to write next; None when all is said after a half-close. Raises the error that ends the stream."""
        while True:
            if self.ended is not None:
                raise self.ended
            if self._queue:
                message = self._queue.popleft()
                if not self._queue:
                    self._queue = None
                self.queued_bytes -= len(message)
                self._last_sent = self._loop.time()
                if self._ready:
                    self._schedule()
                self._room.ring()
                return message
            if self._half_closed and not self.unanswered:
                return None
            await self._something.heard()

    async def room(self) -> bool:
        """Returns when another command may be read; False when none is any more."""
        relay = self.hub.relay
        while not (self.ended or self._closed) and (
            self.queued_bytes >= self.hub.queue_bytes()
            or self.unanswered >= self.settlements_max
            or (relay is not None and relay.full)
        ):
            await self._room.heard()
        return not (self.ended or self._closed)

    def made_room(self) -> None:
        """Commands to other nodes can leave again."""
        self._room.ring()

    def half_close(self) -> None:
        """The client is done: leases go back, outstanding answers still leave."""
        self._half_closed = True
        for subscription in tuple(self.subscriptions.values()):
            self._forget(subscription)
        self._something.ring()

    def close(self) -> None:
        """The stream is over, whatever the reason. Idempotent."""
        for subscription in tuple(self.subscriptions.values()):
            self._forget(subscription)
        self._queue = None
        self.queued_bytes = 0
        self._closed = True
        self.hub.sessions.discard(self)
        self._room.ring()

    def end(self, error: RingpostError) -> None:
        """Ends the stream with an error."""
        if self.ended is None:
            self.ended = error
            self._loop.call_later(END_S, self.close)  # a client that does not read keeps nothing open
        self._something.ring()
        self._room.ring()

    def end_unavailable(self, message: str) -> None:
        """Ends the stream; the client comes back elsewhere."""
        self.end(Unavailable(message, reason="DRAINING", retry_after_ms=500))

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """The stream ends soon."""
        notice = DrainNotice(message="the node is draining", grace_ms=grace_ms, retry_after_ms=retry_after_ms)
        self.send(SubscribeResponse(drain=notice))

    def beat(self, now: float) -> None:
        """Sends a heartbeat when nothing was sent for about the interval."""
        asked = self._asked.values()
        silence_s = min([silence_s for _, silence_s in asked], default=self.hub.limits.heartbeat_ms / 1000)
        if not self._queue and now - self._last_sent >= silence_s - 0.5:
            self.send(SubscribeResponse(heartbeat=Heartbeat(node_time_us=self.hub.store.log.clock())))

    def send(self, message: SubscribeResponse) -> None:
        """Queues an event."""
        self.put(message.SerializeToString())

    def put(self, message: bytes) -> None:
        """Queues an encoded event."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(message)
        self.queued_bytes += len(message)
        self._something.ring()

    # -- deliveries -------------------------------------------------------------------------------------------------

    def ready(self, subscription: Flow) -> None:
        """The subscription may have something to send."""
        if self._ready is None:
            self._ready = deque()
        self._ready.append(subscription)
        self._schedule()

    def _schedule(self) -> None:
        if not self._pump_soon:
            self._pump_soon = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Lets subscriptions send in turn while there is room; a group's member once, then other members may take."""
        self._pump_soon = False
        ready = self._ready
        if ready is None:
            return
        limit = self.hub.queue_bytes()
        delivery = min(self.hub.limits.delivery_bytes, limit)
        now = self.hub.store.log.clock()
        members: list[Flow] = []
        while ready and self.queued_bytes < limit and self.ended is None:
            subscription = ready.popleft()
            message = subscription.collect(delivery, now)
            if message is None:
                subscription.queued = False
                continue
            self.put(message)
            (members if subscription.takes_turns else ready).append(subscription)
        if members:
            ready.extend(members)
            self._schedule()
        elif not ready:
            self._ready = None

    def gap(self, subscription: Subscription, missing: tuple[int, int]) -> None:
        """Some offsets will not come."""
        first, last = missing
        self.send(
            SubscribeResponse(gap=Gap(subscription_id=subscription.number, missing=OffsetRange(first=first, last=last)))
        )

    # -- commands ---------------------------------------------------------------------------------------------------

    def handle(self, request: SubscribeRequest) -> None:
        """One command of the client. Errors of a subscription are sent; those of the stream end it."""
        if self._closed:
            return  # read too late
        command = request.WhichOneof("command")
        if command == "credit":
            self._credit(request.credit)
        elif command == "settle":
            self._settle(request.settle)
        elif command == "open":
            self._open(request.open)
        elif command == "close":
            subscription = self.subscriptions.get(request.close.subscription_id)
            if subscription is None:
                error = _no_subscription(request.close.subscription_id)
                self.send_closed(request.close.subscription_id, error)
            else:
                self.close_subscription(subscription, None)
        else:
            self.end(InvalidRequest.of("command", "is not set; allowed are open, credit, settle, close"))

    def _credit(self, grant: GrantCredit) -> None:
        subscription = self.subscriptions.get(grant.subscription_id)
        if subscription is not None:  # it may just have been closed by the node
            subscription.credit.grant(grant.credit.messages, grant.credit.bytes)
            subscription.advanced()

    def _open(self, command: OpenSubscription) -> None:
        number = command.subscription_id
        if number in self.subscriptions:
            self.end(InvalidRequest.of("open.subscription_id", f"{number} is in use on this stream"))
            return
        try:
            self._check_open(command)
            check_pattern(command, forwarded=self.forwarded)
            if command.channel or not command.pattern:
                self.check_consume(number, command.channel)
        except RingpostError as error:
            self.send_closed(number, error)
            return
        self.begin(command, CreditWindow(command.credit.messages, command.credit.bytes))

    def begin(self, command: OpenSubscription, credit: CreditWindow) -> None:
        """Begins a subscription that is in order."""
        number = command.subscription_id
        self.hub.subscriptions += 1
        silence_s = (command.heartbeat_interval_ms or self.hub.limits.heartbeat_ms) / 1000
        self._asked[number] = command.channel, silence_s
        if not command.channel and command.pattern:
            fan = self.subscriptions[number] = fan_of(self, command, credit)
            fan.start()
        elif self.hub.relay is None or self.hub.relay.serves(command.channel):
            self.serve(command, credit)
        else:
            self._relay(command, credit)

    def serve(self, command: OpenSubscription, credit: CreditWindow, *, told: bool = False) -> None:
        """This node serves the subscription from now on. `told`: the client knows already that it stands."""
        kind = Borrowing if command.pattern else Subscription
        subscription = kind(self, command.subscription_id, command.consumer, credit)
        self.subscriptions[command.subscription_id] = subscription
        self.hub.spawn(self._begin(subscription, command, told))

    def _relay(self, command: OpenSubscription, credit: CreditWindow, *, told: bool = False) -> None:
        """Another node serves it from now on; on another node's stream, that one must find the leader."""
        relay, number = self.hub.relay, command.subscription_id
        assert relay is not None, "there are other nodes"
        flow = self.subscriptions[number] = relay.make(self, command, credit, told=told)
        if self.forwarded:
            self.close_subscription(flow, relay.refusal(command.channel))
        else:
            flow.start()

    def leaderships_changed(self) -> None:
        """What this node serves and no longer leads moves on."""
        for flow in tuple(self.subscriptions.values()):
            if isinstance(flow, Subscription) and flow.channel is not None and flow.source is not None:
                self._check_leadership(flow, flow.channel)

    def _check_leadership(self, subscription: Subscription, channel: Channel) -> None:
        relay = self.hub.relay
        if relay is None or self.hub.store.still_leads(channel.shard.number, subscription.epoch):
            return
        source = subscription.source
        if self.forwarded:
            self.close_subscription(subscription, relay.refusal(channel.name))
        elif not isinstance(source, Cursor):
            subscription.moved(f"the leader of channel {channel.name!r} has changed; open the subscription again")
        else:
            command = OpenSubscription(
                subscription_id=subscription.number, channel=channel.name, consumer=subscription.consumer
            )
            command.start.offset = source.offset
            command.filter = source.filter.text if isinstance(source, FilteredCursor) else ""
            subscription.close()
            if relay.serves(channel.name):
                self.serve(command, subscription.credit, told=True)
            else:
                self._relay(command, subscription.credit, told=True)

    # -- access -----------------------------------------------------------------------------------------------------

    def caller_of(self, number: int) -> Caller:  # noqa: ARG002  # see the sessions of other nodes
        """Whose subscription it is."""
        return self.caller

    def forget_caller(self, number: int) -> None:
        """The subscription has ended."""

    def check_consume(self, number: int, channel: str) -> None:
        """Raises PermissionDenied."""
        caller = self.caller_of(number)
        if not caller.may(Verb.CONSUME, channel):
            error = caller.denial(Verb.CONSUME, channel)
            self.hub.access.note_denial(error, caller=caller.name, method=METHOD, peer=self.peer)
            raise error

    def check_access(self) -> None:
        """By the rules of now: ends what is not permitted any more."""
        if self.ended is not None:
            return
        before = self.caller
        try:
            self.caller = self.hub.access.renewed(before)
        except RingpostError as error:
            self.hub.access.note_denial(error, caller=before.name, method=METHOD, peer=self.peer)
            self.end(error)
            return
        if self.caller is not before:
            self.close_forbidden(tuple(self.subscriptions))

    def close_forbidden(self, numbers: Iterable[int]) -> None:
        """Closes those of the subscriptions that are not permitted."""
        for number in numbers:
            flow = self.subscriptions[number]
            if isinstance(flow, PatternFlow):
                flow.recheck(self.caller)
                continue
            try:
                self.check_consume(number, self._asked[number][0])
            except RingpostError as error:
                self.close_subscription(flow, error)

    def _check_open(self, command: OpenSubscription) -> None:
        if command.subscription_id == 0:
            raise InvalidRequest.of("open.subscription_id", "is 0; choose a number above 0")
        if len(self.subscriptions) >= self.subscriptions_max:
            raise Exhausted(
                f"this stream has its {self.subscriptions_max} subscriptions; open another stream",
                reason="SUBSCRIPTION_LIMIT",
            )
        if command.heartbeat_interval_ms and not 1_000 <= command.heartbeat_interval_ms <= 300_000:
            raise InvalidRequest.of(
                "open.heartbeat_interval_ms", f"is {command.heartbeat_interval_ms}, allowed are 1000 to 300000, or 0"
            )
        if command.consumer and (problem := consumer_problem(command.consumer)) is not None:
            raise InvalidRequest.of("open.consumer", problem)
        checked(command.filter, "open.filter")
        if self.hub.draining:
            raise Unavailable("the node is draining", reason="DRAINING", retry_after_ms=500)

    async def _begin(self, subscription: Subscription, command: OpenSubscription, told: bool) -> None:
        relay = self.hub.relay
        opening: Opening | None = None
        try:
            opening = await open_source(self.hub, subscription, command)
        except Exception as error:
            if relay is None or relay.serves(command.channel):
                self.close_subscription(subscription, known(error))
                return
        if opening is None or (relay is not None and not relay.serves(command.channel)):
            if opening is not None:
                opening.source.close()
            if self.subscriptions.get(subscription.number) is subscription:
                self._relay(command, subscription.credit, told=told)
            return
        if self.subscriptions.get(subscription.number) is not subscription:
            opening.source.close()  # closed meanwhile
            return
        if opening.channel.removed:
            opening.source.close()
            gone = NotFound(f"channel {opening.channel.name!r} was deleted", reason="CHANNEL_DELETED")
            self.close_subscription(subscription, gone)
            return
        if not told:
            self._send_opened(subscription.number, opening)
        subscription.begin(opening.channel, opening.source)

    def _send_opened(self, number: int, opening: Opening) -> None:
        opened = Opened(
            subscription_id=number,
            next_offset=opening.next_offset,
            end_offset=opening.channel.end_offset,
            ack_deadline_ms=opening.ack_deadline_ms,
            owner=self.hub.node,
            epoch=opening.channel.shard.epoch,
        )
        self.send(SubscribeResponse(opened=opened))

    def close_subscription(self, subscription: Flow, error: RingpostError | None) -> None:
        """Ends a subscription and says so, if it has not ended before."""
        if self.subscriptions.get(subscription.number) is subscription:
            self._forget(subscription)
            self.send_closed(subscription.number, error)

    def _forget(self, subscription: Flow) -> None:
        del self.subscriptions[subscription.number]
        del self._asked[subscription.number]
        self.forget_caller(subscription.number)
        self.hub.subscriptions -= 1
        subscription.close()

    def send_closed(self, number: int, error: RingpostError | None) -> None:
        """Says that a subscription has ended, or does not begin."""
        told = None if error is None else failure(error)
        self.send(SubscribeResponse(closed=Closed(subscription_id=number, failure=told)))

    # -- settling ---------------------------------------------------------------------------------------------------

    def _settle(self, settle: Settle) -> None:
        try:
            flow = self._grouped(settle.subscription_id)
            check_settle(settle, self.ranges_max)
            check_settled_channel(settle, one=bool(self._asked[settle.subscription_id][0]))
        except RingpostError as error:
            self._send_settled(settle, error)
            return
        self.unanswered += 1

        def reply(outcome: list[tuple[int, int, Outcome]] | RingpostError) -> None:
            self.unanswered -= 1
            self._room.ring()
            if isinstance(outcome, NotLeader):  # nobody's fault, and no answer that a worker must know an error for
                outcome = [(one.first, one.last, Outcome.MOVED) for one in settle.ranges]
            self._send_settled(settle, outcome)

        flow.settle(settle, reply)

    def _grouped(self, number: int) -> Flow:
        subscription = self.subscriptions.get(number)
        if subscription is None:
            raise _no_subscription(number)
        if not subscription.grouped:
            raise InvalidRequest.of("settle.subscription_id", f"{number} has no group; only groups settle messages")
        return subscription

    def _send_settled(self, settle: Settle, outcome: list[tuple[int, int, Outcome]] | RingpostError) -> None:
        number, correlation, channel = settle.subscription_id, settle.correlation, settle.channel
        settled = Settled(subscription_id=number, correlation=correlation, channel=channel)
        if isinstance(outcome, RingpostError):
            settled.failure.CopyFrom(failure(outcome))
        else:
            for first, last, verdict in outcome:
                name = OutcomeMessage.ValueType(verdict)
                settled.results.append(SettledRange(range=OffsetRange(first=first, last=last), outcome=name))
        self.send(SubscribeResponse(settled=settled))


def fan_of(session: Session, command: OpenSubscription, credit: CreditWindow) -> PatternFlow:
    """A pattern's subscription, which has a session of its own."""
    from ringpost.node.delivery.fan import Fan  # which is made of sessions

    return Fan(session, command, credit)


def _no_subscription(number: int) -> NotFound:
    return NotFound(f"subscription_id: there is no {number} on this stream", reason="SUBSCRIPTION_NOT_FOUND")
