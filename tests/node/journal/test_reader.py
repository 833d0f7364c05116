"""Cold reads: neighbours joined, every frame verified."""

import asyncio
import threading

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import TRAILER, FrameType, encode_header
from ringpost.node.journal.reader import ColdReader, FrameDamagedAt, PlannedRead, plan_reads, read_frames


def at(segment: int, byte: int) -> int:
    return segment << 32 | byte


def test_neighbours_become_one_read() -> None:
    rows = [(at(1, 64), 100), (at(1, 164), 100), (at(1, 300), 50)]
    assert plan_reads(rows) == [PlannedRead(at(1, 64), 286, 0, 3)]


def test_a_read_does_not_cross_segments() -> None:
    rows = [(at(1, 2**32 - 10), 10), (at(2, 0), 10)]
    assert plan_reads(rows) == [PlannedRead(at(1, 2**32 - 10), 10, 0, 1), PlannedRead(at(2, 0), 10, 1, 2)]


def test_a_gap_is_read_over_while_the_span_is_at_most_four_times_what_is_wanted() -> None:
    assert len(plan_reads([(at(1, 0), 100), (at(1, 700), 100)])) == 1
    assert len(plan_reads([(at(1, 0), 100), (at(1, 701), 100)])) == 2


def test_a_read_stays_within_its_bytes_unless_one_frame_is_larger() -> None:
    rows = [(at(1, 0), 600), (at(1, 600), 600), (at(1, 1200), 5000)]
    assert plan_reads(rows, max_bytes=1000) == [
        PlannedRead(at(1, 0), 600, 0, 1),
        PlannedRead(at(1, 600), 600, 1, 2),
        PlannedRead(at(1, 1200), 5000, 2, 3),
    ]


def test_a_rewritten_frame_lies_out_of_order() -> None:
    rows = [(at(1, 500), 100), (at(1, 100), 100), (at(1, 200), 100)]
    assert [(read.first, read.stop) for read in plan_reads(rows)] == [(0, 1), (1, 3)]


def test_nothing_wanted_nothing_read() -> None:
    assert plan_reads([]) == []


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5000), st.integers(1, 900)), max_size=30),
    st.integers(1, 3000),
)
def test_every_row_is_inside_its_read(places: list[tuple[int, int, int]], max_bytes: int) -> None:
    rows = [(at(segment, byte), length) for segment, byte, length in places]
    reads = plan_reads(rows, max_bytes)
    assert [number for read in reads for number in range(read.first, read.stop)] == list(range(len(rows)))
    for read in reads:
        inside = rows[read.first : read.stop]
        assert all(read.address <= a and a + length <= read.address + read.length for a, length in inside)
        assert read.address >> 32 == (read.address + read.length - 1) >> 32
        if len(inside) > 1:
            assert read.length <= min(max_bytes, 4 * sum(length for _, length in inside))


CHANNEL = (3, 77)  # shard, channel


def frame(offset: int, body: bytes, *, owner: tuple[int, int] = CHANNEL, type_: FrameType = FrameType.DATA) -> bytes:
    shard, channel = owner
    header = encode_header(
        type_, 0, len(body), crc32c(body), shard, 1, 1, 1, 0, 1_000_000 + offset, channel, offset, 2, 55, 0, offset, 0
    )
    return header + body + TRAILER


class Disk:
    """Frames at addresses of segment 1, with foreign bytes between them; counts the reads."""

    def __init__(self, *frames: bytes, gap: int = 32) -> None:
        self.data = bytearray(64)
        self.rows: list[tuple[int, int]] = []
        self.reads: list[tuple[int, int]] = []
        for stored in frames:
            self.data += b"\xff" * gap
            self.rows.append((at(1, len(self.data)), len(stored)))
            self.data += stored

    def read(self, address: int, size: int) -> bytes:
        self.reads.append((address, size))
        byte = address & 0xFFFFFFFF
        return bytes(self.data[byte : byte + size])


def test_many_frames_come_from_one_read() -> None:
    disk = Disk(*(frame(offset, b"batch %d" % offset) for offset in (10, 12, 14)))
    frames = read_frames(disk.read, disk.rows, owner=CHANNEL)
    assert frames[1] == CachedFrame(12, 2, 1_000_012, crc32c(b"batch 12"), b"batch 12", 55, 12)
    assert [cached.base_offset for cached in frames] == [10, 12, 14]
    assert len(disk.reads) == 1


def test_frames_far_apart_come_in_order() -> None:
    disk = Disk(*(frame(offset, b"x" * 50) for offset in range(5)), gap=9000)
    assert [cached.base_offset for cached in read_frames(disk.read, disk.rows)] == [0, 1, 2, 3, 4]
    assert len(disk.reads) == 5


def test_every_flipped_bit_of_a_frame_is_found() -> None:
    disk = Disk(frame(10, b"first"), frame(12, b"second"))
    address, length = disk.rows[1]
    byte = address & 0xFFFFFFFF
    for bit in range(length * 8):
        disk.data[byte + bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameDamagedAt, match=f"frame at {address:#x} .segment 1, byte {byte}.") as caught:
            read_frames(disk.read, disk.rows)
        assert caught.value.address == address
        disk.data[byte + bit // 8] ^= 1 << bit % 8
    assert len(read_frames(disk.read, disk.rows)) == 2


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (frame(10, b"body", owner=(3, 78)), "belongs to channel 78 of shard 3"),
        (frame(10, b"body", owner=(4, 77)), "belongs to channel 77 of shard 4"),
        (frame(10, b"body", type_=FrameType.TRIM), "not DATA"),
    ],
)
def test_a_whole_frame_in_the_wrong_place_is_damage_too(stored: bytes, reason: str) -> None:
    disk = Disk(stored)
    with pytest.raises(FrameDamagedAt, match=reason):
        read_frames(disk.read, disk.rows, owner=CHANNEL)


def test_a_row_of_another_length_is_damage() -> None:
    disk = Disk(frame(10, b"body"), frame(12, b"body"))
    (address, length), _ = disk.rows
    with pytest.raises(FrameDamagedAt, match="not DATA of"):
        read_frames(disk.read, [(address, length + 1)])


def test_a_file_that_ends_early_is_damage() -> None:
    disk = Disk(frame(10, b"body"))
    del disk.data[-3:]
    with pytest.raises(FrameDamagedAt, match="cut short"):
        read_frames(disk.read, disk.rows)


async def test_the_loop_runs_while_a_cold_read_waits_for_the_disk() -> None:
    disk = Disk(frame(10, b"body"))
    go = threading.Event()

    def slow(address: int, size: int) -> bytes:
        assert go.wait(10)
        return disk.read(address, size)

    reader = ColdReader(slow, threads=1)
    reading = asyncio.ensure_future(reader.read(disk.rows, owner=CHANNEL))
    await asyncio.sleep(0)
    assert not reading.done()
    go.set()
    assert [cached.body for cached in await reading] == [b"body"]
    reader.close()


async def test_a_closed_reader_drops_what_waits() -> None:
    disk = Disk(frame(10, b"body"))
    started, go = threading.Event(), threading.Event()

    def slow(address: int, size: int) -> bytes:
        started.set()
        assert go.wait(10)
        return disk.read(address, size)

    reader = ColdReader(slow, threads=1)
    under_way = asyncio.ensure_future(reader.read(disk.rows))
    waiting = asyncio.ensure_future(reader.read(disk.rows))
    await asyncio.to_thread(started.wait, 10)
    closing = asyncio.ensure_future(asyncio.to_thread(reader.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await closing
    assert len(await under_way) == 1
