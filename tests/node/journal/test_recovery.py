"""Recovery's judgement, case by case: what is torn, what is damaged, what costs nothing, what is missing."""

import pytest

from ringpost.node.journal.frame import FRAME_OVERHEAD, HEADER_SIZE, TRAILER
from ringpost.node.journal.recovery import Damage
from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    UnknownFormat,
    address_of,
    encode_group_header,
    encode_segment_header,
    offset_of,
    segment_of,
    segment_path,
    zero_sectors,
)
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, DIRECTORY_ID, Frame, Maker, Owner, contents, recovered

FIRST = segment_path(DIRECTORY, 1)
SEGMENT = 8192


class Image:
    """A disk made by hand: one group for each list of bodies, the shard 0, 1, 0, 1… by group, then a seal."""

    def __init__(self, *groups: list[bytes], sealed: bool = True) -> None:
        self.appended: list[Frame] = []
        self.end = address_of(1, SEGMENT_HEADER_SIZE)
        self._maker = Maker()
        self._segments: dict[int, bytearray] = {}
        for sequence, bodies in enumerate([*groups, []] if sealed else groups):
            self._group(sequence, bodies)

    def files(self) -> FaultyFiles:
        files = FaultyFiles()
        for number, content in self._segments.items():
            files.put(segment_path(DIRECTORY, number), bytes(content))
        return files

    def _group(self, sequence: int, bodies: list[bytes]) -> None:
        if offset_of(self.end) + sum(map(len, bodies)) + 500 > SEGMENT:
            self.end = address_of(segment_of(self.end) + 1, SEGMENT_HEADER_SIZE)
        group, self.end = self.end, self.end + GROUP_HEADER_SIZE
        data = b""
        for body in bodies:
            header = self._maker.frame(body, shard=sequence % 2)
            self.appended.append(Frame(self.end, header, body))
            data += header + body + TRAILER
            self.end += FRAME_OVERHEAD + len(body)
        number, start = segment_of(group), offset_of(group)
        zeros = zero_sectors(data, start + GROUP_HEADER_SIZE)
        empty = bytearray(encode_segment_header(DIRECTORY_ID, number).ljust(SEGMENT, b"\0"))
        content = self._segments.setdefault(number, empty)
        header = encode_group_header(group, len(data), len(bodies), sequence, zeros)
        content[start : start + len(header) + len(data)] = header + data


def written(*groups: list[bytes], sealed: bool = True) -> tuple[FaultyFiles, Image]:
    image = Image(*groups, sealed=sealed)
    return image.files(), image


def spoil(files: FaultyFiles, address: int, data: bytes) -> None:
    path = segment_path(DIRECTORY, segment_of(address))
    content = bytearray(files.content(path))
    content[offset_of(address) : offset_of(address) + len(data)] = data
    files.put(path, bytes(content))


def test_nothing_there_is_a_new_journal() -> None:
    report, found = recovered(FaultyFiles())
    assert found == []
    assert (report.end, report.damages, report.first_segment, report.directory_id) == (0, [], 0, None)


def test_a_clean_journal_tells_its_end_and_its_directory() -> None:
    files, image = written([b"a"], [b"b"])
    report, found = recovered(files)
    assert contents(found) == contents(image.appended)
    assert report.end == image.end
    assert report.directory_id == DIRECTORY_ID
    assert report.first_segment == 1
    assert (report.cut_bytes, report.damages, report.harmless) == (0, [], [])


@pytest.mark.parametrize("index", range(5))
def test_the_scan_begins_at_any_frame(index: int) -> None:
    files, image = written([b"a", b"b"], [b"c"], [b"d", b"e"])
    report, found = recovered(files, scan_from=image.appended[index].address)
    assert contents(found) == contents(image.appended[index:])
    assert report.end == image.end
    assert report.damages == []


def test_damage_below_the_scan_is_nobodys_business() -> None:
    files, image = written([b"a", b"b"], [b"c"], [b"d", b"e"])
    spoil(files, image.appended[0].address, b"!!!!")
    spoil(files, image.appended[2].address - GROUP_HEADER_SIZE, b"!!!!")
    report, found = recovered(files, scan_from=image.appended[3].address)
    assert contents(found) == contents(image.appended[3:])
    assert report.damages == []


