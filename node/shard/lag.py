"""How far a group is behind: messages (`GroupCore.pending`), bytes, and the age of its oldest unsettled message."""

from collections.abc import Iterable, Iterator
from heapq import nlargest
from itertools import islice

from ringpost.node.errors import RingpostError
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.index import Row
from ringpost.node.shard.consumers import is_broadcast
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store

# Groups that are looked at to find those that lag most, and those that are named.
GROUPS_LOOKED_AT, GROUPS_NAMED = 10_000, 50
ROWS_SUMMED_MAX = 2_048


def lagging(groups: Iterable[Group]) -> list[tuple[int, Group]]:
    """Messages not settled, and the group: those with most, and at least one. Costs no look at ranges or rows."""
    lags = ((group.core.pending(group.channel.end_offset), group) for group in islice(groups, GROUPS_LOOKED_AT))
    return [(lag, group) for lag, group in nlargest(GROUPS_NAMED, lags, key=lambda pair: pair[0]) if lag]


def served_groups(store: Store) -> Iterator[Group]:
    """Those of the shards that this node leads; groups must not be made or removed meanwhile."""
    channels = (channel for shard in store.shards if shard.serving for channel in shard.grouped.values())
    groups = (group for channel in channels for group in (channel.groups or {}).values())
    return (group for group in groups if not is_broadcast(group))


def lag_bytes(group: Group, rows_max: int = ROWS_SUMMED_MAX) -> int:
    """About how many bytes on disk the messages have that are not settled: their part of all from the oldest one on.

    Looks at `rows_max` index rows at most. Where that is too few to tell what lies between the oldest unsettled message
    and the end, messages are taken to be as large as the channel's are on average.
    """
    channel, core = group.channel, group.core
    pending, below, end = core.pending(channel.end_offset), core.settled_below, channel.end_offset
    if not pending or below >= end or not len(channel.index):
        return 0
    index, rows, stop = channel.index, len(channel.index), channel.committed_rows
    start = index.find(below)
    if stop - start <= rows_max:
        size = index.bytes_of_rows(start, stop)
    elif start + rows - stop <= rows_max:
        size = channel.stored_bytes - index.bytes_of_rows(0, start) - index.bytes_of_rows(stop, rows)
    else:
        return channel.stored_bytes * pending // (channel.next_offset - index.row(0).base)
    first = index.row(start)
    size -= first.length * (below - first.base) // (channel.end_of_row(start) - first.base)
    return size * pending // (end - below)


def known_age_us(group: Group, reading: Reading, now_us: int) -> int | None:
    """How long ago the oldest unsettled message was appended, 0 when there is none.

    None: it is in a frame that is not in memory, and was not the last time.
    """
    row = _oldest_row(group)
    if row is None:
        return 0
    if group.oldest is None or group.oldest[0] != row.base:
        frame = None if row.lost else reading.cached(row.address)
        if frame is None:
            return None
        _note(group, frame)
    assert group.oldest is not None, "known or noted"
    return max(0, now_us - group.oldest[1])


async def age_us(group: Group, reading: Reading, now_us: int) -> int | None:
    """The same, reading the frame if it must. None: it cannot be read, or is lost."""
    known = known_age_us(group, reading, now_us)
    row = _oldest_row(group)
    if known is not None or row is None or row.lost:
        return known
    try:
        _note(group, await reading.frame(group.channel, row))
    except (RingpostError, LookupError):  # damaged, which the reader has reported, or trimmed meanwhile
        return None
    return known_age_us(group, reading, now_us)


async def learn_ages(groups: Iterable[Group], reading: Reading, now_us: int) -> None:
    """So that the ages of those that lag most are known without a read."""
    for _, group in lagging(groups):
        await age_us(group, reading, now_us)


def _oldest_row(group: Group) -> Row | None:
    """Where the oldest unsettled message is; None when there is none."""
    channel, below = group.channel, group.core.settled_below
    if below >= channel.end_offset:
        return None
    try:
        return channel.index.row(channel.index.find(below))
    except LookupError:
        return None  # the channel was deleted meanwhile


def _note(group: Group, frame: CachedFrame) -> None:
    """Remembers a frame that has its oldest unsettled message: base offset and time."""
    group.oldest = (frame.base_offset, frame.time_us)
