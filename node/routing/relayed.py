"""One client's subscription that another node serves: its buffer, its credit, its settlements."""

from collections import deque
from typing import TYPE_CHECKING, Protocol

from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.flow import RelayedFlow, SettleReply
from ringpost.node.delivery.session import Session
from ringpost.node.errors import RingpostError, Unavailable
from ringpost.node.groups.changes import Outcome
from ringpost.node.groups.ranges import Range, RangeSet
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.subscribe_pb2 import Gap, Opened, OpenSubscription, Settle, Settled, SubscribeResponse

if TYPE_CHECKING:
    from ringpost.node.routing.upstream import Upstream

SPLIT_S = 1.0  # one that could not keep up is left alone so long
HANDED_MAX = 10_000  # ranges; beyond it a cumulative settlement leaves the lowest out


class Placer(Protocol):
    """Finds the leader for a subscription."""

    def place(self, relayed: "Relayed") -> None:
        """Gives it an upstream, now or later."""

    def wait(self, relayed: "Relayed") -> None:
        """The same, later."""

    def gone(self, relayed: "Relayed") -> None:
        """It has ended."""

    @property
    def window(self) -> int:
        """Bytes that may wait for each subscription's session."""


class Relayed(RelayedFlow):
    """See the module. `told`: the client knows that it stands. `next_offset`: after the last message that arrived.

    `credit.sent` counts what arrived. What has been sent to the client and not settled is in `_handed` (groups only):
    the leader cannot know it, and a cumulative settlement must not speak of what still waits here.
    """

    takes_turns = False

    def __init__(
        self, placer: Placer, session: Session, command: OpenSubscription, credit: CreditWindow, *, told: bool
    ) -> None:
        self.session = session
        self.number = command.subscription_id
        self.channel = command.channel
        self.group = command.group
        self.command = OpenSubscription()
        self.command.CopyFrom(command)
        self.credit = credit
        self.told = told
        self.queued = False
        self.upstream: Upstream | None = None
        self.next_offset = command.start.offset
        self.waits_since: float | None = None
        self._placer = placer
        self._buffer: deque[tuple[bytes, int, list[Range]]] = deque()
        self._buffered_bytes = 0
        self._handed = RangeSet()
        self._closed = False
        self._split_at = float("-inf")
        self._losses = 0

    def start(self) -> None:
        self._placer.place(self)

    @property
    def grouped(self) -> bool:
        return self.told and bool(self.group)

    # -- room -------------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Bytes that may wait here."""
        return self._placer.window

    @property
    def credit_bound(self) -> bool:
        """Whether the client's credit, not the buffer, says how many bytes may come."""
        return self.credit.bytes <= self.window - self._buffered_bytes

    def room(self) -> tuple[int, int]:
        """Messages and bytes that may come now."""
        size = min(self.credit.bytes, self.window - self._buffered_bytes)
        return max(self.credit.messages, 0), max(size, 0)

    def fits(self, messages: int, size: int) -> bool:
        """Whether a delivery is within the credit, and the buffer is not far behind."""
        credit = self.credit
        return messages <= credit.messages and size <= credit.bytes and self._buffered_bytes <= self.window

    def keeps_up(self, now: float) -> bool:
        """Whether it may share an upstream."""
        return self.credit.open and 2 * self._buffered_bytes < self.window and now - self._split_at > SPLIT_S

    def advanced(self) -> None:
        if self.upstream is not None:
            self.upstream.offer(self)
        self._ready()

    def _ready(self) -> None:
        if self._buffer and not self.queued and not self._closed:
            self.queued = True
            self.session.ready(self)

    def wants(self) -> None:
        """The leader asks for credit: nothing of ours, which have their own from the beginning."""

    def gave_back(self) -> None:
        """The leader has no use for credit that was lent: likewise."""

    # -- deliveries -------------------------------------------------------------------------------------------------

    def put(self, message: bytes, messages: int, size: int, spans: list[Range]) -> None:
        """A delivery for the client."""
        self.next_offset = spans[-1][1] + 1
        self.credit.sent(messages, size)
        self._buffer.append((message, size, spans))
        self._buffered_bytes += size
        self._ready()

    def put_gap(self, first: int, last: int) -> None:
        """Offsets that will not come; told in its place among the deliveries."""
        self.next_offset = last + 1
        gap = Gap(subscription_id=self.number, missing=OffsetRange(first=first, last=last))
        self._buffer.append((SubscribeResponse(gap=gap).SerializeToString(), 0, []))
        self._ready()

    def collect(self, bytes_max: int, now_us: int) -> bytes | None:  # noqa: ARG002  # deliveries come as they are
        if not self._buffer or self._closed:
            return None
        message, size, spans = self._buffer.popleft()
        self._buffered_bytes -= size
        if self.group:
            self._note_handed(spans)
        if self.upstream is not None:
            self.upstream.offer(self)
        return message

    def _note_handed(self, spans: list[Range]) -> None:
        handed = self._handed
        for first, last in spans:
            handed.add(first, last)
        if len(handed) > HANDED_MAX:
            handed.remove(*next(iter(handed)))

    # -- settling ---------------------------------------------------------------------------------------------------

    def settle(self, settle: Settle, reply: SettleReply) -> None:
        if self.upstream is None:
            reply(Unavailable("the leader of the group is being looked for, nothing was settled", retry_after_ms=50))
            return
        named = RangeSet((pair.first, pair.last) for pair in settle.ranges)
        forwarded = Settle()
        forwarded.CopyFrom(settle)
        forwarded.cumulative = False
        if settle.cumulative:
            for first, last in self._handed.intersect(0, named.end - 1):
                forwarded.ranges.append(OffsetRange(first=first, last=last))
        # By a token it may speak of another delivery than the one that was handed to this client.
        keeps = settle.WhichOneof("action") == "extend" or bool(settle.lease_token)

        def answered(settled: Settled | RingpostError) -> None:
            reply(settled if isinstance(settled, RingpostError) else self._results(settled, named, keeps))

        self.upstream.link.settle(self.upstream, forwarded, answered)

    def _results(self, settled: Settled, named: RangeSet, keeps: bool) -> list[tuple[int, int, Outcome]]:
        """What a leader would have told of the client's own request: of what it did not name, only what was done."""
        results: list[tuple[int, int, Outcome]] = []
        for result in settled.results:
            first, last, outcome = result.range.first, result.range.last, Outcome(result.outcome)
            if not keeps:
                self._handed.remove(first, last)
            if outcome == Outcome.DONE:
                results.append((first, last, outcome))
            else:
                results += [(start, end, outcome) for start, end in named.intersect(first, last)]
        return results

    # -- beginnings and ends ----------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        """The leader has begun."""
        self.waits_since = None
        self.next_offset = opened.next_offset
        if not self.told:
            self.told = True
            told = Opened()
            told.CopyFrom(opened)
            told.subscription_id = self.number
            self.session.send(SubscribeResponse(opened=told))

    def split(self, next_offset: int, now: float) -> None:
        """It could not keep up with others and goes on alone."""
        self._split_at = now
        self.next_offset = next_offset

    def lost(self, error: RingpostError) -> None:
        """The upstream has ended."""
        self.upstream = None
        if self._closed:
            return
        self._losses += 1
        if self._has_made_its_group(error):
            self.command.ClearField("start")
            self._placer.wait(self)
            return
        if error.code is not Unavailable.code or error.reason == "GROUP_MOVED":
            self._flush()
            self.session.close_subscription(self, error)
        elif self.grouped:
            message = f"the leader of channel {self.channel!r} has changed; open the subscription again"
            moved = Unavailable(message, reason="GROUP_MOVED", retry_after_ms=10)
            self.session.close_subscription(self, moved)
        else:
            self._placer.wait(self)

    def _has_made_its_group(self, error: RingpostError) -> bool:
        """Whether an earlier try, whose answer was lost, has made the group, so that it must not say where to begin."""
        about_start = any(violation.field == "open.start" for violation in error.violations)
        return bool(self.group and self._losses > 1 and about_start and self.command.HasField("start"))

    def give_up(self, error: RingpostError) -> None:
        """No leader was found in time."""
        if not self._closed:
            self._flush()
            self.session.close_subscription(self, error)

    def serve_here(self) -> None:
        """This node has become the leader."""
        if self._closed:
            return
        self._flush()
        self._closed = True
        command = OpenSubscription()
        command.CopyFrom(self.command)
        if self.told and not self.group:
            command.start.offset = self.next_offset
        self.session.serve(command, self.credit, told=self.told)

    def _flush(self) -> None:
        while (message := self.collect(0, 0)) is not None:
            self.session.put(message)

    def close(self) -> None:
        self._closed = True
        self._buffer.clear()
        self._placer.gone(self)
        if self.upstream is not None:
            upstream, self.upstream = self.upstream, None
            upstream.leave(self)
