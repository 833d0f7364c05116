"""Whose data directory this is, and the lock that keeps a second process out.

`identity.json` holds `{"crc32c": <8 hex digits>, "identity": {...}}` in one canonical spelling: the checksum covers the
inner object, and a file whose bytes differ from what would be written for its content counts as damaged.

Crash story: the file is replaced by rename after an fsync, so a power cut leaves the old one or the new one. It is made
before the first segment; a directory with journal files and no identity has lost it and is refused.
`lock` is an empty file that is locked as long as the node runs, never replaced or removed.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from crc32c import crc32c

from ringpost.node.journal.files import Files

FORMAT = 1
_NAME = "identity.json"
_TEMPORARY = "identity.json.tmp"
_LOCK = "lock"
_ID_BYTES = 16
_SIZE_MAX = 65_536  # bytes; far above any identity


class IdentityError(Exception):
    """The directory cannot be used by this node. The message says why and what to do; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a data directory knows of itself. `lock_handle` is the open lock file, for `close_identity`."""

    format: int
    cluster_id: str  # 128 bits, 32 hex digits
    node: str
    directory_id: bytes  # 16 bytes, in every segment's header
    replica_id: str  # 128 bits, 32 hex digits; names this copy of the data
    boot: int  # how often the directory was opened, from 1
    shard_count: int
    created_us: int  # µs since 1970
    view_revision: int  # the last view of the cluster this node acted on; 0 for none
    store_id: str = ""  # of the coordination store in which it is a member; "" for none, or one without an id
    lock_handle: int = field(default=-1, compare=False, repr=False)


def open_identity(
    directory: Path,
    files: Files,
    *,
    node: str,
    shard_count: int,
    now_us: int,
    entropy: Callable[[int], bytes],
    cluster_id: str | None = None,
) -> Identity:
    """Locks the directory, makes or checks its identity and raises the boot counter durably.

    `entropy(n)` gives n random bytes (os.urandom). `cluster_id` None takes the directory's own, or a new random one.
    Raises IdentityError, or OSError when the disk fails; the lock is then released.
    """
    _make_durable_directory(directory, files)
    handle = _lock(directory, files)
    try:
        stored = read_identity(directory, files)
        if stored is None:
            _refuse_orphaned_journal(directory, files)
            stored = _new(node, cluster_id, shard_count, now_us, entropy)
        _check(directory, stored, node, cluster_id, shard_count)
        identity = replace(stored, boot=stored.boot + 1, lock_handle=handle)
        save_identity(directory, files, identity)
    except BaseException:
        files.close(handle)
        raise
    return identity


def close_identity(files: Files, identity: Identity) -> None:
    """Releases the lock; the last act of a node that stops."""
    files.close(identity.lock_handle)


def read_identity(directory: Path, files: Files) -> Identity | None:
    """The identity on disk, None when there is none; takes no lock, changes nothing. Raises IdentityError, OSError."""
    path = directory / _NAME
    if not files.exists(path):
        return None
    handle = files.open(path)
    try:
        data = files.read_at(handle, _SIZE_MAX, 0)
    finally:
        files.close(handle)
    return _decode(path, data)


def save_identity(directory: Path, files: Files, identity: Identity) -> None:
    """Replaces the identity on disk, durably on return: for a new view revision or replica id (`dataclasses.replace`).

    Only the holder of the lock may call it. Raises OSError; the old identity is then still whole on the disk.
    """
    temporary = directory / _TEMPORARY
    if files.exists(temporary):
        files.unlink(temporary)
    try:
        handle = files.create(temporary)
        try:
            files.write_at(handle, [_encode(identity)], 0)
            files.sync_data(handle)
        finally:
            files.close(handle)
        files.rename(temporary, directory / _NAME)
    except OSError:
        with suppress(OSError):
            files.unlink(temporary)
        raise
    files.sync_directory(directory)


def _make_durable_directory(directory: Path, files: Files) -> None:
    missing = [path for path in (directory, *directory.parents) if not files.exists(path)]
    files.make_directory(directory)
    for path in missing:  # otherwise a power cut may take the whole directory, however often its files were fsynced
        files.sync_directory(path.parent)


def _lock(directory: Path, files: Files) -> int:
    path = directory / _LOCK
    if not files.exists(path):
        # Two processes may both find it missing: who comes second opens what the first made.
        with suppress(FileExistsError):
            files.close(files.create(path))
    handle = files.open(path)
    try:
        locked = files.lock(handle)
    except BaseException:
        files.close(handle)
        raise
    if not locked:
        files.close(handle)
        raise IdentityError(
            f"Data directory {directory} is in use by another process. "
            "Stop that node first, or give this one a directory of its own."
        )
    return handle


def _refuse_orphaned_journal(directory: Path, files: Files) -> None:
    found = [name for name in files.list(directory) if name.endswith(".journal") or name.startswith("checkpoint-")]
    if found:
        raise IdentityError(
            f"Data directory {directory} holds journal files ({found[0]} and {len(found) - 1} more) but no {_NAME}. "
            f"Restore {_NAME} from a copy of the directory, or move the files away to start with an empty one."
        )


def _new(node: str, cluster_id: str | None, shard_count: int, now_us: int, entropy: Callable[[int], bytes]) -> Identity:
    return Identity(
        format=FORMAT,
        cluster_id=cluster_id or entropy(_ID_BYTES).hex(),
        node=node,
        directory_id=entropy(_ID_BYTES),
        replica_id=entropy(_ID_BYTES).hex(),
        boot=0,
        shard_count=shard_count,
        created_us=now_us,
        view_revision=0,
    )


def _check(directory: Path, stored: Identity, node: str, cluster_id: str | None, shard_count: int) -> None:
    if cluster_id is not None and stored.cluster_id != cluster_id:
        raise IdentityError(
            f"Data directory {directory} belongs to cluster {stored.cluster_id}, not to {cluster_id}. "
            "Start the node with the directory of that cluster, or with an empty one."
        )
    if stored.node != node:
        raise IdentityError(
            f"Data directory {directory} belongs to node {stored.node!r}, not to {node!r}. "
            "Start it under its own node id, or give this node an empty directory."
        )
    if stored.shard_count != shard_count:
        raise IdentityError(
            f"Data directory {directory} was made with {stored.shard_count} shards, "
            f"and the node is configured with {shard_count}. The number is fixed when a cluster is made: "
            f"configure {stored.shard_count}, or start with an empty directory."
        )


def _encode(identity: Identity) -> bytes:
    fields = asdict(identity)
    del fields["lock_handle"]
    fields["directory_id"] = identity.directory_id.hex()
    return _spell(fields)


def _spell(fields: dict[str, Any]) -> bytes:
    crc = crc32c(json.dumps(fields, sort_keys=True).encode())
    return json.dumps({"crc32c": f"{crc:08x}", "identity": fields}, sort_keys=True, indent=2).encode() + b"\n"


def _decode(path: Path, data: bytes) -> Identity:
    try:
        fields = json.loads(data)["identity"]
        whole = isinstance(fields, dict) and _spell(fields) == data
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise IdentityError(
            f"{path} is damaged: its {len(data)} bytes do not match their checksum. "
            "Restore it from a copy of the directory, or start this node with an empty directory."
        )
    if fields.get("format") != FORMAT:
        raise IdentityError(
            f"{path} has format {fields.get('format')}, and this program knows format {FORMAT}. "
            "Start the newer version of Ringpost that wrote it."
        )
    fields["directory_id"] = bytes.fromhex(fields["directory_id"])
    return Identity(**fields)
