"""What goes into and comes out of a group: actions of consumers, leases, verdicts, and changes to be logged.

Offsets and ranges are inclusive; times are microseconds, durations too.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ringpost.node.groups.ranges import Range, RangeSet


class Outcome(IntEnum):
    """What became of a message in a settlement; numbers of `ringpost.v1.Outcome`."""

    DONE = 1
    EXPIRED = 2
    ALREADY = 3
    UNKNOWN = 4
    MOVED = 5


@dataclass(frozen=True, slots=True)
class Ack:
    """Done; never again."""


@dataclass(frozen=True, slots=True)
class Nack:
    """Failed; again after `delay_us`. 0: as the group's policy says, after `fallback_us` where it has none."""

    delay_us: int = 0
    reason: str = ""
    fallback_us: int = 0


@dataclass(frozen=True, slots=True)
class Extend:
    """Still working: the lease ends `deadline_us` from now; 0: the group's ack deadline."""

    deadline_us: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """Will never be done; counted, with a reason for people."""

    reason: str = ""


Action = Ack | Nack | Extend | Reject


class Lease(NamedTuple):
    """Messages handed to a consumer; `attempt` says which delivery of them this is, from 1."""

    first: int
    last: int
    attempt: int


class Claim(NamedTuple):
    """What a lease token says: the consumer was handed these ranges, as delivery `attempt`.

    `current`: since then nothing has made the group's settled messages pending again.
    """

    consumer: int
    attempt: int
    ranges: list[Range]
    current: bool


class Failure(NamedTuple):
    """How delivery `attempt` ended, and when."""

    attempt: int
    time_us: int
    reason: str


class Retry(NamedTuple):
    """Messages that failed for the `attempt`th time (from 1) and wait until `not_before_us`.

    `failures` tell how, the latest last: in a change the one that it is about, in a snapshot those that are remembered.
    """

    first: int
    last: int
    attempt: int
    not_before_us: int
    failures: tuple[Failure, ...] = ()


class Dying(NamedTuple):
    """Messages that are given up after their `attempt`th delivery (0: of nobody's lease) and become dead letters."""

    first: int
    last: int
    attempt: int
    time_us: int
    reason: str


@dataclass(slots=True)
class SettleChange:
    """The content of one SETTLE frame. Lists are ascending; all may overlap what is settled already.

    But for `dying`, which becomes a frame of dead letters: what waits for that is a change of its own.

    `filtered` are settled because the group's filter does not let them through.

    `tickets` tie the change to the messages that wait for it in this process; they are not stored, and a change read
    from the log has none.
    """

    acked: list[Range] = field(default_factory=list)
    rejected: list[Range] = field(default_factory=list)
    reject_reason: str = ""
    retries: list[Retry] = field(default_factory=list)
    tickets: tuple[int, ...] = ()
    dying: list[Dying] = field(default_factory=list)
    filtered: list[Range] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.acked or self.rejected or self.retries or self.dying or self.filtered)

    def ranges(self) -> list[Range]:
        """Every range of messages that wait for the change; of what a filter keeps back nobody had a lease."""
        waiting = [(retry.first, retry.last) for retry in self.retries]
        return [*self.acked, *self.rejected, *waiting, *((dying.first, dying.last) for dying in self.dying)]


class Verdict(NamedTuple):
    """Answer to a settlement: one entry for each run of messages with the same outcome, ascending.

    With a `change` the results hold once it has been applied; without one the answer can go out at once.
    """

    results: list[tuple[int, int, Outcome]]
    change: SettleChange | None


def join(changes: Iterable[SettleChange]) -> list[SettleChange]:
    """As few changes as carry the same, in order; ranges that touch become one.

    Only changes with different reject reasons stay apart. Joined changes are applied or aborted as one. Changes on
    both sides of a seek must not be joined.
    """
    runs: list[list[SettleChange]] = []
    reason: str | None = None
    for change in changes:
        clash = change.rejected and reason is not None and change.reject_reason != reason
        if clash or not runs:
            runs.append([])
            reason = None
        runs[-1].append(change)
        if change.rejected:
            reason = change.reject_reason
    return [run[0] if len(run) == 1 else _joined(run) for run in runs]


def _joined(run: list[SettleChange]) -> SettleChange:
    acked, rejected = RangeSet(), RangeSet()
    filtered = RangeSet(pair for change in run for pair in change.filtered)
    for change in run:
        # Of an ack and a reject for the same message the first counts, as it would on their own.
        _add_new(acked, change.acked, rejected)
        _add_new(rejected, change.rejected, acked)
    return SettleChange(
        acked=list(acked),
        rejected=list(rejected),
        reject_reason=next((change.reject_reason for change in run if change.rejected), ""),
        retries=merge_retries(retry for change in run for retry in change.retries),
        tickets=tuple(ticket for change in run for ticket in change.tickets),
        filtered=list(filtered),
    )


def _add_new(target: RangeSet, ranges: list[Range], other: RangeSet) -> None:
    for pair in ranges:
        for gap in other.gaps(*pair):
            target.add(*gap)


def merge_retries(retries: Iterable[Retry]) -> list[Retry]:
    """Sorted by offset; neighbours with the same attempt and time become one."""
    merged: list[Retry] = []
    for retry in sorted(retries):
        if merged and merged[-1].last + 1 == retry.first and merged[-1][2:] == retry[2:]:
            merged[-1] = merged[-1]._replace(last=retry.last)
        else:
            merged.append(retry)
    return merged
