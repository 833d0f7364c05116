"""Reads a segment for recovery: through a window, group by group, frame by frame, over damaged places."""

from collections.abc import Iterator
from typing import NamedTuple

from ringpost.node.journal.files import Files
from ringpost.node.journal.frame import (
    FRAME_OVERHEAD,
    MAGIC,
    FrameDamaged,
    Header,
    body_is_whole,
    decode_header,
)
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    GROUP_MAGIC,
    SECTOR,
    Damaged,
    GroupHeader,
    address_of,
    decode_group_header,
)

_WINDOW = 1 << 20
_ZEROS = bytes(_WINDOW)


class Found(NamedTuple):
    """A stretch of `length` bytes at `at` of a group's frames: a frame, or (`header` None) bytes that are none.

    `whole` tells whether body and trailer are as written.
    """

    at: int
    length: int
    header: Header | None
    whole: bool


def scan_frames(data: bytes) -> Iterator[Found]:
    """The frames in `data`, in order, without gaps between what is found.

    Behind an unreadable header the next readable one is looked for, byte by byte. It could be one that a producer hid
    in a batch; the shard's chain of checksums, which the owner checks, tells.
    """
    at = 0
    while at < len(data):
        header = _header_at(data, at)
        if header is None:
            stop = _next_frame(data, at + 1)
            yield Found(at, stop - at, None, False)
            at = stop
            continue
        length = FRAME_OVERHEAD + header.body_length
        yield Found(at, length, header, body_is_whole(data, at, header))
        at += length


def _header_at(data: bytes, at: int) -> Header | None:
    """A valid header whose frame fits into the data."""
    try:
        header = decode_header(data, at)
    except FrameDamaged:
        return None
    return header if at + FRAME_OVERHEAD + header.body_length <= len(data) else None


def _next_frame(data: bytes, start: int) -> int:
    at = data.find(MAGIC, start)
    while at >= 0 and _header_at(data, at) is None:
        at = data.find(MAGIC, at + 1)
    return at if at >= 0 else len(data)


class SegmentScan:
    """One segment file. What lies behind its end reads as zeros, like what was allocated and never written."""

    def __init__(self, files: Files, handle: int, number: int) -> None:
        self.number = number
        self.size = files.size(handle)
        self._files = files
        self._handle = handle
        self._window = b""
        self._window_at = 0

    def read(self, offset: int, length: int) -> bytes:
        at = offset - self._window_at
        if at < 0 or at + length > len(self._window):
            data = self._files.read_at(self._handle, max(length, _WINDOW), offset)
            self._window = data + bytes(max(0, length - len(data)))
            self._window_at, at = offset, 0
        return self._window[at : at + length]

    def used_end(self, start: int) -> int:
        """The offset behind the last byte at or after `start` that is not zero; `start` if all are."""
        end = self.size
        while end > start:
            at = max(start, end - _WINDOW)
            data = self._files.read_at(self._handle, end - at, at)
            if data != _ZEROS[: len(data)]:
                return at + len(data.rstrip(b"\0"))
            end = at
        return start

    def group_at(self, offset: int) -> GroupHeader | None:
        try:
            return decode_group_header(self.read(offset, GROUP_HEADER_SIZE), 0, address_of(self.number, offset))
        except Damaged:
            return None

    def next_group(self, start: int, stop: int) -> int | None:
        """Offset of the first valid group header in start <= offset < stop."""
        data = self.read(start, max(0, stop - start))
        at = data.find(GROUP_MAGIC)
        while at >= 0:
            try:
                decode_group_header(data, at, address_of(self.number, start + at))
            except Damaged:
                at = data.find(GROUP_MAGIC, at + 1)
            else:
                return start + at
        return None

    def header_is_torn(self, offset: int, used: int) -> bool:
        """Whether the last group's header, invalid at `offset`, was written in part only.

        That is: nothing follows it, or one of the one or two sectors that it touches is still empty there. These are
        not zero by content, as the first frame's header begins in the last of them.
        """
        if used <= offset + GROUP_HEADER_SIZE:
            return True
        boundary = (offset // SECTOR + 1) * SECTOR
        if not any(self.read(offset, boundary - offset)):
            return True
        return boundary <= offset + GROUP_HEADER_SIZE and not any(self.read(boundary, SECTOR))

    def write_again(self, offset: int, length: int) -> None:
        """Makes bytes durable that the kernel may hold for written although they never reached the disk."""
        self._files.write_at(self._handle, [self.read(offset, length)], offset)
        self._files.sync_data(self._handle)

    def truncate(self, size: int) -> None:
        """Cuts the file, durably. Unlike writing zeros this is all or nothing."""
        self._files.truncate(self._handle, size)
        self._files.sync_data(self._handle)
