"""A group in key order: which message of a key is the next, who gets it, and how far ahead the group looks."""

import random

import pytest

from ringpost.node.groups.changes import Ack, Nack, Retry, SettleChange
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.keys import ANYBODY, KeyQueues, Ready
from tests.node.groups.actors import commit

S = 1_000_000
A, B, C = 1, 2, 3  # keys


def made(*keys: int, consumers: int = 1, **config: int) -> KeyedCore:
    """A group that knows its messages' keys, with consumers 1, 2 …"""
    settings = {"settled_below": 0, "ack_deadline_us": 30 * S, "max_in_flight": 100} | config
    group = KeyedCore(**settings)
    for consumer in range(1, consumers + 1):
        group.attach(consumer)
    if keys:
        assert group.unknown(len(keys)) == 0
        group.learn(0, list(keys))
    return group


def take(group: KeyedCore, consumer: int = 1, limit: int = 100, now: int = 0) -> list[tuple[int, int]]:
    return [(lease.first, lease.last) for lease in group.take(consumer, limit, 1_000_000, now)]


def settle(group: KeyedCore, offset: int, action: Ack | Nack | None = None, consumer: int = 1, now: int = 0) -> None:
    commit(group, group.settle(consumer, action or Ack(), [(offset, offset)], False, now).change)


def test_neighbours_of_different_keys_go_out_as_one_range_and_the_next_of_a_key_waits() -> None:
    group = made(A, B, C, A, 0, 0, B)
    assert take(group) == [(0, 2), (4, 5)]
    assert take(group) == []
    change = group.settle(1, Ack(), [(0, 0)], False, 0).change
    assert take(group) == [], "acked, but not stored"
    commit(group, change)
    assert take(group) == [(3, 3)]


def test_a_delay_holds_back_one_key_and_takes_no_place() -> None:
    group = made(A, A, B, B, max_in_flight=1)
    assert take(group, limit=1) == [(0, 0)]
    settle(group, 0, Nack(10 * S))
    assert take(group) == [(2, 2)]
    settle(group, 2)
    assert take(group) == [(3, 3)]
    settle(group, 3)
    assert take(group) == []
    assert group.next_event_us(0) == 10 * S
    assert group.take(1, 9, 4, 10 * S) == [(0, 0, 2)]
    settle(group, 0, now=10 * S)
    assert group.take(1, 9, 4, 10 * S) == [(1, 1, 1)]


def test_a_key_stays_with_its_consumer_while_that_one_is_there() -> None:
    group = made(*[A, B, C, 4] * 3, consumers=2)
    assert take(group, 1, 2) == [(0, 1)]
    assert take(group, 2, 2) == [(2, 3)]
    for consumer, offset in [(1, 0), (1, 1), (2, 2), (2, 3)]:
        settle(group, offset, consumer=consumer)
    assert group.share(1, 12, 0) == 2
    assert take(group, 2, 2) == [(6, 7)]
    assert take(group, 1, 2) == [(4, 5)]
    assert group.detach(2)
    assert take(group, 1, 100) == [(6, 7)]


def test_one_that_has_had_every_key_leaves_the_newcomer_its_part() -> None:
    group = made(*[A, B, C, 4] * 3)
    assert take(group) == [(0, 3)]
    group.attach(2)
    commit(group, group.settle(1, Ack(), [(0, 3)], False, 0).change)
    assert group.share(1, 12, 0) == 2
    assert take(group, 1, group.share(1, 12, 0)) == [(4, 5)]
    assert take(group, 2, group.share(2, 12, 0)) == [(6, 6)]
    assert take(group, 2, group.share(2, 12, 0)) == [(7, 7)]


def test_a_failure_from_before_a_seek_still_makes_its_message_wait() -> None:
    group = made(A, A, B)
    group.seek(0)
    assert group.unknown(3) == 0
    group.learn(0, [A, A, B])
    group.apply(SettleChange(retries=[Retry(0, 0, 1, 10 * S), Retry(1, 1, 1, 5 * S)]))
    assert take(group) == [(2, 2)]
    assert take(group, now=6 * S) == [], "due, but not the next of its key"
    assert group.take(1, 9, 3, 10 * S) == [(0, 0, 2)]
    settle(group, 0, now=10 * S)
    assert group.take(1, 9, 3, 10 * S) == [(1, 1, 2)]


