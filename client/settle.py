"""Settlements of one stream: ranges gathered into rounds, one request per action, one future per round.

Pure but for the futures. Everything that is settled between two flushes is a *round*; its outcome is known when the
broker has answered all of its requests.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable
from threading import get_ident
from typing import Any, Final, NamedTuple, TypeAlias

from ringpost.client.errors import LeaseLost, RingpostError, from_failure
from ringpost.v1 import subscribe_pb2

MAX_RANGES: Final = 1_000
_OUTCOMES = {
    subscribe_pb2.OUTCOME_EXPIRED: "the lease had ended; the message is delivered again",
    subscribe_pb2.OUTCOME_UNKNOWN: "the message is not leased to this subscription",
    subscribe_pb2.OUTCOME_MOVED: "the channel has moved to another node; the message is delivered again",
}


class Action(NamedTuple):
    """What to do with messages; `millis` is nack's delay or extend's deadline, `reason` is nack's or reject's.

    `cumulative`: also with all below that this subscription has. `fallback`: nack's delay, ms, where nothing else says.
    `channel`: whose messages, where a subscription has several, else empty.
    """

    kind: str
    millis: int = 0
    reason: str = ""
    cumulative: bool = False
    fallback: int = 0
    channel: str = ""


# Channel (as in Action) and offsets first..last of messages whose leases are to be kept.
Held: TypeAlias = tuple[str, int, int]
ACK: Final = Action("ack")
ACK_UP_TO: Final = Action("ack", cumulative=True)


class _Round:
    """What was settled together."""

    __slots__ = ("done", "error", "future", "ranges", "results", "unanswered")

    def __init__(self) -> None:
        self.ranges: dict[Action, list[tuple[int, int]]] = {}
        # Per action: (first, last, error) in the order of `first`, once answered.
        self.results: dict[Action, list[tuple[int, int, RingpostError | None]]] = {}
        self.unanswered = 0
        self.done = False
        self.error: RingpostError | None = None
        self.future: asyncio.Future[None] | None = None

    def finish(self) -> None:
        self.done = True
        for results in self.results.values():
            results.sort(key=lambda result: result[:2])
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def copy(self, source: "_Round") -> None:
        self.results, self.error = source.results, source.error
        self.finish()

    def outcome(self, action: Action, first: int, last: int) -> RingpostError | None:
        """The first error among offsets first..last; None when all are done."""
        if self.error is not None:
            return self.error
        results = self.results.get(action, [])
        index = max(0, bisect_right(results, first, key=lambda result: result[0]) - 1)
        overlapping = (error for begin, end, error in results[index:] if begin <= last and end >= first)
        return next((error for error in overlapping if error is not None), None)


class Settlement:
    """One ack, nack, extend or reject, on its way. Await it to be sure; raises `LeaseLost` when it came too late."""

    __slots__ = ("_action", "_first", "_last", "_leases", "_round")

    def __init__(self, leases: "Leases", in_round: _Round, action: Action, first: int, last: int) -> None:
        self._leases = leases
        self._round = in_round
        self._action = action
        self._first = first
        self._last = last

    def __await__(self) -> Generator[Any, None, None]:
        if not self._round.done:
            yield from asyncio.shield(self._leases.wait_for(self._round)).__await__()
        error = self._round.outcome(self._action, self._first, self._last)
        if error is not None:
            raise error.copy()


class Leases:
    """The leases that one stream gives: what is to be settled, and what came of it.

    `wake(urgent)` is called when there is something to flush; urgent when somebody waits for it. Belongs to one event
    loop; `settle` may be called from any thread (its result is awaited on the loop only).
    """

    def __init__(self, subscription_id: int, wake: Callable[[bool], None]) -> None:
        self.lost = 0
        self._id = subscription_id
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._open = _Round()
        self._asked: dict[int, tuple[_Round, Action, list[tuple[int, int]]]] = {}
        self._correlation = 0
        self._ended: RingpostError | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is to be sent or answered."""
        return self._ended is not None or not (self._asked or self._open.ranges)

    @property
    def ended(self) -> bool:
        """Whether the stream is over, and with it every lease."""
        return self._ended is not None

    def settle(self, action: Action, first: int, last: int) -> Settlement:
        """Settles offsets first..last, at the next flush."""
        if get_ident() != self._thread:
            later = _Round()
            self._loop.call_soon_threadsafe(self._adopt, later, action, first, last)
            return Settlement(self, later, action, first, last)
        current = self._open
        self._add(current, action, first, last)
        return Settlement(self, current, action, first, last)

    def _adopt(self, later: _Round, action: Action, first: int, last: int) -> None:
        """A settlement of another thread joins the open round; its own round gets that one's outcome."""
        self._add(self._open, action, first, last)
        if self._open.done:
            later.error = self._open.error
            later.finish()
            return
        source = self._open
        self.wait_for(source).add_done_callback(lambda _: later.copy(source))

    def _add(self, current: _Round, action: Action, first: int, last: int) -> None:
        if self._ended is not None:
            return
        # A cumulative one goes out behind all that was said before it: it takes what those have left.
        ranges = current.ranges.pop(action, None) if action.cumulative else current.ranges.get(action)
        if ranges is not None and action.cumulative:
            current.ranges[action] = ranges
        if ranges is None:
            ranges = current.ranges[action] = []
            self._wake(False)
        if ranges and ranges[-1][1] + 1 == first:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))

    def wait_for(self, waited: _Round) -> "asyncio.Future[None]":
        """The future of a round that is not done."""
        if waited.future is None:
            waited.future = self._loop.create_future()
        if waited is self._open:
            self._wake(True)
        return waited.future

    def flush(self) -> list[subscribe_pb2.SubscribeRequest]:
        """The requests of the open round; a new one begins."""
        if self._ended is not None or not self._open.ranges:
            return []
        current, self._open = self._open, _Round()
        requests: list[subscribe_pb2.SubscribeRequest] = []
        for action, ranges in current.ranges.items():
            merged = merge(ranges)
            for start in range(0, len(merged), MAX_RANGES):
                part = merged[start : start + MAX_RANGES]
                self._correlation += 1
                self._asked[self._correlation] = (current, action, part)
                requests.append(_request(self._id, self._correlation, action, part))
        current.unanswered = len(requests)
        return requests

    def answered(self, settled: subscribe_pb2.Settled) -> None:
        """The broker's answer to a request. An unknown correlation is ignored."""
        asked = self._asked.pop(settled.correlation, None)
        if asked is None:
            return
        current, action, ranges = asked
        results = current.results.setdefault(action, [])
        if settled.HasField("failure"):
            error = from_failure(settled.failure)
            results += [(first, last, error) for first, last in ranges]
        else:
            results += [(r.range.first, r.range.last, self._error_of(r)) for r in settled.results]
        current.unanswered -= 1
        if current.unanswered == 0:
            current.finish()

    def _error_of(self, result: subscribe_pb2.SettledRange) -> RingpostError | None:
        text = _OUTCOMES.get(result.outcome)
        if text is None:
            return None
        self.lost += result.range.last - result.range.first + 1
        return LeaseLost(text)

    def end(self, error: RingpostError) -> None:
        """The stream is over: nothing more can be settled."""
        if self._ended is not None:
            return
        self._ended = error
        unresolved = {id(asked[0]): asked[0] for asked in self._asked.values()}
        self._asked.clear()
        for current in (*unresolved.values(), self._open):
            current.error = error
            current.finish()


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same offsets as few ranges, in order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _request(
    subscription_id: int, correlation: int, action: Action, ranges: list[tuple[int, int]]
) -> subscribe_pb2.SubscribeRequest:
    request = subscribe_pb2.SubscribeRequest()
    settle = request.settle
    settle.subscription_id = subscription_id
    settle.correlation = correlation
    settle.cumulative = action.cumulative
    settle.channel = action.channel
    for first, last in ranges:
        settle.ranges.add(first=first, last=last)
    match action.kind:
        case "ack":
            settle.ack.SetInParent()
        case "nack":
            settle.nack.delay_ms = action.millis
            settle.nack.reason = action.reason
            settle.nack.fallback_delay_ms = action.fallback
            settle.nack.SetInParent()
        case "extend":
            settle.extend.deadline_ms = action.millis
            settle.extend.SetInParent()
        case "reject":
            settle.reject.reason = action.reason
            settle.reject.SetInParent()
        case _:
            raise AssertionError(f"unknown action {action.kind}")
    return request
