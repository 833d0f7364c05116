"""The whole storage of a node on a disk that loses power, rots, fails and fills: nothing that was answered is lost."""

import asyncio
import errno
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pytest

from ringpost.internal.v1.envelope_pb2 import PublishRequest
from ringpost.node.errors import Exhausted, RingpostError
from ringpost.node.groups.changes import Ack, Outcome
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.files import DiskUsage
from ringpost.node.journal.segment import offset_of, segment_of, segment_path
from ringpost.node.services.publish_session import PublishLimits
from ringpost.node.services.publisher import Publisher
from ringpost.node.services.stream import StreamGate
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.shard import Stored
from ringpost.node.storage import UNREADABLE, now_us
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.shard.fakes import Outcomes, batch_of, texts_of
from tests.node.storage_rig import DIRECTORY, Event, Listener, Node, Workload, check, check_goes_on


class Moment(NamedTuple):
    """The disk at some call, and how many events there were by then."""

    files: FaultyFiles
    known: int


async def lived(seed: int, rounds: int, *, keep: float = 0.0) -> tuple[FaultyFiles, list[Event], list[Moment]]:
    """Runs a workload and closes. A share `keep` of the moments before and after each change is remembered."""
    files, sampler, moments = FaultyFiles(), random.Random(seed), []
    node = await Node.open(files)
    workload = Workload(node, random.Random(seed))

    def probe(name: str) -> None:
        if sampler.random() < keep:
            known = len(workload.events)
            moments.append(Moment(files.snapshot(), known))

    files.probe = probe
    await workload.run(rounds)
    assert node.failures == []
    await node.close()
    files.probe = None
    return files, workload.events, moments


async def check_state(files: FaultyFiles, events: list[Event], *, again: bool) -> None:
    """Opens the directory as a power cut left it and checks it; with `again` goes on and opens it once more."""
    node = await Node.open(files)
    try:
        await check(node, events)
        if again:
            await check_goes_on(node)
    finally:
        await node.close()
    if again:
        node = await Node.open(files)
        try:
            assert node.storage.quarantined == []
            assert node.storage.report.damages == []
        finally:
            await node.close()


@pytest.mark.parametrize("seed", range(6))
async def test_a_power_cut_loses_nothing_that_was_answered(seed: int) -> None:
    _, events, moments = await lived(seed, rounds=250, keep=0.2)
    rng = random.Random(seed)
    states = 0
    for moment in rng.sample(moments, min(len(moments), 40)):
        for files in moment.files.crash_states(rng, limit=4):
            await check_state(files, events[: moment.known], again=states % 5 == 0)
            states += 1
    assert states > 60
    assert any(event.answered for event in events)


async def test_a_kill_loses_nothing_that_was_answered() -> None:
    """The process is gone, the page cache is not."""
    _, events, moments = await lived(100, rounds=120, keep=0.05)
    for moment in moments[:20]:
        await check_state(moment.files, events[: moment.known], again=True)


async def test_the_workload_reaches_what_it_is_to_test() -> None:
    """Segments come and go, checkpoints are kept, channels live several times."""
    files, events, _ = await lived(3, rounds=500)
    kinds = {(event.kind, event.answered) for event in events}
    assert {(kind, True) for kind in ("publish", "group", "settle", "nack", "trim", "configure", "delete")} <= kinds
    journal = [path for path in files.paths() if path.endswith(".journal")]
    assert len(journal) > 2
    assert not journal[0].endswith(f"{1:016x}.journal"), "the first segment was reclaimed"
    assert sum("checkpoint-" in path for path in files.paths()) == 2
    await check_state(files.snapshot(), events, again=True)


# -- bit rot ----------------------------------------------------------------------------------------------------------


def flips(files: FaultyFiles, kind: str, rng: random.Random, count: int) -> Iterator[tuple[str, int, int]]:
    """Bits in the used part of the files of a kind."""
    paths = [path for path in files.paths() if kind in path and files.content(path).rstrip(b"\0")]
    for _ in range(count):
        path = rng.choice(paths)
        yield path, rng.randrange(len(files.content(path).rstrip(b"\0"))), rng.randrange(8)


