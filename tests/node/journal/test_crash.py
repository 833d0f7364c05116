"""Power cuts at every write point of the journal and of recovery: nothing acknowledged is lost."""

import random

import pytest

from ringpost.node.journal.segment import offset_of, segment_of, segment_path
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, Owner, check_recovered, contents, moments_of, recovered


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_at_any_write_point_loses_nothing_acknowledged(seed: int) -> None:
    """Odd seeds seal after every group, as after a quiet moment."""
    owner, moments = moments_of(seed, rounds=16, seal_after_s=0 if seed % 2 else 3600)
    rng = random.Random(seed)
    states = 0
    for moment in moments:
        for files in moment.files.crash_states(rng, limit=14):
            check_recovered(files, owner, moment.acknowledged)
            states += 1
    assert segment_of(owner.journal.end) >= 2
    assert len(moments) > 50
    assert states > 250


def test_a_power_cut_during_recovery_changes_nothing() -> None:
    owner, moments = moments_of(77, rounds=6)
    rng = random.Random(77)
    states = cuts = 0
    for moment in moments:
        for files in moment.files.crash_states(rng, limit=6):
            during: list[FaultyFiles] = []
            files.probe = lambda name, files=files, during=during: during.append(files.snapshot())
            report, _ = recovered(files)
            files.probe = None
            cuts += report.cut_bytes > 0
            for snapshot in during:
                for state in snapshot.crash_states(rng, limit=4):
                    check_recovered(state, owner, moment.acknowledged)
                    states += 1
    assert cuts > 20
    assert states > 100


def test_every_byte_prefix_of_one_group_is_whole_or_gone() -> None:
    """The last group of three frames, one of them of zeros, cut at each of its bytes."""
    files = FaultyFiles()
    owner = Owner(files, group_bytes_max=1 << 20)
    owner.append(b"first")
    owner.settle()
    path = segment_path(DIRECTORY, 1)
    before = files.content(path)
    group = owner.journal.end
    for body in (b"x" * 300, bytes(1500), b"y" * 40):
        owner.append(body)
    owner.settle()
    after = files.content(path)
    start, stop = offset_of(group), offset_of(owner.journal.end)
    for cut in range(start, stop + 1, 3):
        torn = FaultyFiles()
        torn.put(path, after[:cut] + before[cut:])
        report, found = recovered(torn)
        assert report.damages == []
        assert contents(found) in (contents(owner.appended[:1]), contents(owner.appended))
        assert (len(found) > 1) == (cut == stop)
    owner.close()
