"""A group that keeps order per key agrees with a model that looks through the messages of a key each time."""

from collections.abc import Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.policy import RetryPolicy
from tests.node.groups.model import Entry, Model
from tests.node.groups.test_model import ACK_DEADLINE, POLICIES, GroupMachine

MESSAGES_MAX = 40


class KeyedModel(Model):
    """Offsets below `known_end` are known, but for `reopened`.

    `keys` has a key for each offset there may ever be, 0 for none.
    """

    def __init__(
        self, ack_deadline: int, max_in_flight: int, delays: Sequence[int], attempts: int, keys: list[int]
    ) -> None:
        super().__init__(ack_deadline, max_in_flight, delays, attempts)
        self.keys = keys
        self.known_end = 0
        self.reopened: set[int] = set()  # whose keys are to be learned anew

    def available(self, now: int) -> list[tuple[int, int]]:
        return [
            (offset, message.failures + 1)
            for offset, message in enumerate(self.messages[: self.known_end])
            if not message.settled
            and not message.busy
            and not (message.failures and message.not_before > now)
            and not any(not self.messages[before].settled for before in self.before(offset))
            and not any(self.messages[other].busy for other in self.others(offset))
            and not self.reopened
        ]

    def others(self, offset: int) -> list[int]:
        """All others of the same key."""
        key = self.keys[offset]
        return [n for n in range(len(self.messages)) if n != offset and key and self.keys[n] == key]

    def before(self, offset: int) -> list[int]:
        """Those of the same key that come first."""
        return [n for n in range(offset) if self.keys[offset] and self.keys[n] == self.keys[offset]]

    def unknown(self, look_ahead: int) -> int | None:
        if self.reopened:
            return min(self.reopened)
        known = [message for message in self.messages[: self.known_end] if not message.settled]
        if len(known) >= look_ahead:
            return None
        while self.known_end < len(self.messages) and self.messages[self.known_end].settled:
            self.known_end += 1
        return self.known_end if self.known_end < len(self.messages) else None

    def learn(self, first: int, end: int) -> None:
        self.reopened -= set(range(first, end))
        self.known_end = max(self.known_end, end)

    def nothing_known(self) -> None:
        self.known_end = 0
        self.reopened.clear()

    def detach(self, consumer: int) -> bool:
        freed = super().detach(consumer)
        if not self.handed_end and not self.count("in_flight"):
            self.nothing_known()
        return freed

    def forget(self) -> None:
        super().forget()
        self.nothing_known()

    def apply(self, entry: Entry) -> None:
        if entry.kind == "reopen" and entry.at < self.known_end and self.messages[entry.at].settled:
            self.reopened.add(entry.at)
        super().apply(entry)
        self.reopened = {offset for offset in self.reopened if not self.messages[offset].settled}
        if entry.kind == "seek":
            self.nothing_known()


class KeyedMachine(GroupMachine):
    @initialize(
        max_in_flight=st.sampled_from([3, 10, 100]),
        choice=st.sampled_from(POLICIES),
        look_ahead=st.sampled_from([2, 6, 100]),
        keys=st.lists(st.sampled_from([0, 1, 1, 2, 3]), min_size=MESSAGES_MAX, max_size=MESSAGES_MAX),
    )
    def begin(  # type: ignore[override]
        self, max_in_flight: int, choice: tuple[RetryPolicy, tuple[int, ...]], look_ahead: int, keys: list[int]
    ) -> None:
        self.look_ahead = look_ahead
        self.keys = keys
        super().begin(max_in_flight, choice)

    def new_model(self) -> Model:
        return KeyedModel(ACK_DEADLINE, self.max_in_flight, self.delays, self.policy.max_attempts, self.keys)

    def new_group(self, **state: Any) -> GroupCore:
        return KeyedCore(
            **state,
            ack_deadline_us=ACK_DEADLINE,
            max_in_flight=self.max_in_flight,
            policy=self.policy,
            look_ahead=self.look_ahead,
        )

    @rule(count=st.sampled_from([1, 3, 8]), back=st.sampled_from([0, 0, 2]))
    def learn(self, count: int, back: int) -> None:
        """A batch of which the first messages may be known already."""
        group, model = self.group, self.model
        assert isinstance(group, KeyedCore)
        assert isinstance(model, KeyedModel)
        offset = group.unknown(self.end)
        assert offset == model.unknown(self.look_ahead)
        if offset is not None:
            first, end = max(0, offset - back), min(self.end, offset + count)
            group.learn(first, self.keys[first:end])
            model.learn(first, end)

    @rule(choice=st.integers(0, 2), limit=st.sampled_from([1, 3, 20]))
    def take(self, choice: int, limit: int) -> None:
        """Which of those that may go out come first is the group's choice, but it takes as many as it may."""
        self.learn(8, 0)
        consumer = self.pick(choice)
        available = self.model.available(self.now)
        room = max(0, min(limit, self.max_in_flight - self.model.count("in_flight")))
        leases = self.group.take(consumer, limit, self.end, self.now)
        taken = [(offset, lease.attempt) for lease in leases for offset in range(lease.first, lease.last + 1)]
        assert taken == sorted(taken)
        assert set(taken) <= set(available)
        assert len(taken) == min(room, len(available))
        self.model.hand(consumer, taken, self.now)
        for offset, attempt in taken:
            assert offset not in self.confirmed
            assert attempt > self.failures.get(offset, 0)

    def learn_all(self) -> None:
        while self.group.unknown(self.end) is not None:  # type: ignore[attr-defined]
            self.group.learn(0, self.keys[: self.end])  # type: ignore[attr-defined]

    def check_order(self, had: list[int]) -> None:
        for key in {1, 2, 3}:
            of_key = [offset for offset in had if self.keys[offset] == key]
            assert of_key == sorted(of_key)


TestKeyedGroupAgainstModel = KeyedMachine.TestCase
TestKeyedGroupAgainstModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
