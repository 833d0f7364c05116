"""One flipped bit anywhere in the journal: reported, or harmless."""

import random

import pytest

from ringpost.node.journal.segment import GROUP_HEADER_SIZE, segment_path
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, Frame, Owner, contents, recovered, workload


def check_flipped(files: FaultyFiles, appended: list[Frame], where: object) -> bool:
    """Whether the flip was reported as damage; if not, every frame must be there as it was."""
    report, found = recovered(files)
    whole = [frame for frame in found if frame.whole]
    genuine = set(contents(appended))
    assert set(contents(whole)) <= genuine, where
    if not report.damages:
        assert contents(found) == contents(appended), where
    return bool(report.damages)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "power cut right after the fsync"])
def test_a_flipped_bit_in_any_byte_is_reported_or_harmless(sealed: bool) -> None:
    files = FaultyFiles()
    owner = Owner(files)
    workload(owner, random.Random(11), rounds=9)
    acknowledged = files.snapshot()
    owner.close()
    disk = files.snapshot() if sealed else next(iter(acknowledged.crash_states(random.Random(0), limit=1)))
    rng = random.Random(12)
    reported = tried = 0
    for path in disk.paths():
        content = disk.content(path)
        used = len(content.rstrip(b"\0"))
        for byte in [*range(sealed, used, 2), *rng.sample(range(used, len(content)), min(60, len(content) - used))]:
            flipped = FaultyFiles()
            for other in disk.paths():
                flipped.put(other, disk.content(other))
            flipped.flip(path, byte, rng.randrange(8))
            reported += check_flipped(flipped, owner.appended, (path, byte))
            tried += 1
    assert tried > 5000
    assert reported > 0.9 * tried


def test_flipped_bits_of_an_unsealed_group_of_zeros() -> None:
    """The hardest case: zero sectors by content in the last group, which nothing follows, and one bit that is wrong."""
    files = FaultyFiles()
    owner = Owner(files)
    for body in (b"before", bytes(3000), b"after"):
        owner.append(body)
    owner.settle()
    path = segment_path(DIRECTORY, 1)
    content = files.content(path)
    stop = len(content.rstrip(b"\0"))
    for byte in range(64 + GROUP_HEADER_SIZE, stop):
        for bit in (0, 7):
            flipped = FaultyFiles()
            flipped.put(path, content)
            flipped.flip(path, byte, bit)
            assert check_flipped(flipped, owner.appended, byte)
    owner.close()
