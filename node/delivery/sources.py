"""What a subscription wants next: a cursor over the channel, or leases of a group."""

from collections import deque
from typing import NamedTuple, Protocol

from ringpost.node.groups.changes import Lease
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.claims import Mint
from ringpost.node.shard.group import Group

TAKE_MAX = 10_000  # messages leased in one go


class Wanted(NamedTuple):
    """Offsets first..last, all committed. Without a group, attempt and lease_ms are 0.

    `last_reason`: why the delivery of all of them before failed; "" where none has.
    """

    first: int
    last: int
    attempt: int
    lease_ms: int
    last_reason: str = ""


class Source(Protocol):
    """Decides what comes next; `collect` asks, sends as much of it as fits, and reports."""

    def next(self, messages_max: int, now_us: int) -> Wanted | None:
        """What to send next, None when there is nothing now. Asking again gives the same until `sent`."""

    def sent(self, last: int) -> None:
        """Everything wanted up to and including `last` is on its way."""

    def close(self) -> None:
        """The subscription ends."""


class Cursor:
    """An ephemeral subscription: every message from an offset on."""

    def __init__(self, channel: Channel, offset: int) -> None:
        self._channel = channel
        self.offset = offset

    def next(self, messages_max: int, now_us: int) -> Wanted | None:  # noqa: ARG002  # time is for leases
        if self.offset >= self._channel.end_offset:
            return None
        return Wanted(self.offset, min(self._channel.end_offset, self.offset + messages_max) - 1, 0, 0)

    def skip_gap(self) -> tuple[int, int] | None:
        """Moves over what is no longer kept, or lost; the missing offsets first..last, None when nothing is missing."""
        first = self._channel.first_offset
        missing = (self.offset, first - 1) if self.offset < first else self._channel.lost_at(self.offset)
        if missing is not None:
            self.offset = missing[1] + 1
        return missing

    def sent(self, last: int) -> None:
        self.offset = last + 1

    def close(self) -> None:
        """Nothing to give back."""


class Membership:
    """A member of a group: leases messages when asked, gives them back at the end."""

    def __init__(self, group: Group, member: int, mint: Mint | None = None) -> None:
        """`mint` makes lease tokens; None: nobody asked for them."""
        self.group = group
        self.member = member
        self.mint = mint
        self._leases: deque[tuple[Lease, int]] = deque()  # not yet sent, with the time at which it ends

    @property
    def spent(self) -> bool:
        """Whether all that was leased is on its way: who takes more must let the other members have their turn."""
        return not self._leases

    def next(self, messages_max: int, now_us: int) -> Wanted | None:
        return self._next_held(messages_max, now_us) or self._next_taken(messages_max, now_us)

    def _next_held(self, messages_max: int, now_us: int) -> Wanted | None:
        """From what is leased already; passes over what was settled, trimmed, moved or has ended meanwhile."""
        while self._leases:
            lease, ends_us = self._leases[0]
            held = self.group.core.held(lease, self.member) if ends_us > now_us else None
            if held is None:
                self._leases.popleft()
                continue
            first, last = held
            self._leases[0] = (lease._replace(first=first), ends_us)
            last, reason = min(last, first + messages_max - 1), ""
            if lease.attempt > 1:
                last, reason = self.group.core.last_failure(first, last)
            return Wanted(first, last, lease.attempt, (ends_us - now_us) // 1000, reason)
        return None

    def _next_taken(self, messages_max: int, now_us: int) -> Wanted | None:
        self._take(min(messages_max, TAKE_MAX), now_us)
        return self._next_held(messages_max, now_us)

    @property
    def unsent(self) -> list[tuple[int, int]]:
        """Offsets first..last that are leased and have not left."""
        return [(lease.first, lease.last) for lease, _ in self._leases]

    def _take(self, messages_max: int, now_us: int) -> None:
        ends_us = now_us + self.group.settings.ack_deadline_ms * 1000
        self._leases.extend((lease, ends_us) for lease in self.group.take(self.member, messages_max, now_us))

    def sent(self, last: int) -> None:
        lease, ends_us = self._leases[0]
        if last >= lease.last:
            self._leases.popleft()
        else:
            self._leases[0] = (lease._replace(first=last + 1), ends_us)

    def close(self) -> None:
        self._leases.clear()
        self.group.leave(self.member)
