"""Headers of segments and groups, and how many sectors are zero by content."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.journal.segment import (
    GROUP_HEADER_SIZE,
    SECTOR,
    SEGMENT_HEADER_SIZE,
    Damaged,
    UnknownFormat,
    address_of,
    create_segment,
    decode_group_header,
    decode_segment_header,
    encode_group_header,
    encode_segment_header,
    list_segments,
    offset_of,
    segment_of,
    segment_path,
    zero_sectors,
    zero_sectors_of_parts,
)
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.journal.rig import DIRECTORY, DIRECTORY_ID

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(u64, u32, u32, u32, u32)
def test_a_group_header_comes_back_at_its_own_address_only(a: int, b: int, c: int, d: int, e: int) -> None:
    raw = encode_group_header(a, b, c, d, e)
    assert len(raw) == GROUP_HEADER_SIZE
    assert decode_group_header(b"before" + raw, 6, a) == (a, b, c, d, e)
    with pytest.raises(Damaged, match="belongs to address"):
        decode_group_header(raw, 0, a ^ 1)


@given(st.binary(max_size=100), st.integers(0, 110))
def test_random_bytes_are_no_headers(data: bytes, at: int) -> None:
    with pytest.raises(Damaged):
        decode_group_header(data, at, 0)
    with pytest.raises(Damaged):
        decode_segment_header(data)


@given(st.binary(min_size=16, max_size=16), u64, st.integers(0, SEGMENT_HEADER_SIZE * 8 - 1))
def test_a_segment_header_comes_back_or_is_damaged(directory_id: bytes, number: int, bit: int) -> None:
    raw = bytearray(encode_segment_header(directory_id, number))
    assert len(raw) == SEGMENT_HEADER_SIZE
    assert decode_segment_header(raw) == (directory_id, number)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        decode_segment_header(raw)


def test_a_later_format_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.node.journal.segment._FORMAT", 2)
    later = encode_segment_header(DIRECTORY_ID, 1)
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="format 2"):
        decode_segment_header(later)


@given(st.integers(1, 2**32 - 1), u32)
def test_addresses_order_by_segment_and_offset(segment: int, offset: int) -> None:
    address = address_of(segment, offset)
    assert (segment_of(address), offset_of(address)) == (segment, offset)
    assert address_of(segment, 2**32 - 1) < address_of(segment + 1, 0)


@given(
    st.lists(st.one_of(st.binary(max_size=700), st.integers(0, 3000).map(bytes)), max_size=6),
    st.integers(0, 5000),
)
def test_zero_sectors_are_counted_where_they_lie(bodies: list[bytes], offset: int) -> None:
    parts = [part for body in bodies for part in (b"RPF1\x01\x01" + bytes(106), body, b"\xa5")]
    data = b"".join(parts)
    by_sector: dict[int, bool] = {}
    for place, byte in enumerate(data, offset):
        by_sector[place // SECTOR] = by_sector.get(place // SECTOR, True) and byte == 0
    assert zero_sectors(data, offset) == sum(by_sector.values())
    assert zero_sectors_of_parts(parts, offset) == zero_sectors(data, offset)


def test_segments_are_listed_by_number_and_other_files_left_out() -> None:
    files = FaultyFiles()
    for name in ("0000000000000010.journal", "0000000000000002.journal", "x.journal", "0000000000000003.tmp", "LOCK"):
        files.put(DIRECTORY / name, b"")
    assert list_segments(DIRECTORY, files) == [2, 16]
    assert segment_path(Path("/j"), 255) == Path("/j/00000000000000ff.journal")


def test_a_new_segment_is_durable_with_its_name_and_replaces_an_unfinished_one() -> None:
    files = FaultyFiles()
    files.put(segment_path(DIRECTORY, 7), b"half a header")
    files.close(create_segment(DIRECTORY, files, DIRECTORY_ID, 7, 4096))
    (after,) = files.crash_states(random.Random(1))
    content = after.content(segment_path(DIRECTORY, 7))
    assert len(content) == 4096
    assert decode_segment_header(content) == (DIRECTORY_ID, 7)
