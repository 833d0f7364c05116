"""The session that the channels of a pattern have: it has no stream, and says everything to its `Fan`."""

from typing import TYPE_CHECKING

from ringpost.node.access.caller import Caller
from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.flow import Flow
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import Session
from ringpost.node.delivery.subscription import Subscription
from ringpost.node.errors import RingpostError
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import OpenSubscription, SubscribeResponse

if TYPE_CHECKING:
    from ringpost.node.delivery.fan import Fan


class FanMember:
    """One channel. `position`: where reading goes on, None where only its leader knows. `stood`: it was read once.

    `sent_…`: what its subscription had been sent when its loan began.
    """

    __slots__ = ("name", "number", "position", "retry_s", "sent_bytes", "sent_messages", "start", "stood")

    def __init__(self, name: str, start: Start) -> None:
        self.name = name
        self.number = 0
        self.start = start
        self.position: int | None = None
        self.stood = False
        self.retry_s = 0.05
        self.sent_messages = self.sent_bytes = 0


class FanSession(Session):
    """`members`: by the numbers of their subscriptions."""

    __slots__ = ("_fan", "_numbers", "members")

    def __init__(self, hub: Hub, caller: Caller, fan: "Fan") -> None:
        super().__init__(hub, caller)
        self._fan = fan
        self._numbers = 0
        self.members: dict[int, FanMember] = {}

    def open(self, member: FanMember, command: OpenSubscription) -> None:
        """Begins a member's subscription, without credit."""
        self._numbers += 1
        member.number = command.subscription_id = self._numbers
        self.members[member.number] = member
        self.begin(command, CreditWindow())

    def drop(self, member: FanMember) -> None:
        """Ends it without a word."""
        flow = self.subscriptions.get(member.number)
        if flow is not None:
            self._forget(flow)
        self.members.pop(member.number, None)

    # -- what a session does ----------------------------------------------------------------------------------------

    def serve(self, command: OpenSubscription, credit: CreditWindow, *, told: bool = False) -> None:
        self._handed_over(command)
        super().serve(command, credit, told=told)

    def _relay(self, command: OpenSubscription, credit: CreditWindow, *, told: bool = False) -> None:
        self._handed_over(command)
        super()._relay(command, credit, told=told)

    def _handed_over(self, command: OpenSubscription) -> None:
        """Another subscription takes over a member's number: what was lent to the one before is void."""
        command.pattern = self._fan.pattern
        flow = self.subscriptions.get(command.subscription_id)
        if flow is not None:
            self._fan.forgotten(flow)

    def _forget(self, subscription: Flow) -> None:
        self._fan.forgotten(subscription)
        super()._forget(subscription)

    def ready(self, subscription: Flow) -> None:
        self._fan.ready(subscription)

    def wants(self, flow: Flow) -> None:
        """A member that is relayed has something, and no credit."""
        self._fan.wants(flow.number)

    def settled(self, flow: Flow) -> None:
        """Its loan has ended."""
        self._fan.settled(flow)

    def forgotten(self, flow: Flow) -> None:
        """It has lost its leader: what it was lent is void, and what it asked for, too."""
        self._fan.forgotten(flow)

    def put(self, message: bytes) -> None:
        response = SubscribeResponse.FromString(message)
        number = response.deliver.subscription_id or response.gap.subscription_id
        self._fan.pass_on(number, message)

    def send(self, message: SubscribeResponse) -> None:
        member = self.members.get(message.opened.subscription_id)
        if member is not None:
            self._fan.stands(member, message.opened)

    def gap(self, subscription: Subscription, missing: tuple[int, int]) -> None:
        self._fan.gap(self.members[subscription.number], *missing)

    def send_closed(self, number: int, error: RingpostError | None) -> None:
        member = self.members.pop(number, None)
        if member is not None and error is not None:
            self._fan.ended(member, error)

    # -- what its client's session does for it ----------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """There is no stream to keep alive."""

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """The client is told by its own session."""

    def end_unavailable(self, message: str) -> None:
        """It ends with its client's session."""

    def check_access(self) -> None:
        """See `Fan.recheck`."""