def test_a_damaged_body_costs_its_frame_and_names_the_shard() -> None:
    files, image = written([b"a"], [b"bad body"], [b"c"])
    bad = image.appended[1]
    spoil(files, bad.address + HEADER_SIZE, b"B")
    report, found = recovered(files)
    assert [frame.whole for frame in found] == [True, False, True]
    (damage,) = report.damages
    assert damage[:3] == (bad.address, FRAME_OVERHEAD + 8, 1)
    assert report.end == image.end


def test_a_damaged_frame_header_costs_its_frame_and_names_nobody() -> None:
    files, image = written([b"a", b"bad header", b"c"], [b"d"])
    bad = image.appended[1]
    spoil(files, bad.address + 20, b"\xff")
    report, found = recovered(files)
    assert contents(found) == contents([frame for frame in image.appended if frame is not bad])
    assert report.damages == [Damage(bad.address, FRAME_OVERHEAD + 10, None, "no readable frame header")]


def test_a_damaged_group_header_costs_nothing() -> None:
    files, image = written([b"a"], [b"b", b"c"], [b"d"])
    group = image.appended[1].address - GROUP_HEADER_SIZE
    spoil(files, group + 5, b"\xff")
    report, found = recovered(files)
    assert contents(found) == contents(image.appended)
    assert report.damages == []
    assert [damage[:3] for damage in report.harmless] == [(group, GROUP_HEADER_SIZE, None)]


def test_a_damaged_group_header_and_a_damaged_frame_are_both_reported() -> None:
    files, image = written([b"a"], [b"b", b"c"], [b"d"])
    group = image.appended[1].address - GROUP_HEADER_SIZE
    spoil(files, group + 5, b"\xff")
    spoil(files, image.appended[2].address + HEADER_SIZE, b"C")
    report, found = recovered(files)
    assert [damage.address for damage in report.damages] == [group, image.appended[2].address]
    assert [frame.whole for frame in found] == [True, True, False, True]


def test_a_hole_of_zeros_in_the_middle_is_damage() -> None:
    files, image = written([b"a"], [b"b"], [b"c"], [b"d"])
    start = image.appended[1].address - GROUP_HEADER_SIZE
    stop = image.appended[3].address - GROUP_HEADER_SIZE
    spoil(files, start, bytes(stop - start))
    report, found = recovered(files)
    assert contents(found) == contents([image.appended[0], image.appended[3]])
    assert sum(damage.length for damage in report.damages) == stop - start
    assert report.cut_bytes == 0


def test_groups_lost_from_the_end_of_a_full_segment_are_missed() -> None:
    files, image = written([bytes(3000)], [b"x" * 3000], [b"next segment" * 250])
    lost = image.appended[1].address - GROUP_HEADER_SIZE
    assert segment_of(image.appended[2].address) == 2
    spoil(files, lost, bytes(8192 - offset_of(lost)))
    report, found = recovered(files)
    assert contents(found) == contents([image.appended[0], image.appended[2]])
    assert report.damages == [Damage(lost, 0, None, "groups are missing")]


def test_the_last_group_unsealed_and_partly_missing_is_torn_as_a_whole() -> None:
    files, image = written([b"a"], [b"b", b"c"], sealed=False)
    last = image.appended[2]
    spoil(files, last.address + FRAME_OVERHEAD, b"\0")
    report, found = recovered(files)
    assert contents(found) == contents(image.appended[:1])
    assert report.damages == []
    assert report.end == image.appended[1].address - GROUP_HEADER_SIZE
    # The cut ends at the last byte that was there, before the missing trailer.
    assert report.cut_bytes == GROUP_HEADER_SIZE + 2 * (FRAME_OVERHEAD + 1) - 1
    assert recovered(files)[0].cut_bytes == 0


def test_the_same_in_a_sealed_group_is_damage() -> None:
    files, image = written([b"a"], [b"b", b"c"])
    last = image.appended[2]
    spoil(files, last.address + FRAME_OVERHEAD, b"\0")
    report, found = recovered(files)
    assert [frame.whole for frame in found] == [True, True, False]
    assert [damage.shard for damage in report.damages] == [1]
    assert report.end == image.end


