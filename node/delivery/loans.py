"""One credit lent to many. Pure.

Who has something waits for a turn. A turn is a loan of what is left, shared by all that wait, but not less than is
worth a delivery; so a busy channel never keeps the others waiting for more than one delivery each, and quiet ones cost
nothing. Invariant: what is lent and not settled is in `lent_messages` and `lent_bytes`.
"""

from collections import deque
from typing import Generic, TypeVar

from ringpost.node.delivery.credit import CreditWindow

TURN_MESSAGES = 1_000
TURN_BYTES = 256 << 10
_Name = TypeVar("_Name")


class Loans(Generic[_Name]):
    """The lender's book."""

    def __init__(self, credit: CreditWindow) -> None:
        self.credit = credit
        self.lent_messages = self.lent_bytes = 0
        self._waiting: deque[_Name] = deque()
        self._waits: set[_Name] = set()
        self._lent: dict[_Name, tuple[int, int]] = {}

    def want(self, name: _Name) -> None:
        """It has something; one that waits, or has a loan already, is noted once."""
        if name not in self._waits and name not in self._lent:
            self._waits.add(name)
            self._waiting.append(name)

    def is_lent(self, name: _Name) -> bool:
        """Whether it has a loan."""
        return name in self._lent

    @property
    def due(self) -> bool:
        """Whether `lend` would lend."""
        credit = self.credit
        return bool(self._waits) and credit.messages > self.lent_messages and credit.bytes > self.lent_bytes

    def lend(self) -> tuple[_Name, int, int] | None:
        """Who is next, and the messages and bytes that it may have; None: nobody waits, or nothing is left."""
        while self.due:
            name, waiting = self._waiting.popleft(), len(self._waits)
            if name not in self._waits:
                continue  # it has left
            self._waits.remove(name)
            messages = _share(self.credit.messages - self.lent_messages, waiting, TURN_MESSAGES)
            size = _share(self.credit.bytes - self.lent_bytes, waiting, TURN_BYTES)
            self._lent[name] = messages, size
            self.lent_messages += messages
            self.lent_bytes += size
            return name, messages, size
        return None

    def settle(self, name: _Name, messages: int, size: int) -> None:
        """The loan ends; so much of it was used. Without a loan nothing happens."""
        lent = self._lent.pop(name, None)
        if lent is not None:
            self.lent_messages -= lent[0]
            self.lent_bytes -= lent[1]
            self.credit.sent(messages, size)

    def forget(self, name: _Name) -> None:
        """It is no more; its loan must have been settled."""
        self._waits.discard(name)


def _share(left: int, waiting: int, least: int) -> int:
    return min(left, max(left // waiting, least))
