"""One subscription at a leader, for one of this node's subscriptions or, without a group, for several at once.

Several share it while all of them can take what comes. One that cannot (out of credit, or its buffer is full) leaves at
its next offset, to an upstream of its own; when that has caught up with the shared one they are joined again. So a slow
subscriber never holds back a fast one, and a leader sends each batch once to a node whose subscribers keep up.
"""

from typing import TYPE_CHECKING

from ringpost.internal.v1.envelope_pb2 import Deliver
from ringpost.node.delivery.encode import readdressed
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import Credit, Opened, OpenSubscription

if TYPE_CHECKING:
    from ringpost.node.routing.relayed import Relayed
    from ringpost.node.routing.subscribe_link import SubscribeLink


class Upstream:
    """Invariant: every subscriber has got everything before `next_offset`, and `granted` never was above what a
    subscriber could take when it was sent. Gaps below `silent_below` are told already.

    `exclusive`: all credit was granted for the one subscriber that it has, so that whatever comes is within it.
    """

    __slots__ = (
        "channel",
        "epoch",
        "exclusive",
        "filter",
        "granted",
        "link",
        "next_offset",
        "number",
        "opened",
        "opener",
        "received_bytes",
        "received_messages",
        "silent_below",
        "subscribers",
    )

    def __init__(self, link: "SubscribeLink", number: int, channel: str, epoch: int) -> None:
        self.link = link
        self.number = number
        self.channel = channel
        self.epoch = epoch
        self.exclusive = True
        self.opened = False
        self.filter = ""
        self.next_offset = 0
        self.silent_below = 0
        self.received_messages = self.received_bytes = 0
        self.granted = (0, 0)
        self.subscribers: list[Relayed] = []
        self.opener: Relayed | None = None  # by whose permission the leader serves it

    @property
    def place(self) -> tuple[str, str, int]:
        """What it reads and where it stands: at the same place the same comes."""
        return self.channel, self.filter, self.next_offset

    @property
    def grouped(self) -> bool:
        """Whether it is a member of a group, or borrows its credit, and so is never shared."""
        command = self.subscribers[0].command if self.subscribers else None
        return command is not None and bool(command.group or command.pattern)

    def opening(self, subscriber: "Relayed") -> OpenSubscription:
        """The command that begins it for its first subscriber."""
        self.subscribers.append(subscriber)
        self.opener = subscriber
        self.filter = subscriber.command.filter
        self.granted = subscriber.room()
        command = OpenSubscription()
        command.CopyFrom(subscriber.command)
        command.subscription_id = self.number
        command.heartbeat_interval_ms = 0
        command.credit.CopyFrom(Credit(messages=self.granted[0], bytes=self.granted[1]))
        if subscriber.told and not subscriber.group:
            command.start.CopyFrom(Start(offset=subscriber.next_offset))
        return command

    # -- credit -----------------------------------------------------------------------------------------------------

    def offer(self, subscriber: "Relayed") -> None:
        """The subscriber's room has changed."""
        messages, size = subscriber.room()
        wanted = self.received_messages + messages, self.received_bytes + size
        if self.exclusive:
            worth_it = self._exclusive_change(subscriber, wanted)
        else:
            wanted = max(wanted[0], self.granted[0]), max(wanted[1], self.granted[1])
            left = self.granted[0] - self.received_messages, self.granted[1] - self.received_bytes
            worth_it = wanted != self.granted and (2 * left[0] < messages or 2 * left[1] < size)
        if worth_it:
            self.granted = wanted
            self.link.grant(self)

    def _exclusive_change(self, subscriber: "Relayed", wanted: tuple[int, int]) -> bool:
        """The client's own changes are passed on at once; room in the buffer only by the quarter."""
        if wanted[0] != self.granted[0] or (subscriber.credit_bound and wanted[1] != self.granted[1]):
            return True
        return wanted[1] - self.granted[1] >= subscriber.window // 4

    # -- what comes -------------------------------------------------------------------------------------------------

    def deliver(self, deliver: Deliver, encoded: memoryview) -> None:
        """A delivery, parsed for its numbers and as it stands behind the subscription's id."""
        if not deliver.batches:
            for subscriber in tuple(self.subscribers):
                subscriber.wants()
            return
        if not deliver.batches[0].count:
            for subscriber in tuple(self.subscribers):
                subscriber.gave_back()
            return
        messages = size = 0
        spans = []
        for batch in deliver.batches:
            count = batch.count
            messages += count
            size += len(batch.batch)
            spans.append((batch.first_offset, batch.first_offset + count - 1))
        self.received_messages += messages
        self.received_bytes += size
        before, self.next_offset = self.next_offset, spans[-1][1] + 1
        made: dict[int, bytes] = {}
        leaving = []
        for subscriber in self.subscribers:
            if not self.exclusive and not subscriber.fits(messages, size):
                leaving.append(subscriber)
                continue
            number = subscriber.number
            if number not in made:
                made[number] = readdressed(number, encoded)
            subscriber.put(made[number], messages, size, spans)
        for subscriber in leaving:
            self._split(subscriber, before)

    def void_rest(self) -> None:
        """What the leader has not used of the credit is void, there as here."""
        self.granted = self.received_messages, self.received_bytes

    def begin(self, opened: Opened) -> bool:
        """The leader has begun; False when a gap is to come first."""
        (subscriber,) = self.subscribers
        self.opened = True
        self.next_offset = opened.next_offset
        missing = not subscriber.group and subscriber.next_offset < opened.next_offset
        if subscriber.told and missing:
            subscriber.put_gap(subscriber.next_offset, opened.next_offset - 1)
            self.silent_below = opened.next_offset
            missing = False
        subscriber.opened(opened)
        return not missing

    def gap(self, first: int, last: int) -> None:
        """Offsets that will not come."""
        if last < self.silent_below:
            return
        self.next_offset = last + 1
        for subscriber in self.subscribers:
            subscriber.put_gap(first, last)

    # -- who is on it -----------------------------------------------------------------------------------------------

    def _split(self, subscriber: "Relayed", next_offset: int) -> None:
        self.subscribers.remove(subscriber)
        self.link.split(self, subscriber, next_offset)

    def join(self, other: "Upstream") -> None:
        """Takes over the subscribers of another one that is at the same offset; that one has none then."""
        assert other.next_offset == self.next_offset, "somebody would miss messages"
        joining, other.subscribers = other.subscribers, []
        self.exclusive = False
        for subscriber in joining:
            subscriber.upstream = self
            self.subscribers.append(subscriber)
            self.offer(subscriber)

    def may_join(self, now: float) -> bool:
        """Whether its subscribers keep up, so that joining them to others is worth it."""
        return all(subscriber.keeps_up(now) for subscriber in self.subscribers)

    def leave(self, subscriber: "Relayed") -> None:
        """The subscriber goes; with the last one it ends."""
        self.subscribers.remove(subscriber)
        if not self.subscribers:
            self.link.close_upstream(self)
