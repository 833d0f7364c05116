"""Ann, Bob and a group of theirs, for the stories."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from ringpost.node.groups.changes import Action, Failure, Outcome, Retry, SettleChange, Verdict
from ringpost.node.groups.core import GroupCore

DONE, EXPIRED, ALREADY, UNKNOWN = Outcome.DONE, Outcome.EXPIRED, Outcome.ALREADY, Outcome.UNKNOWN
ANN, BOB, SOMEBODY = 1, 2, 99
SECOND = 1_000_000
END = 1_000


def new_group(**config: Any) -> GroupCore:
    """A group from offset 0, 30 s ack deadline, with ann and bob."""
    group = GroupCore(**{"settled_below": 0, "ack_deadline_us": 30 * SECOND, "max_in_flight": 100_000} | config)
    group.attach(ANN)
    group.attach(BOB)
    return group


def settle(
    group: GroupCore, consumer: int, action: Action, *ranges: tuple[int, int], now: int = 0, cumulative: bool = False
) -> Verdict:
    return group.settle(consumer, action, ranges, cumulative, now)


def deliverable(group: GroupCore, end_offset: int, now: int) -> bool:
    """Whether somebody who takes now gets something."""
    again = deepcopy(group)
    again.attach(SOMEBODY)
    return bool(again.take(SOMEBODY, 1, end_offset, now))


def failed(first: int, last: int, attempt: int, not_before: int, at: int = 0, reason: str = "") -> Retry:
    """What is recorded of deliveries that fail for the first time at `at`, or for another time."""
    return Retry(first, last, attempt, not_before, (Failure(attempt, at, reason),))


def commit(group: GroupCore, change: SettleChange | None) -> None:
    assert change is not None
    group.apply(change)


def restarted(group: GroupCore, changes: Iterable[SettleChange] = ()) -> GroupCore:
    """The group after a crash, with ann, from its snapshot and what was committed after it."""
    again = GroupCore(**group.snapshot()._asdict(), ack_deadline_us=30 * SECOND, max_in_flight=100_000)
    for change in changes:
        again.apply(change)
    again.attach(ANN)
    return again
