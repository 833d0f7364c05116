"""The writer thread: seals, prepared segments, a full disk."""

import errno
import random
import threading

import pytest

from ringpost.node.journal.journal import JournalOptions
from ringpost.node.journal.segment import GROUP_HEADER_SIZE, decode_group_header, offset_of, segment_path
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, Owner, check_recovered


class Syncs:
    """Waits for the n-th fsync of the disk to be over."""

    def __init__(self, files: FaultyFiles) -> None:
        self._done = threading.Semaphore(0)
        files.probe = self._probe
        self._inside = False

    def _probe(self, name: str) -> None:
        if name == "sync":
            if self._inside:
                self._done.release()
            self._inside = not self._inside

    def wait(self) -> None:
        assert self._done.acquire(timeout=20)


def test_a_quiet_moment_seals_the_last_group_once() -> None:
    files = FaultyFiles()
    owner = Owner(files, seal_after_s=0.01)
    syncs = Syncs(files)
    frame = owner.append(b"last")
    owner.settle()
    syncs.wait()
    syncs.wait()
    seal = offset_of(owner.journal.durable)
    header = decode_group_header(files.content(segment_path(DIRECTORY, 1)), seal, owner.journal.durable)
    assert (header.length, header.count, header.sequence) == (0, 0, 1)
    assert owner.journal.durable > frame.address
    owner.close()
    assert len(owner.marks) == 1
    assert owner.journal.end == owner.journal.durable + GROUP_HEADER_SIZE
    assert owner.journal.counters.fsyncs == 2


def test_groups_are_numbered_and_tell_their_zero_sectors() -> None:
    files = FaultyFiles()
    owner = Owner(files)
    groups = []
    for body in (b"a", bytes(2000), b"c"):
        groups.append(owner.journal.end)
        owner.append(body)
        owner.settle()
    owner.close()
    content = files.content(segment_path(DIRECTORY, 1))
    headers = [decode_group_header(content, offset_of(group), group) for group in groups]
    assert [header.sequence for header in headers] == [0, 1, 2]
    assert [header.count for header in headers] == [1, 1, 1]
    assert [header.zero_sectors for header in headers] == [0, 3, 0]


class NoSpace:
    """Refuses the next calls of one kind; both kinds are needed for new segments only."""

    def __init__(self, files: FaultyFiles, call: str, times: int) -> None:
        self.refused = threading.Event()
        self._times = times
        self._genuine = getattr(files, call)
        setattr(files, call, self._call)

    def _call(self, *arguments: object) -> object:
        if self._times:
            self._times -= 1
            self.refused.set()
            raise OSError(errno.ENOSPC, "full")
        return self._genuine(*arguments)


@pytest.mark.parametrize("call", ["create", "allocate"])
@pytest.mark.parametrize(("times", "asked", "fails"), [(1, 0, False), (2, 1, False), (3, 1, True)])
def test_no_space_for_the_next_segment_matters_when_it_is_needed(
    call: str, times: int, asked: int, fails: bool
) -> None:
    """Preparing it fails in silence; needing it asks for space, once."""
    files = FaultyFiles()
    calls: list[int] = []
    owner = Owner(files, on_no_space=lambda: calls.append(1) is None)
    space = NoSpace(files, call, times)
    owner.append(bytes(5000))
    owner.settle()
    assert space.refused.wait(20)
    assert calls == []
    owner.append(b"x" * 5000)
    owner.settle()
    owner.close()
    assert len(calls) == asked
    assert bool(owner.failures) == fails
    check_recovered(files.snapshot(), owner, owner.journal.durable)
    assert files.open_handles == 0


def test_a_full_disk_that_nobody_can_help_fails_the_journal() -> None:
    files = FaultyFiles()
    owner = Owner(files, on_no_space=lambda: False)
    owner.append(b"kept")
    owner.settle()
    files.fail_call(files.calls, errno.ENOSPC)
    owner.append(bytes(100))
    while not owner.failures:
        owner.turn()
    assert owner.failures[0].errno == errno.ENOSPC
    owner.close()
    for state in files.crash_states(random.Random(4)):
        check_recovered(state, owner, owner.journal.durable)


def test_options_out_of_range_are_our_own_bug() -> None:
    for options in ({"segment_bytes": 100}, {"segment_bytes": 1 << 32}, {"group_bytes_max": 0}):
        with pytest.raises(AssertionError):
            JournalOptions(**options)
