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
from ringpost.node.groups.recent import Settler
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
    """Numbers of `ringpost.v1.Cause`, which describes them; 3 to 5 are kinds of being done with."""

    NO_MESSAGE = 1
    MOVING = 2
    DEAD_LETTER = 3
    FILTERED = 4
    EXPIRED = 5
    SETTLED = 6
    SETTLING = 7
    LEASED = 8
    PAUSED = 9
    NO_CONSUMERS = 10
    NOT_DUE = 11
    DELAYED = 12
    PARKED = 13
    MAX_IN_FLIGHT = 14
    NO_CREDIT = 15
    KEY_UNKNOWN = 16
    OUT_OF_REACH = 17
    IN_LINE = 31


_NOT_EXPIRED = {Cause.NO_MESSAGE, Cause.MOVING, Cause.SETTLED, Cause.SETTLING}


@dataclass(frozen=True, slots=True)
class Consumer:
    """A member of the group: the core's number for it, the name that it gave, whether it may be given messages."""

    number: int
    name: str
    active: bool = True
    has_credit: bool = True


class Letter(NamedTuple):
    """The dead letter of a message: its number, when it became one, after how many deliveries, why."""

    number: int
    time_us: int
    attempts: int
    reason: str
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Around:
    """What the core does not know. `moving`: a seek is on its way. `failover`: only one consumer is active.

    `letter`: the message's dead letter, `letters_unseen`: there are some that were not looked at. `settler`: who has
    settled it, where that is remembered. `expired`: the message's time to live is over.
    `next_due_us`: when the first delayed message is due; 0: none.
    `filtered`: the group's filter does not let the message through, which counts before its first delivery.
    """

    now_us: int
    max_in_flight: int
    place: Place = Place.STORED
    paused: bool = False
    moving: bool = False
    failover: bool = False
    expired: bool = False
    next_due_us: int = 0
    filtered: bool = False
    consumers: Sequence[Consumer] = ()
    letter: Letter | None = None
    letters_unseen: bool = False
    settler: Settler | None = None

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
    offset that goes first, with what is to be said of that one in `blocker` where it is of the same key. `since_us`:
    when it was settled, or became a dead letter, where that is known; `letter` is the number of that.
    """

    causes: tuple[Cause, ...]
    consumer: str | None = None
    attempt: int = 0
    until_us: int = 0
    acked: bool = False  # SETTLING: by an ack or a reject, otherwise by a failure
    failures: tuple[Failure, ...] = ()
    before: int | None = None
    blocker: "Explanation | None" = None
    since_us: int = 0
    letter: int | None = None


def explain(core: GroupCore, offset: int, around: Around) -> Explanation:
    """Why the message is not being delivered now, or IN_LINE when it may be."""
    found = _why(core, offset, around)
    if not around.expired or found.causes[0] in _NOT_EXPIRED:
        return found
    return found._replace(causes=(Cause.EXPIRED, *(cause for cause in found.causes if cause != Cause.IN_LINE)))


def _why(core: GroupCore, offset: int, around: Around) -> Explanation:
    """The same for a message that may live for ever."""
    standing = core.standing(offset)
    if around.place not in {Place.STORED, Place.UNREADABLE}:
        if around.place is Place.NOT_PUBLISHED and around.next_due_us:
            return Explanation((Cause.NO_MESSAGE, Cause.NOT_DUE), until_us=around.next_due_us)
        return Explanation((Cause.NO_MESSAGE,))
    if around.moving:
        return Explanation((Cause.MOVING,))
    untouched = standing.held is None and standing.settling is None and standing.failed is None
    known_why = standing.settled and (around.letter is not None or around.settler is not None)
    if around.filtered and untouched and not known_why:
        return Explanation((Cause.FILTERED,))
    if standing.settled:
        return _settled(around)
    failures = standing.failed.failures if standing.failed is not None else ()
    if standing.settling is not None:
        consumer, hold, acked, _ = standing.settling
        name = around.name_of(consumer)
        return Explanation((Cause.SETTLING,), name, hold.attempt, acked=acked, failures=failures)
    if standing.held is not None:
        name, hold = around.name_of(standing.held.consumer), standing.held.hold
        return Explanation((Cause.LEASED,), name, hold.attempt, hold.deadline_us, failures=failures)
    return _held_back(core, standing, around)


def _settled(around: Around) -> Explanation:
    letter, settler = around.letter, around.settler
    if letter is not None:
        number, since_us, attempts, _, failures = letter
        causes = (Cause.DEAD_LETTER,)
        return Explanation(causes, attempt=attempts, failures=failures, since_us=since_us, letter=number)
    if settler is None:
        return Explanation((Cause.SETTLED,))
    return Explanation((Cause.SETTLED,), settler.consumer, acked=not settler.rejected, since_us=settler.time_us)


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
        blocker = _why(core, standing.before, replace(around, filtered=False))
    return Explanation(
        tuple(cause for cause, here in holds.items() if here) or (Cause.IN_LINE,),
        attempt=failed.attempt if failed is not None else 0,
        until_us=failed.not_before_us if failed is not None and delayed else 0,
        failures=failed.failures if failed is not None else (),
        before=standing.before,
        blocker=blocker,
    )
