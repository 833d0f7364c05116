"""One credit lent to many. Pure.

Who has something waits for a turn. A turn is a loan of about as much as one delivery takes, or of what is left; so a
busy channel keeps the others waiting for one delivery each at most, and quiet ones cost nothing. Invariants: what is
lent is within the credit, in messages and bytes; and with what has come and not left it is within the window, in bytes,
so that a client that does not read costs no more than that.
"""

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from ringpost.node.delivery.credit import CreditWindow

TURN_MESSAGES = 1_000
TURN_BYTES = 1 << 20
_Name = TypeVar("_Name")


class _Loan(NamedTuple):
    messages: int
    size: int
    since: float


class Loans(Generic[_Name]):
    """The lender's book. `held_bytes`: what has come and not left, as its user says."""

    def __init__(self, credit: CreditWindow, window_bytes: int) -> None:
        self.credit = credit
        self.window_bytes = window_bytes
        self.lent_messages = self.lent_bytes = self.held_bytes = 0
        self._waiting: deque[_Name] = deque()
        self._waits: set[_Name] = set()
        self._lent: dict[_Name, _Loan] = {}

    def want(self, name: _Name) -> None:
        """It has something; one that waits, or has a loan already, is noted once."""
        if name not in self._waits and name not in self._lent:
            self._waits.add(name)
            self._waiting.append(name)

    def is_lent(self, name: _Name) -> bool:
        """Whether it has a loan."""
        return name in self._lent

    @property
    def any_lent(self) -> bool:
        """Whether there are loans."""
        return bool(self._lent)

    def overdue(self, before: float) -> list[_Name]:
        """Whose loans were given before that time, the oldest first."""
        return [name for name, loan in self._lent.items() if loan.since < before]

    @property
    def _left(self) -> tuple[int, int]:
        size = min(self.credit.bytes, self.window_bytes - self.held_bytes) - self.lent_bytes
        return self.credit.messages - self.lent_messages, size

    @property
    def due(self) -> bool:
        """Whether `lend` would lend."""
        return bool(self._waits) and min(self._left) > 0

    def lend(self, now: float) -> tuple[_Name, int, int] | None:
        """Who is next, and the messages and bytes that it may have; None: nobody waits, or nothing is left."""
        while self.due:
            name = self._waiting.popleft()
            if name not in self._waits:
                continue  # it has left
            self._waits.remove(name)
            messages, size = self._left
            loan = _Loan(min(messages, TURN_MESSAGES), min(size, TURN_BYTES), now)
            self._lent[name] = loan
            self.lent_messages += loan.messages
            self.lent_bytes += loan.size
            return name, loan.messages, loan.size
        return None

    def settle(self, name: _Name, messages: int, size: int) -> None:
        """The loan ends; so much of it was used. Without a loan nothing happens."""
        lent = self._lent.pop(name, None)
        if lent is not None:
            self.lent_messages -= lent.messages
            self.lent_bytes -= lent.size
            self.credit.sent(messages, size)

    def forget(self, name: _Name) -> None:
        """It is no more; its loan must have been settled."""
        self._waits.discard(name)
