"""An explanation as one sentence for people. Pure."""

from datetime import UTC, datetime
from typing import NamedTuple

from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.explain import Around, Cause, Explanation, Place

_OF_GROUP = {Cause.PAUSED, Cause.NO_CONSUMERS, Cause.MAX_IN_FLIGHT, Cause.NO_CREDIT}
_PLAIN = {
    Cause.EXPIRED: "has expired: its time to live is over, so it is settled undelivered when it would be its turn",
    Cause.MOVING: "waits for a seek of the group that is on its way to the log",
    Cause.PAUSED: "is held back because the group is paused",
    Cause.NO_CONSUMERS: "waits for a consumer, of which the group has none",
    Cause.OUT_OF_REACH: "waits because the settled messages lie in too many pieces: the group turns to its gaps first",
}


def sentence(core: GroupCore, offset: int, around: Around, found: Explanation) -> str:
    """What `explain` found, with everything that holds."""
    told = ", and ".join(_clause(cause, _Case(core, offset, around, found)) for cause in found.causes)
    done_with = {Cause.NO_MESSAGE, Cause.DEAD_LETTER, Cause.FILTERED, Cause.SETTLED}
    if around.failover and around.active and found.causes[0] not in done_with:
        told += f"; the active consumer is {_named(around.active[0].name)}"
    return f"It {told}."


def place_sentence(place: Place, first_offset: int, next_offset: int) -> str:
    """Where a message is, in a channel whose oldest kept message and next one have these offsets."""
    match place:
        case Place.STORED:
            return "It is committed and kept."
        case Place.NOT_COMMITTED:
            return "It is appended and not committed yet: it waits for the disks of the in-sync nodes."
        case Place.NOT_PUBLISHED:
            return f"Nobody has published it yet: the next message gets offset {next_offset}."
        case Place.REMOVED:
            return f"It is no longer kept: retention or a purge has removed what is below offset {first_offset}."
        case Place.LOST:
            return "It is lost: it was damaged on disk, and the node was told to go on without it (accept_loss)."
        case Place.UNREADABLE:
            return "It is committed and kept, but its bytes on disk cannot be read now; the owner's log says why."


class _Case(NamedTuple):
    core: GroupCore
    offset: int
    around: Around
    found: Explanation

    @property
    def why(self) -> str:
        """The reason of the last failure in brackets, if one is remembered and not empty."""
        reason = self.found.failures[-1].reason if self.found.failures else ""
        return f" ({reason})" if reason else ""


def _clause(cause: Cause, case: _Case) -> str:
    """A part of a sentence that begins with "It" or "which"."""
    found, around = case.found, case.around
    match cause:
        case Cause.NO_MESSAGE:
            return _no_message(around.place)
        case Cause.DEAD_LETTER | Cause.FILTERED | Cause.SETTLED:
            return {Cause.DEAD_LETTER: _dead_letter, Cause.FILTERED: _filtered, Cause.SETTLED: _settled}[cause](case)
        case Cause.SETTLING:
            what = "was acked or rejected" if found.acked else "has failed"
            return f"{what} in delivery {found.attempt} to {_named(found.consumer)}; that is on its way to the log"
        case Cause.LEASED:
            return _leased(case)
        case Cause.NOT_DUE | Cause.DELAYED:
            return _until(cause, case)
        case Cause.PARKED:
            return _parked(case)
        case Cause.MAX_IN_FLIGHT:
            out = f"{case.core.in_flight:,} messages are out"
            return f"waits because {out}, and the group's max_in_flight is {around.max_in_flight:,}"
        case Cause.NO_CREDIT:
            return _no_credit(around)
        case Cause.KEY_UNKNOWN:
            return _key_unknown(case)
        case Cause.IN_LINE:
            return _in_line(case)
        case _:
            return _PLAIN[cause]


def _until(cause: Cause, case: _Case) -> str:
    time = show_clock(case.found.until_us)
    if cause is Cause.NOT_DUE:
        return f"may become one of the channel's delayed messages, the first of which is due at {time}"
    return f"waits until {time} because delivery {case.found.attempt} failed{case.why}"


