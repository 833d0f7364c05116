"""Sending a whole shard to a replica that is behind the log."""

import asyncio
from collections.abc import Callable

from ringpost.internal.v1.peer_pb2 import Fetch, SnapshotPart
from ringpost.node.journal.reader import ColdReader
from ringpost.node.replicas.outbox import ToFollower
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.snapshot import snapshot_shard

_CHUNK_BYTES = 256 << 10
_ROOM_S = 0.005


class SnapshotStale(Exception):  # noqa: N818
    """The shard changed so that the snapshot can no longer be completed; a later one can."""


async def send_snapshot(
    shard: Shard, fetch: Fetch, epoch: int, reader: ColdReader, box: ToFollower, wanted: Callable[[], bool]
) -> None:
    """Sends the committed state, then the frames of all kept messages. One part at a time waits in the box.

    `wanted` tells whether the follower still waits for it. Raises SnapshotStale, OSError or FrameDamaged when it
    cannot, or need not, be completed.
    """
    snapshot = snapshot_shard(shard)
    channels = [(shard.channels[row.channel], row.end_offset) for row in snapshot.channels]
    for row in snapshot.channels:
        row.index = b""
    number = frames = 0

    async def put(**part: bytes | int) -> None:
        nonlocal number
        while box.snapshot_waiting and wanted():
            await asyncio.sleep(_ROOM_S)
        if not wanted():
            raise SnapshotStale("the follower does not wait for it any more")
        box.snapshot(
            SnapshotPart(shard=shard.number, epoch=epoch, fetch_id=fetch.fetch_id, number=number, **part)  # type: ignore[arg-type]
        )
        number += 1

    await put(begin=snapshot.SerializeToString())
    for channel, end in channels:
        offset = channel.first_offset
        while offset < end:
            rows, offset = _next_rows(channel, offset, end)
            frames += len(rows)
            await put(frames=await reader.read_raw(rows))
    await put(end_frame_count=frames)


def _next_rows(channel: Channel, offset: int, end: int) -> tuple[list[tuple[int, int]], int]:
    """Rows from the one that holds `offset` on, about a chunk, and the offset behind them."""
    try:
        first = channel.index.find(offset)
    except LookupError as error:
        raise SnapshotStale(f"channel {channel.name!r} was trimmed meanwhile") from error
    rows: list[tuple[int, int]] = []
    size = 0
    while offset < end and (not rows or size < _CHUNK_BYTES):
        row = channel.index.row(first + len(rows))
        rows.append((row.address, row.length))
        size += row.length
        offset = channel.end_of_row(first + len(rows) - 1)
    return rows, offset
