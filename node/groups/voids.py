"""Which dead letters speak of messages that a seek has brought back, or settled, since. Pure."""

from collections.abc import Iterable

SEEKS_KEPT = 64


class Voids:
    """A letter dies with the seek behind it, if its message is not below where the group was moved to.

    Whether a letter is void is asked when it is to be redriven: the message was delivered anew since, and may be acked.
    Invariant: pairs (next number at the seek, offset) ascend in both.
    """

    def __init__(self, seeks: Iterable[tuple[int, int]] = ()) -> None:
        self.seeks: list[tuple[int, int]] = list(seeks)

    def sought(self, next_number: int, offset: int, first_number: int) -> None:
        """The group was moved to an offset; its letters have numbers from `first_number` to below `next_number`.

        Beyond `SEEKS_KEPT` seeks the two oldest are remembered as one, which makes some more letters void.
        """
        if next_number <= first_number:
            self.seeks = []
            return
        self.seeks = [(number, at) for number, at in self.seeks if at < offset and number > first_number]
        self.seeks.append((next_number, offset))
        if len(self.seeks) > SEEKS_KEPT:
            (_, lower), (number, _) = self.seeks[:2]
            self.seeks[:2] = [(number, lower)]

    def void(self, number: int, offset: int) -> bool:
        """Whether this letter, of the message at this offset, is void."""
        return any(number < before and offset >= at for before, at in self.seeks)
