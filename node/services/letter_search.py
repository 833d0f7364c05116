"""Finding the dead letter of one message: boxes are kept in the order of deaths, not of offsets."""

from collections.abc import Iterator

from ringpost.internal.v1.record_pb2 import DeadLetterFrame
from ringpost.node.errors import DataLoss
from ringpost.node.groups.changes import Failure
from ringpost.node.groups.explain import Letter
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import Reading
from ringpost.v1.dead_letter_pb2 import DeadLetter

READ_BYTES_MAX = 8 << 20


class LetterSearch:
    """For one answer, which reads about `READ_BYTES_MAX` of boxes at most, over all its groups."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._left = READ_BYTES_MAX
        self._found: dict[Group, DeadLetter | None] = {}
        self._unfinished: set[Group] = set()

    async def look(self, group: Group, offset: int) -> None:
        """Looks for the letter of a message that the group has settled; most deaths are in the order of offsets, so it
        begins where the letter then would be.
        """
        box = box_of(group)
        if box is None or not group.core.standing(offset).settled:
            return
        for number in _outward(await self._guess(box, offset), len(box.index)):
            if self._left <= 0:
                self._unfinished.add(group)
                return
            for letter in await self._letters(box, number):
                if letter.offset == offset and _counts(group, letter):
                    self._found[group] = letter
                    return

    async def _guess(self, box: Channel, offset: int) -> int:
        """A row whose first letter is not behind the offset, as far as the order goes."""
        low, high = 0, len(box.index)
        while high - low > 1 and self._left > 0:
            middle = (low + high) // 2
            letters = await self._letters(box, middle)
            if not letters or letters[0].offset <= offset:
                low = middle
            else:
                high = middle
        return low

    async def _letters(self, box: Channel, number: int) -> list[DeadLetter]:
        """Those of one frame, with their numbers; none of one that is gone, or cannot be read."""
        try:
            row = box.index.row(number)
            if row.lost:
                return []
            self._left -= row.length
            frame = await self._reading.frame(box, row)
        except (LookupError, DataLoss):
            return []
        letters = list(DeadLetterFrame.FromString(frame.body).letters)
        for at, letter in enumerate(letters, frame.base_offset):
            letter.number = at
        return letters

    def letter(self, group: Group) -> Letter | None:
        """What was found, if it still is so."""
        letter = self._found.get(group)
        if letter is None or group.removed or not _counts(group, letter):
            return None
        failures = tuple(Failure(one.attempt, one.time_us, one.reason) for one in letter.failures)
        return Letter(letter.number, letter.dead_time_us, letter.attempts, letter.reason, failures)

    def unfinished(self, group: Group) -> bool:
        """Whether there are letters that were not looked at."""
        return group in self._unfinished


def _counts(group: Group, letter: DeadLetter) -> bool:
    """Whether the letter is kept, and its message was not brought back by a seek since."""
    box = box_of(group)
    kept = box is not None and letter.number >= box.first_offset
    return kept and not (group.letters_gone.contains(letter.number) or group.voids.void(letter.number, letter.offset))


def _outward(start: int, count: int) -> Iterator[int]:
    """All numbers below `count`, the nearest to `start` first."""
    for distance in range(count):
        for number in {start + distance, start - distance}:
            if 0 <= number < count:
                yield number
