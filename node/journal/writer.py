"""The journal's writer thread: group after group to the disk, one fdatasync each.

The next group is written only when the fsync of the one before has returned: recovery depends on it. A failed fsync is
never tried again, because the kernel may have dropped the bytes and forgotten that it did; the thread ends instead.
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ringpost.node.journal.files import Files
from ringpost.node.journal.pace import Pace
from ringpost.node.journal.pending import Group, Pending
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    create_segment,
    encode_group_header,
    offset_of,
    segment_of,
    segment_path,
    zero_sectors_of_parts,
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class JournalOptions:
    """How the journal writes. The node's configuration keeps `segment_bytes` at 1 MiB or more; tests go lower."""

    segment_bytes: int = 128 << 20
    """Size of a new segment file, below 4 GiB. No frame may be larger (less 200 bytes)."""
    group_bytes_max: int = 8 << 20
    """Bytes of frames that one fdatasync commits; a larger frame is a group of its own."""
    linger_us: int = 0
    """How long an idle writer lets the first group grow before it writes."""
    busy_linger_us: int = 0
    """How long the writer lets any group grow while bytes come fast; see `Pace`."""
    seal_after_s: float = 0.1
    """Quiet time after which the last group is sealed."""
    read_handles_max: int = 32
    """Segment files kept open for reading."""
    on_no_space: Callable[[], bool] = _never
    """Called in the writer's thread (or by `start`) when the disk is full; True: space was freed, try once more."""

    def __post_init__(self) -> None:
        assert 1024 <= self.segment_bytes < 1 << 32
        assert self.group_bytes_max > 0


@dataclass
class Counters:
    """Written by the writer's thread, read by anybody. Bytes are those of frames and their group headers."""

    fsyncs: int = 0
    frames: int = 0
    bytes_written: int = 0
    fsync_seconds: float = 0.0
    fsync_seconds_last: float = 0.0
    last_sync_finished: float = 0.0
    """On the clock given to the journal (monotonic); 0 before the first."""


class Writer:
    """Owns the handle of the segment being written. `start` it once; `join` after `Pending.stop`."""

    def __init__(
        self,
        directory: Path,
        files: Files,
        options: JournalOptions,
        directory_id: bytes,
        pending: Pending,
        *,
        committed: Callable[[int, int], object],
        created: Callable[[int, int], None],
        failed: Callable[[Exception], object],
        clock: Callable[[], float],
    ) -> None:
        """Called in this thread: `committed(end address, bytes)`, `created(segment, size)`, `failed(error)` once."""
        self.counters = Counters()
        self._directory = directory
        self._files = files
        self._options = options
        self._directory_id = directory_id
        self._pending = pending
        self._committed = committed
        self._created = created
        self._failed = failed
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._handle = -1
        self._number = 0
        self._capacity = 0
        self._sequence = 0
        self._unsealed = False
        self._pace = Pace(options.linger_us / 1e6, options.busy_linger_us / 1e6)
        self._next_handle: int | None = None
        self._prepare_failed = 0

    def start(self, handle: int, number: int, capacity: int, *, unsealed: bool) -> None:
        """Goes on in segment `number`, open as `handle`; `unsealed`: it holds groups from before the start."""
        self._handle, self._number, self._capacity = handle, number, capacity
        self._unsealed = unsealed
        self._thread.start()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            self._pending.fail(error)
            # The owner's loop may be gone already: then nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                self._failed(error)
        finally:
            for handle in (self._handle, self._next_handle):
                if handle is not None:
                    with contextlib.suppress(OSError):
                        self._files.close(handle)

    def _serve(self) -> None:
        pending, pace = self._pending, self._pace
        while True:
            group = pending.take(self._options.seal_after_s if self._unsealed else -1, self._linger_s)
            if group is not None:
                self._commit(group)
                pace.wrote(group.length, self._clock())
                self._unsealed = True
                self._committed(group.end, group.length)
                if offset_of(group.end) > self._capacity // 2 and not pending.waiting():
                    self._prepare_next()
                continue
            if self._unsealed and (seal := pending.seal()) is not None:
                self._commit(seal)
                self._unsealed = False
            if pending.stopping and not pending.waiting():
                return

    def _linger_s(self, waited: bool) -> float:
        return self._pace.linger_s(self._clock(), waited=waited)

    def _commit(self, group: Group) -> None:
        number, offset = segment_of(group.address), offset_of(group.address)
        if number != self._number:
            self._roll(number)
        parts = group.parts
        zeros = zero_sectors_of_parts(parts, offset + GROUP_HEADER_SIZE)
        parts[0] = encode_group_header(group.address, group.length, group.count, self._sequence, zeros)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        # A write may be tried again after ENOSPC: nothing of it was synced, so nothing was promised.
        with_space(lambda: self._files.write_at(self._handle, parts, offset), self._options.on_no_space)
        started = self._clock()
        self._files.sync_data(self._handle)
        finished = self._clock()
        counters = self.counters
        counters.fsyncs += 1
        counters.frames += group.count
        counters.bytes_written += GROUP_HEADER_SIZE + group.length
        counters.fsync_seconds += finished - started
        counters.fsync_seconds_last = finished - started
        counters.last_sync_finished = finished

    def _roll(self, number: int) -> None:
        """Goes over to the next segment, which usually lies prepared. All groups before are durable by now."""
        if self._next_handle is None:
            with_space(self._create_next, self._options.on_no_space)
        assert self._next_handle is not None
        assert number == self._number + 1
        full, self._handle, self._next_handle = self._handle, self._next_handle, None
        self._number, self._capacity = number, self._options.segment_bytes
        self._files.close(full)

    def _prepare_next(self) -> None:
        """Makes the next segment while nobody waits. A full disk is met only when the segment is needed."""
        if self._next_handle is not None or self._prepare_failed == self._number + 1:
            return
        try:
            self._create_next()
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._prepare_failed = self._number + 1
            path = segment_path(self._directory, self._prepare_failed)
            if self._files.exists(path):
                self._files.unlink(path)

    def _create_next(self) -> None:
        number, size = self._number + 1, self._options.segment_bytes
        self._next_handle = create_segment(self._directory, self._files, self._directory_id, number, size)
        self._created(number, size)


def with_space(attempt: Callable[[], None], on_no_space: Callable[[], bool]) -> None:
    """Calls `attempt`, and once more when the disk was full and `on_no_space` freed something."""
    try:
        attempt()
    except OSError as error:
        if error.errno not in _NO_SPACE or not on_no_space():
            raise
        attempt()
