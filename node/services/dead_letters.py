"""DeadLetterService."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from ringpost.internal.v1.record_pb2 import DeadLetterFrame, LetterChange
from ringpost.node.errors import Exhausted, InvalidRequest, NotFound, RingpostError
from ringpost.node.groups.letter_filter import Matches, parse
from ringpost.node.groups.ranges import RangeSet, flatten
from ringpost.node.shard.boxes import Changed, box_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.node.status import translated
from ringpost.v1 import dead_letter_pb2 as api
from ringpost.v1.dead_letter_pb2_grpc import DeadLetterServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

LETTERS_MAX, LETTERS = 1_000, 100
RESPONSE_BYTES_MAX = 1 << 20
# A call that finds little goes on in another one: none may hold a node up, or take longer than its deadline.
LOOKED_AT_MAX, READ_BYTES_MAX = 20_000, 16 << 20
GAPS_MAX = 100_000
PAGES_KEPT = 16


class Selection(NamedTuple):
    """A checked `DeadLetterSelection`; `until` is exclusive, None without a bound."""

    first: int
    until: int | None
    letters_max: int
    matches: Matches


class Found(NamedTuple):
    """Letters in order, and the number to go on from; 0: that was all."""

    letters: list[api.DeadLetter]
    next_number: int


class DeadLetters(DeadLetterServiceServicer):
    """Finds letters in the boxes; the shard keeps and moves them."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self._store = store
        self._reading = reading

    @translated
    async def ListDeadLetters(
        self, request: api.ListDeadLettersRequest, context: Context
    ) -> api.ListDeadLettersResponse:
        selection = check_selection(request.select)
        group = self._find(request.channel, request.group)
        found = await self._search(group, selection, whole=not request.without_message)
        return api.ListDeadLettersResponse(letters=found.letters, next_number=found.next_number)

    @translated
    async def GetDeadLetter(self, request: api.GetDeadLetterRequest, context: Context) -> api.GetDeadLetterResponse:
        group = self._find(request.channel, request.group)
        number = request.number
        found = await self._search(group, Selection(number, number + 1, 1, lambda _: True), whole=True)
        if not found.letters:
            raise NotFound(
                f"number: group {group.name!r} of channel {group.channel.name!r} keeps no dead letter {number}",
                reason="DEAD_LETTER_NOT_FOUND",
                metadata={"channel": group.channel.name, "group": group.name, "number": str(number)},
            )
        return api.GetDeadLetterResponse(letter=found.letters[0])

    @translated
    async def RedriveDeadLetters(
        self, request: api.RedriveDeadLettersRequest, context: Context
    ) -> api.RedriveDeadLettersResponse:
        selection = check_selection(request.select)
        check_numbers(request)
        group = self._find(request.channel, request.group)
        if request.numbers:
            found, done = await self._pick(group, request.numbers)
        else:
            found, done = await self._search(group, selection, whole=False), 0
        kept = [letter for letter in found.letters if letter.offset >= group.channel.first_offset]
        redriven = len(kept)
        if kept and not request.dry_run:
            flat = [number for letter in kept for number in (letter.number, letter.offset)]
            redriven = (await _change(group, LetterChange(redriven=flat))).redriven
        return api.RedriveDeadLettersResponse(
            redriven=redriven,
            not_kept=len(found.letters) - len(kept),
            next_number=found.next_number,
            numbers_done=done,
        )

    @translated
    async def DropDeadLetters(
        self, request: api.DropDeadLettersRequest, context: Context
    ) -> api.DropDeadLettersResponse:
        selection = check_selection(request.select)
        group = self._find(request.channel, request.group)
        found = await self._search(group, selection, whole=False)
        dropped = len(found.letters)
        if dropped and not request.dry_run:
            numbers = RangeSet((letter.number, letter.number) for letter in found.letters)
            dropped = (await _change(group, LetterChange(dropped=flatten(numbers)))).dropped
        return api.DropDeadLettersResponse(dropped=dropped, next_number=found.next_number)

    def _find(self, channel: str, group: str) -> Group:
        return self._store.find_group(self._store.find(channel), group)

    async def _search(self, group: Group, selection: Selection, *, whole: bool) -> Found:
        """Letters that match, with their messages only if `whole`, and then about `RESPONSE_BYTES_MAX` of them."""
        box = box_of(group)
        if box is None:
            return Found([], 0)
        found: list[api.DeadLetter] = []
        number = max(selection.first, box.first_offset)
        looked = read = size = 0
        while number < _end(box, selection.until):
            if looked >= LOOKED_AT_MAX or read >= READ_BYTES_MAX:
                return Found(found, number)
            looked += 1
            await asyncio.sleep(0)  # what is cached is read without a pause, and to parse it takes its time
            page = await self._page(box, number)
            if page is None:
                lost = box.lost_at(number)
                number = max(number, box.first_offset - 1, lost[1] if lost else 0) + 1
                continue
            first, letters, length = page
            read += length
            looked += len(letters)
            stop = min(first + len(letters), _end(box, selection.until))
            for here in range(number, stop):
                letter = letters[here - first]
                if group.letters_gone.contains(here) or not selection.matches(letter):
                    continue
                size += letter.ByteSize() if whole else 0
                if len(found) == selection.letters_max or (found and size > RESPONSE_BYTES_MAX):
                    return Found(found, here)
                letter.number = here
                if not whole:
                    letter.ClearField("message")
                found.append(letter)
            number = stop
        return Found(found, 0)

    async def _pick(self, group: Group, numbers: Sequence[int]) -> tuple[Found, int]:
        """These letters, as far as they are there, without messages; and how many numbers were looked at."""
        box = box_of(group)
        found: list[api.DeadLetter] = []
        pages: deque[tuple[int, list[api.DeadLetter], int]] = deque(maxlen=PAGES_KEPT)
        read = 0
        for at, number in enumerate(numbers):
            if box is None or not box.first_offset <= number < box.end_offset or group.letters_gone.contains(number):
                continue
            page = next((page for page in pages if page[0] <= number < page[0] + len(page[1])), None)
            if page is None:
                if read >= READ_BYTES_MAX:
                    return Found(found, 0), at
                page = await self._page(box, number)
                if page is None:
                    continue
                pages.append(page)
                read += page[2]
            letter = api.DeadLetter(number=number, offset=page[1][number - page[0]].offset)
            found.append(letter)
        return Found(found, 0), len(numbers)

    async def _page(self, box: Channel, number: int) -> tuple[int, list[api.DeadLetter], int] | None:
        """The frame that has a letter: its first number, its letters, its bytes. None when it is gone, or lost."""
        try:
            row = box.index.row(box.index.find(number))
            if row.lost:
                return None
            frame = await self._reading.frame(box, row)
        except LookupError:
            return None
        return frame.base_offset, list(DeadLetterFrame.FromString(frame.body).letters), row.length


