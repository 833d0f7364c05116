import hashlib
import random

from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.cli.corpus import Source, split_lines
from ringpost.client.cli.proof import Replayed, Shared, compare

FILES = [
    Source("stdlib.a", "a/one.py", b"import x\n\n\nprint(x)\n"),
    Source("stdlib.a", "a/two.py", b"y = 1\r\n\n# no line end"),
]
ORIGINALS = {source.path: source.digest for source in FILES}
MESSAGES = [(source.path.encode(), line) for source in FILES for line in source.lines()]


def replay(messages: list[tuple[bytes, bytes]]) -> Replayed:
    replayed = Replayed()
    for offset, (key, line) in enumerate(messages):
        replayed.take(offset, key, line)
    return replayed


def share(offsets: list[int]) -> Shared:
    shared = Shared()
    for offset in offsets:
        shared.take(offset, *MESSAGES[offset])
    return shared


def test_all_lines_in_order_prove_every_file() -> None:
    result = compare(ORIGINALS, [replay(MESSAGES).digests()])
    assert result.ok
    assert result.identical == 2


def test_a_missing_line_makes_its_file_different() -> None:
    result = compare(ORIGINALS, [replay(MESSAGES[:-1]).digests()])
    assert result.different == ["a/two.py"]
    assert not result.ok


def test_a_missing_file_is_named() -> None:
    result = compare(ORIGINALS, [replay(MESSAGES[:4]).digests()])
    assert (result.missing, result.identical, result.ok) == (["a/two.py"], 1, False)


def test_a_line_stored_twice_makes_its_file_different() -> None:
    assert compare(ORIGINALS, [replay([MESSAGES[0], *MESSAGES]).digests()]).different == ["a/one.py"]


def test_two_swapped_lines_make_their_file_different() -> None:
    swapped = [MESSAGES[1], MESSAGES[0], *MESSAGES[2:]]
    assert compare(ORIGINALS, [replay(swapped).digests()]).different == ["a/one.py"]


def test_a_file_that_nobody_published_or_in_two_channels_is_a_fault() -> None:
    files = replay(MESSAGES).digests()
    stray = {b"b/three.py": hashlib.sha256(b"?").digest()}
    assert compare(ORIGINALS, [files, stray]).unexpected == ["b/three.py"]
    assert compare(ORIGINALS, [files, {b"a/one.py": files[b"a/one.py"]}]).different == ["a/one.py"]


def test_the_replay_counts_repeats_and_holes() -> None:
    replayed = Replayed()
    for offset in (0, 1, 1, 4, 2, 5):
        replayed.take(offset, b"k", b"line\n")
    assert (replayed.next_offset, replayed.repeated, replayed.skipped) == (6, 2, 2)


@given(st.randoms(use_true_random=False))
def test_a_group_proves_the_files_in_whatever_order_its_workers_got_them(rng: random.Random) -> None:
    offsets = list(range(len(MESSAGES))) + rng.choices(range(len(MESSAGES)), k=3)
    rng.shuffle(offsets)
    shared = share(offsets)
    assert compare(ORIGINALS, [shared.digests()]).ok
    assert (len(shared), shared.redelivered, shared.changed) == (len(MESSAGES), 3, 0)


def test_a_redelivery_with_other_bytes_is_noticed() -> None:
    shared = share([0, 1])
    shared.take(1, MESSAGES[1][0], b"changed\n")
    assert (shared.redelivered, shared.changed) == (1, 1)


def test_a_redelivered_one_byte_line_counts_although_python_shares_such_bytes() -> None:
    shared = Shared()
    shared.take(0, b"k", b"\n")
    shared.take(0, b"k", b"\n")
    assert (shared.redelivered, shared.changed) == (1, 0)


@given(st.binary() | st.text(alphabet="a\n\r").map(str.encode))
def test_lines_join_to_the_same_bytes(content: bytes) -> None:
    lines = split_lines(content)
    assert b"".join(lines) == content
    assert all(line.find(b"\n") in (-1, len(line) - 1) and line for line in lines)