def _no_message(place: Place) -> str:
    match place:
        case Place.REMOVED:
            return "counts as settled, since it is no longer kept"
        case Place.LOST:
            return "is lost, and counts as settled when it is its turn"
        case Place.NOT_COMMITTED:
            return "is not committed yet"
        case _:
            return "is not published yet"


def _dead_letter(case: _Case) -> str:
    letter = case.around.letter
    assert letter is not None, "it is one"
    how = f"given up after delivery {letter.attempts}" if letter.attempts else "rejected by somebody without its lease"
    reason = f" ({letter.reason})" if letter.reason else ""
    return f"is dead letter {letter.number} since {show_clock(letter.time_us)}: {how}{reason}; a redrive brings it back"


def _filtered(case: _Case) -> str:
    why = "is filtered out: the group's filter does not let it through"
    if case.core.standing(case.offset).settled:
        return f"{why}, so it is settled, unless it was for another reason before the group had that filter"
    return f"{why}; it is settled when the group comes to it"


def _settled(case: _Case) -> str:
    settler, unseen = case.around.settler, ""
    if settler is not None:
        by = "somebody without a stream" if settler.consumer is None else _named(settler.consumer)
        return f"is settled: {'rejected' if settler.rejected else 'acked'} by {by} at {show_clock(settler.time_us)}"
    if case.around.letters_unseen:
        unseen = "; there are dead letters that were not looked at, and it may be one of them"
    return _settled_somehow(case) + unseen


def _settled_somehow(case: _Case) -> str:
    below, rejected = case.core.settled_below, case.core.rejected
    how = f"acked, or rejected or given up as {rejected:,} were" if rejected else "acked"
    if case.offset >= below:
        return f"is settled: {how}; by whom and when is not remembered"
    how += ", or below the place where the group began or was moved to"
    return f"is settled, like all below offset {below}: {how}; which of these, by whom and when is not remembered"


def _leased(case: _Case) -> str:
    found = case.found
    before = f"; delivery {found.failures[-1].attempt} failed{case.why}" if found.failures else ""
    whose, until = f"leased to {_named(found.consumer)} (delivery {found.attempt}{before})", show_clock(found.until_us)
    if found.until_us <= case.around.now_us:
        return f"was {whose} until {until}; the lease has ended and is being taken back"
    return f"is {whose} until {until}"


def _key_unknown(case: _Case) -> str:
    before = case.found.before
    if case.core.stalled:
        which = "its key" if before == case.offset else f"the key of offset {before}"
        return f"waits until the group has looked again at {which}: a message came back, and nothing may overtake it"
    return f"is not looked at yet: the group knows the keys of what is below offset {before}"


def _parked(case: _Case) -> str:
    before, blocker = case.found.before, case.found.blocker
    assert before is not None, "parked behind it"
    assert blocker is not None, "of the same key"
    # What holds back the whole group is not told of both.
    own = next((cause for cause in blocker.causes if cause not in _OF_GROUP), Cause.IN_LINE)
    told = _clause(own, case._replace(offset=before, found=blocker))
    return f"is parked behind offset {before} of its key, which {told}"


def _no_credit(around: Around) -> str:
    if len(around.active) == 1:
        return f"waits for credit: {_named(around.active[0].name)} takes no more for now"
    return f"waits for credit: none of the {len(around.active):,} consumers takes more for now"


def _in_line(case: _Case) -> str:
    found = case.found
    if found.before is not None:
        return f"goes out in its turn; the first in line is offset {found.before}"
    again = f": delivery {found.attempt} failed{case.why}, and its wait is over" if found.attempt else ""
    return f"is next{again}"


def _named(consumer: str | None) -> str:
    """A consumer for people."""
    if consumer is None:
        return "a consumer that has left"
    return consumer or "a consumer without a name"


def show_clock(time_us: int) -> str:
    """A time for people, UTC."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
