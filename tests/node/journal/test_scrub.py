"""The scrub finds every damaged byte of a segment, says whose it is, and reads in small steps."""

from collections.abc import Sequence

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.journal.frame import FRAME_OVERHEAD, TRAILER, FrameType, encode_header
from ringpost.node.journal.scrub import Damage, scrub_segment
from ringpost.node.journal.segment import GROUP_HEADER_SIZE, address_of, encode_group_header, encode_segment_header

SEGMENT = 5
DIRECTORY_ID = b"0123456789abcdef"
GROUPS = ((b"alpha" * 10, b"beta" * 100), (b"gamma" * 300,), (), (b"", b"delta" * 20))


def frame(body: bytes, shard: int) -> bytes:
    numbers = {
        "epoch": 1,
        "position": 9,
        "committed": 8,
        "time_us": 7,
        "channel": 6,
        "base_offset": 5,
        "count": 4,
        "producer": 3,
        "producer_epoch": 2,
        "base_sequence": 1,
        "previous_crc": 11,
    }
    return encode_header(FrameType.DATA, 0, len(body), crc32c(body), shard, 1, **numbers) + body + TRAILER


def segment_of_groups(groups: Sequence[Sequence[bytes]] = GROUPS, room: int = 5000) -> bytearray:
    """A segment file; the n-th frame belongs to shard n, `room` zero bytes follow."""
    data = bytearray(encode_segment_header(DIRECTORY_ID, SEGMENT))
    shard = 0
    for sequence, bodies in enumerate(groups):
        frames = [frame(body, shard + number) for number, body in enumerate(bodies)]
        shard += len(frames)
        joined = b"".join(frames)
        data += encode_group_header(address_of(SEGMENT, len(data)), len(joined), len(frames), sequence, 0) + joined
    return data + bytes(room)


def scrub(data: bytes, chunk_bytes: int = 1024, end: int | None = None) -> tuple[list[Damage], list[int]]:
    def read(address: int, size: int) -> bytes:
        assert address >> 32 == SEGMENT
        at = address & 0xFFFFFFFF
        return bytes(data[at : at + size])

    steps = list(
        scrub_segment(
            read, SEGMENT, len(data) if end is None else end, directory_id=DIRECTORY_ID, chunk_bytes=chunk_bytes
        )
    )
    return [damage for step in steps for damage in step.damages], [step.bytes_read for step in steps]


FRAME_0 = 64 + GROUP_HEADER_SIZE
FRAME_1 = FRAME_0 + FRAME_OVERHEAD + len(GROUPS[0][0])
GROUP_1 = FRAME_1 + FRAME_OVERHEAD + len(GROUPS[0][1])
GROUP_2 = GROUP_1 + GROUP_HEADER_SIZE + FRAME_OVERHEAD + len(GROUPS[1][0])


def test_a_whole_segment_is_read_once_in_steps() -> None:
    data = segment_of_groups(room=100_000)
    damages, steps = scrub(data, chunk_bytes=4096)
    assert damages == []
    assert sum(steps) == len(data)
    assert max(steps) <= 4096


def test_a_group_larger_than_a_step_is_read_in_one() -> None:
    data = segment_of_groups([[bytes(range(256)) * 40], [b"next"]], room=0)
    damages, steps = scrub(data, chunk_bytes=512)
    assert damages == []
    assert sum(steps) == len(data)
    assert len(steps) > 2


def test_a_segment_being_written_is_read_up_to_its_durable_end() -> None:
    data = segment_of_groups(room=0)
    end = len(data)
    damages, steps = scrub(data + b"half a group", end=end)
    assert damages == []
    assert sum(steps) == end


def test_a_damaged_body_costs_one_frame_and_names_its_shard() -> None:
    data = segment_of_groups()
    data[FRAME_1 - 20] ^= 1
    damages, _ = scrub(data)
    assert damages == [Damage(address_of(SEGMENT, FRAME_0), FRAME_1 - FRAME_0, 0, "body or trailer are not as written")]


def test_behind_a_damaged_frame_header_the_next_frame_is_found() -> None:
    data = segment_of_groups()
    data[FRAME_0 + 30] ^= 1
    data[GROUP_1 - 1] ^= 1
    nobodys, next_one = scrub(data)[0]
    assert (nobodys.address, nobodys.length, nobodys.shard) == (address_of(SEGMENT, FRAME_0), FRAME_1 - FRAME_0, None)
    assert (next_one.address, next_one.length, next_one.shard) == (address_of(SEGMENT, FRAME_1), GROUP_1 - FRAME_1, 1)


@pytest.mark.parametrize("chunk_bytes", [64, 1024, 1 << 20])
def test_behind_a_damaged_group_header_the_next_group_is_found(chunk_bytes: int) -> None:
    data = segment_of_groups()
    data[GROUP_1 + 9] ^= 1
    (damage,), _ = scrub(data, chunk_bytes)
    assert (damage.address, damage.length, damage.shard) == (address_of(SEGMENT, GROUP_1), GROUP_2 - GROUP_1, None)


def test_zeros_between_groups_are_damage() -> None:
    data = segment_of_groups()
    data[GROUP_1:GROUP_2] = bytes(GROUP_2 - GROUP_1)
    (damage,), _ = scrub(data)
    assert (damage.address, damage.length) == (address_of(SEGMENT, GROUP_1), GROUP_2 - GROUP_1)


def test_a_file_cut_short_is_damage() -> None:
    whole = segment_of_groups(room=0)
    damages, _ = scrub(whole[:-50], end=len(whole))
    assert damages[-1] == Damage(address_of(SEGMENT, len(whole) - 50), 50, None, "the file ends within a group")
    (damage,), _ = scrub(whole[:-50])
    assert "ends 50 bytes before" in damage.reason


def test_a_segment_of_another_directory_is_damage() -> None:
    data = segment_of_groups()
    data[:64] = encode_segment_header(b"another dir id!!", SEGMENT)
    (damage,), _ = scrub(data)
    assert damage.reason == f"this is segment 5 of directory {b'another dir id!!'.hex()}"


def test_a_wrong_number_of_frames_is_damage() -> None:
    joined = frame(b"one", 0)
    data = segment_of_groups([])[:64] + encode_group_header(address_of(SEGMENT, 64), len(joined), 2, 0, 0) + joined
    (damage,), _ = scrub(data)
    assert damage.reason == "the group has 1 frames and promises 2"


def test_an_unreadable_disk_is_not_taken_for_a_healthy_one() -> None:
    def broken(address: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(scrub_segment(broken, SEGMENT, 4096, directory_id=DIRECTORY_ID))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([100, 700, 1 << 20]))
def test_every_flipped_bit_is_found_where_it_is(data: st.DataObject, chunk_bytes: int) -> None:
    segment = segment_of_groups()
    byte = data.draw(st.integers(0, len(segment) - 1))
    segment[byte] ^= 1 << data.draw(st.integers(0, 7))
    damages, _ = scrub(segment, chunk_bytes)
    assert len(damages) == 1
    start = damages[0].address & 0xFFFFFFFF
    assert start <= byte < start + damages[0].length


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=200)), min_size=1, max_size=4))
def test_any_garbage_ends_with_a_report(patches: list[tuple[int, bytes]]) -> None:
    segment = segment_of_groups()
    whole = bytes(segment)
    for at, patch in patches:
        segment[at : at + len(patch)] = patch
    segment = segment[: len(whole)]
    damages, _ = scrub(segment, 300)
    assert bool(damages) == (bytes(segment) != whole)
