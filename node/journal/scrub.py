"""The scrub: reads a segment from end to end and reports every byte range that is not as it was written.

It blocks and belongs in a thread of its own. It is a generator, so that its driver sets the pace: after each step it
says how much was read, and reads on only when asked again.
"""

from collections.abc import Generator, Iterator
from typing import NamedTuple

from ringpost.node.journal.reader import JournalRead
from ringpost.node.journal.scan import scan_frames
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    GROUP_MAGIC,
    SEGMENT_HEADER_SIZE,
    Damaged,
    SegmentHeader,
    UnknownFormat,
    address_of,
    decode_group_header,
    decode_segment_header,
)


class Damage(NamedTuple):
    """`length` damaged bytes from `address` on; `shard` is None when no header says whose they are."""

    address: int
    length: int
    shard: int | None
    reason: str


class ScrubStep(NamedTuple):
    """What happened since the step before: bytes read from the disk, damages found."""

    bytes_read: int
    damages: tuple[Damage, ...]


def scrub_segment(
    read: JournalRead, segment: int, end: int, *, directory_id: bytes, chunk_bytes: int = 262_144
) -> Iterator[ScrubStep]:
    """Checks segment header, groups and frames before byte `end`, reading `chunk_bytes` (or one larger group) a step.

    `end` is the file's size, or for the segment being written to, where its last durable group ends. Zeros up to it are
    room that was never used. Frames that were trimmed are checked too: the caller knows what is live.
    Raises OSError when the disk cannot read.
    """
    window = _Window(read, segment, end, chunk_bytes)
    damages: list[Damage] = []
    for damage in _walk(window, directory_id):
        if damage is not None:
            damages.append(damage)
        if window.bytes_read:
            yield ScrubStep(window.take_bytes_read(), tuple(damages))
            damages.clear()
    if damages or window.bytes_read:
        yield ScrubStep(window.take_bytes_read(), tuple(damages))


class _Window:
    """The part of a segment that is in memory; asked for bytes further on, it reads the next chunk."""

    def __init__(self, read: JournalRead, segment: int, end: int, chunk_bytes: int) -> None:
        self.segment = segment
        self.end = end
        self.bytes_read = 0
        self._read = read
        self.chunk_bytes = chunk_bytes
        self._start = 0
        self._data = b""

    def get(self, at: int, size: int) -> memoryview:
        """The bytes at <= byte < at + size, cut at `end` and where the file ends. `at` never goes back."""
        if at + size > self._start + len(self._data):
            kept = self._data[at - self._start :]
            missing = min(max(size, self.chunk_bytes), self.end - at) - len(kept)
            if missing > 0:
                more = self._read(address_of(self.segment, at + len(kept)), missing)
                self.bytes_read += len(more)
                kept += more
            self._start, self._data = at, kept
        return memoryview(self._data)[at - self._start : at - self._start + size]

    def take_bytes_read(self) -> int:
        taken, self.bytes_read = self.bytes_read, 0
        return taken

    def damage(self, at: int, stop: int, shard: int | None, reason: object) -> Damage:
        return Damage(address_of(self.segment, at), stop - at, shard, str(reason))


def _walk(window: _Window, directory_id: bytes) -> Iterator[Damage | None]:
    """Goes through the segment; None says that a little was checked and found whole."""
    yield _check_segment_header(window, directory_id)
    at = SEGMENT_HEADER_SIZE
    while at < window.end:
        try:
            header = decode_group_header(window.get(at, GROUP_HEADER_SIZE), 0, address_of(window.segment, at))
        except Damaged as error:
            found, empty = yield from _next_group(window, at)
            if found < window.end or not empty:
                yield window.damage(at, found, None, error)
            at = found
            continue
        start = at + GROUP_HEADER_SIZE
        at = start + header.length
        if at > window.end:
            yield window.damage(start, window.end, None, f"the file ends {at - window.end} bytes before its last group")
            return
        yield from _check_frames(window, start, at, header.count)


def _check_segment_header(window: _Window, directory_id: bytes) -> Damage | None:
    expected = SegmentHeader(directory_id, window.segment)
    try:
        found = decode_segment_header(window.get(0, SEGMENT_HEADER_SIZE))
    except (Damaged, UnknownFormat) as error:
        return window.damage(0, SEGMENT_HEADER_SIZE, None, error)
    if found != expected:
        reason = f"this is segment {found.number} of directory {found.directory_id.hex()}"
        return window.damage(0, SEGMENT_HEADER_SIZE, None, reason)
    return None


def _check_frames(window: _Window, start: int, stop: int, count: int) -> Iterator[Damage | None]:
    """The frames of one group, which is held in memory as a whole."""
    data = bytes(window.get(start, stop - start))
    found_all = list(scan_frames(data))
    for found in found_all:
        at = start + found.at
        if found.header is None:
            yield window.damage(at, at + found.length, None, "there is no readable frame")
        elif not found.whole:
            yield window.damage(at, at + found.length, found.header.shard, "body or trailer are not as written")
        else:
            yield None
    if len(data) < stop - start:
        yield window.damage(start + len(data), stop, None, "the file ends within a group")
    elif len(found_all) != count and all(found.whole for found in found_all):
        yield window.damage(start, stop, None, f"the group has {len(found_all)} frames and promises {count}")


def _next_group(window: _Window, at: int) -> Generator[None, None, tuple[int, bool]]:
    """Where the next readable group header stands, or `end`; and whether all before it, from `at` on, is zero."""
    position, empty = at, True
    while position < window.end:
        data = bytes(window.get(position, window.chunk_bytes))
        hit = data.find(GROUP_MAGIC, position == at)
        while hit >= 0:
            if _is_group_header(data, hit, address_of(window.segment, position + hit)):
                return position + hit, empty and not any(data[:hit])
            hit = data.find(GROUP_MAGIC, hit + 1)
        empty = empty and data.count(0) == len(data)
        if len(data) < GROUP_HEADER_SIZE:
            break
        position += len(data) - GROUP_HEADER_SIZE + 1  # a header may lie across the border
        yield None
    return window.end, empty


def _is_group_header(data: bytes, at: int, address: int) -> bool:
    try:
        decode_group_header(data, at, address)
    except Damaged:
        return False
    return True
