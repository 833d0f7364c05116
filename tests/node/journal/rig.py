"""An owner for the journal under test: a queue instead of an event loop, and frames that are easy to tell apart."""

import queue
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from ringpost.node.journal.frame import FrameType, Header, encode_header, header_crc_of
from ringpost.node.journal.journal import Journal, JournalOptions
from ringpost.node.journal.recovery import RecoveryReport, recover
from tests.node.journal.faulty_files import FaultyFiles

DIRECTORY = Path("/journal")
DIRECTORY_ID = bytes(range(1, 17))


class Frame(NamedTuple):
    """As appended, or as recovery visited it."""

    address: int
    header: bytes | Header
    body: bytes
    whole: bool = True


class Maker:
    """Makes the frames of two shards, chained as the node does."""

    def __init__(self) -> None:
        self._previous = {0: 0, 1: 0}
        self._positions = {0: 0, 1: 0}

    def frame(self, body: bytes, shard: int = 0) -> bytes:
        self._positions[shard] += 1
        header = encode_header(
            type=FrameType.DATA,
            flags=0,
            body_length=len(body),
            body_crc=crc32c(body),
            shard=shard,
            replica=1,
            epoch=1,
            position=self._positions[shard],
            committed=self._positions[shard] - 1,
            time_us=1_700_000_000_000_000,
            channel=1,
            base_offset=0,
            count=1,
            producer=0,
            producer_epoch=0,
            base_sequence=0,
            previous_crc=self._previous[shard],
        )
        self._previous[shard] = header_crc_of(header)
        return header


class Owner:
    """Runs a journal and remembers what it was told."""

    def __init__(
        self,
        files: object,
        *,
        end: int = 0,
        maker: Maker | None = None,
        directory: Path = DIRECTORY,
        clock: Callable[[], float] | None = None,
        **options: object,
    ) -> None:
        self.posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.marks: list[int] = []
        self.failures: list[Exception] = []
        self.appended: list[Frame] = []
        self.maker = maker or Maker()
        options = {"segment_bytes": 8192, "group_bytes_max": 4096, "seal_after_s": 3600, **options}
        self.journal = Journal(
            directory,
            files,
            JournalOptions(**options),
            directory_id=DIRECTORY_ID,
            post=self.posts.put,
            on_durable=self.marks.append,
            on_failure=self.failures.append,
        )
        self.journal.start(end)

    def append(self, body: bytes, shard: int = 0) -> Frame:
        header = self.maker.frame(body, shard)
        frame = Frame(self.journal.append(header, body), header, body)
        self.appended.append(frame)
        return frame

    def turn(self) -> None:
        """Waits for one post of the writer and runs it."""
        self.posts.get(timeout=20)()

    def settle(self) -> None:
        """Waits until all is durable or the journal failed."""
        while self.journal.pending_bytes and not self.failures:
            self.turn()

    def close(self) -> None:
        self.journal.close()
        while not self.posts.empty():
            self.turn()

    @property
    def acknowledged(self) -> list[Frame]:
        return [frame for frame in self.appended if frame.address < self.journal.durable]


def body_of(rng: random.Random, size: int) -> bytes:
    """Bytes that are random, text-like, or full of zeros."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return (b"message %d " % rng.randrange(1000) * (size // 8 + 1))[:size]
    return bytes(size)


def recovered(files: object, scan_from: int = 0, directory: Path = DIRECTORY) -> tuple[RecoveryReport, list[Frame]]:
    """Runs recovery and collects what it visits."""
    frames: list[Frame] = []

    def visit(header: Header, address: int, body: memoryview, whole: bool) -> None:
        frames.append(Frame(address, header, bytes(body), whole))

    return recover(directory, files, scan_from, visit), frames


def contents(frames: list[Frame]) -> list[tuple[int, int, bytes]]:
    """Address, header checksum and body: what must be equal before and after."""
    return [
        (f.address, header_crc_of(f.header) if isinstance(f.header, bytes) else f.header.header_crc, f.body)
        for f in frames
    ]


def workload(owner: Owner, rng: random.Random, rounds: int) -> None:
    """Groups of one to five frames; most are awaited, some pile up behind the one being written."""
    for _ in range(rounds):
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            owner.append(body_of(rng, rng.choice((0, 1, 60, 400, 511, 900, 1800))), shard=rng.randrange(2))
        if rng.random() < 0.8:
            owner.settle()
    owner.settle()


class Moment:
    """The disk at one call of the workload, and what the owner knew by then."""

    def __init__(self, owner: Owner | None, files: FaultyFiles) -> None:
        self.files = files.snapshot()
        self.acknowledged = owner.journal.durable if owner and owner.marks else 0


def moments_of(seed: int, rounds: int, **options: object) -> tuple[Owner, list[Moment]]:
    files = FaultyFiles()
    owner: Owner | None = None
    moments: list[Moment] = []

    def probe(name: str) -> None:
        moments.append(Moment(owner, files))

    files.probe = probe
    owner = Owner(files, **options)
    workload(owner, random.Random(seed), rounds)
    owner.close()
    return owner, moments


def check_recovered(files: FaultyFiles, owner: Owner, acknowledged: int) -> None:
    """What is there is a beginning of what was appended, holds all that was acknowledged, and can go on."""
    report, found = recovered(files)
    assert report.damages == []
    assert report.harmless == []
    assert contents(found) == contents(owner.appended[: len(found)])
    assert all(frame.whole for frame in found)
    certain = sum(frame.address < acknowledged for frame in owner.appended)
    assert len(found) >= certain

    again = Owner(files, end=report.end)
    again.append(b"after the crash")
    again.settle()
    again.append(bytes(1200))
    again.close()
    assert again.failures == []
    second, both = recovered(files)
    assert second.damages == []
    assert second.cut_bytes == 0
    assert contents(both) == contents(found + again.appended)
