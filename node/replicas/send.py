"""Sending a whole shard to a replica that is behind the log."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from ringpost.internal.v1.peer_pb2 import Fetch, SnapshotPart
from ringpost.internal.v1.record_pb2 import ChannelTrim
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.journal.index import Row
from ringpost.node.journal.reader import ColdReader
from ringpost.node.replicas.outbox import ToFollower
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.scheduling import Schedule
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.snapshot import snapshot_shard

_CHUNK_BYTES = 256 << 10
_ROOM_S = 0.005


class SnapshotStale(Exception):  # noqa: N818
    """Nobody waits for the snapshot any more."""


async def send_snapshot(
    shard: Shard, fetch: Fetch, epoch: int, reader: ColdReader, box: ToFollower, wanted: Callable[[], bool]
) -> None:
    """Sends the committed state, then the frames of all kept messages. One part at a time waits in the box.

    `wanted` tells whether the follower still waits for it. Raises SnapshotStale, OSError or FrameDamaged when it
    cannot, or need not, be completed.
    """
    snapshot = snapshot_shard(shard)
    channels = [(shard.channels[row.channel], row.first_offset, row.end_offset) for row in snapshot.channels]
    schedules = [shard.schedules[row.channel] for row in snapshot.schedules]
    for row in snapshot.channels:
        row.index = b""
    for scheduled in snapshot.schedules:
        scheduled.entries = b""
    number = frames = 0

    async def put(**part: Any) -> None:
        nonlocal number
        while box.snapshot_waiting and wanted():
            await asyncio.sleep(_ROOM_S)
        if not wanted():
            raise SnapshotStale("the follower does not wait for it any more")
        box.snapshot(SnapshotPart(shard=shard.number, epoch=epoch, fetch_id=fetch.fetch_id, number=number, **part))
        number += 1

    await put(begin=snapshot.SerializeToString())
    for channel, first, end in channels:
        async for count, encoded in _frames_of(channel, first, end, reader):
            frames += count
            await put(frames=encoded)
    for schedule in schedules:
        async for count, encoded in _scheduled_frames(schedule, snapshot.position, reader):
            frames += count
            await put(frames=encoded)
    kept = [(channel, first, _first_kept(channel, end)) for channel, first, end in channels]
    trims = [ChannelTrim(channel=c.number, first_offset=now) for c, first, now in kept if now > first]
    await put(end_frame_count=frames, trims=trims)


def _next_entries(schedule: Schedule, after: int, position: int) -> list[Row]:
    """Entries that are still there, about a chunk, with numbers above one and up to that of the snapshot."""
    rows: list[Row] = []
    size = 0
    for entries in schedule.table.entries(after):
        for entry in entries:
            if entry.number > position or (rows and size >= _CHUNK_BYTES):
                return rows
            rows.append(Row(entry.number, entry.address, entry.length))
            size += entry.length
    return rows


async def _frames_of(channel: Channel, offset: int, end: int, reader: ColdReader) -> AsyncIterator[tuple[int, bytes]]:
    """All frames of a channel, some at a time, each time with their number.

    What is trimmed, or deleted, while it is on its way is left out; the follower hears of it at the end, and meets the
    frame that did it in the log that follows the snapshot.
    """
    while (offset := max(offset, _first_kept(channel, end))) < end:
        rows, behind = _next_rows(channel, offset, end)
        try:
            encoded = await reader.read_raw(rows)
        except (OSError, FrameDamaged):
            if _first_kept(channel, end) > offset:
                continue  # its segment was reclaimed
            raise
        offset = behind
        yield len(rows), encoded


async def _scheduled_frames(schedule: Schedule, position: int, reader: ColdReader) -> AsyncIterator[tuple[int, bytes]]:
    """The same of what is scheduled; what is released meanwhile is left out: that is in the log that follows."""
    after = 0
    while rows := _next_entries(schedule, after, position):
        try:
            encoded = await reader.read_raw([(row.address, row.length) for row in rows])
        except (OSError, FrameDamaged):
            if all(schedule.keeps(row) for row in rows):
                raise
            continue  # moved, or released and its segment reclaimed
        after = rows[-1].base
        yield len(rows), encoded


def _first_kept(channel: Channel, end: int) -> int:
    """`end` of a channel that is gone; one whose delete is not committed, and may yet be lost, is there."""
    there = channel.shard.channels.get(channel.number) is channel
    return min(channel.first_offset, end) if there else end


def _next_rows(channel: Channel, offset: int, end: int) -> tuple[list[tuple[int, int]], int]:
    """Rows from the one that holds `offset` on, about a chunk, and the offset behind them."""
    first = channel.index.find(offset)
    rows: list[tuple[int, int]] = []
    size = 0
    while offset < end and (not rows or size < _CHUNK_BYTES):
        row = channel.index.row(first + len(rows))
        rows.append((row.address, row.length))
        size += row.length
        offset = channel.end_of_row(first + len(rows) - 1)
    return rows, offset
