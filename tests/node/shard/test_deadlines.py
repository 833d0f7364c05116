"""One timer for many sleepers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.shard.deadlines import Deadlines
from tests.node.shard.fakes import START_US, FakeTime

MS = 1_000


class Sleeper:
    """Remembers when it was woken; sleeps again for the given spans."""

    def __init__(self, deadlines: Deadlines, *again_us: int) -> None:
        self.wake_at_us = 0
        self.woken: list[int] = []
        self._deadlines = deadlines
        self._again = list(again_us)

    def wake(self, now_us: int) -> None:
        self.woken.append(now_us - START_US)
        if self._again:
            self._deadlines.set(self, now_us + self._again.pop(0))


def made() -> tuple[FakeTime, Deadlines]:
    time = FakeTime()
    return time, Deadlines(time.clock, time.later)


def test_a_sleeper_is_woken_once_a_millisecond_late_at_most() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines)
    deadlines.set(sleeper, START_US + 50 * MS)
    time.pass_us(49 * MS)
    assert sleeper.woken == []
    time.pass_us(1_000 * MS)
    assert sleeper.woken == [51 * MS]
    assert sleeper.wake_at_us == 0


def test_the_earliest_of_several_calls_counts() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines)
    for due in (50, 20, 80, 20):
        deadlines.set(sleeper, START_US + due * MS)
    time.pass_us(200 * MS)
    assert sleeper.woken == [21 * MS]


def test_one_wake_up_serves_all_that_are_due() -> None:
    time, deadlines = made()
    sleepers = [Sleeper(deadlines) for _ in range(5)]
    for number, sleeper in enumerate(sleepers):
        deadlines.set(sleeper, START_US + 10 * MS + number * 100)
    assert len([timer for timer in time.timers if not timer.cancelled]) == 1
    time.pass_us(11 * MS)
    assert [sleeper.woken for sleeper in sleepers] == [[11 * MS]] * 5


def test_a_woken_sleeper_may_sleep_again() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines, 10 * MS, 5 * MS)
    deadlines.set(sleeper, START_US + 10 * MS)
    time.pass_us(100 * MS)
    assert sleeper.woken == [11 * MS, 22 * MS, 28 * MS]


def test_what_is_due_already_is_woken_soon() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines)
    deadlines.set(sleeper, START_US - 1)
    time.pass_us(1 * MS)
    assert sleeper.woken == [1 * MS]


def test_a_clock_that_falls_delays_but_forgets_nobody() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines)
    deadlines.set(sleeper, START_US + 10 * MS)
    (timer,) = time.timers
    time.timers.clear()
    time.now_us = START_US - 500 * MS
    timer.call()
    assert sleeper.woken == []
    time.pass_us(511 * MS)
    assert sleeper.woken == [11 * MS]


def test_after_close_nobody_is_woken() -> None:
    time, deadlines = made()
    sleeper = Sleeper(deadlines)
    deadlines.set(sleeper, START_US + 10 * MS)
    deadlines.close()
    deadlines.close()
    time.pass_us(100 * MS)
    assert sleeper.woken == []


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 10)), max_size=30))
@settings(deadline=None)
def test_each_sleeper_is_woken_at_its_earliest_time(script: list[tuple[int, int, int]]) -> None:
    """Against a model that looks at every sleeper after every microsecond that matters."""
    time, deadlines = made()
    sleepers = [Sleeper(deadlines) for _ in range(3)]
    wanted: dict[int, int] = {}
    for number, due_ms, span_ms in script:
        due = time.now_us - START_US + due_ms * MS
        deadlines.set(sleepers[number], START_US + due)
        wanted[number] = min(wanted.get(number, due), due)
        count = [len(sleeper.woken) for sleeper in sleepers]
        time.pass_us(span_ms * MS)
        now = time.now_us - START_US
        for number, before in enumerate(count):
            fresh = sleepers[number].woken[before:]
            assert len(fresh) <= 1
            if fresh:
                assert wanted[number] <= fresh[0] <= wanted.pop(number) + 1 * MS
            assert wanted.get(number, now) + MS > now or wanted.get(number) is None


def test_once_closed_it_wakes_nobody_whoever_still_asks() -> None:
    time, deadlines = made()
    early, late = Sleeper(deadlines), Sleeper(deadlines)
    deadlines.set(early, START_US + 10 * MS)
    deadlines.close()
    deadlines.set(late, START_US + 10 * MS)
    time.pass_us(100 * MS)
    assert (early.woken, late.woken) == ([], [])
