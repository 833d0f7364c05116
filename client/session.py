"""What a subscription asks for, and the state of one of its streams."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from ringpost.client.connection import Stream
from ringpost.client.credit import Credit
from ringpost.client.errors import RingpostError, Unavailable
from ringpost.client.router import Router
from ringpost.client.settle import Leases
from ringpost.v1 import common_pb2

_log = logging.getLogger(__name__)
# A node that has been silent for so many heartbeat intervals is gone; after fewer it is asked whether it lives.
_SILENT_INTERVALS: Final = 3
_DOUBTFUL_INTERVALS: Final = 1.2
# The same for one that owes answers to settlements, in seconds.
_OWING_S: Final = 2.0

# Each subscription has its own stream, so its id on the stream may be the same always.
SUBSCRIPTION_ID: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to subscribe to. Windows bound what is delivered and not yet consumed."""

    channel: str
    group: str = ""
    mode: common_pb2.GroupMode.ValueType = common_pb2.GROUP_MODE_UNSPECIFIED
    filter: str = ""
    consumer: str = ""
    lease_tokens: bool = False
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
        # How often leases are extended.
        self.extend_s = float("inf")
        self.last_event = monotonic()
        # Set by a drain notice: no more credit. `leaving`, set later: half-close.
        self.draining = False
        self.leaving = False
        # Whether the node itself said why the subscription ended: then it lives.
        self.told = False
        # Set when the reader has ended.
        self.error: RingpostError | None = None


class Watch:
    """Looks after a session's node until `end`: asks after it when it is silent, cuts the stream when it is gone."""

    def __init__(self, router: Router, session: Session, interval_s: float) -> None:
        """`interval_s`: between two heartbeats of the node."""
        self._router = router
        self._session = session
        self._doubtful_s = interval_s * _DOUBTFUL_INTERVALS
        self._silent_s = interval_s * _SILENT_INTERVALS
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(min(_OWING_S, self._doubtful_s), self._look)
        router.watch(session, session.stream.address, session.stream.cancel)

    def _look(self) -> None:
        session = self._session
        silent = monotonic() - session.last_event
        if silent >= self._silent_s:
            _log.warning("no heartbeat from %s; connecting again", session.stream.address)
            session.error = session.error or Unavailable("the node is silent")
            session.stream.cancel()
            return
        owing = not (session.opened and session.leases.idle)
        if silent >= self._doubtful_s or (owing and silent >= _OWING_S):
            self._router.suspect(session.stream.address)
        self._timer = self._loop.call_later(min(_OWING_S, self._doubtful_s, self._silent_s - silent), self._look)

    def end(self) -> None:
        """The stream is over."""
        self._timer.cancel()
        self._router.unwatch(self._session)
