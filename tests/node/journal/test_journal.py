"""The journal as its owner meets it."""

import errno
import threading
from pathlib import Path

import pytest

from ringpost.node.journal.files import RealFiles
from ringpost.node.journal.frame import FRAME_OVERHEAD, decode_frame
from ringpost.node.journal.journal import JournalFailed, SegmentInfo
from ringpost.node.journal.segment import GROUP_HEADER_SIZE, SEGMENT_HEADER_SIZE, address_of, segment_of, segment_path
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, Frame, Owner, contents, recovered


def read_back(owner: Owner, frame: Frame) -> bytes:
    return decode_frame(owner.journal.read(frame.address, FRAME_OVERHEAD + len(frame.body)))[1]


class Gate:
    """Holds the writer in its next fsync until opened."""

    def __init__(self, files: FaultyFiles) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self._sync = files.sync_data
        files.sync_data = self.sync_data  # type: ignore[method-assign]

    def sync_data(self, handle: int) -> None:
        self.entered.set()
        assert self.opened.wait(20)
        self._sync(handle)


def test_a_frame_has_its_address_at_once_and_is_durable_later() -> None:
    owner = Owner(FaultyFiles())
    frame = owner.append(b"hello")
    assert frame.address == address_of(1, SEGMENT_HEADER_SIZE + GROUP_HEADER_SIZE)
    assert owner.journal.durable <= frame.address
    assert owner.journal.pending_bytes == FRAME_OVERHEAD + 5
    owner.settle()
    assert owner.journal.durable == owner.journal.end == frame.address + FRAME_OVERHEAD + 5
    assert owner.journal.pending_bytes == 0
    assert read_back(owner, frame) == b"hello"
    owner.close()


def test_what_comes_during_an_fsync_is_one_group_with_one_wake_up() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    gate = Gate(files)
    owner.append(b"first")
    assert gate.entered.wait(20)
    more = [owner.append(b"%d" % number) for number in range(20)]
    gate.opened.set()
    owner.settle()
    assert len(owner.marks) == 2
    assert owner.marks[0] <= more[0].address
    assert owner.marks[1] > more[-1].address
    assert (owner.journal.counters.fsyncs, owner.journal.counters.frames) == (2, 21)
    assert [read_back(owner, frame) for frame in more] == [frame.body for frame in more]
    owner.close()


def test_groups_are_bounded_and_a_frame_above_the_bound_is_alone() -> None:
    files = FaultyFiles()
    owner = Owner(files, segment_bytes=1 << 16, group_bytes_max=1000)
    gate = Gate(files)
    owner.append(b"held")
    assert gate.entered.wait(20)
    for size in (300, 300, 300, 5000, 10):
        owner.append(bytes(size))
    gate.opened.set()
    owner.settle()
    # held | 300 300 | 300 | 5000 | 10
    assert owner.journal.counters.fsyncs == 5
    owner.close()


def test_a_full_segment_is_followed_by_the_next_which_lay_prepared() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    for _ in range(3):
        owner.append(bytes(1800))
        owner.settle()
    owner.journal.close()
    assert [segment.number for segment in owner.journal.segments()] == [1, 2]
    assert owner.journal.size_bytes == 2 * 8192

    again = Owner(files, end=recovered(files)[0].end)
    frames = [again.append(bytes(2000)) for _ in range(4)]
    again.settle()
    assert [segment_of(frame.address) for frame in frames] == [1, 2, 2, 2]
    assert frames[1].address == address_of(2, SEGMENT_HEADER_SIZE + GROUP_HEADER_SIZE)
    again.close()
    assert files.open_handles == 0


def test_the_largest_frame_fills_a_segment_and_a_larger_one_is_our_bug() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    owner.append(b"small")
    largest = 8192 - SEGMENT_HEADER_SIZE - 2 * GROUP_HEADER_SIZE - FRAME_OVERHEAD
    frame = owner.append(b"x" * largest)
    assert segment_of(frame.address) == 2
    owner.settle()
    owner.append(b"next")
    with pytest.raises(AssertionError, match="segment"):
        owner.journal.append(b"h" * 112, bytes(largest + 1))
    with pytest.raises(AssertionError):
        owner.journal.append(b"no header", b"")
    owner.append(b"last")
    owner.close()
    report, found = recovered(files)
    assert report.damages == []
    assert contents(found) == contents(owner.appended)
    assert len(files.content(segment_path(DIRECTORY, 2))) == 8192


