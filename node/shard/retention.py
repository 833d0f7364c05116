"""Which messages a channel's configuration lets go."""

from ringpost.cluster.names import is_inbox
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.reading import Reading

INBOX_IDLE_US = 3_600_000_000
_ROWS_PER_PASS = 50_000  # 1 to 2 ms; more frames a second than a channel takes


def keep_from_by_size(channel: Channel, rows_max: int = _ROWS_PER_PASS) -> int:
    """The first offset to keep by number (exact) and bytes (whole frames). Pure.

    Bytes let go at most `rows_max` frames at once: the event loop must not stand still. The next pass goes on.
    """
    first = channel.first_offset
    limits = channel.limits
    if limits.retention_messages:
        first = max(first, channel.newest(limits.retention_messages))
    if limits.retention_bytes:
        excess = channel.stored_bytes - limits.retention_bytes
        count = min(channel.index.rows_for_bytes(excess, rows_max), channel.committed_rows)
        if count:
            first = max(first, channel.end_of_row(count - 1))
    return first


class IdleInboxes:
    """Finds inboxes whose clients are gone: nobody has been subscribed, and nothing been there, for an hour. Pure."""

    def __init__(self) -> None:
        self._since: dict[Channel, int] = {}

    def is_over(self, channel: Channel, now_us: int) -> bool:
        """Whether to remove it. To be asked again and again; what is no inbox never is."""
        if not is_inbox(channel.name):
            return False
        scheduled = channel.number in channel.shard.schedules
        if scheduled or channel.watchers or channel.groups or channel.first_offset < channel.next_offset:
            self._since.pop(channel, None)
            return False
        return self._since.setdefault(channel, now_us) + INBOX_IDLE_US <= now_us

    def forget_removed(self) -> None:
        """Drops what is remembered of deleted channels."""
        for channel in [channel for channel in self._since if channel.removed]:
            del self._since[channel]


class AgeRetention:
    """Retention by age. Remembers each channel's oldest time, so that a channel with nothing to drop costs no read."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._oldest: dict[Channel, tuple[int, int]] = {}

    async def keep_from(self, channel: Channel, now_us: int) -> int:
        """The first offset to keep: all frames before it are older than the configuration allows."""
        age_us = channel.limits.retention_age_ms * 1000
        if not age_us or channel.first_offset >= channel.end_offset:
            self._oldest.pop(channel, None)
            return channel.first_offset
        first, oldest_us = self._oldest.get(channel, (-1, 0))
        if first != channel.first_offset:
            first = channel.first_offset
            lost = channel.lost_at(first)
            if lost is not None and lost[1] + 1 >= channel.end_offset:
                return first  # nothing is left that has a time
            row = channel.index.row(channel.index.find(first if lost is None else lost[1] + 1))
            oldest_us = (await self._reading.frame(channel, row)).time_us
            self._oldest[channel] = (first, oldest_us)
        if oldest_us + age_us >= now_us:
            return first
        return await self._reading.offset_at(channel, now_us - age_us)

    def forget_removed(self) -> None:
        """Drops what is remembered of deleted channels."""
        for channel in [channel for channel in self._oldest if channel.removed]:
            del self._oldest[channel]
