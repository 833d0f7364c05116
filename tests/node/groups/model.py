"""A group worked out message by message, as plainly as possible: what `GroupCore` must agree with.

It has its own log: a change that the group asked for is an entry there until it is committed or fails, and a restart
replays the committed ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringpost.node.groups.changes import Ack, Action, Claim, Extend, Nack, Outcome, Reject


@dataclass
class Message:
    """The first three are durable. `waits_for`: log entries that will settle or fail it; `settler`: who asked."""

    settled: bool = False
    failures: int = 0
    not_before: int = 0
    holder: int | None = None
    attempt: int = 0
    deadline: int = 0
    waits_for: list["Entry"] = field(default_factory=list)
    settler: int | None = None

    @property
    def busy(self) -> bool:
        return self.holder is not None or bool(self.waits_for)

    def close(self) -> bool:
        """Settles; True when it was not."""
        fresh = not self.settled
        self.settled, self.failures, self.holder, self.waits_for = True, 0, None, []
        return fresh

    def durable(self) -> tuple[bool, int, int]:
        return (self.settled, self.failures, self.not_before if self.failures else 0)


@dataclass(eq=False)
class Entry:
    """One change in the log. `kind`: ack, reject, fail, seek, trim or reopen.

    `offsets`: offset to (failures, not before). `last`: those among them that fail for the last time.
    """

    kind: str
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)
    last: set[int] = field(default_factory=set)
    at: int = 0


class Model:
    """Offsets 0..end-1; unlike the group it is told when messages are published."""

    def __init__(self, ack_deadline: int, max_in_flight: int, delays: Sequence[int] = (), attempts: int = 0) -> None:
        """`delays`: after the first failure, the second, and so on; the last one counts for all that follow."""
        self.delays = delays
        self.attempts = attempts
        self.ack_deadline = ack_deadline
        self.max_in_flight = max_in_flight
        self.messages: list[Message] = []
        self.handed_end: dict[int, int] = {}
        self.rejected = 0

    def count(self, what: str) -> int:
        tests = {
            "pending": lambda m: not m.settled,
            "in_flight": lambda m: m.busy,
            "to_redeliver": lambda m: m.failures > 0 and not m.busy,
        }
        return sum(map(tests[what], self.messages))

    def settled_below(self) -> int:
        return next((n for n, message in enumerate(self.messages) if not message.settled), len(self.messages))

    def leased_to(self, consumer: int) -> list[int]:
        return [n for n, message in enumerate(self.messages) if message.holder == consumer]

    @staticmethod
    def published(count: int) -> list[Message]:
        return [Message() for _ in range(count)]

    def forget(self) -> None:
        """A restart: only what is durable is left."""
        for message in self.messages:
            message.holder, message.waits_for = None, []
        self.handed_end.clear()

    # delivery

    def available(self, now: int) -> list[tuple[int, int]]:
        """(offset, attempt) in the order of delivery."""
        free = [(n, m) for n, m in enumerate(self.messages) if not m.settled and not m.busy]
        due = [(n, m.failures + 1) for n, m in free if m.failures and m.not_before <= now]
        return due + [(n, 1) for n, m in free if not m.failures]

    def take(self, consumer: int, limit: int, now: int) -> list[tuple[int, int]]:
        room = max(0, min(limit, self.max_in_flight - self.count("in_flight")))
        taken = self.available(now)[:room]
        self.hand(consumer, taken, now)
        return taken

    def hand(self, consumer: int, taken: list[tuple[int, int]], now: int) -> None:
        for offset, attempt in taken:
            message = self.messages[offset]
            message.holder, message.attempt, message.deadline = consumer, attempt, now + self.ack_deadline
            self.handed_end[consumer] = max(self.handed_end[consumer], offset + 1)

    def detach(self, consumer: int) -> bool:
        leased = self.leased_to(consumer)
        for offset in leased:
            self.messages[offset].holder = None
        del self.handed_end[consumer]
        return bool(leased)

    # settlement

    def settle(
        self, consumer: int, action: Action, ranges: Iterable[tuple[int, int]], cumulative: bool, now: int
    ) -> tuple[dict[int, Outcome], Entry | None]:
        wanted = {offset for first, last in ranges for offset in range(first, last + 1)}
        if cumulative:
            wanted |= {offset for offset in self.leased_to(consumer) if offset <= max(wanted)}
        entry = Entry({Ack: "ack", Reject: "reject", Nack: "fail", Extend: "extend"}[type(action)])
        results = {offset: self._settle_one(consumer, action, offset, entry, now) for offset in sorted(wanted)}
        return results, entry if entry.offsets else None

    def _settle_one(self, consumer: int, action: Action, offset: int, entry: Entry, now: int) -> Outcome:
        if offset >= self.handed_end[consumer]:
            return Outcome.UNKNOWN
        message = self.messages[offset]
        if message.holder == consumer and isinstance(action, Extend):
            message.deadline = now + (action.deadline_us or self.ack_deadline)
            return Outcome.DONE
        again = message.waits_for and message.waits_for[0].kind != "fail" and message.settler == consumer
        if message.holder == consumer or (again and isinstance(action, Ack | Reject)):
            message.holder, message.settler = None, consumer
            message.waits_for.append(entry)
            if isinstance(action, Nack):
                self._fail(entry, offset, now, action.delay_us, action.fallback_us)
            else:
                entry.offsets[offset] = (message.attempt, 0)
            return Outcome.DONE
        return Outcome.ALREADY if message.settled else Outcome.EXPIRED

    def settle_any(
        self, action: Ack | Reject, ranges: Iterable[tuple[int, int]]
    ) -> tuple[dict[int, Outcome], Entry | None]:
        entry = Entry("ack" if isinstance(action, Ack) else "reject")
        results = {}
        for offset in sorted({offset for first, last in ranges for offset in range(first, last + 1)}):
            if offset >= len(self.messages):
                results[offset] = Outcome.UNKNOWN
            elif self.messages[offset].settled:
                results[offset] = Outcome.ALREADY
            else:
                results[offset] = Outcome.DONE
                entry.offsets[offset] = (0, 0)
        return results, entry if entry.offsets else None

    def settle_claim(self, action: Action, claim: Claim, now: int) -> tuple[dict[int, Outcome], Entry | None]:
        entry = Entry({Ack: "ack", Reject: "reject", Nack: "fail", Extend: "extend"}[type(action)])
        wanted = sorted({offset for first, last in claim.ranges for offset in range(first, last + 1)})
        results = {offset: self._claim_one(action, claim, offset, entry, now) for offset in wanted}
        return results, entry if entry.offsets else None

    def _claim_one(self, action: Action, claim: Claim, offset: int, entry: Entry, now: int) -> Outcome:
        if offset >= len(self.messages):
            return Outcome.UNKNOWN
        message, final = self.messages[offset], isinstance(action, Ack | Reject)
        claimed = (claim.consumer, claim.attempt)
        if (message.holder, message.attempt) == claimed:
            return self._settle_one(claim.consumer, action, offset, entry, now)
        if message.waits_for:
            if not final or message.waits_for[0].kind == "fail" or (message.settler, message.attempt) != claimed:
                return Outcome.EXPIRED
            message.waits_for.append(entry)
        elif message.settled:
            return Outcome.ALREADY
        elif message.holder is not None or not final or not claim.current or claim.attempt != message.failures + 1:
            return Outcome.EXPIRED
        entry.offsets[offset] = (claim.attempt, 0)
        return Outcome.DONE

    def expire(self, now: int) -> Entry | None:
        entry = Entry("fail")
        for offset, message in enumerate(self.messages):
            if message.holder is not None and message.deadline <= now:
                message.settler, message.holder = message.holder, None
                message.waits_for.append(entry)
                self._fail(entry, offset, now, 0, 0)
        return entry if entry.offsets else None

    def _fail(self, entry: Entry, offset: int, now: int, own_delay: int, fallback: int) -> None:
        attempt = self.messages[offset].attempt
        delay = own_delay
        if not delay:
            delay = self.delays[min(attempt, len(self.delays)) - 1] if self.delays else fallback
        entry.offsets[offset] = (attempt, now + delay)
        if self.attempts and attempt >= self.attempts:
            entry.last.add(offset)

    def next_event(self, now: int) -> int | None:
        times = [m.deadline for m in self.messages if m.holder is not None]
        times += [m.not_before for m in self.messages if m.failures and not m.settled and m.not_before > now]
        return min(times, default=None)

    # the log

    def apply(self, entry: Entry) -> None:
        if entry.kind == "seek":
            self.messages = [Message() for _ in self.messages]
        if entry.kind in {"seek", "trim"}:
            for message in self.messages[: entry.at]:
                message.close()
        if entry.kind == "reopen" and self.messages[entry.at].settled:
            self.messages[entry.at] = Message()
        for offset, (failures, not_before) in entry.offsets.items():
            message = self.messages[offset]
            if offset in entry.last:
                self.rejected += message.close()
            elif entry.kind == "fail":
                if entry in message.waits_for:
                    message.waits_for = []
                if not message.settled:
                    message.failures, message.not_before = max(failures, message.failures), not_before
            elif message.close() and entry.kind == "reject":
                self.rejected += 1

    def abort(self, entry: Entry) -> None:
        for offset in entry.offsets:
            message = self.messages[offset]
            if entry in message.waits_for:
                message.waits_for.remove(entry)
                if not message.waits_for and message.settler in self.handed_end:
                    message.holder = message.settler