def test_dropped_segments_are_gone_and_the_active_one_stays() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    frames = [owner.append(bytes(3000)) for _ in range(7)]
    owner.settle()
    assert read_back(owner, frames[0]) == bytes(3000)
    owner.journal.drop_segment(1)
    with pytest.raises(FileNotFoundError):
        owner.journal.read(frames[0].address, 100)
    active = segment_of(owner.journal.durable)
    assert SegmentInfo(1, 8192) not in owner.journal.segments()
    for number in (active, active + 1):
        with pytest.raises(AssertionError):
            owner.journal.drop_segment(number)
    owner.close()
    report, found = recovered(files, scan_from=address_of(2, 0))
    assert report.damages == []
    assert report.first_segment == 2
    assert contents(found) == contents([frame for frame in frames if segment_of(frame.address) > 1])


def test_readers_share_few_handles_and_see_many_segments() -> None:
    files = FaultyFiles()
    owner = Owner(files, read_handles_max=2)
    frames = [owner.append(b"%d" % number * 3000) for number in range(8)]
    owner.settle()
    errors: list[BaseException] = []

    def read_all() -> None:
        try:
            for _ in range(30):
                assert [read_back(owner, frame) for frame in frames] == [frame.body for frame in frames]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert files.open_handles <= 2 + 2
    owner.close()
    assert files.open_handles == 0


def test_after_a_failed_fsync_nothing_is_written_or_acknowledged() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    owner.append(b"good")
    owner.settle()
    mark = owner.journal.durable
    files.fail_call(files.calls + 1)
    owner.append(b"written, not synced")
    while not owner.failures:
        owner.turn()
    changes = files.changes
    assert isinstance(owner.failures[0], OSError)
    assert owner.failures[0].errno == errno.EIO
    with pytest.raises(JournalFailed) as refused:
        owner.append(b"too late")
    assert refused.value.__cause__ is owner.failures[0]
    owner.close()
    assert owner.journal.durable == mark
    assert len(owner.failures) == 1
    assert files.changes == changes


def test_close_writes_what_waits_and_takes_no_more() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    for number in range(50):
        owner.append(b"%d" % number)
    owner.close()
    with pytest.raises(JournalFailed):
        owner.journal.append(owner.appended[0].header, owner.appended[0].body)
    assert owner.journal.pending_bytes == 0
    report, found = recovered(files)
    assert contents(found) == contents(owner.appended)
    assert report.cut_bytes == 0
    assert report.end == owner.journal.end


def test_a_restart_goes_on_behind_the_end_with_another_segment_size() -> None:
    files = FaultyFiles()
    first = Owner(files)
    first.append(b"one")
    first.close()
    second = Owner(files, end=recovered(files)[0].end, segment_bytes=16384)
    frame = second.append(bytes(9000))
    second.close()
    assert segment_of(frame.address) == 1
    assert second.journal.segments()[0] == SegmentInfo(1, 16384)
    report, found = recovered(files)
    assert report.damages == []
    assert contents(found) == contents(first.appended + second.appended)


def test_restarts_that_write_nothing_seal_at_most_to_the_end_of_the_segment() -> None:
    files = FaultyFiles()
    owner = Owner(files, segment_bytes=1024)
    owner.append(b"x" * (1024 - SEGMENT_HEADER_SIZE - 2 * GROUP_HEADER_SIZE - FRAME_OVERHEAD - 50))
    owner.close()
    for _ in range(5):
        again = Owner(files, end=recovered(files)[0].end, segment_bytes=1024)
        again.close()
        assert again.failures == []
        assert len(files.content(segment_path(DIRECTORY, 1))) == 1024
    report, found = recovered(files)
    assert contents(found) == contents(owner.appended)
    assert report.damages == report.harmless == []


def test_real_files(tmp_path: Path) -> None:
    files = RealFiles()
    owner = Owner(
        files, directory=tmp_path, segment_bytes=1 << 20, group_bytes_max=1 << 18, linger_us=500, busy_linger_us=500
    )
    for number in range(600):
        owner.append(b"%d" % number * (number % 9) * 200, shard=number % 2)
    for _ in range(1200):
        owner.append(b"small")
    owner.settle()
    assert read_back(owner, owner.appended[333]) == owner.appended[333].body
    assert segment_of(owner.journal.durable) == 2
    assert owner.journal.counters.last_sync_finished > 0
    owner.close()
    report, found = recovered(files, directory=tmp_path)
    assert report.damages == []
    assert contents(found) == contents(owner.appended)

    again = Owner(files, directory=tmp_path, end=report.end, segment_bytes=1 << 20, maker=owner.maker)
    again.append(b"after the restart")
    again.settle()
    again.journal.drop_segment(1)
    again.close()
    _, rest = recovered(files, scan_from=address_of(2, 0), directory=tmp_path)
    assert contents(rest) == contents([f for f in owner.appended + again.appended if segment_of(f.address) == 2])
