"""What a filling disk does to the node: a pure policy, and a reserve file that makes room for acks and trims."""

import errno
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ringpost.node.journal.files import Files

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskState(IntEnum):
    """Ordered: a greater state includes the measures of the smaller ones."""

    OK = 0
    WARN = 1  # logged
    REFUSE = 2  # publishes are refused with DISK_FULL; acks, trims and deletes go on
    FAIL = 3  # storage health fails and leaderships are given up


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    """Thresholds, as fractions of the file system in use: a state is entered there and left `hysteresis` below.

    Raises ValueError unless 0 < hysteresis < warn < refuse < resign <= 1.
    """

    warn: float = 0.85
    refuse: float = 0.92
    resign: float = 0.97
    hysteresis: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.hysteresis < self.warn < self.refuse < self.resign <= 1:
            raise ValueError(
                f"disk thresholds must satisfy 0 < hysteresis < warn < refuse < resign <= 1, "
                f"got {self.hysteresis}, {self.warn}, {self.refuse}, {self.resign}"
            )

    def judge(self, used: float, before: DiskState = DiskState.OK) -> DiskState:
        """The state at `used` (0.0..1.0) when the last judgement was `before`."""
        risen = self._reached(used)
        return risen if risen >= before else min(before, self._reached(used + self.hysteresis))

    def _reached(self, used: float) -> DiskState:
        return DiskState(sum(used >= threshold for threshold in (self.warn, self.refuse, self.resign)))


class Reserve:
    """A file of `size` bytes that is deleted when the disk is full, so that the node can still write what frees space.

    Blocking. `held` tells whether the room is there to be given up; before the first `restore` it is False.
    """

    def __init__(self, directory: Path, files: Files, size: int) -> None:
        """No I/O yet; `size` in bytes, above 0."""
        self._directory = directory
        self._path = directory / "reserve"
        self._files = files
        self._size = size
        self.held = False

    @property
    def exists(self) -> bool:
        """Whether there is a reserve file, of this run or an earlier one."""
        return self._files.exists(self._path)

    def restore(self) -> bool:
        """Takes the reserve, at start and whenever it was given up; False when there is no room for it now.

        A new file is made only when twice its size is free: taking the last room would fill the disk again.
        Raises OSError for anything but a full disk.
        """
        if not self.held:
            if self._files.exists(self._path) and not self._fits():
                self._remove()
            self.held = self._files.exists(self._path) or self._make()
        return self.held

    def release(self) -> bool:
        """Gives the space to the file system; False when there is none to give, as after an earlier call."""
        if not self.held:
            return False
        self.held = False
        self._remove()
        return True

    def _fits(self) -> bool:
        handle = self._files.open(self._path)
        try:
            return self._files.size(handle) == self._size
        finally:
            self._files.close(handle)

    def _make(self) -> bool:
        if self._files.usage(self._directory).free < 2 * self._size:
            return False
        try:
            self._allocate()
        except OSError as error:
            with suppress(OSError):
                self._remove()
            if error.errno in _FULL:
                return False
            raise
        return True

    def _allocate(self) -> None:
        handle = self._files.create(self._path)
        try:
            self._files.allocate(handle, self._size)
            self._files.sync_data(handle)
        finally:
            self._files.close(handle)
        self._files.sync_directory(self._directory)

    def _remove(self) -> None:
        self._files.unlink(self._path)
        self._files.sync_directory(self._directory)
