"""When groups write what they have to store."""

from ringpost.node.shard.settlements import Settlements
from tests.node.shard.fakes import START_US, FakeTime

LINGER_US = 2_000


class Group:
    """Remembers when it was told to write."""

    def __init__(self, time: FakeTime) -> None:
        self.flushed: list[int] = []
        self._time = time

    def flush(self) -> None:
        self.flushed.append(self._time.now_us - START_US)


def made() -> tuple[FakeTime, Settlements, Group]:
    time = FakeTime()
    return time, Settlements(time.clock, time.later, time.call_soon, linger_us=LINGER_US), Group(time)


def test_when_it_was_quiet_the_turn_s_end_is_soon_enough() -> None:
    time, settlements, group = made()
    settlements.changed(group)
    assert group.flushed == []
    time.turn()
    assert group.flushed == [0]


def test_what_comes_soon_after_waits_for_the_rest_of_the_linger() -> None:
    time, settlements, group = made()
    settlements.changed(group)
    time.pass_us(500)
    settlements.changed(group)
    time.pass_us(1_499)
    assert group.flushed == [0]
    time.pass_us(1)
    assert group.flushed == [0, 2_000]


def test_a_round_serves_all_groups_once() -> None:
    time, settlements, group = made()
    other = Group(time)
    settlements.changed(group)
    settlements.changed(other)
    assert len(time.soon) == 1
    time.turn()
    assert group.flushed == other.flushed == [0]
    time.pass_us(10 * LINGER_US)
    assert group.flushed == [0]


def test_a_clock_that_fell_makes_nobody_wait() -> None:
    time, settlements, group = made()
    settlements.changed(group)
    time.turn()
    time.now_us -= 3_600_000_000
    settlements.changed(group)
    time.turn()
    assert len(group.flushed) == 2
