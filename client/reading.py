"""What a subscription is asked for, checked, and the consumer that is made of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ringpost.client.admin import Groups, Start, start_of
from ringpost.client.checks import check_name, refused, text_bytes, whole
from ringpost.client.connection import Connections
from ringpost.client.consumer import Consumer
from ringpost.client.errors import AlreadyExists
from ringpost.client.modes import mode_value
from ringpost.client.options import Options
from ringpost.client.places import is_pattern
from ringpost.client.router import Router
from ringpost.client.session import Request

PREFETCH: Final = 4_000
GROUP_PREFETCH: Final = 1_000
PREFETCH_BYTES: Final = 8 * 1024 * 1024
_MAX_WINDOW = 1 << 40


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of `Client.subscription`, which describes them; `prefetch` is a number here."""

    channel: str
    group: str | None = None
    mode: str | None = None
    filter: str | None = None
    start: Start | None = None
    prefetch: int = PREFETCH
    prefetch_bytes: int = PREFETCH_BYTES
    consumer: str = ""
    heartbeat_interval: float = 10.0
    on_gap: Callable[[int, int], None] | None = None
    lease_tokens: bool = False

    def check(self) -> None:
        """Raises InvalidRequest for what cannot be asked."""
        check_name("channel", self.channel)
        if self.group:
            check_name("group", self.group)
        elif self.mode is not None:
            raise refused("mode", "says something only with a group")
        elif self.lease_tokens:
            raise refused("lease_tokens", "says something only with a group")
        if self.on_gap is not None and is_pattern(self.channel):
            raise refused("on_gap", "does not go with a pattern: it is told offsets of one channel")
        text_bytes("consumer", self.consumer)
        if self.mode == "broadcast" and not self.consumer:
            raise refused("consumer", 'is needed in mode "broadcast": it says whose place it is')
        text_bytes("filter", self.filter or "")
        whole("prefetch", self.prefetch, 1, _MAX_WINDOW)
        whole("prefetch_bytes", self.prefetch_bytes, 1, _MAX_WINDOW)
        if not 1 <= self.heartbeat_interval <= 300:
            raise refused("heartbeat_interval", f"1 to 300 seconds, not {self.heartbeat_interval}")
        start_of(self.start)

    def consumer_on(self, connections: Connections, router: Router, groups: Groups, options: Options) -> Consumer:
        """The consumer. `groups` makes the group where the start of it is given."""
        request = Request(
            channel=self.channel,
            group=self.group or "",
            mode=mode_value(self.mode),
            filter=self.filter or "",
            consumer=self.consumer,
            lease_tokens=self.lease_tokens,
            start=None if self.group and not is_pattern(self.channel) else start_of(self.start),
            window_messages=self.prefetch,
            window_bytes=self.prefetch_bytes,
            heartbeat_interval_ms=round(self.heartbeat_interval * 1000),
            connect_timeout=options.connect_timeout,
            close_timeout=options.close_timeout,
            max_lease=options.max_lease,
        )
        return Consumer(connections, router, request, prepare=self._group_maker(groups), on_gap=self.on_gap)

    def _group_maker(self, groups: Groups) -> Callable[[], Awaitable[None]] | None:
        """The protocol takes a start only from whoever makes the group, so it is made first."""
        group, start = self.group, self.start
        if not group or start is None or is_pattern(self.channel):
            return None

        async def make() -> None:
            try:
                await groups.add(self.channel, group, start=start, mode=self.mode, filter=self.filter)
            except AlreadyExists:
                return

        return make
