"""The file-system seam: every byte that the node keeps goes through `Files`.

Production uses `RealFiles`; tests use a disk that loses what was not fsynced, tears writes and fails on command.
All calls block; paths are absolute or relative to the process, file handles are opaque integers.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

_PARTS_MAX = os.sysconf("SC_IOV_MAX")
"""What one `pwritev` takes."""


class DiskUsage(NamedTuple):
    """Bytes of the file system that a path lies on."""

    total: int
    free: int


class Files(Protocol):
    """What the journal needs of a file system. Every call may raise `OSError`."""

    def create(self, path: Path) -> int:
        """Creates a file that must not exist, for reading and writing."""

    def open(self, path: Path) -> int:
        """Opens an existing file for reading and writing."""

    def close(self, handle: int) -> None: ...

    def allocate(self, handle: int, size: int) -> None:
        """Makes the file at least `size` bytes long, with disk space behind them; new bytes read as zero."""

    def write_at(self, handle: int, parts: Sequence[bytes], offset: int) -> None:
        """Writes all parts, one after another, at `offset`; retries short writes until everything is written."""

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        """Reads up to `size` bytes; fewer only at the end of the file."""

    def sync_data(self, handle: int) -> None:
        """fdatasync: what was written is on the disk when this returns."""

    def truncate(self, handle: int, size: int) -> None: ...

    def size(self, handle: int) -> int: ...

    def rename(self, source: Path, target: Path) -> None:
        """Replaces `target` atomically."""

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Makes creations, renames and removals in the directory durable."""

    def list(self, path: Path) -> list[str]:
        """Names in a directory, sorted."""

    def make_directory(self, path: Path) -> None:
        """Creates a directory and its parents; existing is fine."""

    def exists(self, path: Path) -> bool: ...

    def lock(self, handle: int) -> bool:
        """Takes an exclusive lock without waiting; False when somebody else has it."""

    def usage(self, path: Path) -> DiskUsage: ...


class RealFiles:
    """`Files` of the operating system."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, handle: int) -> None:
        os.close(handle)

    def allocate(self, handle: int, size: int) -> None:
        os.posix_fallocate(handle, 0, size)

    def write_at(self, handle: int, parts: Sequence[bytes], offset: int) -> None:
        for start in range(0, len(parts), _PARTS_MAX):
            chunk = parts[start : start + _PARTS_MAX]
            wanted = sum(map(len, chunk))
            written = os.pwritev(handle, chunk, offset)
            offset += written
            if written < wanted:
                offset = self._write_rest(handle, b"".join(chunk)[written:], offset)

    @staticmethod
    def _write_rest(handle: int, rest: bytes, offset: int) -> int:
        view = memoryview(rest)
        while view:
            written = os.pwrite(handle, view, offset)
            view = view[written:]
            offset += written
        return offset

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        data = os.pread(handle, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        have = len(data)
        while have < size and (more := os.pread(handle, size - have, offset + have)):
            parts.append(more)
            have += len(more)
        return b"".join(parts)

    def sync_data(self, handle: int) -> None:
        os.fdatasync(handle)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def list(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def lock(self, handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def usage(self, path: Path) -> DiskUsage:
        usage = shutil.disk_usage(path)
        return DiskUsage(usage.total, usage.free)