def _end(box: Channel, until: int | None) -> int:
    return box.end_offset if until is None else min(until, box.end_offset)


async def _change(group: Group, letters: LetterChange) -> Changed:
    """Raises the definite errors, and Unavailable when the outcome is open."""
    if len(group.letters_gone) >= GAPS_MAX:
        raise Exhausted(
            f"the dead letters of group {group.name!r} have too many gaps; drop some from the low end first",
            reason="DEAD_LETTERS_SCATTERED",
        )
    done: asyncio.Future[Changed] = asyncio.get_running_loop().create_future()

    def reply(outcome: Changed | RingpostError) -> None:
        if done.done():
            return
        if isinstance(outcome, RingpostError):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)

    change(group, letters, reply)
    return await done


def check_numbers(request: api.RedriveDeadLettersRequest) -> None:
    """Raises InvalidRequest naming the field."""
    if len(request.numbers) > LETTERS_MAX:
        raise InvalidRequest.of("numbers", f"has {len(request.numbers)} numbers, allowed are {LETTERS_MAX}")
    if request.numbers and request.HasField("select"):
        raise InvalidRequest.of("numbers", "is set, so select must not be")


def check_selection(select: api.DeadLetterSelection) -> Selection:
    """Raises InvalidRequest naming the field."""
    if select.max_letters > LETTERS_MAX:
        raise InvalidRequest.of(
            "select.max_letters", f"is {select.max_letters}, allowed are 1 to {LETTERS_MAX}, or 0 for {LETTERS}"
        )
    if select.until_number and select.until_number <= select.from_number:
        raise InvalidRequest.of(
            "select.until_number", f"is {select.until_number}, not above from_number {select.from_number}"
        )
    matches: Callable[[api.DeadLetter], bool] = parse(select.filters, "select.filters")
    return Selection(select.from_number, select.until_number or None, select.max_letters or LETTERS, matches)