def test_any_byte_behind_a_group_proves_that_it_was_durable() -> None:
    files, image = written([b"a"], [b"b", b"c"], sealed=False)
    last = image.appended[2]
    spoil(files, last.address + FRAME_OVERHEAD, b"\0")
    spoil(files, last.address + FRAME_OVERHEAD + 1, b"RPG")
    report, _ = recovered(files)
    assert [damage.address for damage in report.damages] == [last.address]
    assert report.end == last.address + FRAME_OVERHEAD + 1
    assert report.cut_bytes == 3


def test_the_next_segment_in_use_proves_it_too() -> None:
    files, image = written([bytes(3000)], [b"x" * 3000], [b"y" * 3000], sealed=False)
    second = image.appended[1]
    spoil(files, second.address + HEADER_SIZE + 3000, b"\0")
    report, _ = recovered(files)
    assert [damage.address for damage in report.damages] == [second.address]


def test_a_wrong_byte_in_the_last_group_with_all_sectors_there_is_damage() -> None:
    files, image = written([b"a"], [b"b" * 1500, bytes(1500)], sealed=False)
    spoil(files, image.appended[2].address + HEADER_SIZE + 700, b"\1")
    report, _ = recovered(files)
    assert [damage.address for damage in report.damages] == [image.appended[2].address]
    assert report.cut_bytes == 0


def test_a_sector_that_vanished_from_the_last_unsealed_group_looks_torn() -> None:
    """The case that stays uncertain; sealed, it is damage."""
    for sealed in (False, True):
        files, image = written([b"a"], [b"b" * 1500], sealed=sealed)
        spoil(files, address_of(1, 1024), bytes(512))
        report, found = recovered(files)
        assert bool(report.damages) == sealed
        assert len(found) == 1 + sealed
        assert (report.cut_bytes > 0) == (not sealed)
        assert contents(found[:1]) == contents(image.appended[:1])


def test_prepared_and_half_made_segments_are_removed() -> None:
    files, image = written([b"a"])
    files.put(segment_path(DIRECTORY, 2), encode_segment_header(DIRECTORY_ID, 2) + bytes(4000))
    files.put(segment_path(DIRECTORY, 3), b"")
    files.put(segment_path(DIRECTORY, 4), encode_segment_header(DIRECTORY_ID, 4)[:20] + bytes(4000))
    report, found = recovered(files)
    assert contents(found) == contents(image.appended)
    assert report.damages == []
    assert files.paths() == [str(FIRST)]


def test_a_first_segment_that_was_never_used_is_a_new_journal() -> None:
    for content in (b"", bytes(8192), encode_segment_header(DIRECTORY_ID, 1), b"RPSEG"):
        files = FaultyFiles()
        files.put(FIRST, content)
        report, _ = recovered(files)
        assert (report.end, report.damages, report.first_segment) == (0, [], 0)
        owner = Owner(files, end=report.end)
        owner.append(b"a")
        owner.close()
        assert contents(recovered(files)[1]) == contents(owner.appended)


def three_segments() -> tuple[FaultyFiles, Image]:
    files, image = written(*([b"%d" % number * 3000] for number in range(6)))
    assert {segment_of(frame.address) for frame in image.appended} == {1, 2, 3}
    return files, image


def remains(image: Image, *segments: int) -> list[Frame]:
    return [frame for frame in image.appended if segment_of(frame.address) in segments]


def test_a_missing_segment_is_damage_unless_the_scan_begins_behind_it() -> None:
    for missing, what in ((1, "segments 1 to 1"), (2, "segments 2 to 2")):
        files, image = three_segments()
        files.unlink(segment_path(DIRECTORY, missing))
        report, found = recovered(files)
        assert contents(found) == contents(remains(image, *{1, 2, 3} - {missing}))
        assert [damage.what for damage in report.damages] == [what + " are missing"]
        report, found = recovered(files, scan_from=address_of(3, SEGMENT_HEADER_SIZE))
        assert contents(found) == contents(remains(image, 3))
        assert report.damages == []


def test_a_journal_that_ends_before_the_checkpoint_is_damage_and_goes_on_behind_it() -> None:
    files, image = three_segments()
    files.unlink(segment_path(DIRECTORY, 3))
    scan_from = remains(image, 3)[0].address
    report, found = recovered(files, scan_from=scan_from)
    assert found == []
    assert "ends before the checkpoint" in report.damages[-1].what
    assert report.end > scan_from
    again = Owner(files, end=report.end)
    frame = again.append(b"with the operator's word")
    again.close()
    assert frame.address > scan_from
    report, found = recovered(files, scan_from=frame.address)
    assert contents(found) == contents([frame])
    assert report.damages == []


