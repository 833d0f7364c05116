"""The frame codec: what goes in comes out, and nothing else does."""

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.journal.frame import (
    FRAME_OVERHEAD,
    HEADER_SIZE,
    TRAILER,
    FrameDamaged,
    FrameType,
    Header,
    decode_frame,
    decode_header,
    encode_header,
    header_crc_of,
)

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
headers = st.fixed_dictionaries(
    {
        "type": st.integers(0, 255),
        "flags": u16,
        "body_length": u32,
        "body_crc": u32,
        "shard": u32,
        "replica": u32,
        "epoch": u64,
        "position": u64,
        "committed": u64,
        "time_us": st.integers(-(2**63), 2**63 - 1),
        "channel": u64,
        "base_offset": u64,
        "count": u32,
        "producer": u64,
        "producer_epoch": u32,
        "base_sequence": u64,
        "previous_crc": u32,
        "ttl_ms": u64,
    }
)


def frame_of(fields: dict[str, int], body: bytes) -> bytes:
    return encode_header(**{**fields, "body_length": len(body), "body_crc": crc32c(body)}) + body + TRAILER


def test_a_known_header_stays_as_it_is_on_disks() -> None:
    fields = dict(zip(Header._fields[:-1], range(1, 19), strict=True))
    assert encode_header(**fields).hex() == (
        "52504631010102000300000004000000050000000600000007000000000000000800000000000000"
        "09000000000000000a000000000000000b000000000000000c000000000000000d0000000e000000"
        "000000000f000000100000000000000011000000" + "1200000000000000" + encode_header(**fields)[-4:].hex()
    )
    assert header_crc_of(encode_header(**fields)) == crc32c(encode_header(**fields)[:108])


@given(headers, st.binary(max_size=40))
def test_a_header_comes_back_field_by_field(fields: dict[str, int], before: bytes) -> None:
    raw = encode_header(**fields)
    assert len(raw) == HEADER_SIZE
    header = decode_header(before + raw, len(before))
    assert header._asdict() == {**fields, "header_crc": header_crc_of(raw)}


@given(headers, st.binary(max_size=2000), st.binary(max_size=10))
def test_a_frame_comes_back_with_its_body(fields: dict[str, int], body: bytes, after: bytes) -> None:
    raw = frame_of(fields, body)
    assert len(raw) == FRAME_OVERHEAD + len(body)
    for buffer in (raw + after, bytearray(raw + after), memoryview(raw + after)):
        header, found = decode_frame(buffer)
        assert found == body
        assert header.body_length == len(body)


@given(headers, st.binary(max_size=60), st.data())
def test_a_flipped_bit_anywhere_is_noticed(fields: dict[str, int], body: bytes, data: st.DataObject) -> None:
    raw = bytearray(frame_of(fields, body))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameDamaged):
        decode_frame(raw)


@given(headers, st.binary(max_size=60), st.data())
def test_a_frame_cut_short_is_noticed(fields: dict[str, int], body: bytes, data: st.DataObject) -> None:
    raw = frame_of(fields, body)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(FrameDamaged):
        decode_frame(raw[:cut])
    if cut < HEADER_SIZE:
        with pytest.raises(FrameDamaged):
            decode_header(raw[:cut])


@given(st.binary(max_size=300), st.integers(-200, 400))
def test_random_bytes_are_refused_and_nothing_worse(buffer: bytes, at: int) -> None:
    for decode in (decode_header, decode_frame):
        with pytest.raises(FrameDamaged):
            decode(buffer, at)


@given(st.binary(min_size=104, max_size=104), st.binary(max_size=50))
def test_random_fields_under_a_right_checksum_are_read_or_refused(fields: bytes, rest: bytes) -> None:
    start = b"RPF1" + fields
    raw = start + struct.pack("<I", crc32c(start)) + rest
    if fields[0] != 1:
        with pytest.raises(FrameDamaged, match="version"):
            decode_header(raw)
        return
    header = decode_header(raw)
    whole = header.body_length < len(rest) and crc32c(rest[: header.body_length]) == header.body_crc
    if not (whole and rest[header.body_length] == TRAILER[0]):
        with pytest.raises(FrameDamaged):
            decode_frame(raw)


def test_a_value_outside_its_field_is_our_own_bug() -> None:
    fields = dict.fromkeys(Header._fields[:-1], 0)
    with pytest.raises(struct.error):
        encode_header(**{**fields, "shard": 2**32})
    with pytest.raises(struct.error):
        encode_header(**{**fields, "position": -1})


def test_types_keep_their_numbers() -> None:
    assert {kind.name: kind.value for kind in FrameType} == {
        "DATA": 1,
        "EPOCH_START": 2,
        "CONFIG": 3,
        "GROUP": 4,
        "SETTLE": 5,
        "TRIM": 6,
        "REPLICA": 7,
        "TRUNCATE": 8,
        "REPEAT": 9,
        "SCHEDULE": 10,
        "RELEASE": 11,
    }
