"""Addresses, segment files and the groups in them.

```
segment        := segment header, group*, zeros
segment header := 64 bytes: magic "RPSEG\\0\\0\\1" | format u32 | crc32c u32 (of the other 60 bytes)
                  | directory id 16 bytes | number u64 | zeros
group          := group header, frame*
group header   := 32 bytes: magic "RPG1" | crc32c u32 (of the rest) | own address u64 | length u32 of the frames
                  | frame count u32 | sequence u32 | zero sectors u32
```
A group is what one fdatasync commits. It is written only after the fsync of the group before it returned, so any byte
of a group proves that all groups before it were durable. *Sequence* counts the groups since the node's start from 0 and
wraps. *Zero sectors* tells how many sectors of the frames are zero by content: where the disk shows more of them, some
were never written. A group without frames is a *seal*: it only proves that the group before it was durable.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from ringpost.node.journal.files import Files
from ringpost.node.journal.frame import HEADER_SIZE, Buffer

SEGMENT_HEADER_SIZE = 64
GROUP_HEADER_SIZE = 32
SECTOR = 512
GROUP_MAGIC = b"RPG1"

_MAGIC = b"RPSEG\0\0\1"
_FORMAT = 1
_SUFFIX = ".journal"
_SEGMENT_START = struct.Struct("<8sI")
_SEGMENT_REST = struct.Struct("<16sQ24x")
_GROUP_REST = struct.Struct("<QIIII")
_CRC = struct.Struct("<I")
_ZERO_SECTOR = bytes(SECTOR)
# A zero sector needs this many zero bytes of one body: before them stand at most the 106 bytes of a frame header behind
# magic, version and type, and after them a trailer, none of which are zero.
_ZERO_RUN = bytes(SECTOR - (HEADER_SIZE - 6))
_STRIDE = len(_ZERO_RUN) // 2


class Damaged(Exception):  # noqa: N818
    """The bytes are no valid segment or group header."""


class UnknownFormat(Exception):  # noqa: N818
    """The journal was written by a newer version of the node."""


class SegmentHeader(NamedTuple):
    """What stands at the start of a segment file."""

    directory_id: bytes
    number: int


class GroupHeader(NamedTuple):
    """What stands before the frames of a group; `length` is theirs in bytes, `count` their number."""

    address: int
    length: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    sequence: int
    zero_sectors: int


def address_of(segment: int, offset: int) -> int:
    return segment << 32 | offset


def segment_of(address: int) -> int:
    return address >> 32


def offset_of(address: int) -> int:
    return address & 0xFFFFFFFF


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:016x}{_SUFFIX}"


def list_segments(directory: Path, files: Files) -> list[int]:
    """Numbers of the segment files in the directory, ascending; other files are not looked at."""
    numbers = []
    for name in files.list(directory):
        digits = name.removesuffix(_SUFFIX)
        if name != digits and len(digits) == 16 and set(digits) <= set("0123456789abcdef"):
            numbers.append(int(digits, 16))
    return sorted(numbers)


def encode_segment_header(directory_id: bytes, number: int) -> bytes:
    start = _SEGMENT_START.pack(_MAGIC, _FORMAT)
    rest = _SEGMENT_REST.pack(directory_id, number)
    return start + _CRC.pack(crc32c(start + rest)) + rest


def decode_segment_header(data: Buffer) -> SegmentHeader:
    """Raises `Damaged`, or `UnknownFormat` for a valid header of a later format."""
    data = bytes(data[:SEGMENT_HEADER_SIZE])
    if len(data) < SEGMENT_HEADER_SIZE:
        raise Damaged("the segment header is cut short")
    magic, format_ = _SEGMENT_START.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, 12)
    if magic != _MAGIC or crc32c(data[:12] + data[16:]) != crc:
        raise Damaged("the segment header is damaged")
    if format_ != _FORMAT:
        raise UnknownFormat(f"journal format {format_} is newer than this node")
    return SegmentHeader(*_SEGMENT_REST.unpack_from(data, 16))


def encode_group_header(address: int, length: int, count: int, sequence: int, zero_sectors: int) -> bytes:
    rest = _GROUP_REST.pack(address, length, count, sequence, zero_sectors)
    return GROUP_MAGIC + _CRC.pack(crc32c(rest)) + rest


def decode_group_header(data: Buffer, at: int, address: int) -> GroupHeader:
    """The header at `at`, which must name `address` as its own. Raises `Damaged`."""
    raw = bytes(data[at : at + GROUP_HEADER_SIZE])
    if len(raw) < GROUP_HEADER_SIZE or raw[:4] != GROUP_MAGIC:
        raise Damaged("there is no group header here")
    (crc,) = _CRC.unpack_from(raw, 4)
    if crc32c(raw[8:]) != crc:
        raise Damaged("the group header's checksum is wrong")
    header = GroupHeader(*_GROUP_REST.unpack_from(raw, 8))
    if header.address != address:
        raise Damaged(f"the group header belongs to address {header.address:#x}")
    return header


def zero_sectors(data: Buffer, offset: int) -> int:
    """How many of the sectors that `data`, lying at `offset` of a file, touches hold nothing but zeros of it.

    The first and the last sector may be touched in part only.
    """
    first = min(-offset % SECTOR, len(data))
    last = first + (len(data) - first) // SECTOR * SECTOR
    whole = sum(data[at : at + SECTOR] == _ZERO_SECTOR for at in range(first, last, SECTOR))
    return whole + sum(bool(len(part)) and not any(part) for part in (data[:first], data[last:]))


def zero_sectors_of_parts(parts: Sequence[bytes], offset: int) -> int:
    """`zero_sectors` of joined frames; costs next to nothing for bodies without long runs of zeros."""
    for part in parts:
        # A run of zeros covers two neighbouring probes at least, so most bodies need no full search.
        if len(part) >= len(_ZERO_RUN) and b"\0\0" in part[::_STRIDE] and _ZERO_RUN in part:
            return zero_sectors(b"".join(parts), offset)
    return 0


def create_segment(directory: Path, files: Files, directory_id: bytes, number: int, size: int) -> int:
    """A new segment of `size` bytes, all of it durable, and its handle. A file of that name is replaced."""
    path = segment_path(directory, number)
    if files.exists(path):
        files.unlink(path)
    handle = files.create(path)
    try:
        files.allocate(handle, size)
        files.write_at(handle, [encode_segment_header(directory_id, number)], 0)
        files.sync_data(handle)
        files.sync_directory(directory)
    except OSError:
        files.close(handle)
        raise
    return handle
