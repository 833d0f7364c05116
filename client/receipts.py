"""What a publisher gets back: receipts, and handles that share one future per batch."""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ringpost.client.checks import refused
from ringpost.client.errors import RingpostError
from ringpost.v1 import common_pb2, publish_pb2

_DURABILITY_NAMES = {
    common_pb2.DURABILITY_MEMORY: "memory",
    common_pb2.DURABILITY_LEADER: "leader",
    common_pb2.DURABILITY_QUORUM: "quorum",
}
_DURABILITY_VALUES: dict[str, int] = {name: value for value, name in _DURABILITY_NAMES.items()}


def durability_value(name: str) -> int:
    """The protocol's number for "memory", "leader" or "quorum". Raises `InvalidRequest`."""
    try:
        return _DURABILITY_VALUES[name]
    except (KeyError, TypeError):
        raise refused("durability", f'must be "memory", "leader" or "quorum", not {name!r}') from None


class Receipt(NamedTuple):
    """One message is stored."""

    channel: str
    # -1 of a delayed message: it gets one when it is due.
    offset: int
    # What was reached: "memory", "leader" or "quorum".
    durability: str
    # Ids of the nodes that hold it at that durability.
    replicas: tuple[str, ...]
    owner: str
    # It was stored before, by a transmission whose answer was lost.
    duplicate: bool
    # The owner's clock, microseconds since the epoch.
    append_time_us: int
    # Of a delayed message: when it is due, or was, by the owner's clock; 0: it is not delayed.
    scheduled_time_us: int = 0


@dataclass(frozen=True, slots=True)
class BatchReceipt:
    """A batch is stored: offsets first_offset .. last_offset, both included; of a delayed one -1, see `Receipt`."""

    channel: str
    first_offset: int
    count: int
    durability: str
    replicas: tuple[str, ...]
    owner: str
    duplicate: bool
    append_time_us: int
    scheduled_time_us: int = 0

    @property
    def last_offset(self) -> int:
        return -1 if self.scheduled_time_us else self.first_offset + self.count - 1

    @property
    def first(self) -> Receipt:
        """That of its first message."""
        how = (self.durability, self.replicas, self.owner, self.duplicate, self.append_time_us, self.scheduled_time_us)
        return Receipt(self.channel, self.first_offset, *how)


Outcome: TypeAlias = publish_pb2.PublishResponse | RingpostError


