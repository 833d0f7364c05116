"""A group agrees with the plain model in any order of events, through failed writes and crashes.

The promise that matters (V7) is checked apart from the model: a confirmed ack never comes back, everything else does,
and a failure that was recorded is never forgotten.
"""

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringpost.node.groups.changes import Ack, Action, Claim, Extend, Nack, Outcome, Reject, SettleChange, Verdict, join
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.policy import Backoff, RetryPolicy
from ringpost.node.groups.ranges import RangeSet
from tests.node.groups.model import Entry, Model

ACK_DEADLINE = 100

actions: st.SearchStrategy[Action] = st.one_of(
    st.just(Ack()),
    st.builds(Nack, st.sampled_from([0, 0, 10, 150]), st.sampled_from(["", "why"]), st.sampled_from([0, 20])),
    st.builds(Extend, st.sampled_from([0, 5, 300])),
    st.builds(Reject, st.sampled_from(["bad", "worse"])),
)
# A policy, and its delays worked out by hand.
POLICIES = [
    (RetryPolicy(), ()),
    (RetryPolicy(max_attempts=1), ()),
    (RetryPolicy(Backoff.CONSTANT, 30, max_attempts=3), (30,)),
    (RetryPolicy(Backoff.LINEAR, 20, 50), (20, 40, 50)),
    (RetryPolicy(Backoff.EXPONENTIAL, 5, 30, max_attempts=5), (5, 10, 20, 30)),
    (RetryPolicy(Backoff.CONSTANT, 30, max_attempts=2, dead_letters=True), (30,)),
]

spans = st.tuples(st.sampled_from([0, 0, 1, 4, 9]), st.integers(0, 4)).map(lambda pair: (pair[0], pair[0] + pair[1]))
range_lists = st.lists(spans, min_size=1, max_size=3)


@dataclass(eq=False)
class Written:
    """A change on its way to the log, as the group and as the model know it; `confirms`: what is done with it."""

    entry: Entry
    change: SettleChange
    confirms: set[int]