@pytest.mark.parametrize(("kind", "count"), [(".journal", 80), ("checkpoint-", 30), ("identity", 20)])
async def test_a_flipped_bit_is_harmless_or_loud(kind: str, count: int) -> None:
    files, events, _ = await lived(7, rounds=120)
    rng = random.Random(kind)
    loud = 0
    for path, byte, bit in flips(files, kind, rng, count):
        rotten = files.snapshot()
        rotten.flip(path, byte, bit)
        try:
            node = await Node.open(rotten)
        except UNREADABLE:
            loud += 1
            continue
        try:
            await check(node, events, damaged=True)
            await check_goes_on(node)
            storage = node.storage
            loud += bool(storage.quarantined or storage.report.harmless or storage.checkpoints.damaged or node.damages)
        finally:
            await node.close()
    # How much of the journal is live is the workload's affair; what is live has a test of its own.
    assert loud > count // 3 or kind == ".journal"


def live_frames(node: Node) -> list[tuple[int, int]]:
    """Address and length of every frame that an index row points to."""
    store = node.storage.store
    return [(row.address, row.length) for channel in store for row in channel.index.rows(0, len(channel.index))]


async def test_a_flipped_bit_in_a_live_frame_is_always_loud() -> None:
    files, events, _ = await lived(7, rounds=120)
    intact = await Node.open(files.snapshot())
    frames = live_frames(intact)
    await intact.close()
    rng = random.Random("live")
    for _ in range(60):
        address, length = rng.choice(frames)
        byte = offset_of(address) + rng.randrange(length)
        rotten = files.snapshot()
        rotten.flip(segment_path(DIRECTORY, segment_of(address)), byte, rng.randrange(8))
        node = await Node.open(rotten)
        try:
            await check(node, events, damaged=True)
            assert node.storage.quarantined or node.damages, (hex(address), byte)
        finally:
            await node.close()


async def test_the_reserve_s_content_does_not_matter() -> None:
    files, events, _ = await lived(8, rounds=20)
    files.flip(DIRECTORY / "reserve", 77, 3)
    await check_state(files, events, again=True)


async def test_both_checkpoints_rotten_is_refused() -> None:
    files, _, _ = await lived(9, rounds=120)
    for path in files.paths():
        if "checkpoint-" in path:
            files.flip(path, 20, 1)
    with pytest.raises(UNREADABLE, match="No checkpoint"):
        await Node.open(files)


# -- a disk that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_failing_call_loses_nothing_that_was_answered(code: int) -> None:
    clean, _, _ = await lived(11, rounds=40)
    rng = random.Random(code)
    felt = 0
    for number in sorted(rng.sample(range(clean.calls), 60)):
        files = FaultyFiles()
        files.fail_call(number, code)
        try:
            node = await Node.open(files)
        except OSError:
            assert files.open_handles == (files.trace[number] == "close"), (number, files.trace[number])
            continue
        workload = Workload(node, random.Random(11))
        await workload.run(40)
        with suppress(OSError):  # only the last call of all, which gives the lock free
            await node.close()
        felt += bool(node.failures) or not node.storage.reserve.held
        assert files.open_handles == (files.trace[number : number + 1] == ["close"]), (number, files.trace[number])
        for state in files.crash_states(rng, limit=3):
            await check_state(state, workload.events, again=False)
    assert felt > 2


async def test_after_a_failed_fsync_the_node_answers_nothing_more() -> None:
    """What waited is open, what comes is refused; a restart finds all that was answered before."""
    files = FaultyFiles()
    node = await Node.open(files)
    workload = Workload(node, random.Random(5))
    await workload.run(20)
    known = len(workload.events)
    files.fail_call(files.calls + 1)  # the write succeeds, its fsync does not
    workload.publish("a")
    await node.committed()
    assert [type(failure) for failure in node.failures] == [OSError]
    with pytest.raises(RingpostError) as caught:
        workload.publish("a")
    assert caught.value.reason == "NOT_APPENDED"
    assert not any(event.answered for event in workload.events[known:])
    await node.close()
    for state in files.crash_states(random.Random(5), limit=10):
        await check_state(state, workload.events, again=True)


