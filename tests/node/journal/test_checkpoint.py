"""Checkpoints on a healthy disk, and with files that rot."""

from pathlib import Path

import pytest

from ringpost.node.journal.checkpoint import CheckpointDamaged, CheckpointStore
from ringpost.node.journal.files import RealFiles


def opened(directory: Path) -> CheckpointStore:
    store = CheckpointStore(directory, RealFiles())
    store.load()
    return store


def names(directory: Path) -> list[str]:
    return RealFiles().list(directory)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_a_new_directory_has_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, RealFiles())
    assert store.load() is None
    assert store.damaged == []
    assert store.oldest_scan_from() == 0


@pytest.mark.parametrize("body", [b"", b"state", bytes(range(256)) * 10_000])
def test_what_was_written_is_loaded(tmp_path: Path, body: bytes) -> None:
    opened(tmp_path).write(body, scan_from=7 << 32 | 64)
    loaded = CheckpointStore(tmp_path, RealFiles()).load()
    assert loaded is not None
    assert loaded == (body, 7 << 32 | 64)


def test_the_two_newest_stay_across_restarts(tmp_path: Path) -> None:
    for number in range(1, 6):
        opened(tmp_path).write(b"body %d" % number, scan_from=number * 100)
    assert names(tmp_path) == [f"checkpoint-{number:016x}" for number in (4, 5)]
    assert opened(tmp_path).oldest_scan_from() == 400


def test_nothing_may_be_reclaimed_before_there_are_two(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(b"one", scan_from=500)
    assert store.oldest_scan_from() == 0
    store.write(b"two", scan_from=600)
    assert store.oldest_scan_from() == 500
    store.write(b"three", scan_from=600)
    assert store.oldest_scan_from() == 600


def test_the_older_one_serves_when_the_newest_is_damaged(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(b"older", scan_from=100)
    store.write(b"newer", scan_from=200)
    flip(tmp_path / names(tmp_path)[1], 8 * 46)
    store = CheckpointStore(tmp_path, RealFiles())
    assert store.load() == (b"older", 100)
    assert "checkpoint-0000000000000002" in store.damaged[0]
    assert "checksum" in store.damaged[0]
    assert store.oldest_scan_from() == 0

    store.write(b"newest", scan_from=300)
    assert names(tmp_path) == [f"checkpoint-{number:016x}" for number in (1, 3)], "the damaged one gave way"
    assert store.oldest_scan_from() == 100


def test_damage_in_the_older_one_is_known_before_it_is_needed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(bytes(3 << 20), scan_from=100)
    store.write(b"newer", scan_from=200)
    flip(tmp_path / names(tmp_path)[0], 8 * ((2 << 20) + 5))
    store = CheckpointStore(tmp_path, RealFiles())
    assert store.load() == (b"newer", 200)
    assert "checkpoint-0000000000000001" in store.damaged[0]


def test_with_every_one_damaged_nothing_is_guessed(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.write(b"older", scan_from=100)
    store.write(b"newer", scan_from=200)
    for name in names(tmp_path):
        flip(tmp_path / name, 3)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    store = CheckpointStore(tmp_path, RealFiles())
    with pytest.raises(CheckpointDamaged, match="Restore the directory"):
        store.load()
    assert len(store.damaged) == 2
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before

    store.write(b"accepted loss", scan_from=900)  # the operator's word to go on
    assert opened(tmp_path).load() == (b"accepted loss", 900)


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    opened(tmp_path).write(b"shards and rows", scan_from=1 << 40)
    path = tmp_path / names(tmp_path)[0]
    for bit in range(path.stat().st_size * 8):
        flip(path, bit)
        with pytest.raises(CheckpointDamaged):
            CheckpointStore(tmp_path, RealFiles()).load()
        flip(path, bit)
    assert opened(tmp_path).load() == (b"shards and rows", 1 << 40)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:20], "20 bytes long"),
        (lambda data: data[:-1], "1 bytes short"),
        (lambda data: data + b"\0", "1 bytes follow"),
        (lambda data: b"", "0 bytes long"),
    ],
)
def test_a_wrong_length_is_named(tmp_path: Path, spoil, reason: str) -> None:  # type: ignore[no-untyped-def]
    opened(tmp_path).write(b"body", scan_from=1)
    path = tmp_path / names(tmp_path)[0]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointDamaged, match=reason):
        CheckpointStore(tmp_path, RealFiles()).load()


def test_a_checkpoint_under_another_ones_name_is_not_trusted(tmp_path: Path) -> None:
    opened(tmp_path).write(b"body", scan_from=1)
    (tmp_path / names(tmp_path)[0]).rename(tmp_path / "checkpoint-0000000000000009")
    with pytest.raises(CheckpointDamaged, match="wrong name"):
        CheckpointStore(tmp_path, RealFiles()).load()


def test_strays_of_a_crash_are_removed_and_other_files_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000000000000001.tmp").write_bytes(b"half")
    (tmp_path / "0000000000000001.journal").write_bytes(b"segment")
    (tmp_path / "checkpoint-notes.txt").write_bytes(b"mine")
    assert CheckpointStore(tmp_path, RealFiles()).load() is None
    assert names(tmp_path) == ["0000000000000001.journal", "checkpoint-notes.txt"]
