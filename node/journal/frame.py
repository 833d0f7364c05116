"""The frame: one batch or one record of a shard on disk, and later between peers.

```
frame  := header (112 bytes) body trailer (one byte 0xA5)          all little endian
header := magic "RPF1" | version u8 | type u8 | flags u16 | body length u32 | body crc32c u32 | shard u32 | replica u32
          | epoch u64 | position u64 | committed u64 | time i64 (µs) | channel u64 | base offset u64 | count u32
          | producer u64 | producer epoch u32 | base sequence u64 | previous crc u32 | ttl u64 (ms)
          | header crc32c u32 (of everything before it)
```
The header has its own checksum, so a damaged body costs one frame and the next one is still found. *previous crc* is
the header crc of the shard's frame before. *ttl*: for so long after its time a batch is given out, 0 for ever. The
trailer is never zero: a frame whose last byte is zero is not all there.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

MAGIC = b"RPF1"
VERSION = 1
TRAILER = b"\xa5"
HEADER_SIZE = 112
FRAME_OVERHEAD = HEADER_SIZE + len(TRAILER)
FLAG_REWRITTEN = 1
"""The frame is a copy, made to free the segment of the first one."""

_CRC_AT = HEADER_SIZE - 4
_TRAILER_BYTE = TRAILER[0]
_MAGIC_NUMBER = int.from_bytes(MAGIC, "little")
_FIELDS = struct.Struct("<IBBHIIIIQQQqQQIQIQIQ")
_CRC = struct.Struct("<I")
_ALL_FIELDS = struct.Struct("<4xBBHIIIIQQQqQQIQIQIQI")

Buffer = bytes | bytearray | memoryview


FLAG_LOCAL = 2
"""The frame is about this directory's copy of the shard: it has no place in the shard's chain and never travels."""
FLAG_RESTORED = 4
"""A DATA frame that came with a snapshot: behind its own place in the chain, which it therefore does not continue."""


class FrameType(IntEnum):
    """What the body is. Numbers are on disk: never use one again for something else."""

    DATA = 1
    EPOCH_START = 2
    CONFIG = 3
    GROUP = 4
    SETTLE = 5
    TRIM = 6
    REPLICA = 7  # local: about this directory's copy
    TRUNCATE = 8  # local: the shard's log ends at the frame's position, what follows it in the journal so far is void
    REPEAT = 9  # a batch was found stored at the base offset by its message ids: its producer's numbers count
    SCHEDULE = 10  # a batch that is not due yet; the base offset is when it is, in µs, the position its entry's number
    RELEASE = 11  # DATA of a scheduled batch: the base sequence is its entry's number, which is done; no producer


DATA_TYPES = frozenset((FrameType.DATA, FrameType.RELEASE))
"""Frames that give messages their offsets."""


class FrameDamaged(Exception):  # noqa: N818
    """The bytes are not a frame of this version; the message says which check failed."""


class Header(NamedTuple):
    """A decoded header. `type` may be a number that `FrameType` does not know."""

    type: int
    flags: int
    body_length: int
    body_crc: int
    shard: int
    replica: int
    epoch: int
    position: int
    committed: int
    time_us: int
    channel: int
    base_offset: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    producer: int
    producer_epoch: int
    base_sequence: int
    previous_crc: int
    ttl_ms: int
    header_crc: int


def encode_header(
    type: int,
    flags: int,
    body_length: int,
    body_crc: int,
    shard: int,
    replica: int,
    epoch: int,
    position: int,
    committed: int,
    time_us: int,
    channel: int,
    base_offset: int,
    count: int,
    producer: int,
    producer_epoch: int,
    base_sequence: int,
    previous_crc: int,
    ttl_ms: int = 0,
) -> bytes:
    """112 bytes. Raises `struct.error` for a value outside its field."""
    fields = _FIELDS.pack(
        _MAGIC_NUMBER,
        VERSION,
        type,
        flags,
        body_length,
        body_crc,
        shard,
        replica,
        epoch,
        position,
        committed,
        time_us,
        channel,
        base_offset,
        count,
        producer,
        producer_epoch,
        base_sequence,
        previous_crc,
        ttl_ms,
    )
    return fields + _CRC.pack(crc32c(fields))


def header_crc_of(header: Buffer) -> int:
    """The header's own checksum, which the shard's next frame carries as *previous crc*."""
    return int.from_bytes(header[_CRC_AT:HEADER_SIZE], "little")


def decode_header(buffer: Buffer, at: int = 0) -> Header:
    """Raises `FrameDamaged` for bytes that are too few, no header, of another version, or changed."""
    raw = bytes(buffer[at : at + HEADER_SIZE]) if at >= 0 else b""
    if len(raw) < HEADER_SIZE:
        raise FrameDamaged("the header is cut short")
    if not raw.startswith(MAGIC):
        raise FrameDamaged("there is no frame here")
    fields = _ALL_FIELDS.unpack(raw)
    if crc32c(raw[:_CRC_AT]) != fields[-1]:
        raise FrameDamaged("the header's checksum is wrong")
    if fields[0] != VERSION:
        raise FrameDamaged(f"frames of version {fields[0]} are unknown here")
    return Header._make(fields[1:])


def decode_frame(buffer: Buffer, at: int = 0) -> tuple[Header, bytes]:
    """Header and a copy of the body, all checked. Raises `FrameDamaged`."""
    header = decode_header(buffer, at)
    start = at + HEADER_SIZE
    end = start + header.body_length
    if end >= len(buffer):
        raise FrameDamaged("the body is cut short")
    body = bytes(memoryview(buffer)[start:end])
    if crc32c(body) != header.body_crc:
        raise FrameDamaged("the body's checksum is wrong")
    if buffer[end] != _TRAILER_BYTE:
        raise FrameDamaged("the trailer is wrong")
    return header, body


def body_is_whole(buffer: Buffer, at: int, header: Header) -> bool:
    """Whether body and trailer of the frame at `at` are as written; the frame must lie within the buffer."""
    start = at + HEADER_SIZE
    end = start + header.body_length
    return buffer[end] == _TRAILER_BYTE and crc32c(memoryview(buffer)[start:end]) == header.body_crc
