"""Why a group does not deliver a message now. Pure: a core is asked, and nothing is changed.

All causes that hold are found, and the first of them is the answer: the one that has to go before any of the others
matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from ringpost.node.groups.changes import Failure
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.standing import Standing


class Place(IntEnum):
    """Where a message is; numbers of `ringpost.v1.MessageState`."""

    STORED = 1
    NOT_COMMITTED = 2
    NOT_PUBLISHED = 3
    REMOVED = 4
    LOST = 5
    UNREADABLE = 6


class Cause(IntEnum):
    """Numbers of `ringpost.v1.Cause`, which describes them; 3 and 5 are for kinds of settled, such as dead letters."""

    NO_MESSAGE = 1
    MOVING = 2
    FILTERED = 4
    SETTLED = 6
    SETTLING = 7
    LEASED = 8
    PAUSED = 9
    NO_CONSUMERS = 10
    DELAYED = 12
    PARKED = 13
    MAX_IN_FLIGHT = 14
    NO_CREDIT = 15
    KEY_UNKNOWN = 16
    OUT_OF_REACH = 17
    IN_LINE = 31


@dataclass(frozen=True, slots=True)
class Consumer:
    """A member of the group: the core's number for it, the name that it gave, whether it may be given messages."""

    number: int
    name: str
    active: bool = True
    has_credit: bool = True


@dataclass(frozen=True, slots=True)
class Around:
    """What the core does not know. `moving`: a seek is on its way. `failover`: only one consumer is active.

    `filtered`: the group's filter does not let the message through, which counts before its first delivery.
    """

    now_us: int
    max_in_flight: int
    place: Place = Place.STORED
    paused: bool = False
    moving: bool = False
    failover: bool = False
    filtered: bool = False
    consumers: Sequence[Consumer] = ()

    @property
    def active(self) -> list[Consumer]:
        """Those that may be given messages."""
        return [consumer for consumer in self.consumers if consumer.active]

    def name_of(self, number: int) -> str | None:
        """A consumer's name, perhaps empty; None when it has left."""
        return next((consumer.name for consumer in self.consumers if consumer.number == number), None)


class Explanation(NamedTuple):
    """`causes` is not empty, the first one is the answer; the rest is there where it belongs to one of them.

    `consumer`: who has it or had it; None also when that one has left. `attempt`: the delivery that is under way or the
    last one that failed, 0 when none was. `until_us`: when the lease or the wait ends, 0 for neither. `before`: the
    offset that goes first, with what is to be said of that one in `blocker` where it is of the same key.
    """

    causes: tuple[Cause, ...]
    consumer: str | None = None
    attempt: int = 0
    until_us: int = 0
    acked: bool = False  # SETTLING: by an ack or a reject, otherwise by a failure
    failures: tuple[Failure, ...] = ()
    before: int | None = None
    blocker: "Explanation | None" = None


def explain(core: GroupCore, offset: int, around: Around) -> Explanation:
    """Why the message is not being delivered now, or IN_LINE when it may be."""
    standing = core.standing(offset)
    if around.place not in {Place.STORED, Place.UNREADABLE}:
        return Explanation((Cause.NO_MESSAGE,))
    if around.moving:
        return Explanation((Cause.MOVING,))
    if around.filtered and standing.held is None and standing.settling is None and standing.failed is None:
        return Explanation((Cause.FILTERED,))
    if standing.settled:  # kinds of it, such as a dead letter, are looked for here
        return Explanation((Cause.SETTLED,))
    failures = standing.failed.failures if standing.failed is not None else ()
    if standing.settling is not None:
        consumer, hold, acked, _ = standing.settling
        name = around.name_of(consumer)
        return Explanation((Cause.SETTLING,), name, hold.attempt, acked=acked, failures=failures)
    if standing.held is not None:
        name, hold = around.name_of(standing.held.consumer), standing.held.hold
        return Explanation((Cause.LEASED,), name, hold.attempt, hold.deadline_us, failures=failures)
    return _held_back(core, standing, around)


def _held_back(core: GroupCore, standing: Standing, around: Around) -> Explanation:
    """Neither settled nor in anybody's hands."""
    active, failed = around.active, standing.failed
    delayed = failed is not None and failed.not_before_us > around.now_us
    parked = core.keeps_order and standing.key_known and standing.before is not None
    holds = {
        Cause.PAUSED: around.paused,
        Cause.NO_CONSUMERS: not active,
        Cause.DELAYED: delayed,
        Cause.PARKED: parked,
        Cause.MAX_IN_FLIGHT: core.in_flight >= around.max_in_flight,
        Cause.NO_CREDIT: bool(active) and not any(consumer.has_credit for consumer in active),
        # Without consumers no key is known, and that is no cause of its own.
        Cause.KEY_UNKNOWN: bool(active) and not standing.key_known,
        Cause.OUT_OF_REACH: standing.out_of_reach,
    }
    blocker = None
    if parked:
        assert standing.before is not None, "parked behind it"
        blocker = explain(core, standing.before, replace(around, filtered=False))
    return Explanation(
        tuple(cause for cause, here in holds.items() if here) or (Cause.IN_LINE,),
        attempt=failed.attempt if failed is not None else 0,
        until_us=failed.not_before_us if failed is not None and delayed else 0,
        failures=failed.failures if failed is not None else (),
        before=standing.before,
        blocker=blocker,
    )
