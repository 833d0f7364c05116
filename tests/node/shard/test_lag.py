"""How far a group is behind, in messages, bytes and time, without a look at the disk where one would be too many."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.cluster_stats import lag_stats
from ringpost.node.groups.changes import Ack
from ringpost.node.shard.group import Group
from ringpost.node.shard.lag import (
    GROUPS_LOOKED_AT,
    GROUPS_NAMED,
    age_us,
    known_age_us,
    lag_bytes,
    lagging,
    learn_ages,
    served_groups,
)
from tests.node.delivery.test_lost import lose
from tests.node.shard.fakes import Outcomes, Rig
from tests.node.shard.test_group import S, made, settle, take


def stand_in(number: int, lag: int) -> Any:
    channel = SimpleNamespace(name=f"c{number}", end_offset=lag)
    return SimpleNamespace(name="g", channel=channel, core=SimpleNamespace(pending=lambda end: end))


def test_the_groups_that_lag_most_are_named_and_no_others() -> None:
    lags = lagging(stand_in(n, n) for n in range(200))
    assert len(lags) == GROUPS_NAMED
    assert (lags[0][0], lags[0][1].channel.name) == (199, "c199")
    assert min(lag for lag, _ in lags) == 200 - GROUPS_NAMED
    assert lagging([stand_in(1, 0)]) == [], "one that is done is not named"


def test_a_node_with_very_many_groups_looks_at_some() -> None:
    looked = 0

    def endless() -> Any:
        nonlocal looked
        while True:
            looked += 1
            yield stand_in(looked, 1)

    lagging(endless())
    assert looked <= GROUPS_LOOKED_AT + 1


def acked(rig: Rig, group: Group, *offsets: int) -> None:
    take(rig, group, 1_000)
    settle(group, Ack(), *((offset, offset) for offset in offsets))
    rig.time.turn()
    rig.commit()


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_the_unsettled_part_of_the_frames() -> None:
    rig = Rig()
    group = made(rig, messages=4)
    rig.publish(group.channel, "y" * 1_000)
    first, second = (row.length for row in group.channel.index.rows(0, 2))
    assert lag_bytes(group) == first + second
    acked(rig, group, 0, 1)
    assert lag_bytes(group) == first - first * 2 // 4 + second
    acked(rig, group, 2, 3)
    assert lag_bytes(group) == second
    acked(rig, group, 4)
    assert lag_bytes(group) == 0


def test_what_is_settled_in_between_is_taken_off_in_proportion() -> None:
    rig = Rig()
    group = made(rig, messages=4)
    whole = lag_bytes(group)
    acked(rig, group, 2)
    assert (group.core.settled_below, lag_bytes(group)) == (0, whole * 3 // 4)


def test_what_is_not_committed_does_not_count() -> None:
    rig = Rig()
    group = made(rig, messages=1)
    for text in ("two", "three", "four"):
        rig.publish(group.channel, text)
    acked(rig, group, 0)
    rig.publish(group.channel, "five", commit=False)
    kept = sum(row.length for row in group.channel.index.rows(1, 4))
    assert lag_bytes(group, rows_max=3) == kept
    assert lag_bytes(group, rows_max=2) == kept, "the one before and the one behind are taken off the whole"
    all_of_it = group.channel.stored_bytes
    assert lag_bytes(group, rows_max=1) == all_of_it * 3 // 5, "too many on both sides: as large as on average"


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    start=st.integers(0, 12),
    rows_max=st.integers(0, 12),
)
def test_an_estimate_is_exact_where_it_can_be_and_never_absurd(sizes: list[int], start: int, rows_max: int) -> None:
    """One message a frame: so what is exact is the sum of the frames from the start on."""
    rig = Rig()
    channel = rig.channel()
    for size in sizes:
        rig.publish(channel, "x" * size)
    group = made(rig, messages=0, start=min(start, len(sizes)))
    below = group.core.settled_below
    lengths = [row.length for row in channel.index.rows(0, len(sizes))]
    exact = sum(lengths[below:])
    assert lag_bytes(group) == exact
    bounded = lag_bytes(group, rows_max)
    if below == len(sizes):
        assert bounded == 0
    elif min(below, len(sizes) - below) <= rows_max:
        assert bounded == exact
    else:
        assert bounded == sum(lengths) * (len(sizes) - below) // len(sizes)


# -- age --------------------------------------------------------------------------------------------------------------


async def test_the_age_is_of_the_oldest_unsettled_message() -> None:
    rig = Rig()
    group = made(rig, messages=2)
    rig.time.pass_us(5 * S)
    rig.publish(group.channel, "later")
    rig.time.pass_us(7 * S)
    assert known_age_us(group, rig.reading, rig.time.now_us) == 12 * S
    acked(rig, group, 0)
    assert known_age_us(group, rig.reading, rig.time.now_us) == 12 * S, "its neighbour is of the same time"
    acked(rig, group, 1)
    assert known_age_us(group, rig.reading, rig.time.now_us) == 7 * S
    acked(rig, group, 2)
    assert known_age_us(group, rig.reading, rig.time.now_us) == 0
    assert rig.reads == []


async def test_it_is_read_once_and_remembered() -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=2)
    rig.publish(group.channel, "later")
    rig.time.pass_us(3 * S)
    assert known_age_us(group, rig.reading, rig.time.now_us) is None
    assert await age_us(group, rig.reading, rig.time.now_us) == 3 * S
    acked(rig, group, 0)
    rig.time.pass_us(S)
    assert await age_us(group, rig.reading, rig.time.now_us) == 4 * S
    assert len(rig.reads) == 1
    acked(rig, group, 1)
    assert known_age_us(group, rig.reading, rig.time.now_us) is None, "it is in another frame"


@pytest.mark.parametrize("lost", [True, False])
async def test_what_cannot_be_read_has_no_age(lost: bool) -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=2)
    if lost:
        lose(rig, group.channel, 0)
    else:
        rig.read_error = OSError(5, "Input/output error")
    assert await age_us(group, rig.reading, rig.time.now_us) is None


# -- the metrics ------------------------------------------------------------------------------------------------------


async def test_a_scrape_reads_nothing_and_tells_what_was_learned() -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=2)
    rig.time.pass_us(3 * S)
    size = lag_bytes(group)
    now = rig.time.now_us
    stats = lag_stats(served_groups(rig.store), rig.reading, now)
    assert stats == {"group_lag": {"a/g": 2}, "group_lag_bytes": {"a/g": size}, "group_lag_seconds": {}}
    assert rig.reads == []
    await learn_ages(served_groups(rig.store), rig.reading, now)
    assert lag_stats(served_groups(rig.store), rig.reading, now)["group_lag_seconds"] == {"a/g": 3.0}
    await learn_ages(served_groups(rig.store), rig.reading, now)
    assert len(rig.reads) == 1


async def test_a_channel_that_is_deleted_meanwhile_has_no_lag() -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=2)
    rig.store.delete(group.channel, Outcomes())
    rig.commit()
    assert (lag_bytes(group), await age_us(group, rig.reading, rig.time.now_us)) == (0, 0)
