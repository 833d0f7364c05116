"""Reading stored messages: from the tail cache, from what was read lately, from the disk."""

from collections.abc import Awaitable, Callable, Sequence

from ringpost.node.errors import DataLoss, OutOfRange, Unavailable
from ringpost.node.journal.cache import CachedFrame, TailCache
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.journal.index import Row
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.sieve import Sieve

READ_AHEAD_BYTES = 256 << 10
COLD_CACHE_BYTES = 16 << 20

# Rows are (address, length). Raises FrameDamaged, OSError; FileNotFoundError when the frames were moved meanwhile.
Fetch = Callable[[Channel, list[tuple[int, int]]], Awaitable[list[CachedFrame]]]


class Reading:
    """`fetch` reads frames from the disk in a thread, checks them, and gives them in the order of the rows."""

    def __init__(self, tail: TailCache, fetch: Fetch, damaged: Callable[[Channel, str], None]) -> None:
        self._tail = tail
        self._cold = TailCache(COLD_CACHE_BYTES)
        self._fetch = fetch
        self._damaged = damaged
        self.sieve = Sieve()
        # Whether damage that was found is mended: by a whole copy on another node, which takes over soon.
        self.mends: Callable[[Channel, str], bool] = lambda *_: False

    def cached(self, address: int) -> CachedFrame | None:
        """A frame that is in memory."""
        return self._tail.get(address) or self._cold.get(address)

    async def fetch(self, channel: Channel, rows: Sequence[Row]) -> list[CachedFrame]:
        """Frames from the disk. Raises DataLoss, which is also reported to the node, and OSError."""
        try:
            frames = await self._fetch(channel, [(row.address, row.length) for row in rows])
        except FrameDamaged as error:
            self._damaged(channel, str(error))
            if self.mends(channel, str(error)):
                raise _mended(channel) from error
            raise DataLoss(
                f"channel {channel.name!r}: stored messages from offset {rows[0].base} on are damaged: {error}",
                metadata={"channel": channel.name, "offset": str(rows[0].base)},
            ) from error
        for row, frame in zip(rows, frames, strict=True):
            self._cold.put(row.address, row.length, frame)
        return frames

    async def frame(self, channel: Channel, row: Row) -> CachedFrame:
        """One frame, from wherever it is. Raises LookupError when it is gone meanwhile."""
        while True:
            if row.lost:
                raise lost(channel, row)
            cached = self.cached(row.address)
            if cached is not None:
                return cached
            try:
                return (await self.fetch(channel, [row]))[0]
            except FileNotFoundError as error:
                moved = channel.index.row(channel.index.find(row.base))
                if moved.address == row.address:
                    raise self.unreadable(channel, row, error) from error
                row = moved
            except OSError as error:
                raise self.unreadable(channel, row, error) from error

    def unreadable(self, channel: Channel, row: Row, error: OSError) -> DataLoss:
        """What a reader is told when the disk does not give a frame; the node hears of it, too."""
        why = error.strerror or str(error)
        self._damaged(channel, f"the disk cannot be read: {why}")
        return DataLoss(
            f"channel {channel.name!r}: stored messages from offset {row.base} on cannot be read: {why}",
            metadata={"channel": channel.name, "offset": str(row.base)},
        )

    async def offset_at(self, channel: Channel, time_us: int) -> int:
        """Offset of the first committed message that was appended at `time_us` or later; else the end offset."""
        while True:
            kept_from = channel.first_offset
            try:
                number = await self._first_row_at(channel, time_us)
            except LookupError:
                if channel.removed:
                    return channel.end_offset
                continue  # a trim took the frame meanwhile
            if channel.first_offset != kept_from:
                continue  # a trim shifted the rows meanwhile
            if number >= channel.committed_rows:
                return channel.end_offset
            return max(channel.index.row(number).base, kept_from)

    async def _first_row_at(self, channel: Channel, time_us: int) -> int:
        """Number of the first row of that time or later, right only if nothing was trimmed meanwhile."""
        low, high = 0, channel.committed_rows
        while low < high:
            middle = readable = (low + high) // 2
            while readable < high and channel.index.row(readable).lost:
                readable += 1  # what is lost has no time: it counts as of the time of what follows
            if readable == high:
                high = middle
                continue
            frame = await self.frame(channel, channel.index.row(readable))
            if frame.time_us < time_us:
                low = readable + 1
            else:
                high = middle
        return low


def _mended(channel: Channel) -> Unavailable:
    return Unavailable(
        f"channel {channel.name!r}: this node's copy is damaged; another node takes over", retry_after_ms=500
    )


def lost(channel: Channel, row: Row) -> DataLoss:
    """What a reader is told of messages that damage took."""
    first = max(row.base, channel.first_offset)
    _, last = channel.lost_at(first) or (first, first)
    return DataLoss(
        f"channel {channel.name!r}: the messages at offsets {first} to {last} are lost; they were damaged on disk, "
        "and the node was told to go on without them (accept_loss)",
        reason="MESSAGES_LOST",
        metadata={"channel": channel.name, "offset": str(first), "next_offset": str(last + 1)},
    )


def read_ahead(channel: Channel, row_number: int, last: int) -> list[Row]:
    """Rows from a number on that hold committed offsets up to `last`, at least one, up to 256 KiB."""
    rows: list[Row] = []
    size = 0
    for number in range(row_number, len(channel.index)):
        row = channel.index.row(number)
        beyond = row.base > last or row.base >= channel.end_offset or row.lost
        if rows and (beyond or size + row.length > READ_AHEAD_BYTES):
            break
        rows.append(row)
        size += row.length
    return rows


def check_offset(channel: Channel, offset: int, field: str) -> None:
    """Raises OutOfRange beyond the end offset."""
    if offset > channel.end_offset:
        raise OutOfRange(
            f"{field}: {offset} is beyond the end offset {channel.end_offset} of channel {channel.name!r}",
            metadata={"end_offset": str(channel.end_offset), "first_offset": str(channel.first_offset)},
        )
