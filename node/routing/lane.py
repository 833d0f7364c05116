"""One shard's publishes that cannot be appended here at once: to another leader, or waiting for one. No I/O, no clock.

A lane keeps all its batches until they are answered, in the order in which they came, so per channel nothing overtakes.
What its leader refuses (NOT_LEADER), or a broken connection leaves open, is sent again to whoever leads then: first
alone, as a probe, and when that is taken the rest behind it.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.errors import NotLeader, RingpostError, Unavailable
from ringpost.node.routing.router import NotNow, Route, There
from ringpost.node.shard.shard import Stored
from ringpost.v1.publish_pb2 import PublishResponse

Answer = Stored | PublishResponse | RingpostError
Reply = Callable[[Answer], None]

PROBE_S_MIN, PROBE_S_MAX = 0.01, 0.2
ABANDON_S = 1.0
FAILED_S = 30.0
FAILED_MAX = 1_000
# Reasons of UNAVAILABLE that say: nothing was appended.
_NOT_APPENDED = frozenset({"NOT_LEADER", "NOT_APPENDED"})


class State(Enum):
    """Of one batch."""

    WAITING = 1
    SENT = 2
    REFUSED = 3
    DONE = 4


class Entry:
    """One batch. `payload` is the encoded PublishStreamRequest, whatever its correlation.

    `correlation` names its latest sending on a peer stream; `taken`: it may have left this process in that.
    """

    __slots__ = (
        "caller",
        "channel",
        "correlation",
        "first_sequence",
        "payload",
        "producer",
        "producer_epoch",
        "reply",
        "state",
        "taken",
        "traceparent",
    )

    def __init__(
        self,
        payload: bytes,
        channel: str,
        producer: int,
        producer_epoch: int,
        first_sequence: int,
        reply: Reply,
        caller: Caller = ANYONE,
        traceparent: str = "",
    ) -> None:
        self.payload = payload
        self.channel = channel
        self.caller = caller
        self.traceparent = traceparent
        self.producer = producer
        self.producer_epoch = producer_epoch
        self.first_sequence = first_sequence
        self.reply = reply
        self.state = State.WAITING
        self.correlation = 0
        self.taken = False


class Ways(Protocol):
    """What a lane may do."""

    def now(self) -> float:
        """Seconds of a clock that never falls."""

    def route(self, shard: int) -> Route:
        """Where the shard is now."""

    def refusal(self, shard: int) -> NotLeader:
        """Why there is no way."""

    def append(self, lane: "Lane", entry: Entry) -> None:
        """Appends here; `lane.outcome` follows, perhaps before this returns."""

    def forward(self, lane: "Lane", entry: Entry, to: There) -> bool:
        """Sends to the leader; `lane.outcome` follows later. False: there is no connection now."""

    def visit(self, lane: "Lane") -> None:
        """Asks for a `pump` soon."""

    def charge(self, destination: str, count: int, size: int) -> None:
        """So many more (or fewer) batches and bytes are on their way to a node, or wait for one ("")."""


class Lane:
    """See the module.

    Invariants: `_sent` holds what is with the target and what is behind it there, `_waiting` what comes after; nothing
    is sent while anything is on its way to another target, or was refused and not begun again.
    """

    def __init__(self, shard: int, ways: Ways, patience_s: float) -> None:
        self.shard = shard
        self.attempt = 0
        self.destination = ""
        self._ways = ways
        self._patience_s = patience_s
        self._waiting: deque[Entry] = deque()
        self._sent: deque[Entry] = deque()
        self._count = self._size = 0
        self._in_flight = 0
        self._target: tuple[str, int] = ("", 0)
        self._rewinding = self._probing = self._pumping = False
        self._probe_s = PROBE_S_MIN
        self._not_before = 0.0
        self._stuck_since: float | None = None
        self._leaving_since: float | None = None
        # Of producers whose batches were given up: the lowest sequence that was, and when.
        self._failed: dict[tuple[str, int, int], tuple[int, float]] = {}

    @property
    def idle(self) -> bool:
        """Whether a batch that comes now may go its own way."""
        return not self._count and not self._failed

    def submit(self, entry: Entry) -> None:
        """Takes a batch behind all others; `entry.reply` is called once."""
        if self._failed and (error := self._follows_failed(entry)) is not None:
            entry.reply(error)
            return
        self._waiting.append(entry)
        self._count += 1
        self._size += len(entry.payload)
        self._ways.charge(self.destination, 1, len(entry.payload))
        self.pump()

    def pump(self) -> None:
        """Sends what can be sent now."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._step():
                pass
        finally:
            self._pumping = False

    def _step(self) -> bool:
        """One batch on its way; False when there is nothing to do now."""
        now = self._ways.now()
        if self._rewinding and not self._in_flight:
            self._rewind()
        if self._rewinding or not self._waiting or (self._probing and self._in_flight):
            self._watch_leaving(now)
            return False
        if self._stuck_since is not None and now - self._stuck_since > self._patience_s and not self._in_flight:
            self._give_up(now)
            return False
        if now < self._not_before:
            self._ways.visit(self)
            return False
        return self._send_next(now)

    def _send_next(self, now: float) -> bool:
        route = self._ways.route(self.shard)
        if isinstance(route, NotNow):
            self._watch_leaving(now)
            return self._stuck(now)
        target = (route.node if isinstance(route, There) else "", route.epoch)
        if target != self._target:
            if self._in_flight:
                self._watch_leaving(now)
                return False
            self._target = target
            self._move_charge(target[0])
        entry = self._waiting[0]
        if isinstance(route, There):
            if not self._ways.forward(self, entry, route):
                return self._stuck(now)
            self._note_sent()
        else:
            self._note_sent()
            self._ways.append(self, entry)
        return True

    def _note_sent(self) -> None:
        entry = self._waiting.popleft()
        entry.state = State.SENT
        self._sent.append(entry)
        self._in_flight += 1
        self._leaving_since = None

    def _move_charge(self, destination: str) -> None:
        if destination != self.destination:
            self._ways.charge(self.destination, -self._count, -self._size)
            self.destination = destination
            self._ways.charge(destination, self._count, self._size)

    # -- what comes back --------------------------------------------------------------------------------------------

    def outcome(self, entry: Entry, answer: Answer) -> None:
        """What became of a batch that was sent; late answers of abandoned ones are passed over."""
        if entry.state is not State.SENT:
            return
        self._in_flight -= 1
        if isinstance(answer, RingpostError) and self._comes_again(entry, answer):
            entry.state = State.REFUSED
            now = self._ways.now()
            self._rewinding = True
            if answer.reason in _NOT_APPENDED or self._stuck_since is None:
                self._stuck(now)
        else:
            self._finish(entry, answer)
            if not isinstance(answer, RingpostError) or answer.code is not Unavailable.code:
                self._probing = False  # a leader has answered
                self._probe_s = PROBE_S_MIN
                self._stuck_since = None
        while self._sent and self._sent[0].state is State.DONE:
            self._sent.popleft()
        self.pump()

    def _comes_again(self, entry: Entry, error: RingpostError) -> bool:
        """Whether sending it again can do no harm and may do good."""
        if error.code is not Unavailable.code:
            return False
        if self._target[0] == "" and error.reason == "NOT_APPENDED":
            return False  # this node itself takes nothing any more
        return error.reason in _NOT_APPENDED or entry.producer != 0

    def _finish(self, entry: Entry, answer: Answer) -> None:
        entry.state = State.DONE
        self._count -= 1
        self._size -= len(entry.payload)
        self._ways.charge(self.destination, -1, -len(entry.payload))
        entry.reply(answer)

    def _rewind(self) -> None:
        """Everything that was refused comes first again, in order."""
        refused = [entry for entry in self._sent if entry.state is State.REFUSED]
        for entry in refused:
            entry.state = State.WAITING
        self._waiting.extendleft(reversed(refused))
        self._sent.clear()
        self._rewinding = False
        self._leaving_since = None
        if refused:
            self._probing = True
            self.attempt += 1
            self._not_before = self._ways.now() + self._probe_s
            self._probe_s = min(2 * self._probe_s, PROBE_S_MAX)

    # -- trouble ----------------------------------------------------------------------------------------------------

    def _stuck(self, now: float) -> bool:
        if self._stuck_since is None:
            self._stuck_since = now
        self._ways.visit(self)
        return False

    def news(self) -> None:
        """The cluster has changed: no need to wait for the next try."""
        self._not_before = 0.0
        self.pump()

    def _watch_leaving(self, now: float) -> None:
        """The old leader gets a while to answer; then its answers do not count any more."""
        if not self._in_flight:
            return
        route = self._ways.route(self.shard)
        target = (
            ("?", 0) if isinstance(route, NotNow) else (route.node if isinstance(route, There) else "", route.epoch)
        )
        if target == self._target:
            self._leaving_since = None
            return
        self._ways.visit(self)
        if self._leaving_since is None:
            self._leaving_since = now
        if now - self._leaving_since > ABANDON_S:
            self._abandon()

    def _abandon(self) -> None:
        error = Unavailable("the leader was lost before it answered, the outcome is open", retry_after_ms=50)
        for entry in tuple(self._sent):
            self.outcome(entry, error)

    def _give_up(self, now: float) -> None:
        """Patience is over for everything that waits."""
        refusal = self._ways.refusal(self.shard)
        opened = Unavailable(
            f"{refusal.message.removesuffix('; nothing was done')}; the outcome is open, send it again",
            metadata=refusal.metadata,
            retry_after_ms=refusal.retry_after_ms,
        )
        waiting, self._waiting = self._waiting, deque()
        self._stuck_since = None
        for entry in waiting:
            if entry.producer:
                self._note_failed(entry, now)
        for entry in waiting:
            self._finish(entry, opened if entry.producer else refusal)

    def _note_failed(self, entry: Entry, now: float) -> None:
        key = (entry.channel, entry.producer, entry.producer_epoch)
        lowest, _ = self._failed.get(key, (entry.first_sequence, now))
        if len(self._failed) >= FAILED_MAX and key not in self._failed:
            del self._failed[next(iter(self._failed))]
        self._failed[key] = min(lowest, entry.first_sequence), now

    def _follows_failed(self, entry: Entry) -> Unavailable | None:
        """A batch behind one that was given up would be a gap; until that one comes again it fails the same way."""
        now = self._ways.now()
        self._failed = {key: value for key, value in self._failed.items() if now - value[1] < FAILED_S}
        key = (entry.channel, entry.producer, entry.producer_epoch)
        lowest, _ = self._failed.get(key, (None, 0.0))
        if lowest is None:
            return None
        if entry.first_sequence <= lowest:
            del self._failed[key]
            return None
        return Unavailable("an earlier batch of this producer was not taken; send that first", retry_after_ms=50)
