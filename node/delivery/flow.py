"""A subscription as its session sees it, whether this node serves it or relays it, and the border to what relays."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ringpost.node.access.caller import Caller
from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.errors import NotLeader, RingpostError
from ringpost.node.groups.changes import Outcome
from ringpost.v1.subscribe_pb2 import OpenSubscription, Settle

if TYPE_CHECKING:
    from ringpost.node.delivery.session import Session

SettleReply = Callable[[list[tuple[int, int, Outcome]] | RingpostError], None]


class Flow(Protocol):
    """One subscription of a session."""

    number: int
    credit: CreditWindow
    queued: bool  # waits for its turn in the session

    @property
    def grouped(self) -> bool:
        """Whether it stands and is a member of a group."""

    @property
    def takes_turns(self) -> bool:
        """Whether it sends one delivery a round, because others want a share of the same messages."""

    def advanced(self) -> None:
        """There may be something to send, or room to send it."""

    def collect(self, bytes_max: int, now_us: int) -> bytes | None:
        """One encoded delivery of about `bytes_max`, None when there is nothing to send now."""

    def settle(self, settle: Settle, reply: SettleReply) -> None:
        """Settles for a `grouped` one; the command is checked. `reply` is called once."""

    def close(self) -> None:
        """The end; nothing more is sent."""


class RelayedFlow(Flow, Protocol):
    """A subscription that another node serves."""

    def start(self) -> None:
        """To be called once the session knows it."""


@runtime_checkable
class PatternFlow(Flow, Protocol):
    """A subscription of many channels."""

    def start(self) -> None:
        """To be called once the session knows it."""

    def recheck(self, caller: Caller) -> None:
        """What its client may do has changed: channels that it may not read leave, others come."""


class Relay(Protocol):
    """What a session needs to know of other nodes."""

    @property
    def full(self) -> bool:
        """Whether so many commands wait for a peer that no more may be read; `Hub.made_room` follows."""

    def serves(self, channel: str) -> bool:
        """Whether this node leads the channel's shard, or the name is so wrong that it does not matter."""

    def refusal(self, channel: str) -> NotLeader:
        """Why it does not."""

    def make(self, session: "Session", command: OpenSubscription, credit: CreditWindow, *, told: bool) -> RelayedFlow:
        """A subscription that another node is to serve. `told`: the client knows already that it stands."""
