"""Dead letters: what a group has given up, to look at, to bring back, to drop."""

import asyncio
import builtins
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from ringpost.client.caller import Caller
from ringpost.client.checks import MAX_UINT64, check_name, refused, whole
from ringpost.v1 import dead_letter_pb2, dead_letter_pb2_grpc, group_pb2, group_pb2_grpc

_PAGE = 1_000
# A rate is kept by so many calls a second, each for its part of it.
_STEPS_A_SECOND = 10


class Redriven(NamedTuple):
    """What became of letters: messages that are pending again, and those that the channel does not keep any more."""

    redriven: int
    not_kept: int


class DeadLetters:
    """A group's dead letters, by their numbers. `filters` as in dead_letter.proto, such as "reason~timeout"."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def list(
        self,
        channel: str,
        group: str,
        *,
        first: int = 0,
        until: int | None = None,
        filters: Sequence[str] = (),
        without_message: bool = False,
    ) -> AsyncIterator[dead_letter_pb2.DeadLetter]:
        """Those from number `first` on, below `until`, that match all filters; fetched page by page.

        They come in the order in which they died. Raises `NotFound`, `InvalidRequest`.
        """
        if until is None:
            # One is asked for at least: a wrong filter is told also where there is no letter yet.
            until = max(await self._end(channel, group), first + 1)
        number = first
        while number < until:
            request = dead_letter_pb2.ListDeadLettersRequest(
                channel=channel,
                group=group,
                select=_selection(channel, group, number, until, _PAGE, filters),
                without_message=without_message,
            )
            answer = await self._caller.read(
                lambda c: dead_letter_pb2_grpc.DeadLetterServiceStub(c).ListDeadLetters, request
            )
            for letter in answer.letters:
                yield letter
            number = answer.next_number or until

    async def _end(self, channel: str, group: str) -> int:
        """Above the number of every letter that is there now."""
        check_name("channel", channel)
        check_name("group", group)
        request = group_pb2.GetGroupRequest(channel=channel, name=group)
        answer = await self._caller.read(lambda c: group_pb2_grpc.GroupServiceStub(c).GetGroup, request)
        return answer.group.next_dead_letter

    async def get(self, channel: str, group: str, number: int) -> dead_letter_pb2.DeadLetter:
        """One letter. Raises `NotFound`."""
        check_name("channel", channel)
        check_name("group", group)
        whole("number", number, 0, MAX_UINT64)
        request = dead_letter_pb2.GetDeadLetterRequest(channel=channel, group=group, number=number)
        answer = await self._caller.read(lambda c: dead_letter_pb2_grpc.DeadLetterServiceStub(c).GetDeadLetter, request)
        return answer.letter

    async def redrive(
        self,
        channel: str,
        group: str,
        *numbers: int,
        filters: Sequence[str] = (),
        rate: float | None = None,
        dry_run: bool = False,
    ) -> Redriven:
        """Makes messages pending again for this group: of these letters, or of all there are now that match.

        In the order of their offsets, so that the order of a key holds, and at most `rate` a second. What dies again
        meanwhile is left alone. Raises `NotFound`, `InvalidRequest`, `Exhausted`; what was brought back by then stays.
        """
        if rate is not None and not rate > 0:
            raise refused("rate", f"above 0, not {rate}")
        chosen = await self._chosen(channel, group, numbers, filters)
        step = _PAGE if rate is None else min(_PAGE, max(1, round(rate / _STEPS_A_SECOND)))
        redriven = not_kept = 0
        due = asyncio.get_running_loop().time()
        while chosen:
            request = dead_letter_pb2.RedriveDeadLettersRequest(
                channel=channel, group=group, numbers=chosen[:step], dry_run=dry_run
            )
            answer = await self._caller.call(
                lambda c: dead_letter_pb2_grpc.DeadLetterServiceStub(c).RedriveDeadLetters, request
            )
            redriven, not_kept = redriven + answer.redriven, not_kept + answer.not_kept
            del chosen[: answer.numbers_done]
            if rate is not None and not dry_run:
                now = asyncio.get_running_loop().time()
                due = max(due, now - 1.0) + answer.redriven / rate
                await asyncio.sleep(max(0.0, due - now))
        return Redriven(redriven, not_kept)

    async def _chosen(
        self, channel: str, group: str, numbers: Sequence[int], filters: Sequence[str]
    ) -> builtins.list[int]:
        """Numbers of letters that are there, by the offsets of their messages."""
        wanted = set(numbers)
        first, until = (min(wanted), max(wanted) + 1) if wanted else (0, None)
        letters = self.list(channel, group, first=first, until=until, filters=filters, without_message=True)
        found = [(one.offset, one.number) async for one in letters if not wanted or one.number in wanted]
        return [number for _, number in sorted(found)]

    async def drop(
        self,
        channel: str,
        group: str,
        *,
        first: int = 0,
        until: int | None = None,
        max_letters: int = 1_000,
        filters: Sequence[str] = (),
        dry_run: bool = False,
    ) -> dead_letter_pb2.DropDeadLettersResponse:
        """Removes up to `max_letters` (1 to 1,000) for good; `next_number` of the answer says where to go on.

        Raises `NotFound`, `InvalidRequest`, `Exhausted`.
        """
        request = dead_letter_pb2.DropDeadLettersRequest(
            channel=channel,
            group=group,
            select=_selection(channel, group, first, until, max_letters, filters),
            dry_run=dry_run,
        )
        return await self._caller.call(lambda c: dead_letter_pb2_grpc.DeadLetterServiceStub(c).DropDeadLetters, request)


def _selection(
    channel: str, group: str, first: int, until: int | None, max_letters: int, filters: Sequence[str]
) -> dead_letter_pb2.DeadLetterSelection:
    check_name("channel", channel)
    check_name("group", group)
    whole("first", first, 0, MAX_UINT64)
    if until is not None:
        whole("until", until, 1, MAX_UINT64)
    whole("max_letters", max_letters, 1, _PAGE)
    return dead_letter_pb2.DeadLetterSelection(
        from_number=first, until_number=until or 0, max_letters=max_letters, filters=filters
    )
