"""A disk that fails at any call: the owner learns it once, nothing acknowledged is lost."""

import errno
import random
from collections.abc import Iterator

import pytest

from ringpost.node.journal.journal import JournalFailed
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import Owner, check_recovered, contents, moments_of, recovered, workload


def failing_calls(code: int, total: int) -> Iterator[tuple[int, FaultyFiles]]:
    for number in range(total):
        files = FaultyFiles()
        files.fail_call(number, code)
        yield number, files


def never_came(number: int, files: FaultyFiles) -> bool:
    """Whether the run had fewer calls than the one before: how much the writer's thread takes at a time varies."""
    return files.calls <= number


def run_until_failure(files: FaultyFiles, **options: object) -> tuple[Owner | None, int]:
    """Runs the workload; the owner (None: it could not even start) and the disk's changes when it failed or closed."""
    try:
        owner = Owner(files, **options)
    except OSError:
        return None, files.changes
    try:
        workload(owner, random.Random(5), rounds=8)
    except JournalFailed:
        while not owner.failures:
            owner.turn()
    changes = files.changes if owner.failures else None
    owner.close()
    return owner, files.changes if changes is None else changes


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_any_call_may_fail_once(code: int) -> None:
    """The owner is told once, nothing is written afterwards, and what was acknowledged is there."""
    clean = FaultyFiles()
    run_until_failure(clean)
    rng = random.Random(code)
    failed = 0
    for number, files in failing_calls(code, clean.calls):
        owner, changes = run_until_failure(files)
        if never_came(number, files):
            continue
        if owner is None:
            assert files.open_handles == (files.trace[number] == "close"), number
            continue
        assert len(owner.failures) <= 1
        if owner.failures:
            failed += 1
            assert isinstance(owner.failures[0], OSError), (number, owner.failures)
            assert files.changes == changes
            with pytest.raises(JournalFailed):
                owner.append(b"too late")
        else:
            assert owner.journal.pending_bytes == 0
        for state in files.crash_states(rng, limit=5):
            check_recovered(state, owner, owner.journal.durable if owner.marks else 0)
        assert files.open_handles == (files.trace[number] == "close"), number
    assert failed > 20


def test_a_full_disk_is_met_once_more_after_space_was_freed() -> None:
    clean = FaultyFiles()
    run_until_failure(clean)
    asked = 0
    for number, files in failing_calls(errno.ENOSPC, clean.calls):
        calls: list[int] = []
        owner, _ = run_until_failure(files, on_no_space=lambda calls=calls: calls.append(1) is None)
        if never_came(number, files):
            continue
        kind = files.trace[number]
        if owner is None or kind in ("list", "open", "size"):
            continue
        asked += len(calls)
        if kind in ("write", "allocate", "create"):
            assert owner.failures == [], (number, kind)
            check_recovered(files.snapshot(), owner, owner.journal.durable)
        elif kind == "sync" and owner.failures:
            assert calls == [] or len(calls) == 1
    assert asked > 10


def test_what_recovery_visits_is_durable_even_after_a_failed_fsync() -> None:
    """The frames are in the page cache, nowhere else, and the kernel holds them for written."""
    files = FaultyFiles()
    owner = Owner(files)
    owner.append(b"acknowledged")
    owner.settle()
    files.fail_call(files.calls + 1)
    owner.append(b"outcome open" * 100)
    while not owner.failures:
        owner.turn()
    owner.close()
    restarted = files.snapshot()
    _, found = recovered(restarted)
    assert contents(found) == contents(owner.appended)
    for state in restarted.crash_states(random.Random(6)):
        assert contents(recovered(state)[1]) == contents(owner.appended)


def test_recovery_reports_a_failing_disk_and_works_afterwards() -> None:
    owner, moments = moments_of(3, rounds=4)
    torn = list(moments[-4].files.crash_states(random.Random(3), limit=8))[-1]
    trial = torn.snapshot()
    recovered(trial)
    for number in range(trial.calls):
        files = torn.snapshot()
        files.fail_call(number, errno.EIO)
        with pytest.raises(OSError, match="rror"):
            recovered(files)
        assert files.open_handles == (files.trace[number] == "close")
        check_recovered(files, owner, moments[-4].acknowledged)
