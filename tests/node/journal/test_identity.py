"""The identity of a data directory, on a healthy disk and with a file that rots."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c

from ringpost.node.journal.files import RealFiles
from ringpost.node.journal.identity import (
    Identity,
    IdentityError,
    close_identity,
    open_identity,
    read_identity,
    save_identity,
)

FILES = RealFiles()
NOW_US = 1_700_000_000_000_000


def acquire(directory: Path, *, node: str = "n1", shard_count: int = 256, cluster_id: str | None = None) -> Identity:
    return open_identity(
        directory,
        FILES,
        node=node,
        shard_count=shard_count,
        cluster_id=cluster_id,
        now_us=NOW_US,
        entropy=Random(1).randbytes,
    )


@contextmanager
def opened(directory: Path, **wanted: object) -> Iterator[Identity]:
    identity = acquire(directory, **wanted)  # type: ignore[arg-type]
    try:
        yield identity
    finally:
        close_identity(FILES, identity)


def test_a_new_directory_gets_an_identity(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "data") as identity:
        assert (identity.node, identity.shard_count, identity.boot, identity.created_us) == ("n1", 256, 1, NOW_US)
        assert len(bytes.fromhex(identity.cluster_id)) == len(bytes.fromhex(identity.replica_id)) == 16
        assert len(identity.directory_id) == 16
        assert len({identity.cluster_id, identity.replica_id, identity.directory_id.hex()}) == 3


def test_a_restart_keeps_it_and_counts_the_boot(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        pass
    with opened(tmp_path) as second:
        assert second == replace(first, boot=2)
        assert read_identity(tmp_path, FILES) == second


def test_a_new_view_revision_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as identity:
        save_identity(tmp_path, FILES, replace(identity, view_revision=42))
    with opened(tmp_path) as identity:
        assert (identity.view_revision, identity.boot) == (42, 2)


def test_a_given_cluster_id_is_taken_and_then_demanded(tmp_path: Path) -> None:
    with opened(tmp_path, cluster_id="ab" * 16) as identity:
        assert identity.cluster_id == "ab" * 16
    with opened(tmp_path, cluster_id=None) as identity:
        assert identity.cluster_id == "ab" * 16
    with pytest.raises(IdentityError, match=f"belongs to cluster {'ab' * 16}, not to {'cd' * 16}"):
        acquire(tmp_path, cluster_id="cd" * 16)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"node": "n2"}, "belongs to node 'n1', not to 'n2'"),
        ({"shard_count": 64}, "was made with 256 shards, and the node is configured with 64"),
    ],
)
def test_another_owner_is_refused_and_nothing_changes(tmp_path: Path, wanted: dict[str, object], sentence: str) -> None:
    with opened(tmp_path):
        pass
    before = read_identity(tmp_path, FILES)
    with pytest.raises(IdentityError, match=sentence):
        acquire(tmp_path, **wanted)  # type: ignore[arg-type]
    assert read_identity(tmp_path, FILES) == before
    with opened(tmp_path):
        pass  # the refusal released the lock


def test_two_nodes_cannot_have_one_directory(tmp_path: Path) -> None:
    with opened(tmp_path) as identity:
        with pytest.raises(IdentityError, match="in use by another process"):
            acquire(tmp_path)
        assert read_identity(tmp_path, FILES) == identity, "the loser counted no boot"
    with opened(tmp_path) as identity:
        assert identity.boot == 2


@pytest.mark.parametrize("name", ["0000000000000001.journal", "checkpoint-0000000000000001"])
def test_a_journal_without_its_identity_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(IdentityError, match=f"holds journal files .{name}"):
        acquire(tmp_path)
    assert not (tmp_path / "identity.json").exists()


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    path = tmp_path / "identity.json"
    good = path.read_bytes()
    for bit in range(len(good) * 8):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(IdentityError, match="damaged"):
            read_identity(tmp_path, FILES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"[]",
        lambda data: b'{"identity": 7}',
        lambda data: bytes(len(data)),
    ],
)
def test_other_damage_is_found(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    with opened(tmp_path):
        pass
    path = tmp_path / "identity.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(IdentityError, match="damaged"):
        acquire(tmp_path)


def test_a_newer_format_asks_for_a_newer_program(tmp_path: Path) -> None:
    fields = {"format": 2, "something": "we do not know"}
    crc = crc32c(json.dumps(fields, sort_keys=True).encode())
    document = {"crc32c": f"{crc:08x}", "identity": fields}
    (tmp_path / "identity.json").write_text(json.dumps(document, sort_keys=True, indent=2) + "\n")
    with pytest.raises(IdentityError, match="has format 2, and this program knows format 1"):
        acquire(tmp_path)


def test_the_half_written_file_of_a_crash_is_no_identity(tmp_path: Path) -> None:
    (tmp_path / "identity.json.tmp").write_bytes(b'{"crc32c"')
    with opened(tmp_path) as identity:
        assert identity.boot == 1
    assert FILES.list(tmp_path) == ["identity.json", "lock"]
