"""Checkpoints and power cuts, failing calls and a full disk, at every call there is."""

import errno
import random
from pathlib import Path

import pytest

from ringpost.node.journal.checkpoint import CheckpointStore
from tests.node.journal.faulty_files import FaultyFiles

HOME = Path("/data")
WRITES = 4


def body_of(number: int) -> bytes:
    return bytes([number]) * 1500


def scan_of(number: int) -> int:
    return number * 100


def with_checkpoints(count: int) -> tuple[FaultyFiles, CheckpointStore]:
    files = FaultyFiles()
    store = CheckpointStore(HOME, files)
    store.load()
    for number in range(1, count + 1):
        store.write(body_of(number), scan_of(number))
    return files, store


def check_holds(files: FaultyFiles, acknowledged: int, floor: int) -> None:
    """What `write` promised is there: its checkpoint or a newer whole one, and nothing that needs less than `floor`."""
    store = CheckpointStore(HOME, files)
    loaded = store.load()
    assert store.damaged == []
    if acknowledged:
        assert loaded is not None
        assert loaded.scan_from >= scan_of(acknowledged)
    if loaded:
        assert loaded.body == body_of(loaded.scan_from // 100)
        assert loaded.scan_from >= floor
    assert store.oldest_scan_from() == 0 or store.oldest_scan_from() >= floor
    assert not any(path.endswith(".tmp") for path in files.paths())
    assert files.open_handles == 0


def test_a_power_cut_at_any_point_leaves_the_last_checkpoint_whole() -> None:
    rng = random.Random(5)
    files, store = with_checkpoints(0)
    states: list[tuple[FaultyFiles, int, int]] = []
    acknowledged = 0

    def cut(_name: str) -> None:
        states.extend((state, acknowledged, store.oldest_scan_from()) for state in files.crash_states(rng, 24))

    files.probe = cut
    for number in range(1, WRITES + 1):
        store.write(body_of(number), scan_of(number))
        acknowledged = number
        cut("between")
    assert len(states) > 150
    for state, promised, floor in states:
        check_holds(state, promised, floor)


def calls_of_a_write() -> list[str]:
    files, store = with_checkpoints(2)
    before = files.calls
    store.write(body_of(3), scan_of(3))
    return files.trace[before:]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(("step", "name"), list(enumerate(calls_of_a_write())))
def test_a_failed_call_leaves_the_earlier_checkpoints_and_the_next_write_works(step: int, name: str, code: int) -> None:
    rng = random.Random(step)
    files, store = with_checkpoints(2)
    floor = store.oldest_scan_from()
    files.fail_call(files.calls + step, code)
    with pytest.raises(OSError, match=r"Input/output|No space"):
        store.write(body_of(3), scan_of(3))
    assert store.oldest_scan_from() == floor, "nothing more may be reclaimed"
    assert files.open_handles == (name == "close")
    for state in files.crash_states(rng):
        check_holds(state, 2, floor)

    store.write(body_of(4), scan_of(4))
    for state in files.crash_states(rng):
        check_holds(state, 4, floor)


def test_a_disk_that_cannot_read_the_newest_falls_back_or_fails_loudly() -> None:
    counted, _ = with_checkpoints(2)
    before = counted.calls
    CheckpointStore(HOME, counted).load()
    outcomes = set()
    for step, name in enumerate(counted.trace[before:]):
        files, _ = with_checkpoints(2)
        files.fail_call(files.calls + step)
        store = CheckpointStore(HOME, files)
        try:
            loaded = store.load()
        except OSError:
            outcomes.add("raised")
        else:
            assert loaded in ((body_of(1), scan_of(1)), (body_of(2), scan_of(2)))
            assert len(store.damaged) == 1
            assert "Input/output error" in store.damaged[0]
            assert store.oldest_scan_from() == 0
            outcomes.add("fell back" if loaded.scan_from == scan_of(1) else "noticed")
        assert files.open_handles == (name == "close")
    assert outcomes == {"raised", "fell back", "noticed"}
