"""What a subscription asks for, and the state of one of its streams."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from ringpost.client.connection import Stream
from ringpost.client.credit import Credit
from ringpost.client.errors import RingpostError
from ringpost.client.settle import Leases
from ringpost.v1 import common_pb2

# Each subscription has its own stream, so its id on the stream may be the same always.
SUBSCRIPTION_ID: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to subscribe to. Windows bound what is delivered and not yet consumed."""

    channel: str
    group: str = ""
    consumer: str = ""
    start: common_pb2.Start | None = None
    window_messages: int
    window_bytes: int
    heartbeat_interval_ms: int = 10_000
    connect_timeout: float
    close_timeout: float
    max_lease: float


class Session:
    """One stream's life."""

    def __init__(self, stream: Stream, credit: Credit, wake: Callable[[bool], None]) -> None:
        self.stream = stream
        self.credit = credit
        self.leases = Leases(SUBSCRIPTION_ID, wake)
        self.opened = False
        self.last_event = monotonic()
        # Set by a drain notice: no more credit. `leaving`, set later: half-close.
        self.draining = False
        self.leaving = False
        # Set when the reader has ended.
        self.error: RingpostError | None = None
