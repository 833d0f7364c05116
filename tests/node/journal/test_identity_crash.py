"""A data directory's identity and power cuts and failing calls, at every call there is."""

import errno
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ringpost.node.journal.identity import Identity, close_identity, open_identity, read_identity, save_identity
from tests.node.journal.faulty_files import FaultyFiles

HOME = Path("/data")
ENTROPY = random.Random(3).randbytes


def acquire(files: FaultyFiles) -> Identity:
    return open_identity(HOME, files, node="n1", shard_count=256, now_us=1, entropy=ENTROPY)


def start_and_stop(files: FaultyFiles) -> Identity:
    identity = acquire(files)
    close_identity(files, identity)
    return identity


def check_same_directory(files: FaultyFiles, known: Identity | None) -> None:
    """The next start finds the directory that an earlier one saw, and counts a boot that nobody had."""
    identity = start_and_stop(files)
    if known is not None:
        assert replace(identity, boot=0, view_revision=0) == replace(known, boot=0, view_revision=0)
        assert identity.boot > known.boot
        assert identity.view_revision >= known.view_revision
    assert not any(path.endswith(".tmp") for path in files.paths())


def test_a_power_cut_at_any_point_keeps_the_identity_and_never_repeats_a_boot() -> None:
    rng = random.Random(8)
    files = FaultyFiles()
    states: list[tuple[FaultyFiles, Identity | None]] = []
    known: Identity | None = None

    def cut(_name: str) -> None:
        states.extend((state, known) for state in files.crash_states(rng, 24))

    files.probe = cut
    for revision in (10, 20, 30):
        identity = known = acquire(files)
        identity = replace(identity, view_revision=revision)
        save_identity(HOME, files, identity)
        known = identity
        cut("running")
        close_identity(files, identity)
    assert len(states) > 100
    for state, promised in states:
        check_same_directory(state, promised)


def calls_of(act: Callable[[FaultyFiles], object], files: FaultyFiles) -> list[str]:
    before = files.calls
    act(files)
    return files.trace[before:]


def used_before() -> FaultyFiles:
    files = FaultyFiles()
    start_and_stop(files)
    return files


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("make", [FaultyFiles, used_before])
def test_a_failed_call_refuses_the_start_and_the_next_start_works(make: Callable[[], FaultyFiles], code: int) -> None:
    for step, name in enumerate(calls_of(acquire, make())):
        files = make()
        known = read_identity(HOME, files)
        files.fail_call(files.calls + step, code)
        with pytest.raises(OSError, match=r"Input/output|No space"):
            acquire(files)
        assert files.open_handles == (name == "close")
        for state in files.crash_states(random.Random(step)):
            check_same_directory(state, known)
        if name != "close":  # a handle that could not be closed may still hold the lock until the process ends
            check_same_directory(files, known)
