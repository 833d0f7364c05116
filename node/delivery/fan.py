"""A subscription to a pattern: one subscription for each channel that matches, in a session of their own.

That session is as any other, so channels are read here or relayed, wait for leaders and move with them as subscriptions
always do; but what it has to say goes through here, where the channel's name is added.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import grpc

from ringpost.internal.v1.envelope_pb2 import SubscribeResponse as RawResponse
from ringpost.node.access.caller import Caller
from ringpost.node.access.grants import Verb
from ringpost.node.delivery.borrowing import Borrowing
from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.encode import is_deliver
from ringpost.node.delivery.fan_session import FanMember, FanSession
from ringpost.node.delivery.flow import Flow, PatternFlow, SettleReply
from ringpost.node.delivery.loans import Loans
from ringpost.node.errors import Exhausted, RingpostError, Unavailable
from ringpost.node.groups.changes import Outcome
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.subscribe_pb2 import Gap, Opened, OpenSubscription, Settle, SubscribeResponse

if TYPE_CHECKING:
    from ringpost.node.delivery.session import Session

OPEN_S = 5.0  # that an opening may stand still
LOAN_S = 3.0  # that a leader may take to use a loan
WINDOW_BYTES = 4 << 20
HELD_BYTES_MAX = 32 << 20  # with what tells of channels that come and go, which takes no credit
_MARKS_MAX = 1_000  # in a delivery
RETRY_S_MIN, RETRY_S_MAX = 0.05, 2.0
FORBIDDEN_S_MAX = 30.0
OFFSET_MAX = (1 << 64) - 1
_GONE = frozenset({"CHANNEL_NOT_FOUND", "CHANNEL_DELETED"})
_EARLIEST = Start(earliest=True)


class Fan(PatternFlow):
    """See the module. Invariant: every member has its own number in the inner session, or waits for `_again`.

    `_pending`: channels that existed at the opening and are not read yet; None once `opened` is said.
    """

    def __init__(self, session: "Session", command: OpenSubscription, credit: CreditWindow) -> None:
        self.session = session
        self.number = command.subscription_id
        self.credit = credit
        self.queued = False
        self.pattern = command.pattern
        self.command = OpenSubscription()
        self.command.CopyFrom(command)
        self.closed = False
        self._resume = {place.channel: place.offset for place in command.resume}
        self._members: dict[str, FanMember] = {}
        self._forbidden: dict[str, int] = {}  # where reading was, of channels that the client may not consume any more
        self._loans: Loans[int] = Loans(credit, WINDOW_BYTES)
        self._out: deque[bytes] = deque()
        self._marks: list[tuple[str, int]] = []
        self._pending: set[str] | None = set()
        self._listed = False
        self._deadline_ms = 0
        self._catalog = session.hub.catalog
        self._inner = FanSession(session.hub, session.caller, self)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(OPEN_S, self._too_late)
        self._progress = self._loop.time()
        self._reminder: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """To be called once the session knows it."""
        try:
            self._catalog.read(self.pattern, self)
        except RingpostError as error:
            self.session.close_subscription(self, error)
        if not self.closed:
            self.matched(self._catalog.names(self.pattern), [])

    # -- which channels ---------------------------------------------------------------------------------------------

    def matched(self, joined: list[str], left: list[str]) -> None:
        for name in left:
            self._forbidden.pop(name, None)
            self._leave(name)
        self._progress = self._loop.time()
        for name in joined:
            if not self.closed:
                self._join(name)
        if not self.closed and not self._listed and self._catalog.complete(self.pattern):
            self._listed = True
            self._check_opened()

    def _join(self, name: str) -> None:
        caller = self._inner.caller
        if name in self._members or not caller.may(Verb.CONSUME, name):
            return
        if (error := self._too_many()) is not None:
            self.session.close_subscription(self, error)
            return
        self.session.pattern_channels += 1
        member = self._members[name] = FanMember(name, Start(earliest=True))
        if self._pending is not None and not self._listed:
            self._pending.add(name)
            member.start = self.command.start
            if name in self._resume and not self.command.group:
                member.position = self._resume[name]
        elif (position := self._forbidden.pop(name, None)) is not None:
            member.position = position
        self._begin(member)

    def _too_many(self) -> Exhausted | None:
        """Why one channel more would be too many."""
        limits = self.session.hub.limits
        if len(self._members) >= (limit := limits.pattern_channels):
            said = f"{self.pattern!r} matches more than {limit} channels; narrow it, or open several"
        elif self.session.pattern_channels >= (limit := limits.stream_pattern_channels):
            said = f"the patterns of this stream match more than {limit} channels; open some on another stream"
        else:
            return None
        return Exhausted(f"open.pattern: {said}", reason="PATTERN_LIMIT", metadata={"limit": str(limit)})

    def _begin(self, member: FanMember) -> None:
        command = OpenSubscription(
            channel=member.name,
            pattern=self.pattern,
            group=self.command.group,
            mode=self.command.mode,
            filter=self.command.filter,
            consumer=self.command.consumer,
            start=member.start if member.start.WhichOneof("at") else None,
            lease_tokens=self.command.lease_tokens,
        )
        if member.position is not None:
            command.start.offset = member.position
        self._inner.open(member, command)

    def _leave(self, name: str) -> None:
        member = self._members.pop(name, None)
        if member is None:
            return
        self.session.pattern_channels -= 1
        self._inner.drop(member)
        if member.stood and not self.command.group:
            self._say_gap(member.name, member.position or 0, OFFSET_MAX)
        self._came(member)

    def _came(self, member: FanMember) -> None:
        """It need not be waited for any more."""
        self._progress = self._loop.time()
        if self._pending is not None:
            self._pending.discard(member.name)
            self._check_opened()

    def _check_opened(self) -> None:
        if self._pending or self._pending is None or not self._listed:
            return
        self._pending = None
        self._timer.cancel()
        self._flush_marks()
        for name, offset in self._resume.items():
            if name not in self._members:
                self._say_gap(name, offset, OFFSET_MAX)
        self._resume.clear()
        opened = Opened(subscription_id=self.number, ack_deadline_ms=self._deadline(), owner=self.session.hub.node)
        self._say(SubscribeResponse(opened=opened).SerializeToString())

    def _deadline(self) -> int:
        return (self._deadline_ms or GroupSettings().ack_deadline_ms) if self.command.group else 0

    def _too_late(self) -> None:
        """Time has passed; it may be that many channels open."""
        if (left := self._progress + OPEN_S - self._loop.time()) > 0:
            self._timer = self._loop.call_later(left, self._too_late)
            return
        missing, pending = self._catalog.missing(self.pattern), len(self._pending or ())
        what = f"shards {missing[:10]} have not said what they have" if missing else f"{pending} channels do not open"
        message = f"open.pattern: {what}, for {OPEN_S:.0f} s; open the subscription again"
        error = Unavailable(message, reason="PATTERN_INCOMPLETE", retry_after_ms=500)
        self.session.close_subscription(self, error)

    def recheck(self, caller: Caller) -> None:
        """What the client may do has changed."""
        self._inner.caller = caller
        for name, member in tuple(self._members.items()):
            if caller.may(Verb.CONSUME, name):
                continue
            self._leave(name)
            if member.position is not None and len(self._forbidden) < self.session.hub.limits.pattern_channels:
                self._forbidden[name] = member.position
        self.matched(self._catalog.names(self.pattern), [])

    # -- what the members say ---------------------------------------------------------------------------------------

    def stands(self, member: FanMember, opened: Opened) -> None:
        """Its leader has begun to deliver."""
        member.retry_s = RETRY_S_MIN
        if self.command.group:
            self._deadline_ms = min(self._deadline_ms or opened.ack_deadline_ms, opened.ack_deadline_ms)
            self._mark(member, opened.next_offset)
        elif not member.stood:
            member.position = opened.next_offset
            self._mark(member, opened.next_offset)
        elif member.position is not None and opened.next_offset > member.position:
            self.gap(member, member.position, opened.next_offset - 1)
        member.stood = True
        self._came(member)

    def gap(self, member: FanMember, first: int, last: int) -> None:
        """Offsets that will not come."""
        member.position = last + 1
        self._say_gap(member.name, first, last)

    def ended(self, member: FanMember, error: RingpostError) -> None:
        """Its subscription was closed. What is another node's trouble is tried again."""
        if self.closed or self._members.get(member.name) is not member:
            return
        if error.reason in _GONE:
            self._leave(member.name)  # the feed says whether it was made anew meanwhile
            self._loop.call_later(RETRY_S_MAX, self._look_again, member.name)
        elif error.code is grpc.StatusCode.PERMISSION_DENIED:  # its leader has other rules than we, older or newer
            self._came(member)
            member.retry_s = min(max(2 * member.retry_s, RETRY_S_MAX), FORBIDDEN_S_MAX)
            self._loop.call_later(member.retry_s, self._again, member)
        elif error.code is grpc.StatusCode.OUT_OF_RANGE and (member.position is not None or not member.stood):
            self._begin_anew(member)
        elif error.code is grpc.StatusCode.UNAVAILABLE:
            self._loop.call_later(member.retry_s, self._again, member)
            member.retry_s = min(2 * member.retry_s, RETRY_S_MAX)
        else:
            self.session.close_subscription(self, error)

    def _begin_anew(self, member: FanMember) -> None:
        """It ends before the place where it was read: another channel has its name now."""
        if member.stood and member.position is not None:
            self._say_gap(member.name, member.position, OFFSET_MAX)
        member.position, member.start, member.stood = None, _EARLIEST, False
        self._begin(member)

    def _again(self, member: FanMember) -> None:
        if not self.closed and self._members.get(member.name) is member:
            self._begin(member)

    def _look_again(self, name: str) -> None:
        if not self.closed and self._catalog.has(self.pattern, name):
            self._join(name)

    def ready(self, flow: Flow) -> None:
        """A member has something to send."""
        if not isinstance(flow, Borrowing):  # relayed: within a loan that has ended with it
            flow.queued = False
            while (message := flow.collect(OFFSET_MAX, 0)) is not None:
                self.pass_on(flow.number, message)
            return
        flow.queued = False
        if self._loans.is_lent(flow.number):
            self._take(flow, self.session.hub.limits.delivery_bytes, self.session.hub.store.log.clock())
        else:
            self.wants(flow.number)

    def wants(self, number: int) -> None:
        """A member asks for credit."""
        self._loans.want(number)
        self._ready()

    def settled(self, flow: Flow) -> None:
        """A member's loan has ended, or is void; what it used is paid."""
        member = self._inner.members.get(flow.number)
        if member is not None and self._loans.is_lent(flow.number):
            credit = flow.credit
            self._loans.settle(
                flow.number, credit.sent_messages - member.sent_messages, credit.sent_bytes - member.sent_bytes
            )
            credit.grant(credit.sent_messages, credit.sent_bytes)
            self._ready()

    def forgotten(self, flow: Flow) -> None:
        """A member's subscription is no more."""
        self.settled(flow)
        self._loans.forget(flow.number)

    def pass_on(self, number: int, message: bytes) -> None:
        """What a member sends: a delivery, or a gap among them."""
        member = self._inner.members[number]
        if not is_deliver(message):
            missing = SubscribeResponse.FromString(message).gap.missing
            self.gap(member, missing.first, missing.last)
            return
        response = RawResponse.FromString(message)
        response.deliver.subscription_id = self.number
        for batch in response.deliver.batches:
            batch.channel = member.name
        if not self.command.group:  # which knows its place, or begins as at first
            member.position = batch.first_offset + batch.count
        self._flush_marks()
        self._say(response.SerializeToString())

    # -- what is said -----------------------------------------------------------------------------------------------

    def _mark(self, member: FanMember, offset: int) -> None:
        self._marks.append((member.name, offset))
        if self._pending is None:
            if len(self._marks) >= _MARKS_MAX:  # nobody has collected them
                self._flush_marks()
            self._ready()

    def _flush_marks(self) -> None:
        marks, self._marks = self._marks, []
        for at in range(0, len(marks), _MARKS_MAX):
            response = RawResponse()
            response.deliver.subscription_id = self.number
            for name, offset in marks[at : at + _MARKS_MAX]:
                response.deliver.batches.add(channel=name, first_offset=offset)
            self._say(response.SerializeToString())

    def _say_gap(self, channel: str, first: int, last: int) -> None:
        self._flush_marks()
        missing = OffsetRange(first=first, last=last)
        gap = Gap(subscription_id=self.number, missing=missing, channel=channel)
        self._say(SubscribeResponse(gap=gap).SerializeToString())

    def _say(self, message: bytes) -> None:
        self._out.append(message)
        self._loans.held_bytes += len(message)
        if self._loans.held_bytes > HELD_BYTES_MAX:
            self._loop.call_soon(self._unread)
        self._ready()

    def _unread(self) -> None:
        """The client does not read, and channels come and go: it comes again with the places that it knows."""
        error = Unavailable("what is told of channels is not read", reason="PATTERN_UNREAD", retry_after_ms=500)
        self.session.close_subscription(self, error)

    def _ready(self) -> None:
        if self.queued or self.closed:
            return
        if self._out or (self._pending is None and (self._marks or self._loans.due)):
            self.queued = True
            self.session.ready(self)

    # -- as its own session sees it ---------------------------------------------------------------------------------

    @property
    def grouped(self) -> bool:
        return bool(self.command.group) and self._pending is None

    takes_turns = grouped

    def advanced(self) -> None:
        self._ready()

    def collect(self, bytes_max: int, now_us: int) -> bytes | None:
        while not self.closed:
            if self._out:
                message = self._out.popleft()
                self._loans.held_bytes -= len(message)
                return message
            if self._pending is not None:
                return None
            if self._marks:
                self._flush_marks()
            elif not self._lend(bytes_max, now_us):
                return None
        return None

    def _lend(self, bytes_max: int, now_us: int) -> bool:
        loan = self._loans.lend(self._loop.time())
        if loan is None:
            return False
        if self._reminder is None:
            self._reminder = self._loop.call_later(LOAN_S, self._remind)
        number, messages, size = loan
        flow, member = self._inner.subscriptions[number], self._inner.members[number]
        credit = flow.credit
        member.sent_messages, member.sent_bytes = credit.sent_messages, credit.sent_bytes
        credit.grant(credit.sent_messages + messages, credit.sent_bytes + size)
        if isinstance(flow, Borrowing):
            self._take(flow, bytes_max, now_us)
        else:
            flow.advanced()
        return True

    def _remind(self) -> None:
        """A node that does not answer may not keep the others' credit: its channels are opened again."""
        self._reminder = None
        if self.closed or not self._loans.any_lent:
            return
        self._reminder = self._loop.call_later(LOAN_S, self._remind)
        for number in self._loans.overdue(self._loop.time() - LOAN_S):
            flow = self._inner.subscriptions[number]
            if not isinstance(flow, Borrowing):
                error = Unavailable("the leader does not answer", retry_after_ms=50)
                self._inner.close_subscription(flow, error)

    def _take(self, flow: Borrowing, bytes_max: int, now_us: int) -> None:
        message = flow.take(bytes_max, now_us)
        if message is None and flow.waits:
            return
        self.settled(flow)
        if message is not None:
            self.pass_on(flow.number, message)
        if self._inner.subscriptions.get(flow.number) is flow and message is not None and flow.has_news:
            self._loans.want(flow.number)

    def settle(self, settle: Settle, reply: SettleReply) -> None:
        member = self._members.get(settle.channel)
        flow = None if member is None else self._inner.subscriptions.get(member.number)
        if flow is None or not flow.grouped:
            outcome = Outcome.UNKNOWN if member is None else Outcome.MOVED
            reply([(one.first, one.last, outcome) for one in settle.ranges])
            return
        inner = Settle()
        inner.CopyFrom(settle)
        inner.ClearField("channel")
        flow.settle(inner, reply)

    def close(self) -> None:
        self.session.pattern_channels -= len(self._members)
        self._members.clear()
        self.closed = True
        self._timer.cancel()
        if self._reminder is not None:
            self._reminder.cancel()
        self._catalog.unread(self.pattern, self)
        self._inner.close()
        self._out.clear()
