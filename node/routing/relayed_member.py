"""A channel of a pattern that another node serves: it asks there for credit, and gets it from its `Fan`."""

from ringpost.node.delivery.fan_session import FanSession
from ringpost.node.errors import RingpostError
from ringpost.node.groups.ranges import Range
from ringpost.node.routing.relayed import Relayed


class RelayedMember(Relayed):
    """`credit` is what is lent to it, and void once a delivery has come."""

    credit_bound = True

    @property
    def _lender(self) -> FanSession:
        assert isinstance(self.session, FanSession), "a pattern's"
        return self.session

    def room(self) -> tuple[int, int]:
        return max(self.credit.messages, 0), max(self.credit.bytes, 0)

    def advanced(self) -> None:
        """There is a loan."""
        if self.upstream is None:
            self._lender.settled(self)
        else:
            self.upstream.offer(self)

    def wants(self) -> None:
        self._lender.wants(self)

    def gave_back(self) -> None:
        self._settled()

    def put(self, message: bytes, messages: int, size: int, spans: list[Range]) -> None:
        super().put(message, messages, size, spans)
        self._settled()

    def _settled(self) -> None:
        self._lender.settled(self)
        if self.upstream is not None:
            self.upstream.void_rest()

    def lost(self, error: RingpostError) -> None:
        self.upstream = None
        self._lender.forgotten(self)  # what this leader asked for is not the next one's
        super().lost(error)
