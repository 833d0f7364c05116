"""A durable group whose consumers compete (mode SHARED), as a pure state machine over offsets.

Durable are: what is settled, what failed (how often, until when it waits), how many were rejected. They change only by
`apply`, `seek` and `trim`, called in the order of the log, so a replay ends where the live group was. Leases are
soft.

A message is *settled*; or *leased* to one consumer; or *settling*, when the change that acks or fails it is on its way
to the log; or *failed*, waiting for its next delivery; or *kept back* by the group's filter, when the change that
settles it for that is on its way; or *fresh*, to be delivered for the first time. A lease that ends without a failure
(its consumer left, the node restarted) makes the message what it was before.

Every change that a method returns must be ended by exactly one `apply` or `abort`, in the order of the log, unless the
group is thrown away. Messages are settling until then: nobody gets them.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ringpost.node.groups.changes import (
    Ack,
    Action,
    Claim,
    Extend,
    Failure,
    Lease,
    Nack,
    Outcome,
    Reject,
    Retry,
    SettleChange,
    Verdict,
)
from ringpost.node.groups.changes import merge_retries as merged
from ringpost.node.groups.leases import Held, Hold, LeaseTable
from ringpost.node.groups.policy import RetryPolicy, spread
from ringpost.node.groups.ranges import Range, RangeMap, RangeSet
from ringpost.node.groups.request import Request
from ringpost.node.groups.retries import RetryTable
from ringpost.node.groups.standing import Standing

EXPIRE_RANGES_MAX = 8192
FRAGMENTS_MAX = 200_000
NO_POLICY = RetryPolicy()


class GroupState(NamedTuple):
    """The durable part: all below `settled_below` is settled, and `settled` above it (ascending)."""

    settled_below: int
    settled: list[Range]
    retries: list[Retry]
    rejected: int


class GroupCore:
    """See the module. Consumers are numbers that are never used again after `detach`."""

    def __init__(
        self,
        *,
        settled_below: int,
        ack_deadline_us: int,
        max_in_flight: int,
        settled: Iterable[Range] = (),
        retries: Iterable[Retry] = (),
        rejected: int = 0,
        filtered: int = 0,
        policy: RetryPolicy = NO_POLICY,
        fragments_max: int = FRAGMENTS_MAX,
    ) -> None:
        """`settled` and `retries` as in `GroupState`.

        `max_in_flight`: most messages leased or settling. `fragments_max`: most settled and failed ranges before the
        group turns to its gaps and failures only and leaves messages above its highest one alone; bounds memory.
        """
        self.configure(ack_deadline_us, max_in_flight, policy)
        self._fragments_max = fragments_max
        self._rejected = rejected
        self._filtered = filtered
        self._ticket = 0
        self._settled = RangeSet(settled)
        if settled_below:
            self._settled.add(0, settled_below - 1)
        # Invariant: all that is settled, leased, settling, failed or kept back; so the gaps are fresh.
        self._not_fresh = RangeSet(self._settled)
        self._kept_back = RangeSet()
        self._leases = LeaseTable()
        self._retries = RetryTable()
        for retry in retries:
            self._fail(retry)

    def configure(self, ack_deadline_us: int, max_in_flight: int, policy: RetryPolicy) -> None:
        """For what is leased, or fails, from now on."""
        self._ack_deadline_us = ack_deadline_us
        self._max_in_flight = max_in_flight
        self._policy = policy

    # --- what it is

    @property
    def settled_below(self) -> int:
        """Everything below is settled."""
        return self._settled.first_gap(0)

    @property
    def in_flight(self) -> int:
        """Messages leased or settling."""
        return self._leases.busy.count

    @property
    def to_redeliver(self) -> int:
        """Failed messages that are not in flight, delayed ones included. Costs a look at every failed range."""
        busy = self._leases.busy
        waiting = (gap for first, last, _ in self._retries.failed for gap in busy.gaps(first, last))
        return sum(last - first + 1 for first, last in waiting)

    @property
    def rejected(self) -> int:
        """Messages rejected since the group was made."""
        return self._rejected

    @property
    def filtered(self) -> int:
        """Messages that filters have settled since the group was made."""
        return self._filtered

    def pending(self, end_offset: int) -> int:
        """Messages below the committed end that are not settled."""
        return max(0, end_offset - self._settled.count)

    def last_failure(self, first: int, last: int) -> tuple[int, str]:
        """Why the last delivery of the first of these messages failed, "" if none has, and up to where that holds."""
        end, failed = next(((end, failed) for _, end, failed in self._retries.failed.items(first, last)), (last, None))
        return end, (failed.failures[-1].reason if failed is not None and failed.failures else "")

    def failures(self, offset: int) -> tuple[Failure, ...]:
        """The latest failures of a message, in their order."""
        return next((failed.failures for _, _, failed in self._retries.failed.items(offset, offset)), ())

    def in_flight_of(self, consumer: int) -> int:
        """Messages leased to a consumer; 0 when there is no such consumer."""
        member = self._leases.members.get(consumer)
        return member.leases.count if member else 0

    keeps_order = False

    @property
    def stalled(self) -> bool:
        """Whether nothing goes out until the key of a message that came back is known."""
        return False

    def standing(self, offset: int) -> Standing:
        """What is known of one message below the committed end."""
        leases = ((n, member.leases.items(offset, offset)) for n, member in self._leases.members.items())
        held = next((Held(number, *lease) for number, items in leases for lease in items), None)
        settling = next((value for *_, value in self._leases.settling.items(offset, offset)), None)
        failed = next((value for *_, value in self._retries.failed.items(offset, offset)), None)
        fresh = self._not_fresh.first_gap(0)
        return Standing(
            self._settled.contains(offset),
            held,
            settling,
            failed,
            before=fresh if failed is None and fresh < offset else None,
            out_of_reach=failed is None and self.scattered and offset >= self._not_fresh.end,
        )

    def snapshot(self) -> GroupState:
        below = self.settled_below
        settled = [pair for pair in self._settled if pair[0] >= below]
        return GroupState(below, settled, list(self._retries), self._rejected)

    # --- filters

    def next_fresh(self, start: int, end_offset: int) -> int | None:
        """The lowest message from `start` on, below the committed end, that `take` could hand out as a fresh one."""
        offset = self._not_fresh.first_gap(start)
        return offset if offset < self._fresh_end(end_offset) else None

    def fresh(self, below: int, limit: int) -> int:
        """How many fresh messages there are below an offset; `limit` at most."""
        return sum(last - first + 1 for first, last in self._not_fresh.gaps(0, below - 1, limit))

    def keep_back(self, first: int, last: int) -> list[Range]:
        """The fresh ones of these are not handed out, until the change that settles them is ended; which those are."""
        ranges = self._not_fresh.gaps(first, last)
        for pair in ranges:
            self._not_fresh.add(*pair)
            self._kept_back.add(*pair)
        return ranges

    def _give_back(self, first: int, last: int) -> list[Range]:
        """The opposite, of those that are not settled meanwhile."""
        ranges = self._kept_back.intersect(first, last)
        for pair in ranges:
            self._kept_back.remove(*pair)
            self._not_fresh.remove(*pair)
        return ranges

    # --- delivery

    def attach(self, consumer: int) -> None:
        self._leases.attach(consumer)

    def detach(self, consumer: int) -> bool:
        """Releases the consumer's leases without counting an attempt; True when that made messages deliverable.

        Its settlements on their way go on. KeyError when there is no such consumer.
        """
        return self._release(self._leases.detach(consumer))

    def share(self, consumer: int, end_offset: int, now_us: int) -> int:  # noqa: ARG002  # for those that keep order
        """The most that the consumer should take in one go, so that the others get as much."""
        waiting = self.pending(end_offset) - self.in_flight
        return -(-waiting // max(len(self._leases.members), 1))

    def preferred(self, consumer: int) -> int:  # noqa: ARG002
        """About how many messages wait for this consumer rather than another."""
        return 0

    def take(self, consumer: int, max_messages: int, end_offset: int, now_us: int) -> list[Lease]:
        """Leases up to `max_messages` below the committed end: failed ones that are due first, then fresh ones.

        Each part is in order of offset. All leases end one ack deadline from now.
        """
        assert consumer in self._leases.members, f"consumer {consumer} is not attached"
        room = min(max_messages, self._max_in_flight - self.in_flight)
        if room <= 0:
            return []
        self._retries.promote(now_us, self._leases.busy)
        leases = self._retries.hand_out(room)
        room -= sum(lease.last - lease.first + 1 for lease in leases)
        for first, last in self._not_fresh.gaps(0, self._fresh_end(end_offset) - 1, room):
            self._not_fresh.add(first, last)
            leases.append(Lease(first, last, 1))
        deadline_us = now_us + self._ack_deadline_us
        for first, last, attempt in leases:
            self._leases.grant(consumer, first, last, Hold(attempt, deadline_us))
        return leases

    def _fresh_end(self, end_offset: int) -> int:
        if not self.scattered:
            return end_offset
        return min(end_offset, self._not_fresh.end)

    def next_event_us(self, now_us: int, expire_from_us: int = 0) -> int | None:
        """When to call `expire` and to `take` again: the next end of a lease or of a failed one's wait.

        In the past only while there are leases to expire. `expire_from_us`: `expire` is not called before.
        """
        self._retries.promote(now_us, self._leases.busy)
        end_us = self._leases.next_deadline_us()
        if end_us is not None:
            end_us = max(end_us, expire_from_us)
        times = [time for time in (end_us, self._retries.next_due_us()) if time is not None]
        return min(times, default=None)

    # --- settlement

    def held(self, lease: Lease, consumer: int) -> Range | None:
        """The first run of the lease's messages that the consumer still holds by it; None when it has ended."""
        for first, last, hold in self._leases.members[consumer].leases.items(lease.first, lease.last):
            if hold.attempt == lease.attempt:
                return first, last
        return None

    def settle(
        self,
        consumer: int,
        action: Action,
        ranges: Iterable[Range],
        cumulative: bool,
        now_us: int,
        unsent: Iterable[Range] = (),
        chance: float = 0.0,
    ) -> Verdict:
        """Acks, nacks, extends or rejects what of `ranges` is leased to the consumer; KeyError without such a consumer.

        DONE: leased to it (a late answer counts until `expire` has taken the lease), or acked or rejected by it just
        before: then it is in this change once more, so that the answer waits too. ALREADY: settled. EXPIRED: handed to
        it once, or below such a message, and not settled; also a nack or extend right after its own ack that is not
        stored yet. UNKNOWN: above everything that it was handed. `cumulative` adds all its leases up to the highest
        offset in `ranges` but those in `unsent`, which never reached it. Extending changes nothing durable. Ranges may
        overlap; each offset is answered once. `chance`, uniform in [0, 1), is for the policy's jitter.
        """
        member = self._leases.members[consumer]
        wanted = RangeSet(ranges)
        if cumulative:
            reached = RangeSet((first, last) for first, last, _ in member.leases.items(0, wanted.end - 1))
            for pair in unsent:
                reached.remove(*pair)
            for pair in reached:
                wanted.add(*pair)
        request = Request(consumer, action, now_us, self._new_ticket(), self._policy, chance)
        for first, last in wanted:
            known = min(last, member.handed_end - 1)
            for start, end, hold in member.leases.pieces(first, known):
                if hold is None:
                    self._settle_again(request, start, end)
                else:
                    self._settle_leased(request, Held(consumer, start, end, hold))
            if known < last:
                request.answer(max(first, known + 1), last, Outcome.UNKNOWN)
        return Verdict(request.results, request.change or None)

    def settle_any(self, action: Ack | Reject, ranges: Iterable[Range], end_offset: int, now_us: int = 0) -> Verdict:
        """Acks or rejects what of `ranges` is not settled, whoever holds or held it, below the committed end.

        DONE: not settled until now, also when another change that settles it is on its way. ALREADY: settled. UNKNOWN:
        not below `end_offset`. Until the change is applied leases go on, and what is free may still be handed out.
        """
        request = Request(0, action, now_us, self._new_ticket(), self._policy)
        for first, last in RangeSet(ranges):
            known = min(last, end_offset - 1)
            for settled_first, settled_last in self._settled.intersect(first, known):
                if first < settled_first:
                    request.close(first, settled_first - 1)
                request.answer(settled_first, settled_last, Outcome.ALREADY)
                first = settled_last + 1
            if first <= known:
                request.close(first, known)
            if known < last:
                request.answer(max(first, known + 1), last, Outcome.UNKNOWN)
        return Verdict(request.results, request.change or None)

    def settle_claims(
        self, claims: Iterable[Claim], action: Action, end_offset: int, now_us: int, chance: float = 0.0
    ) -> Verdict:
        """Settles what lease tokens speak of, whoever brings them; claims are answered in their order.

        DONE: the claimed delivery is leased, or an ack or reject of it is on its way; also, for an ack or reject, when
        the lease has ended without a failure and nobody has the message. ALREADY: settled. EXPIRED: the delivery has
        failed, somebody else has the message, or there is no lease to give back or extend; also where the group is
        `scattered`. UNKNOWN: not below `end_offset`. What has no lease may be handed out until the change is applied.
        """
        request = Request(0, action, now_us, self._new_ticket(), self._policy, chance)
        nothing: RangeMap[Hold] = RangeMap()
        for claim in claims:
            request.consumer = claim.consumer
            member = self._leases.members.get(claim.consumer)
            leases = member.leases if member is not None else nothing
            for first, last in claim.ranges:
                known = min(last, end_offset - 1)
                for start, end, hold in leases.pieces(first, known):
                    if hold is not None and hold.attempt == claim.attempt:
                        self._settle_leased(request, Held(claim.consumer, start, end, hold))
                    else:
                        self._settle_ended(request, claim, start, end)
                if known < last:
                    request.answer(max(first, known + 1), last, Outcome.UNKNOWN)
        return Verdict(request.results, request.change or None)

    def _settle_ended(self, request: Request, claim: Claim, first: int, last: int) -> None:
        """Answers for messages that are not leased as claimed."""
        final = isinstance(request.action, Ack | Reject)
        for start, end, settling in self._leases.settling.pieces(first, last):
            if settling is None:
                for low, high in self._settled.intersect(start, end):
                    self._settle_unleased(request, claim, start, low - 1)
                    request.answer(low, high, Outcome.ALREADY)
                    start = high + 1
                self._settle_unleased(request, claim, start, end)
            elif final and settling.settles and settling.of(claim):
                self._leases.begin_again(request.change.tickets[0], start, end, settling)
                request.include(start, end, claim.attempt)
                request.answer(start, end, Outcome.DONE)
            else:
                request.answer(start, end, Outcome.EXPIRED)

    def _settle_unleased(self, request: Request, claim: Claim, first: int, last: int) -> None:
        """The same for those that are neither settled nor settling."""
        right = claim.current and isinstance(request.action, Ack | Reject) and not self.scattered
        for low, high in self._leases.busy.gaps(first, last):
            if first < low:
                request.answer(first, low - 1, Outcome.EXPIRED)
            for start, end, failed in self._retries.failed.pieces(low, high):
                if right and claim.attempt == (failed.attempt if failed is not None else 0) + 1:
                    request.include(start, end, claim.attempt)
                    request.answer(start, end, Outcome.DONE)
                else:
                    request.answer(start, end, Outcome.EXPIRED)
            first = high + 1
        if first <= last:
            request.answer(first, last, Outcome.EXPIRED)

    @property
    def scattered(self) -> bool:
        """Whether there are as many settled and failed ranges as may be."""
        return len(self._settled) + len(self._retries.failed) >= self._fragments_max

    def _settle_leased(self, request: Request, held: Held) -> None:
        action = request.action
        if isinstance(action, Extend):
            deadline_us = request.now_us + (action.deadline_us or self._ack_deadline_us)
            self._leases.grant(held.consumer, held.first, held.last, Hold(held.hold.attempt, deadline_us))
        else:
            self._leases.begin(request.change.tickets[0], held, settles=not isinstance(action, Nack))
            request.include(held.first, held.last, held.hold.attempt)
        request.answer(held.first, held.last, Outcome.DONE)

    def _settle_again(self, request: Request, first: int, last: int) -> None:
        """Answers for messages that the consumer has no lease for, below the highest that it was handed."""
        repeatable = isinstance(request.action, Ack | Reject)
        for start, end, settling in self._leases.settling.pieces(first, last):
            if settling and settling.settles and repeatable and settling.consumer == request.consumer:
                self._leases.begin_again(request.change.tickets[0], start, end, settling)
                request.include(start, end, settling.hold.attempt)
                request.answer(start, end, Outcome.DONE)
                continue
            done = self._settled.intersect(start, end)
            if self._kept_back:  # which nobody was to get
                done = list(RangeSet([*done, *self._kept_back.intersect(start, end)]))
            for settled_first, settled_last in done:
                if start < settled_first:
                    request.answer(start, settled_first - 1, Outcome.EXPIRED)
                request.answer(settled_first, settled_last, Outcome.ALREADY)
                start = settled_last + 1
            if start <= end:
                request.answer(start, end, Outcome.EXPIRED)

    def expire(self, now_us: int, chance: float = 0.0) -> SettleChange | None:
        """Fails what was leased until now or before, as the policy says; None when there is nothing.

        One change has about `EXPIRE_RANGES_MAX` ranges at most: call again until None. `chance` as for `settle`.
        """
        ticket = self._new_ticket()
        ended = self._leases.expire(ticket, now_us, EXPIRE_RANGES_MAX)
        if not ended:
            return None
        change = SettleChange(tickets=(ticket,))
        for number, held in enumerate(sorted(ended, key=lambda held: held.first)):
            attempt = held.hold.attempt
            self._policy.fail(change, held.first, held.last, attempt, now_us, None, spread(chance, number))
        change.retries = merged(change.retries)
        return change

    def _new_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    # --- the log

    def apply(self, change: SettleChange) -> None:
        """The change is committed; in a replay too. What is settled stays so, whatever a later change says."""
        for first, last in change.acked:
            self._close(first, last)
        for first, last in change.rejected:
            self._rejected += self._close(first, last)
        for first, last in change.filtered:
            self._filtered += self._close(first, last)
        tickets = frozenset(change.tickets)
        for retry in change.retries:
            for first, last in self._settled.gaps(retry.first, retry.last):
                self._leases.finish(first, last, tickets)
                self._fail(retry._replace(first=first, last=last))

    def abort(self, change: SettleChange) -> None:
        """The change could not be written: leases are as before, with the same deadlines.

        So an aborted expiry is overdue again at once; the caller waits before it tries once more.
        """
        tickets = frozenset(change.tickets)
        for first, last in change.ranges():
            self._release(self._leases.restore(first, last, tickets))
        for first, last in change.filtered:
            self._give_back(first, last)

    def give_up(self, offset: int) -> bool:
        """Its dead letter is committed: settled, and counted as rejected; False when it was settled before."""
        new = self._close(offset, offset)
        self._rejected += new
        return new > 0

    def reopen(self, offset: int) -> None:
        """Pending again as if it had never been delivered; nothing changes while it is pending."""
        if self._settled.contains(offset):
            self._settled.remove(offset, offset)
            self._not_fresh.remove(offset, offset)

    def seek(self, offset: int) -> None:
        """Everything below is settled, nothing from here on; all leases end.

        A change appended behind the seek's record still counts, on both sides of a restart alike: append what waits
        before the record, and settle nothing in between.
        """
        self._leases.drop_all()
        self._retries.drop_all()
        self._settled.clear()
        self._not_fresh.clear()
        self._kept_back.clear()
        self.trim(offset)

    def trim(self, first_offset: int) -> None:
        """Messages below are gone: they count as settled, their leases end."""
        if first_offset > 0:
            self._close(0, first_offset - 1)

    def _close(self, first: int, last: int) -> int:
        """Settles; returns how many were not settled before."""
        before = self._settled.count
        self._settled.add(first, last)
        self._not_fresh.add(first, last)
        if self._kept_back:
            self._kept_back.remove(first, last)
        self._retries.drop(first, last)
        self._leases.drop(first, last)
        return self._settled.count - before

    def _fail(self, retry: Retry) -> None:
        self._retries.put(retry)
        self._not_fresh.add(retry.first, retry.last)

    def _release(self, freed: list[Range]) -> bool:
        """Makes messages what they were before they were leased; True when there are any."""
        for first, last in freed:
            for start, end in self._retries.wake(first, last):
                self._not_fresh.remove(start, end)
        return bool(freed)