def test_it_asks_for_keys_only_so_far_ahead() -> None:
    group = made(look_ahead=3)
    assert group.unknown(0) is None
    assert group.unknown(10) == 0
    group.learn(0, [A, A])
    assert group.unknown(10) == 2
    group.learn(1, [A, A, A])
    assert group.unknown(10) is None, "four are known"
    assert take(group) == [(0, 0)]
    settle(group, 0)
    assert group.unknown(10) is None
    commit(group, group.settle_any(Ack(), [(1, 1), (4, 5)], 10).change)
    assert group.unknown(10) == 6, "what is settled needs no key"
    with pytest.raises(AssertionError, match="the keys from 6 to 7 would stay unknown"):
        group.learn(7, [A])


def test_keys_are_forgotten_with_the_last_consumer() -> None:
    group = made(A, B, B)
    take(group)
    group.detach(1)
    assert group.unknown(3) == 0
    group.attach(2)
    assert take(group, 2) == []
    group.learn(0, [A, B, B])
    assert take(group, 2) == [(0, 1)]


def test_long_queues_cost_what_is_left_of_them() -> None:
    """Settled in the middle, settled at the front: the memory goes, and the next one is always right."""
    queues, left = KeyQueues(), list(range(10_000))
    for offset in left:
        queues.add(offset, A)
    chance = random.Random(7)
    while left:
        offset = left[0] if chance.random() < 0.5 else chance.choice(left)
        left.remove(offset)
        was_next = queues.is_next(offset)
        assert queues.remove(offset, offset) == ([offset], left[:1] if was_next else [])
        assert not left or queues.is_next(left[0])
        (kept,) = [len(queue.offsets) for queue in queues._queues.values()] or [0]
        assert kept <= 2 * len(left) + 66
    assert (len(queues), queues.keys) == (0, 0)


def test_what_is_put_by_for_one_who_left_is_for_anybody() -> None:
    ready = Ready()
    ready.attach(1)
    ready.attach(2)
    ready.add(5, 1)
    ready.add(3, 2)
    ready.add(4, ANYBODY)
    ready.discard([4])
    assert ready.take(2, 9, 0) == [3, 5]
    ready.add(6, 1)
    ready.detach(1)
    ready.add(7, 1)
    assert (len(ready), ready.count_for(2)) == (2, 0)
    assert ready.take(2, 1, 9) == [6]


def test_what_comes_back_is_the_next_of_its_key_but_behind_the_one_that_is_out() -> None:
    group = made(A, A, B, A, A)
    assert take(group) == [(0, 0), (2, 2)]
    settle(group, 0)
    settle(group, 2)
    assert take(group) == [(1, 1)]
    settle(group, 1)
    assert take(group, limit=1) == [(3, 3)]
    group.reopen(1)
    group.reopen(0)
    assert (group.unknown(5), group.stalled) == (0, True)
    assert take(group) == [], "whose key is to be learned first"
    group.learn(0, [A, A, B, A, A])
    assert (group.unknown(5), group.stalled) == (None, False)
    assert take(group) == [], "3 is out"
    settle(group, 3, Nack(5 * S))
    assert take(group) == [(0, 0)], "3 waits, and comes later anyhow"
    settle(group, 0)
    assert take(group) == [(1, 1)]
    settle(group, 1)
    assert take(group) == [], "3 still waits, and 4 behind it"
    assert take(group, now=6 * S) == [(3, 3)]


def test_what_comes_back_takes_the_place_of_one_that_has_not_gone_out() -> None:
    group = made(A, A, B)
    take(group)
    settle(group, 0)
    assert len(group.ready) == 1, "1 may go out"
    group.reopen(0)
    group.learn(0, [A, A, B])
    assert take(group) == [(0, 0)]
    settle(group, 0)
    assert take(group) == [(1, 1)]
