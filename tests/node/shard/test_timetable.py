"""Entries by number and by time, against a plain dictionary."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringpost.node.journal.segment import address_of
from ringpost.node.shard import timetable
from ringpost.node.shard.timetable import ENTRY_BYTES, Entry, Timetable


def entry(number: int, due_us: int, *, length: int = 10, count: int = 2) -> Entry:
    return Entry(number, due_us, address_of(1 + number // 100, number % 100 + 64), length, count)


class Model(RuleBasedStateMachine):
    """`waiting` are numbers that nobody has taken. Pages of 8 entries, so that they fill, shrink and go."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Timetable()
        self.entries: dict[int, Entry] = {}
        self.waiting: set[int] = set()
        self.number = 0
        self.now = 0

    @rule(due=st.integers(0, 40), length=st.integers(1, 9), skip=st.integers(0, 3))
    def add(self, due: int, length: int, skip: int) -> None:
        self.number += 1 + skip
        made = entry(self.number, self.now + due, length=length)
        self.table.add(made)
        self.entries[made.number] = made
        self.waiting.add(made.number)

    @rule(passes=st.integers(0, 20), most=st.integers(1, 6), size=st.integers(1, 30), back=st.booleans())
    def take(self, passes: int, most: int, size: int, back: bool) -> None:
        self.now += passes
        due = sorted(
            (one for number in self.waiting if (one := self.entries[number]).due_us <= self.now),
            key=lambda one: (one.due_us, one.number),
        )
        expected: list[Entry] = []
        for one in due[:most]:
            if expected and sum(e.length for e in expected) + one.length > size:
                break
            expected.append(one)
        taken = self.table.take(self.now, most, size)
        assert taken == expected
        if back:
            self.table.give_back(taken)
        else:
            self.waiting -= {one.number for one in taken}

    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        number = data.draw(st.integers(0, self.number + 1))
        assert self.table.drop(number) == self.entries.pop(number, None)
        self.waiting.discard(number)

    @rule()
    def drop_all_that_was_taken(self) -> None:
        for number in set(self.entries) - self.waiting:
            assert self.table.drop(number) == self.entries.pop(number)

    @rule(data=st.data(), place=st.integers(64, 10_000))
    def move(self, data: Any, place: int) -> None:
        number = data.draw(st.integers(0, self.number + 1))
        known = self.entries.get(number)
        assert self.table.move(number, address_of(9, place)) == (known.address if known else None)
        if known is not None:
            self.entries[number] = known._replace(address=address_of(9, place))

    @rule()
    def restart(self) -> None:
        """What was taken waits again."""
        self.table = Timetable.from_bytes(self.table.to_bytes())
        self.waiting = set(self.entries)

    @invariant()
    def says_what_there_is(self) -> None:
        kept = [self.entries[number] for number in sorted(self.entries)]
        assert [one for some in self.table.entries() for one in some] == kept
        half = self.number // 2
        assert [one for some in self.table.entries(half) for one in some] == [e for e in kept if e.number > half]
        assert len(self.table) == len(kept)
        assert self.table.messages == sum(one.count for one in kept)
        assert self.table.bytes == sum(one.length for one in kept)
        assert sum(self.table.bytes_by_segment().values()) == self.table.bytes
        assert self.table.next_due_us == min((self.entries[n].due_us for n in self.waiting), default=None)
        assert all(self.table.find(one.number) == one for one in kept)
        assert len(self.table.to_bytes()) == ENTRY_BYTES * len(kept)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timetable, "_PAGE", 8)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 1 << 50), max_size=100))
@settings(deadline=None)
def test_entries_leave_by_time_and_then_by_number(dues: list[int]) -> None:
    table = Timetable()
    for number, due in enumerate(dues, 1):
        table.add(entry(number, due))
    taken = table.take(1 << 51, 1_000, 1 << 30)
    assert [(one.due_us, one.number) for one in taken] == sorted((due, n) for n, due in enumerate(dues, 1))


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"x", "not whole"), (bytes(ENTRY_BYTES), "lie nowhere")],
)
def test_bytes_that_are_no_entries_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Timetable.from_bytes(data)


def test_an_empty_full_page_takes_no_memory() -> None:
    table = Timetable()
    for number in range(1, 801):
        table.add(entry(number, number))
    for one in table.take(1_000, 1_000, 1 << 30):
        table.drop(one.number)
    assert table._pages == []


def test_what_came_from_bytes_can_leave_before_anybody_asked_for_the_first() -> None:
    """A page is put in order when its turn comes, so that taking up very many does not hold the loop."""
    table = Timetable()
    dues = [(7 * n) % 5_000 for n in range(2 * 4_096 + 10)]
    for number, due in enumerate(dues, 1):
        table.add(Entry(number, due, 64, 1, 1))
    table = Timetable.from_bytes(table.to_bytes())
    gone = sorted(range(1, len(dues) + 1), key=lambda number: (dues[number - 1], number))[:6_000]
    for number in gone[:3_000] + gone[4_000:]:
        assert table.drop(number) is not None
    table = Timetable.from_bytes(table.to_bytes())
    taken = table.take(10_000, 500, 10_000)
    assert [entry.number for entry in taken] == gone[3_000:3_500]
    table.give_back(reversed(taken))
    assert [entry.number for entry in table.take(10_000, 1_000, 10_000)] == gone[3_000:4_000]
    assert table.next_due_us == dues[sorted(range(len(dues)), key=lambda row: (dues[row], row))[6_000]]
    assert table.bytes_by_segment() == {0: len(table)}
