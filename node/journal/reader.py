"""Cold reads: frames of one channel from the disk, neighbours joined into one read.

`plan_reads` is pure. `read_frames` blocks and belongs in a thread; `ColdReader` has the threads.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import DATA_TYPES, FRAME_OVERHEAD, Buffer, FrameDamaged, FrameType, decode_frame
from ringpost.node.journal.segment import offset_of, segment_of

JournalRead = Callable[[int, int], bytes]
"""(address, size) -> the bytes there, of one segment; fewer only at its end. Blocks; any thread; may raise OSError."""

_BATCHES = DATA_TYPES | {FrameType.SCHEDULE}

# Frames of many channels lie between each other: reading over some is cheaper than a read for each of ours.
_SPAN_FACTOR_MAX = 4


class FrameDamagedAt(FrameDamaged):
    """The bytes at `address` are not the frame that the index promises there."""

    def __init__(self, address: int, reason: object) -> None:
        super().__init__(f"frame at {address:#x} (segment {segment_of(address)}, byte {offset_of(address)}): {reason}")
        self.address = address


class PlannedRead(NamedTuple):
    """One read of `length` bytes at `address`, all in one segment, that holds the frames `first` <= row < `stop`."""

    address: int
    length: int
    first: int
    stop: int


def plan_reads(rows: Sequence[tuple[int, int]], max_bytes: int = 262_144) -> list[PlannedRead]:
    """Joins rows (address, length) that follow each other on the disk; keeps their order and leaves none out.

    A read spans at most `max_bytes`, unless a single frame is larger, and at most four times the bytes wanted in it.
    A row that lies before its predecessor (one of them was rewritten) begins a new read.
    """
    reads: list[PlannedRead] = []
    first = wanted = start = end = 0
    for number, (address, length) in enumerate(rows):
        span = address + length - start
        joins = (
            number > first
            and address >= end
            and segment_of(address) == segment_of(start)
            and span <= min(max_bytes, _SPAN_FACTOR_MAX * (wanted + length))
        )
        if not joins:
            if number:
                reads.append(PlannedRead(start, end - start, first, number))
            first, start, wanted = number, address, 0
        wanted += length
        end = address + length
    if rows:
        reads.append(PlannedRead(start, end - start, first, len(rows)))
    return reads


def read_frames(
    journal_read: JournalRead, rows: Sequence[tuple[int, int]], *, owner: tuple[int, int] | None = None
) -> list[CachedFrame]:
    """The frames with batches at the rows (address, length), in their order, every byte of them verified. Blocks.

    With `owner` (shard, channel) each frame must also name it: that finds reads and rows gone astray.
    Raises FrameDamagedAt, or OSError when the disk cannot read.
    """
    frames: list[CachedFrame] = []
    for read in plan_reads(rows):
        data = journal_read(read.address, read.length)
        for address, length in rows[read.first : read.stop]:
            frames.append(_frame(data, address - read.address, address, length, owner))
    return frames


def read_raw_frames(journal_read: JournalRead, rows: Sequence[tuple[int, int]]) -> bytes:
    """The frames of the rows (address, length), as they stand in the journal, every byte of them verified. Blocks."""
    parts: list[bytes] = []
    for read in plan_reads(rows):
        data = journal_read(read.address, read.length)
        for address, length in rows[read.first : read.stop]:
            at = address - read.address
            try:
                decode_frame(data, at)
            except FrameDamaged as error:
                raise FrameDamagedAt(address, error) from error
            parts.append(data[at : at + length])
    return b"".join(parts)


def _frame(data: Buffer, at: int, address: int, length: int, owner: tuple[int, int] | None) -> CachedFrame:
    try:
        header, body = decode_frame(data, at)
    except FrameDamaged as error:
        raise FrameDamagedAt(address, error) from error
    if header.type not in _BATCHES or len(body) + FRAME_OVERHEAD != length:
        raise FrameDamagedAt(address, f"type {header.type} of {len(body) + FRAME_OVERHEAD} bytes, not DATA of {length}")
    if owner is not None and owner != (header.shard, header.channel):
        raise FrameDamagedAt(address, f"it belongs to channel {header.channel} of shard {header.shard}, not {owner}")
    return CachedFrame(
        header.base_offset,
        header.count,
        header.time_us,
        header.body_crc,
        body,
        header.producer,
        header.base_sequence if header.producer else 0,
        header.ttl_ms,
    )


class ColdReader:
    """`read_frames` in a few threads of its own, for the event loop. A read waits while all of them are busy."""

    def __init__(self, journal_read: JournalRead, threads: int = 2) -> None:
        """`threads` >= 1; they start when first needed."""
        self._journal_read = journal_read
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="journal-read")

    async def read(self, rows: Sequence[tuple[int, int]], *, owner: tuple[int, int] | None = None) -> list[CachedFrame]:
        """As `read_frames`. The caller bounds the rows: all of their bytes are in memory at once."""
        work = partial(read_frames, self._journal_read, rows, owner=owner)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def read_raw(self, rows: Sequence[tuple[int, int]]) -> bytes:
        """Whole frames of any type, verified, one behind another. Raises as `read_frames`."""
        work = partial(read_raw_frames, self._journal_read, rows)
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Drops the reads that wait and returns when those under way are done; before the segments are closed."""
        self._pool.shutdown(wait=True, cancel_futures=True)
