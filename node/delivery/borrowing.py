"""A subscription that is one of many of a pattern: it has no credit of its own, and asks for it when it needs some.

The many share what their client has granted. Credit that lies with a quiet channel is lost to the others, so none
does: who has something (with a filter: has found something) asks (a delivery without batches), is lent credit (a grant
as always), and answers each loan with exactly one delivery. What that leaves of the loan is void; a batch without
messages gives it back whole. An asking and a loan may cross: both sides then wait for the answer to the loan.
"""

from typing import TYPE_CHECKING

from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.encode import deliver, piece
from ringpost.node.delivery.filtered import FilteredCursor, look_ahead
from ringpost.node.delivery.sources import Cursor, Membership
from ringpost.node.delivery.subscription import Subscription

if TYPE_CHECKING:
    from ringpost.node.delivery.session import Session

_NOTHING = piece(b"", first_offset=0, count=0, time_us=0, crc=0)


class Borrowing(Subscription):
    """`_asked`: it has said that it has something, and no loan came since. `_news`: its group may have something."""

    __slots__ = ("_asked", "_news")

    def __init__(self, session: "Session", number: int, consumer: str, credit: CreditWindow) -> None:
        super().__init__(session, number, consumer, credit)
        self._asked = False
        self._news = True

    def advanced(self) -> None:
        self._news = True
        if self.queued or self._reading or self.source is None:
            return
        if self.credit.open or (not self._asked and self.has_news):
            self.queued = True
            self.session.ready(self)

    @property
    def has_news(self) -> bool:
        """Whether there is something to send, as far as can be told without leasing it."""
        if isinstance(self.source, Cursor) and self.channel is not None:
            return self.source.offset < self.channel.end_offset
        return self._news and self.source is not None

    @property
    def has_credit(self) -> bool:
        return self.credit.open or not self._asked

    @property
    def waits(self) -> bool:
        """Whether the loan stays until something is read, or until this node surely leads; `ready` follows."""
        if self._reading:
            return True
        source = self.source
        return isinstance(source, Membership) and not self.hub.may_deliver(source.group.channel.shard.number)

    def collect(self, bytes_max: int, now_us: int) -> bytes | None:
        """The answer to a loan, or the wish for one."""
        if self.credit.open:
            message = self.take(bytes_max, now_us)
            if message is None and self.waits:
                return None
            self._asked = False
            return message or deliver(self.number, (_NOTHING,))
        if self._asked or not self.has_news or not self._finds_something(now_us):
            return None
        self._asked = True
        return deliver(self.number, ())

    def _finds_something(self, now_us: int) -> bool:
        """With a filter: whether the next message is found; if not, and there may be one, its turn to look comes."""
        source = self.source
        if not isinstance(source, FilteredCursor):
            return True
        if self._reading:
            return False
        found = look_ahead(self, source, now_us, may_skip=True)
        if not found and not self.has_news:
            self._pinned.clear()
        return found

    def take(self, bytes_max: int, now_us: int) -> bytes | None:
        """What there is within the loan, which ends with that; None: nothing, or it `waits` and the loan stays."""
        self._news = False
        message = super().collect(bytes_max, now_us)
        if message is None and self.waits:
            return None
        self._news = self._news or message is not None
        self.credit.grant(self.credit.sent_messages, self.credit.sent_bytes)
        return message
