"""A filling disk: warned of, refused at, resigned at; and room given up for acks and trims."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.journal.disk import DiskPolicy, DiskState, Reserve
from ringpost.node.journal.files import DiskUsage, RealFiles

OK, WARN, REFUSE, FAIL = DiskState


class SmallDisk(RealFiles):
    """A real directory on a file system that claims to have `free` bytes left, and fails with `error` to allocate."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.error: int | None = None

    def allocate(self, handle: int, size: int) -> None:
        if self.error is not None:
            super().truncate(handle, size // 2)  # a failed posix_fallocate leaves what it got
            raise OSError(self.error, "injected")
        super().allocate(handle, size)
        self.free -= size

    def usage(self, path: Path) -> DiskUsage:
        return DiskUsage(1_000_000, self.free)


@pytest.mark.parametrize(
    ("used", "before", "after"),
    [
        (0.0, OK, OK),
        (0.8499, OK, OK),
        (0.85, OK, WARN),
        (0.92, OK, REFUSE),
        (0.97, OK, FAIL),
        (1.0, REFUSE, FAIL),
        (0.965, FAIL, FAIL),
        (0.955, FAIL, REFUSE),
        (0.915, REFUSE, REFUSE),
        (0.905, REFUSE, WARN),
        (0.845, WARN, WARN),
        (0.835, WARN, OK),
        (0.5, FAIL, OK),
    ],
)
def test_a_state_is_entered_at_its_threshold_and_left_a_little_below(
    used: float, before: DiskState, after: DiskState
) -> None:
    assert DiskPolicy().judge(used, before) == after


@given(st.lists(st.floats(0, 1), max_size=20))
def test_the_state_never_lags_behind_a_rise_nor_more_than_the_hysteresis_behind_a_fall(history: list[float]) -> None:
    policy = DiskPolicy()
    state = OK
    for used in history:
        state = policy.judge(used, state)
        assert policy.judge(used) <= state <= policy.judge(min(1.0, used + policy.hysteresis))
        assert policy.judge(used, state) == state, "the same fill again changes nothing"


@pytest.mark.parametrize("thresholds", [(0.9, 0.9, 0.97), (0.0, 0.9, 0.97), (0.85, 0.92, 1.01), (0.95, 0.92, 0.97)])
def test_thresholds_must_rise(thresholds: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="disk thresholds"):
        DiskPolicy(*thresholds)


def test_the_reserve_is_given_up_once_and_taken_again_when_there_is_room(tmp_path: Path) -> None:
    disk = SmallDisk(free=10_000)
    reserve = Reserve(tmp_path, disk, 4096)
    assert not reserve.release(), "nothing is held before the start"
    assert reserve.restore()
    assert (tmp_path / "reserve").stat().st_size == 4096
    assert reserve.release()
    assert not reserve.release()
    assert not (tmp_path / "reserve").exists()
    disk.free = 8191
    assert not reserve.restore(), "taking the last room would fill the disk again"
    disk.free = 8192
    assert reserve.restore()
    assert reserve.held


def test_a_restart_finds_the_reserve_even_on_a_full_disk(tmp_path: Path) -> None:
    Reserve(tmp_path, SmallDisk(free=10_000), 4096).restore()
    full = SmallDisk(free=0)
    full.error = errno.ENOSPC
    reserve = Reserve(tmp_path, full, 4096)
    assert reserve.restore()
    assert reserve.release()


def test_a_reserve_of_another_size_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "reserve").write_bytes(bytes(100))
    assert Reserve(tmp_path, SmallDisk(free=10_000), 4096).restore()
    assert (tmp_path / "reserve").stat().st_size == 4096


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_reserve(tmp_path: Path) -> None:
    disk = SmallDisk(free=10_000)
    disk.error = errno.ENOSPC
    reserve = Reserve(tmp_path, disk, 4096)
    assert not reserve.restore()
    assert list(tmp_path.iterdir()) == []


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    disk = SmallDisk(free=10_000)
    disk.error = errno.EIO
    reserve = Reserve(tmp_path, disk, 4096)
    with pytest.raises(OSError, match="injected"):
        reserve.restore()
    assert list(tmp_path.iterdir()) == []
    assert not reserve.held
