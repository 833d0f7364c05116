"""Checkpoints: the state of all shards at one moment, and the address to scan the journal from.

```
file   := header body                                              named checkpoint-%016x after its number
header := magic "RPCKP\\0\\0\\1" | format u32 | body crc32c u32 | number u64 | scan from u64 | body length u64
          | header crc32c u32 (of everything before it)            44 bytes, all little endian
```
Crash story: a checkpoint is written under a temporary name, fsynced, renamed and the directory fsynced; only then are
older ones removed, and only after those removals are durable too does `write` return and may segments be deleted.
So whatever a power cut leaves, every file that carries a checkpoint's name is whole, and the journal still has all that
follows its scan address. A damaged one is bit rot: the one before it serves instead, loudly.
"""

import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from ringpost.node.journal.files import Files

_MAGIC = b"RPCKP\0\0\1"
_FORMAT = 1
_FIELDS = struct.Struct("<8sIIQQQ")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _FIELDS.size + _CRC.size
_NAME = re.compile(r"checkpoint-([0-9a-f]{16})(\.tmp)?")
_CHUNK = 1 << 20
_KEPT = 2


class CheckpointDamaged(Exception):  # noqa: N818  # named as the other outcomes are
    """There are checkpoints, and none of them can be read. Nothing was changed."""


class LoadedCheckpoint(NamedTuple):
    """The newest checkpoint that is whole; `scan_from` is a journal address."""

    body: bytes
    scan_from: int


class _Header(NamedTuple):
    number: int
    scan_from: int
    body_crc: int
    length: int


class _Kept(NamedTuple):
    number: int
    scan_from: int


class _BadFileError(Exception):
    """What is wrong with one file."""


class CheckpointStore:
    """The checkpoints of one directory. `load` once, then `write` from one thread at a time; both block.

    `damaged` has a sentence for each file that `load` could not use; the next `write` removes those files.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        """No I/O yet; the directory must exist by the time of `load`."""
        self._directory = directory
        self._files = files
        self._kept: tuple[_Kept, ...] = ()  # whole ones, newest first; replaced as one, so any thread may read it
        self._last_number = 0
        self._loaded = False
        self.damaged: list[str] = []

    def load(self) -> LoadedCheckpoint | None:
        """The newest whole checkpoint, None when there never was one; removes temporary files left by a crash.

        Every checkpoint is read in full, so that rot in the older one is known before it is needed.
        Raises CheckpointDamaged when there are files and none is whole, OSError when the directory cannot be read.
        """
        self.damaged = []
        numbers = self._numbers_without_strays()
        self._last_number = max(numbers, default=0)
        newest: LoadedCheckpoint | None = None
        kept: list[_Kept] = []
        for number in sorted(numbers, reverse=True):
            try:
                header, body = self._read(number, wanted=newest is None)
            except (_BadFileError, OSError) as error:
                self.damaged.append(f"{self._path(number)}: {error}")
                continue
            kept.append(_Kept(number, header.scan_from))
            newest = newest or LoadedCheckpoint(body, header.scan_from)
        self._kept = tuple(kept)
        self._loaded = True
        if numbers and newest is None:
            raise CheckpointDamaged(
                f"No checkpoint in {self._directory} can be read ({'; '.join(self.damaged)}). Nothing was changed. "
                "Restore the directory from a copy, or start this node with an empty one and let it replicate. "
                "If the journal still has its first segment, the node can also rebuild everything from it: "
                "move the damaged checkpoints away and start again."
            )
        return newest

    def write(self, body: bytes, scan_from: int) -> None:
        """Makes `body` the newest checkpoint, durable on return, and removes all but it and the whole one before it.

        Raises OSError; the earlier checkpoints then stay as they were, and writing may be tried again later.
        """
        assert self._loaded, "load comes before write"
        number = self._last_number + 1
        temporary = self._path(number, ".tmp")
        try:
            self._write_file(temporary, number, body, scan_from)
            self._files.rename(temporary, self._path(number))
            self._files.sync_directory(self._directory)
        except OSError:
            with suppress(OSError):
                self._files.unlink(temporary)
            raise
        self._last_number = number
        kept = (_Kept(number, scan_from), *self._kept)[:_KEPT]
        self._remove_except({entry.number for entry in kept})
        self._kept = kept

    def oldest_scan_from(self) -> int:
        """The address from which on the journal must stay readable; below it segments may be deleted.

        0 until two checkpoints are whole: with one only, the whole journal is its stand-in.
        """
        kept = self._kept
        return min(entry.scan_from for entry in kept) if len(kept) >= _KEPT else 0

    def _path(self, number: int, suffix: str = "") -> Path:
        return self._directory / f"checkpoint-{number:016x}{suffix}"

    def _write_file(self, path: Path, number: int, body: bytes, scan_from: int) -> None:
        fields = _FIELDS.pack(_MAGIC, _FORMAT, crc32c(body), number, scan_from, len(body))
        if self._files.exists(path):
            self._files.unlink(path)
        handle = self._files.create(path)
        try:
            self._files.write_at(handle, [fields, _CRC.pack(crc32c(fields)), body], 0)
            self._files.sync_data(handle)
        finally:
            self._files.close(handle)

    def _remove_except(self, numbers: set[int]) -> None:
        old = [number for number in self._numbers_without_strays() if number not in numbers]
        for number in old:
            self._files.unlink(self._path(number))
        if old:
            self._files.sync_directory(self._directory)

    def _numbers_without_strays(self) -> list[int]:
        numbers = []
        for name in self._files.list(self._directory):
            match = _NAME.fullmatch(name)
            if match and match[2]:
                self._files.unlink(self._directory / name)
            elif match:
                numbers.append(int(match[1], 16))
        return numbers

    def _read(self, number: int, *, wanted: bool) -> tuple[_Header, bytes]:
        """Verifies one file; its body is returned only if `wanted`, otherwise it is read in chunks and b"" returned."""
        handle = self._files.open(self._path(number))
        try:
            header = _parse_header(self._files.read_at(handle, _HEADER_BYTES, 0), number)
            extra = self._files.size(handle) - _HEADER_BYTES - header.length
            if extra:
                raise _BadFileError(
                    f"its body is {-extra} bytes short" if extra < 0 else f"{extra} bytes follow its end"
                )
            step = header.length if wanted else _CHUNK
            crc, chunk = 0, b""
            for at in range(0, header.length, step or 1):
                chunk = self._files.read_at(handle, min(step, header.length - at), _HEADER_BYTES + at)
                crc = crc32c(chunk, crc)
        finally:
            self._files.close(handle)
        if crc != header.body_crc:
            raise _BadFileError("its body does not match its checksum")
        return header, chunk if wanted else b""


def _parse_header(data: bytes, number: int) -> _Header:
    if len(data) < _HEADER_BYTES:
        raise _BadFileError(f"only {len(data)} bytes long")
    if crc32c(data[: _FIELDS.size]) != _CRC.unpack_from(data, _FIELDS.size)[0]:
        raise _BadFileError("its header does not match its checksum")
    magic, version, body_crc, own_number, scan_from, length = _FIELDS.unpack_from(data)
    if magic != _MAGIC:
        raise _BadFileError("it is not a checkpoint")
    if version != _FORMAT:
        raise _BadFileError(f"format {version} is not the {_FORMAT} that this program reads")
    if own_number != number:
        raise _BadFileError(f"it is checkpoint {own_number:x} under a wrong name")
    return _Header(own_number, scan_from, body_crc, length)