class Ticket:
    """The outcome of one batch, shared by all that wait for it.

    A batch that was cut, because the broker refused it whole, has one outcome for each part.
    """

    __slots__ = (
        "_all_asked",
        "_answered",
        "_asked",
        "_done",
        "_loop",
        "_parts",
        "_waiters",
        "channel",
        "count",
        "traceparent",
    )

    def __init__(self, channel: str, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = channel
        self.count = 0
        # Of the first of its messages that is traced.
        self.traceparent = ""
        self._loop = loop
        # Messages whose outcome somebody has asked for.
        self._asked: set[int] = set()
        self._all_asked = False
        # First message, count, outcome; in the order of the messages once done.
        self._parts: list[tuple[int, int, Outcome]] = []
        self._answered = 0
        self._done = False
        self._waiters: asyncio.Future[None] | None = None

    @property
    def done(self) -> bool:
        """Whether every message has its outcome."""
        return self._done

    def resolve(self, outcome: Outcome, first: int, count: int) -> None:
        """Sets the outcome of messages first .. first + count - 1, once."""
        self._parts.append((first, count, outcome))
        self._answered += count
        if self._answered < self.count:
            return
        self._parts.sort(key=_first_of)
        self._done = True
        if self._waiters is not None:
            self._waiters.set_result(None)

    def ask(self, index: int) -> None:
        """Somebody looks at the outcome of a message."""
        self._asked.add(index)

    def ask_all(self) -> None:
        self._all_asked = True

    def unasked_error(self) -> RingpostError | None:
        """The first error, so far, of a message that nobody asked for."""
        if self._all_asked:
            return None
        for first, count, outcome in self._parts:
            if isinstance(outcome, RingpostError) and not self._asked.issuperset(range(first, first + count)):
                return outcome
        return None

    async def wait(self) -> None:
        """Waits for the outcome; a waiter that is cancelled does not disturb the others."""
        if not self._done:
            await asyncio.shield(self.future())

    def future(self) -> "asyncio.Future[None]":
        """Done when the outcome is there; never to be cancelled."""
        if self._waiters is None:
            self._waiters = self._loop.create_future()
            if self._done:
                self._waiters.set_result(None)
        return self._waiters

    def receipts(self) -> list[BatchReceipt]:
        """The receipt of each part once it is done; raises the first error."""
        return [
            BatchReceipt(
                self.channel,
                -1 if stored.scheduled_time_us else stored.first_offset,
                count,
                _DURABILITY_NAMES.get(stored.durability, "unknown"),
                tuple(stored.replicas),
                stored.owner,
                stored.duplicate,
                stored.append_time_us,
                stored.scheduled_time_us,
            )
            for _, count, outcome in self._parts
            for stored in (_stored(outcome),)
        ]

    def receipt_of(self, index: int) -> Receipt:
        """The receipt of the batch's message `index`; raises the error that it failed with."""
        first, _, outcome = self._parts[bisect_right(self._parts, index, key=_first_of) - 1]
        stored = _stored(outcome)
        return Receipt(
            self.channel,
            -1 if stored.scheduled_time_us else stored.first_offset + index - first,
            _DURABILITY_NAMES.get(stored.durability, "unknown"),
            tuple(stored.replicas),
            stored.owner,
            stored.duplicate,
            stored.append_time_us,
            stored.scheduled_time_us,
        )


def _first_of(part: tuple[int, int, Outcome]) -> int:
    return part[0]


def _stored(outcome: Outcome) -> publish_pb2.PublishResponse:
    if isinstance(outcome, RingpostError):
        # Each waiter gets its own: a raised exception gathers the tracebacks of all who raise it.
        raise outcome.copy()
    return outcome


class Unreported:
    """Errors of messages that nobody has asked for. Bounded, since most programs never flush."""

    _MOST = 1_000

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def add(self, ticket: Ticket) -> None:
        """A ticket with such an error. Beyond the bound only the earliest are kept, and one is enough to report."""
        if len(self._tickets) >= self._MOST:
            self._tickets = [kept for kept in self._tickets if kept.unasked_error() is not None]
        if len(self._tickets) < self._MOST:
            self._tickets.append(ticket)

    def take(self) -> RingpostError | None:
        """The first error that nobody has asked for until now; forgets all."""
        tickets, self._tickets = self._tickets, []
        error = next((error for ticket in tickets if (error := ticket.unasked_error()) is not None), None)
        return None if error is None else error.copy()


class PendingPublish:
    """One published message. Await it for its `Receipt`, any number of times; or leave it and call `flush`."""

    __slots__ = ("_index", "_ticket")

    def __init__(self, ticket: Ticket, index: int) -> None:
        self._ticket = ticket
        self._index = index

    def done(self) -> bool:
        """Whether awaiting it would not wait."""
        return self._ticket.done

    def result(self) -> Receipt:
        """The receipt, once done; raises the error that the message failed with, `InvalidStateError` before."""
        if not self._ticket.done:
            raise asyncio.InvalidStateError("the message is not answered yet")
        self._ticket.ask(self._index)
        return self._ticket.receipt_of(self._index)

    def add_done_callback(self, callback: "Callable[[PendingPublish], object]") -> None:
        """Calls back on the event loop when done; whoever asks so also takes the error."""
        self._ticket.ask(self._index)
        self._ticket.future().add_done_callback(lambda _: callback(self))

    def __await__(self) -> Generator[Any, None, Receipt]:
        self._ticket.ask(self._index)
        yield from self._ticket.wait().__await__()
        return self._ticket.receipt_of(self._index)