# -- a disk that fills ------------------------------------------------------------------------------------------------


class Client:
    """Publishes through the service, so that the node's bounds count."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.publisher = Publisher(node.storage.store, PublishLimits(), StreamGate(10), node="n1")

    async def publish(self, name: str, *texts: str) -> Stored:
        """Raises the definite errors."""
        answers: list[Stored | RingpostError] = []
        batch = batch_of(*texts)
        self.publisher.accept(PublishRequest(channel=name, batch=batch), answers.append)
        await self.node.committed()
        (answer,) = answers
        assert isinstance(answer, Stored)
        return answer

    async def check_refused(self) -> None:
        """Messages are refused, everything that may free space or only reads goes on."""
        node = self.node
        channel = node.storage.store.find("a")
        frames = node.storage.journal.end
        with pytest.raises(Exhausted) as caught:
            await self.publish("a", "refused")
        assert caught.value.reason == "DISK_FULL"
        with pytest.raises(Exhausted):
            await self.publish("new-channel", "refused")
        assert node.storage.journal.end == frames
        assert [texts_of(frame.body) for frame in await node.frames(channel)] == [["kept"], ["more"]]
        group = (channel.groups or {})["g"]
        (lease, *_) = group.take(1, 1, now_us())
        results: list[object] = []
        group.settle(1, Ack(), [(lease.first, lease.last)], False, results.append)
        done = Outcomes()
        channel.shard.trim(channel, channel.first_offset, done)
        while not results:
            await asyncio.sleep(0)
            await node.committed()
        assert results == [[(lease.first, lease.last, Outcome.DONE)]]
        assert done == [None]


async def client_of(files: FaultyFiles) -> Client:
    node = await Node.open(files)
    client = Client(node)
    await client.publish("a", "kept")
    await client.publish("a", "more")
    group = add_group(node.storage.store.find("a"), "g", GroupSettings(), 0, Outcomes())
    group.join(1, Listener())
    await node.committed()
    return client


async def test_a_nearly_full_disk_refuses_messages_and_serves_the_rest() -> None:
    files = FaultyFiles(total=1_000_000, free=500_000)
    client = await client_of(files)
    node = client.node
    try:
        files.disk_usage = DiskUsage(1_000_000, 50_000)
        await node.maintenance.watch_disk()
        assert node.storage.store.disk_state == DiskState.REFUSE
        await client.check_refused()
        files.disk_usage = DiskUsage(1_000_000, 20_000)
        await node.maintenance.watch_disk()
        assert node.storage.store.disk_state == DiskState.FAIL
        await client.check_refused()
        files.disk_usage = DiskUsage(1_000_000, 500_000)
        await node.maintenance.watch_disk()
        assert (await client.publish("a", "room again")).first_offset == 2
    finally:
        await node.close()


async def test_a_write_without_space_gives_up_the_reserve_and_loses_nothing() -> None:
    files = FaultyFiles(total=1_000_000, free=500_000)
    client = await client_of(files)
    node = client.node
    files.disk_usage = DiskUsage(1_000_000, 100_000)
    try:
        assert node.storage.reserve.held
        files.fail_call(files.calls, errno.ENOSPC)
        assert (await client.publish("a", "answered")).first_offset == 2
        assert not node.storage.reserve.held
        files.disk_usage = DiskUsage(1_000_000, 1_000)
        await node.maintenance.watch_disk()
        assert node.storage.store.disk_state >= DiskState.REFUSE
        with pytest.raises(Exhausted):
            await client.publish("a", "refused")
        files.disk_usage = DiskUsage(1_000_000, 500_000)
        await node.maintenance.watch_disk()
        assert node.storage.reserve.held
        assert (await client.publish("a", "room again")).first_offset == 3
        assert node.failures == []
    finally:
        await node.close()
    again = await Node.open(files)
    texts = [texts_of(frame.body) for frame in await again.frames(again.storage.store.find("a"))]
    assert texts == [["kept"], ["more"], ["answered"], ["room again"]]
    await again.close()
