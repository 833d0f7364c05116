"""The order of one shard's publishes, whatever leaders and connections do."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ringpost.node.errors import Exhausted, NotLeader, RingpostError, Unavailable
from ringpost.node.routing.lane import ABANDON_S, PROBE_S_MAX, Entry, Lane
from ringpost.node.routing.router import Here, NotNow, Route, There
from ringpost.v1.publish_pb2 import PublishResponse

NOWHERE = NotNow("shard 0 has no leader now", 50, "", 1)
N2, N3 = There("n2", "b:2", 1, 1), There("n3", "c:2", 2, 2)
STORED = PublishResponse(first_offset=1)
REFUSED = NotLeader.of("no", shard=0, leader="", epoch=0)
OPEN = Unavailable("the connection broke")


class FakeWays:
    """What the lane did: `sent` names batches by their numbers."""

    def __init__(self) -> None:
        self.time = 100.0
        self.where: Route = N2
        self.connected = True
        self.sent: list[Entry] = []
        self.local: list[Entry] = []
        self.load: dict[str, list[int]] = {}

    def now(self) -> float:
        return self.time

    def route(self, shard: int) -> Route:
        return self.where

    def refusal(self, shard: int) -> NotLeader:
        return NotLeader.of("nobody leads; nothing was done", shard=shard, leader="", epoch=1)

    def append(self, lane: Lane, entry: Entry) -> None:
        self.local.append(entry)

    def forward(self, lane: Lane, entry: Entry, to: There) -> bool:
        if self.connected:
            self.sent.append(entry)
        return self.connected

    def visit(self, lane: Lane) -> None:
        """The test does."""

    def charge(self, destination: str, count: int, size: int) -> None:
        load = self.load.setdefault(destination, [0, 0])
        load[0] += count
        load[1] += size


class Rig:
    """A lane and what became of each batch."""

    def __init__(self, patience_s: float = 10.0) -> None:
        self.ways = FakeWays()
        self.lane = Lane(0, self.ways, patience_s)
        self.answers: dict[int, Any] = {}
        self.entries: list[Entry] = []

    def publish(self, count: int = 1, *, producer: int = 7) -> None:
        for _ in range(count):
            number = len(self.entries)

            def reply(answer: Any, number: int = number) -> None:
                assert number not in self.answers, "answered twice"
                self.answers[number] = answer

            self.entries.append(Entry(b"%10d" % number, "c", producer, 0, number, reply))
            self.lane.submit(self.entries[-1])

    def answer(self, number: int, answer: Any) -> None:
        self.lane.outcome(self.entries[number], answer)

    @property
    def sent(self) -> list[int]:
        """What was sent since the last look, to another node or here."""
        found, self.ways.sent = self.ways.sent, []
        local, self.ways.local = self.ways.local, []
        return [self.entries.index(entry) for entry in found + local]

    def later(self, seconds: float = PROBE_S_MAX) -> None:
        self.ways.time += seconds
        self.lane.pump()


def test_batches_flow_without_waiting_for_answers() -> None:
    rig = Rig()
    rig.publish(3)
    assert rig.sent == [0, 1, 2]
    for number in (1, 0, 2):
        rig.answer(number, STORED)
    assert len(rig.answers) == 3
    assert rig.lane.idle


def test_a_refused_batch_is_never_overtaken() -> None:
    rig = Rig()
    rig.publish(3)
    assert rig.sent == [0, 1, 2]
    rig.answer(0, REFUSED)
    rig.publish()
    rig.later()
    assert rig.sent == [], "1 and 2 are still out"
    rig.answer(1, REFUSED)
    rig.answer(2, REFUSED)
    rig.later()
    assert rig.sent == [0], "a probe"
    rig.answer(0, STORED)
    assert rig.sent == [1, 2, 3]
    assert (rig.lane.attempt, list(rig.answers)) == (1, [0])


def test_a_new_leader_gets_nothing_while_the_old_one_still_has_something() -> None:
    rig = Rig()
    rig.publish(2)
    rig.ways.where = N3
    rig.publish()
    assert rig.sent == [0, 1]
    rig.answer(0, STORED)
    assert rig.sent == []
    rig.answer(1, REFUSED)
    rig.later()
    assert rig.sent == [1]
    rig.answer(1, STORED)
    assert rig.sent == [2]


def test_an_old_leader_that_never_answers_is_left_after_a_while() -> None:
    rig = Rig()
    rig.publish(2)
    rig.publish(producer=0)
    rig.ways.where = N3
    rig.lane.news()
    rig.later(ABANDON_S / 2)
    assert rig.sent == [0, 1, 2]
    rig.later(ABANDON_S)
    rig.later()
    rig.later()
    assert rig.sent == [0]
    assert isinstance(rig.answers[2], Unavailable), "its outcome is open"
    rig.answer(0, STORED)
    assert rig.sent == [1]


@pytest.mark.parametrize("waiting", [False, True])
def test_that_holds_while_nobody_leads_too(waiting: bool) -> None:
    rig = Rig()
    rig.publish()
    rig.ways.where = NOWHERE
    rig.publish(int(waiting))
    rig.lane.news()
    rig.later(ABANDON_S + 0.1)
    rig.ways.where = N3
    rig.later()
    rig.later()
    assert rig.sent == [0, 0]


def test_an_open_outcome_is_told_to_who_cannot_repeat() -> None:
    rig = Rig()
    rig.publish(producer=0)
    rig.publish(producer=7)
    rig.answer(0, OPEN)
    rig.answer(1, OPEN)
    rig.later()
    assert rig.answers == {0: OPEN}
    assert rig.sent == [0, 1, 1]


def test_this_node_may_become_the_leader() -> None:
    rig = Rig()
    rig.ways.where = NOWHERE
    rig.publish(2)
    assert rig.sent == []
    rig.ways.where = Here(3)
    rig.lane.news()
    assert rig.sent == [0, 1]
    rig.answer(0, Unavailable("draining", reason="NOT_APPENDED"))
    assert isinstance(rig.answers[0], Unavailable), "this node takes nothing any more"


def test_a_definite_error_is_an_answer() -> None:
    rig = Rig(patience_s=1.0)
    rig.publish(2)
    rig.answer(0, REFUSED)
    rig.answer(1, REFUSED)
    rig.later()
    rig.answer(0, Exhausted("full"))
    rig.later(5)
    assert rig.sent == [0, 1, 0, 1]
    assert list(rig.answers) == [0]


def test_patience_ends_for_all_that_wait_and_leaves_no_gap() -> None:
    rig = Rig(patience_s=1.0)
    rig.ways.connected = False
    rig.publish(2)
    rig.publish(producer=0)
    rig.later(0.5)
    assert rig.answers == {}
    rig.later(0.6)
    assert [rig.answers[n].reason for n in range(3)] == ["UNAVAILABLE", "UNAVAILABLE", "NOT_LEADER"]
    rig.ways.connected = True
    rig.publish()
    assert rig.answers[3].reason == "UNAVAILABLE", "0 has to come first"
    assert not rig.lane.idle
    again = Entry(b"", "c", 7, 0, 0, lambda _: None)
    rig.lane.submit(again)
    assert rig.ways.sent == [again]


def test_what_is_on_its_way_is_charged_to_where_it_goes() -> None:
    rig = Rig()
    rig.publish(2)
    assert rig.ways.load["n2"] == [2, 20]
    rig.answer(0, STORED)
    rig.answer(1, REFUSED)
    rig.ways.where = N3
    rig.later()
    assert (rig.ways.load["n2"], rig.ways.load["n3"]) == ([0, 0], [1, 10])
    rig.answer(1, STORED)
    assert all(load == [0, 0] for load in rig.ways.load.values())


class Disorder(RuleBasedStateMachine):
    """Leaders come and go, refuse, break and answer in their own time; what is on the wire arrives in order, but late.

    A node refuses behind a refused batch until the lane begins again, as `ForwardedSession` does. The log goes along
    with the leadership.
    """

    @initialize()
    def begin(self) -> None:
        self.rig = Rig(patience_s=1e9)
        self.log: list[int] = []
        self.leader = "n2"
        self.wire: dict[str, list[tuple[int, int]]] = {"n2": [], "n3": []}
        self.told: dict[str, list[tuple[int, Any]]] = {"n2": [], "n3": []}
        self.refused = {"n2": -1, "n3": -1}

    def collect(self) -> None:
        """What the lane has sent is on the wire."""
        where = self.rig.ways.where
        for number in self.rig.sent:
            assert isinstance(where, There)
            self.wire[where.node].append((number, self.rig.lane.attempt))

    def arrive(self, node: str, count: int) -> None:
        arrived, self.wire[node] = self.wire[node][:count], self.wire[node][count:]
        for number, attempt in arrived:
            if node != self.leader or attempt <= self.refused[node]:
                self.refused[node] = max(attempt, self.refused[node])
                self.told[node].append((number, REFUSED))
                continue
            if number not in self.log:  # the producer's table
                assert number == len(self.log), "a gap or a reordering"
                self.log.append(number)
            self.told[node].append((number, STORED))

    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        self.rig.publish(count)
        self.collect()

    @rule(leader=st.sampled_from(["n2", "n3", "nobody"]))
    def elect(self, leader: str) -> None:
        self.leader = leader

    @rule(node=st.sampled_from(["n2", "n3"]), arriving=st.integers(0, 6), count=st.integers(0, 6))
    def answer(self, node: str, arriving: int, count: int) -> None:
        self.arrive(node, arriving)
        told, self.told[node] = self.told[node][:count], self.told[node][count:]
        for number, answer in told:
            self.rig.answer(number, answer)
            self.collect()

    @rule(node=st.sampled_from(["n2", "n3"]), arriving=st.integers(0, 6))
    def break_off(self, node: str, arriving: int) -> None:
        """Some of it has arrived; nobody will say so."""
        self.arrive(node, arriving)
        lost = [number for number, _ in (*self.told[node], *self.wire[node])]
        self.told[node], self.wire[node], self.refused[node] = [], [], -1
        for number in lost:
            self.rig.answer(number, OPEN)
        self.collect()

    @rule(where=st.sampled_from([N2, N3, NOWHERE]), seconds=st.sampled_from([0.0, 0.3]))
    def look(self, where: Route, seconds: float) -> None:
        self.rig.ways.where = where
        self.rig.later(seconds)
        self.collect()

    @rule()
    def time_passes(self) -> None:
        self.rig.later(0.3)
        self.collect()

    def teardown(self) -> None:
        """In the end everything is stored, once and in order."""
        if not hasattr(self, "rig"):
            return
        self.leader, self.rig.ways.where = "n2", N2
        for _ in range(100):
            self.answer("n2", 100, 100)
            self.answer("n3", 100, 100)
            self.rig.later(0.3)
            self.collect()
        assert self.log == list(range(len(self.rig.entries)))
        assert set(self.rig.answers) == set(self.log)
        assert not any(isinstance(answer, RingpostError) for answer in self.rig.answers.values())


TestDisorder = Disorder.TestCase
TestDisorder.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
