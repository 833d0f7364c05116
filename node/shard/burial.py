"""What a group gives up waits here until its dead letter is stored; the queue of each group, and who writes from it."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ringpost.node.errors import RingpostError
from ringpost.node.groups.changes import Dying, Outcome, SettleChange

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group

Results = list[tuple[int, int, Outcome]]
SettleReply = Callable[[Results | RingpostError], None]


class Answer:
    """The reply to a settlement whose parts are stored in several frames: called once, with the first error if any."""

    __slots__ = ("_error", "_parts", "_reply", "_results")

    def __init__(self, reply: SettleReply | None, parts: int) -> None:
        self._reply = reply
        self._parts = parts
        self._error: RingpostError | None = None
        self._results: Results = []

    def expect(self) -> None:
        """There is one more part."""
        self._parts += 1

    def __call__(self, outcome: Results | RingpostError) -> None:
        """One part has ended."""
        self._parts -= 1
        if isinstance(outcome, RingpostError):
            self._error = self._error or outcome
        else:
            self._results = outcome
        if self._parts == 0 and self._reply is not None:
            self._reply(self._error or self._results)


class Burial:
    """What one settlement gives up. `dying` shrinks from the left; `tickets` are those of its change."""

    __slots__ = ("answer", "dying", "results", "tickets")

    def __init__(self, change: SettleChange, results: Results, answer: Answer) -> None:
        self.dying = deque(change.dying)
        self.tickets = change.tickets
        self.results = results
        self.answer = answer

    def change(self, dying: Sequence[Dying]) -> SettleChange:
        """A part of the change, to be aborted."""
        return SettleChange(dying=list(dying), tickets=self.tickets)


class Part(NamedTuple):
    """What of a burial is in one frame."""

    burial: Burial
    dying: list[Dying]


class Burials:
    """One a node. `write` is called for a group that has begun to have something to bury, and until it has `ended`."""

    def __init__(self) -> None:
        self.write: Callable[[Group], None] = _nobody
        self.letters = 0  # dead letters stored since the start

    def add(self, group: "Group", change: SettleChange, results: Results, reply: SettleReply | None) -> SettleReply:
        """Takes what a change gives up. Returns what is to be called when the rest of it, if any, is stored."""
        rest = bool(change.acked or change.rejected or change.retries)
        answer = Answer(reply, 1 + rest)
        group.dying.append(Burial(change, results, answer))
        if not group.burying:
            group.burying = True
            self.write(group)
        return answer

    def fail(self, group: "Group", error: RingpostError) -> None:
        """Nothing that waits comes about: leases are as they were."""
        waiting, group.dying = group.dying, deque()
        for burial in waiting:
            group.core.abort(burial.change(burial.dying))
            burial.answer(error)

    def forget(self, group: "Group") -> None:
        """The group is gone."""
        waiting, group.dying = group.dying, deque()
        for burial in waiting:
            burial.answer([(first, last, Outcome.UNKNOWN) for first, last, _ in burial.results])


def first_dying(group: "Group", limit: int) -> list[tuple[int, Dying, Burial]]:
    """The offsets that are to be buried next, in order."""
    found: list[tuple[int, Dying, Burial]] = []
    for burial in group.dying:
        for dying in burial.dying:
            end = min(dying.last, dying.first + limit - len(found) - 1)
            found += [(offset, dying, burial) for offset in range(dying.first, end + 1)]
            if len(found) == limit:
                return found
    return found


def take(group: "Group", count: int) -> list[Part]:
    """Takes the first `count` offsets out of what waits; their frame is one more part of the answers."""
    parts: list[Part] = []
    while count:
        burial = group.dying[0]
        part = Part(burial, [])
        while count and burial.dying:
            dying = burial.dying.popleft()
            last = min(dying.last, dying.first + count - 1)
            part.dying.append(dying._replace(last=last))
            count -= last - dying.first + 1
            if last < dying.last:
                burial.dying.appendleft(dying._replace(first=last + 1))
        parts.append(part)
        burial.answer.expect()
        if not burial.dying:
            group.dying.popleft()
            burial.answer(burial.results)
    return parts


def _nobody(group: "Group") -> None:
    raise AssertionError(f"nobody buries what group {group.name!r} gives up")