class GroupMachine(RuleBasedStateMachine):
    @initialize(max_in_flight=st.sampled_from([3, 10, 100]), choice=st.sampled_from(POLICIES))
    def begin(self, max_in_flight: int, choice: tuple[RetryPolicy, tuple[int, ...]]) -> None:
        self.max_in_flight = max_in_flight
        self.policy, self.delays = choice
        self.model = self.new_model()
        self.now = 1_000
        self.group = self.new_group(settled_below=0)
        self.checkpoint = self.group.snapshot()
        self.log: list[Written] = []
        self.committed: list[Written] = []  # since the checkpoint
        self.confirmed: set[int] = set()
        self.failures: dict[int, int] = {}
        self.consumers = 0
        self.attach()
        self.publish(8)

    def new_model(self) -> Model:
        return Model(ACK_DEADLINE, self.max_in_flight, self.delays, self.policy.max_attempts)

    def new_group(self, **state: Any) -> GroupCore:
        return GroupCore(**state, ack_deadline_us=ACK_DEADLINE, max_in_flight=self.max_in_flight, policy=self.policy)

    @property
    def end(self) -> int:
        return len(self.model.messages)

    def pick(self, choice: int) -> int:
        return sorted(self.model.handed_end)[choice % len(self.model.handed_end)]

    # events

    @rule(count=st.integers(1, 8))
    def publish(self, count: int) -> None:
        if self.end < 25:
            self.model.messages += Model.published(count)

    @rule(choice=st.integers(0, 2), leaves=st.booleans())
    def members_change(self, choice: int, leaves: bool) -> None:
        consumer = self.pick(choice)
        if leaves:
            assert self.group.detach(consumer) == self.model.detach(consumer)
        if not leaves or not self.model.handed_end:
            self.attach()

    def attach(self) -> None:
        self.consumers += 1
        self.group.attach(self.consumers)
        self.model.handed_end[self.consumers] = 0

    @rule(choice=st.integers(0, 2), limit=st.sampled_from([1, 3, 20]))
    def take(self, choice: int, limit: int) -> None:
        consumer = self.pick(choice)
        leases = self.group.take(consumer, limit, self.end, self.now)
        taken = [(offset, lease.attempt) for lease in leases for offset in range(lease.first, lease.last + 1)]
        assert taken == self.model.take(consumer, limit, self.now)
        for offset, attempt in taken:
            assert offset not in self.confirmed
            assert attempt > self.failures.get(offset, 0)
            assert not self.policy.max_attempts or attempt <= self.policy.max_attempts

    @rule(choice=st.integers(0, 2), limit=st.sampled_from([3, 20]), action=actions, part=spans, stored=st.booleans())
    def work(self, choice: int, limit: int, action: Action, part: tuple[int, int], stored: bool) -> None:
        """The usual day: takes messages, settles a part of what is leased."""
        self.take(choice, limit)
        leased = self.model.leased_to(self.pick(choice))[part[0] : part[1] + 1]
        if leased:
            self.settle(choice, action, [(offset, offset) for offset in leased], False)
        if stored:
            self.commit(1_000, False)

    @rule(choice=st.integers(0, 2), microseconds=st.sampled_from([10, 150]))
    def wait_and_take(self, choice: int, microseconds: int) -> None:
        self.now += microseconds
        self.expire()
        self.commit(1_000, True)
        self.take(choice, 20)

    @rule(choice=st.integers(0, 2), action=actions, ranges=range_lists, cumulative=st.booleans())
    def settle(self, choice: int, action: Action, ranges: list[tuple[int, int]], cumulative: bool) -> None:
        consumer = self.pick(choice)
        verdict = self.group.settle(consumer, action, ranges, cumulative, self.now)
        self.check_verdict(action, verdict, *self.model.settle(consumer, action, ranges, cumulative, self.now))

    @rule(action=st.sampled_from([Ack(), Reject("bad")]), ranges=range_lists)
    def settle_any(self, action: Ack | Reject, ranges: list[tuple[int, int]]) -> None:
        """By somebody who is no member."""
        verdict = self.group.settle_any(action, ranges, self.end)
        self.check_verdict(action, verdict, *self.model.settle_any(action, ranges))

    @rule(
        consumer=st.integers(0, 3),
        attempt=st.sampled_from([1, 1, 2, 3]),
        action=actions,
        ranges=range_lists,
        current=st.sampled_from([True, True, False]),
    )
    def settle_by_token(
        self, consumer: int, attempt: int, action: Action, ranges: list[tuple[int, int]], current: bool
    ) -> None:
        """By somebody with a token, perhaps of a consumer that has left."""
        whole = [(first, last) for first, last in RangeSet(ranges)]
        claim = Claim(max(self.consumers - consumer, 1), attempt, whole, current)
        verdict = self.group.settle_claims([claim], action, self.end, self.now)
        self.check_verdict(action, verdict, *self.model.settle_claim(action, claim, self.now))

    def check_verdict(
        self, action: Action, verdict: Verdict, expected: dict[int, Outcome], entry: Entry | None
    ) -> None:
        answered = [(n, outcome) for first, last, outcome in verdict.results for n in range(first, last + 1)]
        assert answered == list(expected.items())
        self.confirmed |= {n for n, outcome in answered if outcome == Outcome.ALREADY}
        assert (verdict.change is None) == (entry is None)
        if verdict.change is not None and entry is not None:
            done = {n for n, outcome in answered if outcome == Outcome.DONE and isinstance(action, Ack | Reject)}
            self.log.append(Written(entry, verdict.change, done))

    @rule(microseconds=st.sampled_from([1, 10, 60, 150]))
    def time_passes(self, microseconds: int) -> None:
        self.now += microseconds

    @rule()
    def expire(self) -> None:
        change, entry = self.group.expire(self.now), self.model.expire(self.now)
        assert (change is None) == (entry is None)
        if change is not None and entry is not None:
            self.log.append(Written(entry, change, set()))

    @rule(upheaval=st.sampled_from(["seek", "trim", "reopen", "reopen", "checkpoint", "crash"]), at=st.integers(0, 40))
    def something_rare(self, upheaval: str, at: int) -> None:
        if upheaval == "crash":
            self.crash()
        elif upheaval == "checkpoint":
            self.checkpoint, self.committed = self.group.snapshot(), []
        elif upheaval == "reopen":
            self.log.append(Written(Entry(upheaval, at=at % self.end), SettleChange(), set()))
        else:
            at = min(at, self.end, self.end if upheaval == "seek" else self.model.settled_below() + 4)
            self.log.append(Written(Entry(upheaval, at=at), SettleChange(), set()))

    # the log

    @rule(count=st.integers(1, 4), joined=st.booleans())
    def commit(self, count: int, joined: bool) -> None:
        written, self.log = self.log[:count], self.log[count:]
        apart = any(one.entry.kind in {"seek", "trim", "reopen"} or one.change.dying for one in written)
        if joined and not apart:
            for change in join(one.change for one in written):
                self.group.apply(change)
        else:
            for one in written:
                replay(self.group, one, one.change)
        for one in written:
            self.model.apply(one.entry)
            self.confirmed |= one.confirms
            if one.entry.kind == "seek":
                self.confirmed = {offset for offset in self.confirmed if offset < one.entry.at}
                self.failures.clear()
            elif one.entry.kind == "reopen":
                self.came_back(one.entry.at)
            elif one.entry.kind == "fail":
                for offset, (attempt, _) in one.entry.offsets.items():
                    self.failures[offset] = max(attempt, self.failures.get(offset, 0))
        self.committed += written

    def came_back(self, offset: int) -> None:
        if not self.model.messages[offset].settled:
            self.confirmed.discard(offset)
            self.failures.pop(offset, None)

    @precondition(lambda self: self.log)
    @rule(count=st.sampled_from([1, 1_000]))
    def writes_fail(self, count: int) -> None:
        """The newest change is refused at once, or all of them fail."""
        written, self.log = self.log[-count:], self.log[:-count]
        for one in written:
            self.model.abort(one.entry)
            self.group.abort(one.change)

    def crash(self) -> None:
        self.log = []
        self.group = self.new_group(**self.checkpoint._asdict())
        for one in self.committed:
            change = one.change
            known = SettleChange(change.acked, change.rejected, change.reject_reason, change.retries)
            known.dying = change.dying
            replay(self.group, one, known)
        self.model.forget()
        self.attach()

    def learn_all(self) -> None:
        """For groups that must be told keys."""

    def check_order(self, had: list[int]) -> None:
        """In which all was had in the end."""

    # what must hold

    @invariant()
    def everything_shown_agrees(self) -> None:
        group, model = self.group, self.model
        assert durable(group, self.end) == [message.durable() for message in model.messages]
        assert group.rejected == model.rejected
        assert group.settled_below == model.settled_below()
        assert group.pending(self.end) == model.count("pending")
        assert group.in_flight == model.count("in_flight")
        assert group.to_redeliver == model.count("to_redeliver")
        for consumer in model.handed_end:
            assert group.in_flight_of(consumer) == len(model.leased_to(consumer))
        assert group.next_event_us(self.now) == model.next_event(self.now)

    def teardown(self) -> None:
        """Whatever happened, all that is not settled can still be had, once."""
        if not hasattr(self, "model"):
            return
        self.commit(len(self.log), False)
        for consumer in sorted(self.model.handed_end):
            self.group.detach(consumer)
        self.now += 1_000
        self.group.attach(0)
        had: list[int] = []
        self.learn_all()
        while leases := self.group.take(0, 100, self.end, self.now):
            ranges = [(lease.first, lease.last) for lease in leases]
            had += [offset for first, last in ranges for offset in range(first, last + 1)]
            change = self.group.settle(0, Ack(), ranges, False, self.now).change
            assert change is not None
            self.group.apply(change)
            self.learn_all()
        self.check_order(had)
        assert sorted(had) == [n for n, message in enumerate(self.model.messages) if not message.settled]
        assert self.group.settled_below == self.end


def replay(group: GroupCore, written: Written, change: SettleChange) -> None:
    if written.entry.kind == "seek":
        group.seek(written.entry.at)
    elif written.entry.kind == "trim":
        group.trim(written.entry.at)
    elif written.entry.kind == "reopen":
        group.reopen(written.entry.at)
    else:
        group.apply(change)
        for dying in change.dying:  # their letters are committed
            for offset in range(dying.first, dying.last + 1):
                group.give_up(offset)


def durable(group: GroupCore, end: int) -> list[tuple[bool, int, int]]:
    """(settled, failures, not before) of every message."""
    state = group.snapshot()
    found = [(offset < state.settled_below, 0, 0) for offset in range(end)]
    for first, last in state.settled:
        found[first : last + 1] = [(True, 0, 0)] * (last - first + 1)
    for first, last, attempt, not_before, _ in state.retries:
        found[first : last + 1] = [(False, attempt, not_before)] * (last - first + 1)
    return found


TestGroupAgainstModel = GroupMachine.TestCase
TestGroupAgainstModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
