"""What is in the journal after a stop, a crash or damage: every frame once, in order, and a clean end to go on at.

All follows from this: a group is written only after the fsync of the group before it returned. So any byte behind a
group proves that it was durable as a whole, and whatever is wrong in it is corruption. Only the very last group may be
*torn*; it was then never acknowledged, and is cut off as a whole. The last group is torn when

* its header is missing in part: nothing at all follows the header, or one of the sectors that the header touches is
  empty (of the group), or
* its header is valid, some frame in it is not, and it is not all there: its last byte is still zero (a frame never ends
  with zero) or more of its sectors are zero than the header says were zero by content.

Everything else is damage: reported, stepped over, never cut. A header of a group that is damaged while its frames are
whole costs nothing and is reported apart, as are damaged segment headers.

What stays uncertain, and is taken for a torn write, concerns an acknowledged last group that no seal follows (the seal
comes 100 ms after the last fsync) and in which later damage *looks* unwritten:
* whole sectors of it turned to zeros, or its last byte did, or a flipped bit was the only one that was set in a sector;
* everything behind its header turned to zeros while the header is damaged too.

And a group that is torn while one of the sectors that were written is damaged as well is cut without a word: nothing
acknowledged was in it.

Frames of a last group that no seal follows may be in the page cache only, after a kill or even a failed fsync. Recovery
writes that group once more and syncs it, so what it visits is durable.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from ringpost.node.journal.files import Files
from ringpost.node.journal.frame import HEADER_SIZE, Header
from ringpost.node.journal.scan import Found, SegmentScan, scan_frames
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    Damaged,
    GroupHeader,
    address_of,
    decode_segment_header,
    list_segments,
    offset_of,
    segment_of,
    segment_path,
    zero_sectors,
)

_T = TypeVar("_T")

Visit = Callable[[Header, int, memoryview, bool], None]
"""`visit(header, address, body, body_ok)`; the body is a view that keeps its whole group in memory."""


class Damage(NamedTuple):
    """Something acknowledged may be lost: `length` bytes from `address` on; `shard` None: nobody knows whose.

    Length 0: groups are missing at that place.
    """

    address: int
    length: int
    shard: int | None
    what: str


@dataclass
class RecoveryReport:
    """What recovery found. `end` is where the journal goes on (`Journal.start`), 0 when there is none yet."""

    end: int = 0
    cut_bytes: int = 0
    """Bytes of a write that a crash tore, removed."""
    damages: list[Damage] = field(default_factory=list)
    harmless: list[Damage] = field(default_factory=list)
    """Damaged headers of groups and segments that cost no frame; they stay as they are and are found again."""
    first_segment: int = 0
    """The lowest segment there is; 0 when there is none."""
    directory_id: bytes | None = None
    """From the first readable segment header; None when there is none."""


def recover(directory: Path, files: Files, scan_from: int, visit: Visit) -> RecoveryReport:
    """Visits every frame with a valid header at or after `scan_from` in journal order and cuts a torn end off.

    `scan_from` is an address below which nothing needs to be seen (0: all). Segments before its own may be missing.
    The caller checks positions and chains of the shards. Blocks. Raises `OSError`, `UnknownFormat`.
    """
    return _Recovery(directory, files, scan_from, visit).run()


class _Recovery:
    """One run. `_sequence` is the last group's, None when it is not known; `_last_group` its address and length."""

    def __init__(self, directory: Path, files: Files, scan_from: int, visit: Visit) -> None:
        self._directory = directory
        self._files = files
        self._scan_from = scan_from
        self._visit = visit
        self._report = RecoveryReport()
        self._sequence: int | None = None
        self._last_group = (0, 0)
        self._last_used = 0

    def run(self) -> RecoveryReport:
        report = self._report
        numbers = list_segments(self._directory, self._files)
        self._last_used = self._find_last_used(numbers)
        expected = max(1, segment_of(self._scan_from))
        for number in numbers:
            if number < expected:
                continue
            if number > expected:
                self._missing(expected, number)
            if number <= self._last_used or self._begins_at_scan(number):
                self._with_segment(number, self._segment)
            expected = number + 1
        if report.end < self._scan_from:
            what = "the journal ends before the checkpoint's address"
            report.damages.append(Damage(report.end, self._scan_from - report.end, None, what))
            report.end = address_of(max([segment_of(self._scan_from), *numbers]) + 1, SEGMENT_HEADER_SIZE)
        self._cut(numbers)
        return report

    def _begins_at_scan(self, number: int) -> bool:
        return address_of(number, SEGMENT_HEADER_SIZE) == self._scan_from

    def _find_last_used(self, numbers: list[int]) -> int:
        """The last segment that anything was appended to; those behind it only lay prepared."""
        for number in reversed(numbers):
            if self._with_segment(number, lambda scan: scan.used_end(SEGMENT_HEADER_SIZE)) > SEGMENT_HEADER_SIZE:
                return number
        return 0

    def _with_segment(self, number: int, work: Callable[[SegmentScan], _T]) -> _T:
        handle = self._files.open(segment_path(self._directory, number))
        try:
            return work(SegmentScan(self._files, handle, number))
        finally:
            self._files.close(handle)

    def _segment(self, scan: SegmentScan) -> None:
        if not self._belongs_here(scan):
            self._report.end = address_of(scan.number + 1, SEGMENT_HEADER_SIZE)
            return
        offset = SEGMENT_HEADER_SIZE
        while offset + GROUP_HEADER_SIZE <= scan.size:
            group = scan.group_at(offset)
            stop = self._unreadable_group(scan, offset) if group is None else self._group(scan, offset, group)
            if stop is None:
                return
            self._last_group = address_of(scan.number, offset), stop - offset
            offset = stop
            self._report.end = address_of(scan.number, offset)

    def _belongs_here(self, scan: SegmentScan) -> bool:
        """Reads the segment's header. A damaged one is no reason to distrust the groups, which name their addresses."""
        report = self._report
        start = address_of(scan.number, 0)
        try:
            header = decode_segment_header(scan.read(0, SEGMENT_HEADER_SIZE))
        except Damaged as error:
            report.harmless.append(Damage(start, SEGMENT_HEADER_SIZE, None, str(error)))
            return True
        if report.directory_id is None:
            report.directory_id = header.directory_id
        if header != (report.directory_id, scan.number):
            what = f"the file is segment {header.number} of directory {header.directory_id.hex()}"
            self._damage(start, scan.size, None, what)
            return False
        if self._begins_at_scan(scan.number):
            # The node may have stopped before it wrote there, or while it did: nothing is missing then.
            report.end = self._scan_from
        return True

    def _group(self, scan: SegmentScan, offset: int, group: GroupHeader) -> int | None:
        """Visits the frames; the offset behind the group, or None when it is torn."""
        start = offset + GROUP_HEADER_SIZE
        stop = start + group.length
        if address_of(scan.number, stop) > self._scan_from:
            data = scan.read(start, group.length)
            found = list(scan_frames(data))
            if not all(item.whole for item in found) and self._is_torn(scan, start, data, group):
                return None
            # 0 is the first group after a start of the node, which goes on wherever the end was found.
            if self._sequence is not None and group.sequence not in (0, self._sequence + 1 & 0xFFFFFFFF):
                self._damage(self._report.end, 0, None, "groups are missing")
            self._deliver(address_of(scan.number, start), data, found)
        self._sequence = group.sequence
        return stop

    def _is_torn(self, scan: SegmentScan, start: int, data: bytes, group: GroupHeader) -> bool:
        stop = start + len(data)
        if scan.number < self._last_used or scan.used_end(stop) > stop:
            return False
        return data[-1] == 0 or zero_sectors(data, start) > group.zero_sectors

    def _unreadable_group(self, scan: SegmentScan, offset: int) -> int | None:
        """No valid group header at `offset`: the offset to go on at, or None where the segment ends."""
        used = scan.used_end(offset)
        following = scan.next_group(offset + 1, used)
        if used == offset:
            return None
        if following is None and scan.number == self._last_used and scan.header_is_torn(offset, used):
            return None
        stop = following or used
        start = min(offset + GROUP_HEADER_SIZE, stop)
        data = scan.read(start, stop - start)
        found = list(scan_frames(data))
        place = Damage(address_of(scan.number, offset), start - offset, None, "the group header is damaged")
        if all(item.whole for item in found):
            if place.address >= self._scan_from:
                self._report.harmless.append(place)
            self._sequence = None if self._sequence is None else self._sequence + 1 & 0xFFFFFFFF
        else:
            self._damage(*place)
            self._sequence = None
        self._deliver(address_of(scan.number, start), data, found)
        return stop

    def _deliver(self, start: int, data: bytes, found: Iterable[Found]) -> None:
        view = memoryview(data)
        for at, length, header, whole in found:
            address = start + at
            if header is None:
                self._damage(address, length, None, "no readable frame header")
            elif address >= self._scan_from:
                if not whole:
                    self._damage(address, length, header.shard, f"the body of position {header.position} is damaged")
                body = view[at + HEADER_SIZE : at + HEADER_SIZE + header.body_length]
                self._visit(header, address, body, whole)

    def _missing(self, expected: int, number: int) -> None:
        start = address_of(expected, 0)
        self._damage(start, address_of(number, 0) - start, None, f"segments {expected} to {number - 1} are missing")
        self._report.end = address_of(number, SEGMENT_HEADER_SIZE)
        self._sequence = None

    def _damage(self, address: int, length: int, shard: int | None, what: str) -> None:
        if address + max(length, 1) > self._scan_from:
            self._report.damages.append(Damage(address, length, shard, what))

    def _cut(self, numbers: list[int]) -> None:
        """Removes what lies behind the end: a torn group, and segments that nothing was committed to."""
        report = self._report
        end_segment, end_offset = segment_of(report.end), offset_of(report.end)
        unused = [number for number in numbers if number > end_segment]
        for number in unused:
            used = self._with_segment(number, lambda scan: scan.used_end(SEGMENT_HEADER_SIZE))
            report.cut_bytes += used - SEGMENT_HEADER_SIZE
            self._files.unlink(segment_path(self._directory, number))
        report.first_segment = min(numbers, default=0) if len(unused) < len(numbers) else 0
        if unused:
            self._files.sync_directory(self._directory)
        if end_segment in numbers:
            self._with_segment(end_segment, lambda scan: self._end(scan, end_offset))

    def _end(self, scan: SegmentScan, end: int) -> None:
        used = scan.used_end(end)
        if used > end:
            self._report.cut_bytes += used - end
            scan.truncate(end)
        address, length = self._last_group
        if segment_of(address) == scan.number and length > GROUP_HEADER_SIZE:
            scan.write_again(offset_of(address), length)