@pytest.mark.parametrize("after", [[], [bytes(8192)]])
@pytest.mark.parametrize("segment", [1, 4])
def test_a_checkpoint_may_name_the_start_of_a_segment_that_nothing_was_written_to(
    segment: int, after: list[bytes]
) -> None:
    """A new node that stops unused, or one that went on behind a damaged end and stops before its first group."""
    files = three_segments()[0] if segment > 1 else FaultyFiles()
    scan_from = address_of(segment, SEGMENT_HEADER_SIZE)
    Owner(files, end=scan_from if segment > 1 else 0).close()
    for number, content in enumerate(after, segment + 1):
        files.put(segment_path(DIRECTORY, number), content)
    for _ in range(2):
        report, found = recovered(files, scan_from=scan_from)
        assert (found, report.damages, report.harmless, report.cut_bytes) == ([], [], [], 0)
        assert (report.end, report.directory_id) == (scan_from, DIRECTORY_ID)
        Owner(files, end=report.end).close()
    again = Owner(files, end=report.end)
    again.append(b"goes on")
    again.close()
    report, found = recovered(files, scan_from=scan_from)
    assert contents(found) == contents(again.appended)
    assert report.damages == []


def test_a_torn_first_group_behind_the_checkpoint_is_cut() -> None:
    files, image = written([b"a", b"b"], sealed=False)
    spoil(files, image.appended[1].address + FRAME_OVERHEAD, b"\0")
    scan_from = address_of(1, SEGMENT_HEADER_SIZE)
    report, found = recovered(files, scan_from=scan_from)
    assert (found, report.damages, report.end) == ([], [], scan_from)
    assert report.cut_bytes > 0


@pytest.mark.parametrize("content", [None, b"", bytes(8192), encode_segment_header(DIRECTORY_ID, 9) + bytes(8128)])
def test_the_segment_that_the_checkpoint_names_must_be_there(content: bytes | None) -> None:
    """Its header was durable before the checkpoint: without it, nobody knows what else is gone."""
    files, _ = three_segments()
    if content is not None:
        files.put(segment_path(DIRECTORY, 4), content)
    files.put(segment_path(DIRECTORY, 5), encode_segment_header(DIRECTORY_ID, 5) + bytes(8128))
    report, found = recovered(files, scan_from=address_of(4, SEGMENT_HEADER_SIZE))
    assert found == []
    assert report.damages
    assert segment_of(report.end) > 4


def test_a_segment_of_another_directory_or_name_is_damage_and_kept() -> None:
    for header in (encode_segment_header(bytes(16), 3), encode_segment_header(DIRECTORY_ID, 9)):
        files, image = three_segments()
        spoil(files, address_of(3, 0), header)
        before = files.content(segment_path(DIRECTORY, 3))
        report, found = recovered(files)
        assert contents(found) == contents(remains(image, 1, 2))
        (damage,) = report.damages
        assert damage[:3] == (address_of(3, 0), 8192, None)
        assert report.end == address_of(4, SEGMENT_HEADER_SIZE)
        assert files.content(segment_path(DIRECTORY, 3)) == before


def test_a_damaged_segment_header_costs_nothing() -> None:
    files, image = three_segments()
    spoil(files, address_of(1, 30), b"\xff\xff")
    report, found = recovered(files)
    assert contents(found) == contents(image.appended)
    assert report.damages == []
    assert [damage.address for damage in report.harmless] == [address_of(1, 0)]
    assert report.directory_id == DIRECTORY_ID


def test_a_later_format_stops_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = written([b"a"])
    before = files.content(FIRST)
    monkeypatch.setattr("ringpost.node.journal.segment._FORMAT", 2)
    later = encode_segment_header(DIRECTORY_ID, 1)
    monkeypatch.undo()
    spoil(files, address_of(1, 0), later)
    with pytest.raises(UnknownFormat):
        recovered(files)
    assert files.content(FIRST)[SEGMENT_HEADER_SIZE:] == before[SEGMENT_HEADER_SIZE:]
