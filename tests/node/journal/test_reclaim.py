"""Live bytes per segment decide what is deleted and what is rewritten."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringpost.node.journal.reclaim import SegmentLedger


def at(segment: int, byte: int = 64) -> int:
    return segment << 32 | byte


def test_a_segment_dies_with_its_last_live_frame() -> None:
    ledger = SegmentLedger()
    ledger.add(at(1), 100)
    ledger.add(at(1, 164), 50)
    ledger.drop(at(1), 100)
    assert ledger.dead(at(9), 9) == []
    ledger.drop(at(1, 164), 50)
    assert ledger.dead(at(9), 9) == [1]
    ledger.forget(1)
    assert ledger.dead(at(9), 9) == []


def test_many_frames_of_a_segment_are_counted_at_once() -> None:
    ledger = SegmentLedger()
    ledger.add_bytes(1, 100)
    ledger.add(at(1), 50)
    ledger.drop_bytes(1, 120)
    assert ledger.live(1) == 30
    with pytest.raises(AssertionError, match="once"):
        ledger.drop_bytes(1, 31)


def test_a_segment_that_never_held_data_dies_too() -> None:
    ledger = SegmentLedger()
    ledger.begin(3)
    ledger.begin(2)
    assert ledger.dead(at(4), 4) == [2, 3]


def test_what_recovery_may_still_scan_stays() -> None:
    ledger = SegmentLedger()
    for segment in (1, 2, 3):
        ledger.begin(segment)
    assert ledger.dead(at(2, 0), 3) == [1]
    assert ledger.dead(at(2, 0xFFFF_FFFF), 3) == [1], "the floor lies inside segment 2"
    assert ledger.dead(0, 3) == []


def test_the_active_segment_stays() -> None:
    ledger = SegmentLedger()
    ledger.begin(1)
    ledger.begin(2)
    assert ledger.dead(at(99), 2) == [1]


def test_the_oldest_mostly_dead_segment_is_rewritten_first() -> None:
    ledger = SegmentLedger()
    for segment, live in ((4, 499), (2, 499), (1, 500), (3, 10)):
        ledger.add(at(segment), live)
    sizes = dict.fromkeys(range(1, 6), 1000)
    assert ledger.worth_rewriting(sizes, active=5) == 2
    assert ledger.worth_rewriting(sizes, active=2) is None
    assert ledger.worth_rewriting(sizes, active=5, live_fraction=0.1) == 3
    assert ledger.worth_rewriting({}, active=5) is None


def test_a_rewritten_segment_is_dead() -> None:
    ledger = SegmentLedger()
    ledger.add(at(1), 100)
    ledger.move(at(1), at(7), 100)
    assert (ledger.live(1), ledger.live(7)) == (0, 100)
    assert ledger.worth_rewriting({1: 1000, 7: 1000}, active=7) is None
    assert ledger.dead(at(7), 7) == [1]


def test_a_frame_dropped_twice_is_our_bug() -> None:
    ledger = SegmentLedger()
    ledger.add(at(1), 100)
    ledger.drop(at(1), 100)
    with pytest.raises(AssertionError):
        ledger.drop(at(1), 100)


def test_a_living_segment_is_not_forgotten() -> None:
    ledger = SegmentLedger()
    ledger.add(at(1), 100)
    with pytest.raises(AssertionError):
        ledger.forget(1)


class LedgerModel(RuleBasedStateMachine):
    """The ledger against the set of live frames itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = SegmentLedger()
        self.frames: dict[int, int] = {}
        self.known: set[int] = set()
        self.end = at(1)

    def _append(self, length: int, new_segment: bool) -> int:
        address = at((self.end >> 32) + 1) if new_segment else self.end
        self.end = address + length
        self.frames[address] = length
        self.known.add(address >> 32)
        return address

    @rule(length=st.integers(1, 400), new_segment=st.booleans())
    def add(self, length: int, new_segment: bool) -> None:
        self.ledger.add(self._append(length, new_segment), length)

    @rule()
    def begin(self) -> None:
        self.end = at((self.end >> 32) + 1)
        self.ledger.begin(self.end >> 32)
        self.known.add(self.end >> 32)

    @precondition(lambda self: self.frames)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        address = data.draw(st.sampled_from(sorted(self.frames)))
        self.ledger.drop(address, self.frames.pop(address))

    @precondition(lambda self: self.frames)
    @rule(data=st.data(), new_segment=st.booleans())
    def move(self, data: Any, new_segment: bool) -> None:
        old = data.draw(st.sampled_from(sorted(self.frames)))
        length = self.frames.pop(old)
        self.ledger.move(old, self._append(length, new_segment), length)

    @rule(data=st.data())
    def reclaim(self, data: Any) -> None:
        floor, active = data.draw(st.integers(0, self.end)), self.end >> 32
        living = {address >> 32 for address in self.frames}
        dead = self.ledger.dead(floor, active)
        assert dead == sorted(s for s in self.known - living if at(s + 1, 0) <= floor and s < active)
        for segment in dead:
            self.ledger.forget(segment)
        self.known -= set(dead)

    @invariant()
    def agrees(self) -> None:
        active = self.end >> 32
        live = dict.fromkeys(self.known, 0)
        for address, length in self.frames.items():
            live[address >> 32] += length
        assert {segment: self.ledger.live(segment) for segment in self.known} == live
        sizes = dict.fromkeys(self.known, 1000)
        poor = [segment for segment in sorted(live) if 0 < live[segment] < 500 and segment < active]
        assert self.ledger.worth_rewriting(sizes, active) == (poor[0] if poor else None)


TestLedgerModel = LedgerModel.TestCase
TestLedgerModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
