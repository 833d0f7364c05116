"""Which messages are out of a group's hands: leased to a consumer, or waiting for their settlement to be stored.

All of it is soft: a crash forgets it, and the messages are delivered again.
"""

from heapq import heapify, heappop, heappush
from typing import NamedTuple

from ringpost.node.groups.changes import Claim
from ringpost.node.groups.ranges import Range, RangeMap, RangeSet


class Hold(NamedTuple):
    """Why a range is leased: its delivery's number, and when the lease ends."""

    attempt: int
    deadline_us: int


class Settling(NamedTuple):
    """A range whose change is not yet committed.

    `settles`: acked or rejected, otherwise nacked or expired. `hold` is the lease to restore when the change fails.
    `tickets`: the first and the latest change that the range waits for.
    """

    consumer: int
    hold: Hold
    settles: bool
    tickets: tuple[int, ...]

    def of(self, claim: Claim) -> bool:
        """Whether it settles the claimed delivery."""
        return (self.consumer, self.hold.attempt) == (claim.consumer, claim.attempt)


class Member:
    """A consumer: its leases, and one above the highest offset it was ever handed."""

    __slots__ = ("handed_end", "leases")

    def __init__(self) -> None:
        self.leases: RangeMap[Hold] = RangeMap()
        self.handed_end = 0


class Held(NamedTuple):
    """A range that is, or was until now, leased to a consumer."""

    consumer: int
    first: int
    last: int
    hold: Hold


class LeaseTable:
    """Leases by consumer, with their deadlines, and settlements on their way.

    Invariant: `busy` is the disjoint union of all members' leases and of `settling`.
    """

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.busy = RangeSet()
        self.settling: RangeMap[Settling] = RangeMap()
        # (deadline, consumer, first, last): at least one for every lease; those that no lease has any more are
        # skipped when met, and thrown out all together when they are the greater part.
        self._deadlines: list[tuple[int, int, int, int]] = []
        self._deadlines_max = 1024

    def attach(self, consumer: int) -> None:
        assert consumer not in self.members, f"consumer {consumer} is attached already"
        self.members[consumer] = Member()

    def detach(self, consumer: int) -> list[Range]:
        """Forgets the consumer; returns what was leased to it and is free now."""
        freed = [(first, last) for first, last, _ in self.members.pop(consumer).leases]
        for first, last in freed:
            self.busy.remove(first, last)
        return freed

    def grant(self, consumer: int, first: int, last: int, hold: Hold) -> None:
        """Leases messages that are not busy, or gives leases of this consumer another deadline."""
        member = self.members[consumer]
        member.leases.assign(first, last, hold)
        member.handed_end = max(member.handed_end, last + 1)
        self.busy.add(first, last)
        self._note_deadline(consumer, first, last, hold)

    def begin(self, ticket: int, lease: Held, *, settles: bool) -> None:
        """A leased range now waits for its change."""
        self.members[lease.consumer].leases.remove(lease.first, lease.last)
        self.settling.assign(lease.first, lease.last, Settling(lease.consumer, lease.hold, settles, (ticket,)))

    def begin_again(self, ticket: int, first: int, last: int, settling: Settling) -> None:
        """A range that waits for a change is in a second one too."""
        self.settling.assign(first, last, settling._replace(tickets=(settling.tickets[0], ticket)))

    def finish(self, first: int, last: int, tickets: frozenset[int]) -> None:
        """What waits for one of these changes is free."""
        for start, end, settling in list(self.settling.items(first, last)):
            if not tickets.isdisjoint(settling.tickets):
                self.settling.remove(start, end)
                self.busy.remove(start, end)

    def restore(self, first: int, last: int, tickets: frozenset[int]) -> list[Range]:
        """These changes failed: what waits for no other is leased as before; returns what has no consumer any more."""
        freed = []
        for start, end, settling in list(self.settling.items(first, last)):
            others = tuple(ticket for ticket in settling.tickets if ticket not in tickets)
            if others:
                self.settling.assign(start, end, settling._replace(tickets=others))
                continue
            self.settling.remove(start, end)
            if settling.consumer in self.members:
                self.grant(settling.consumer, start, end, settling.hold)
            else:
                self.busy.remove(start, end)
                freed.append((start, end))
        return freed

    def drop(self, first: int, last: int) -> None:
        """The messages are settled, whoever has them."""
        waiting, busy = self.settling.count, self.busy.count
        self.settling.remove(first, last)
        self.busy.remove(first, last)
        # Usually all of them waited for this very change; only otherwise somebody's leases are to be ended.
        if busy - self.busy.count > waiting - self.settling.count:
            for member in self.members.values():
                member.leases.remove(first, last)

    def drop_all(self) -> None:
        """No lease and no settlement counts any more; the consumers stay."""
        for member in self.members.values():
            member.leases.clear()
        self.settling.clear()
        self.busy.clear()
        self._deadlines.clear()

    def expire(self, ticket: int, now_us: int, ranges_max: int) -> list[Held]:
        """Begins a change for leases that have ended, the oldest first; stops soon after `ranges_max` ranges."""
        found: list[Held] = []
        while self._deadlines and self._deadlines[0][0] <= now_us and len(found) < ranges_max:
            _, consumer, first, last = heappop(self._deadlines)
            if consumer not in self.members:
                continue
            for start, end, hold in list(self.members[consumer].leases.items(first, last)):
                if hold.deadline_us <= now_us:
                    found.append(Held(consumer, start, end, hold))
                    self.begin(ticket, found[-1], settles=False)
        return found

    def next_deadline_us(self) -> int | None:
        """When the next lease ends."""
        while self._deadlines and not self._lives(self._deadlines[0]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _note_deadline(self, consumer: int, first: int, last: int, hold: Hold) -> None:
        if len(self._deadlines) >= self._deadlines_max:
            self._deadlines = [entry for entry in self._deadlines if self._lives(entry)]
            heapify(self._deadlines)
            self._deadlines_max = max(1024, 2 * len(self._deadlines))
        heappush(self._deadlines, (hold.deadline_us, consumer, first, last))

    def _lives(self, entry: tuple[int, int, int, int]) -> bool:
        deadline_us, consumer, first, last = entry
        member = self.members.get(consumer)
        return member is not None and any(
            hold.deadline_us == deadline_us for _, _, hold in member.leases.items(first, last)
        )
