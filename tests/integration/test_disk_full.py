"""A node on a small file system of its own that fills up: what is refused, what goes on, how it comes back."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.channel_pb2 import DeleteChannelRequest, GetChannelRequest, PurgeChannelRequest
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, SeekGroupRequest
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Outcome, Settle, SubscribeRequest
from tests.integration.broker import (
    MIB,
    Client,
    Told,
    batch_of,
    open_subscription,
    publish,
    serving,
    told_by_failure,
    told_by_status,
    until,
)

DISK_BYTES = 80 * MIB
FLAGS = (
    *("--segment-bytes", "4MiB", "--max-batch-bytes", "1MiB", "--reserve-bytes", "4MiB"),
    *("--checkpoint-interval-s", "1", "--reclaim-interval-s", "1", "--checkpoint-bytes", "1MiB"),
)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of DISK_BYTES."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest_asyncio.fixture
async def pair(disk: Path, tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    """A node whose data, but not its log, is on the small disk."""
    (tmp_path / "n").symlink_to(disk / "data")
    (disk / "data").mkdir()
    async with serving(tmp_path / "n", *FLAGS) as pair:
        pair.disk = disk
        yield pair


def data_of(number: int) -> bytes:
    """200 KB that tell one message from another."""
    return b"%06d" % number * 33_333


async def refusal_of(client: Client, channel: str, number: int = 0) -> Told | None:
    """Publishes message `number`; None when it is stored."""
    request = PublishRequest(channel=channel, batch=batch_of(data_of(number)))
    try:
        await client.publisher.Publish(request, timeout=30)
    except grpc.aio.AioRpcError as error:
        return told_by_status(error)
    return None


async def fill(client: Client, channel: str, first: int = 0) -> int:
    """Publishes messages from number `first` on until the node refuses one; the number of that one."""
    number = first
    while (told := await refusal_of(client, channel, number)) is None:
        number += 1
        assert number * len(data_of(0)) < 2 * DISK_BYTES, "the disk never got full"
    check_disk_full(told)
    return number


def check_disk_full(told: Told) -> None:
    assert (told.code, told.reason) == (EXHAUSTED, "DISK_FULL"), told
    assert told.retry_after_ms > 0
    assert "disk" in told.message


async def accepted(client: Client, channel: str, number: int = 0) -> bool:
    told = await refusal_of(client, channel, number)
    if told is not None:
        check_disk_full(told)
    return told is None


async def check_stored(client: Client, channel: str, first: int, end: int) -> None:
    """Messages first..end-1 have the bytes that were published; nothing is behind them."""
    assert (await client.channels.GetChannel(GetChannelRequest(name=channel))).channel.end_offset == end
    numbers = [m.offset async for m in client.read(channel, first, end) if m.message.data == data_of(m.offset)]
    assert numbers == list(range(first, end))


async def ack_some(client: Client, channel: str, count: int) -> None:
    """A member of group "g" takes and acks `count` messages."""
    stream = client.subscribe(30)
    await stream.write(open_subscription(channel, credit=count, group="g"))
    done = 0
    while done < count:
        event = await stream.read()
        for batch in event.deliver.batches:
            last = batch.first_offset + batch.count - 1
            ranges = [OffsetRange(first=batch.first_offset, last=last)]
            await stream.write(SubscribeRequest(settle=Settle(subscription_id=1, ranges=ranges, ack=Ack())))
        for result in event.settled.results:
            assert result.outcome == Outcome.OUTCOME_DONE
            done += result.range.last - result.range.first + 1
    stream.cancel()


async def test_a_full_disk_refuses_publishes_and_nothing_else(pair: SimpleNamespace) -> None:
    client, node = pair.client, pair.node
    await client.groups.AddGroup(AddGroupRequest(channel="big", name="g"))
    end = await fill(client, "big")
    assert end * len(data_of(0)) > DISK_BYTES // 2

    # Also on a stream, and by making channels.
    stream = client.publish_stream(30)
    await stream.write(publish("big", data_of(0), correlation=5))
    while not (results := (await stream.read()).results):
        pass
    check_disk_full(told_by_failure(results[0].failure))
    stream.cancel()
    assert not await accepted(client, "another")

    # Reads, acks and changes of groups go on, and stay.
    await check_stored(client, "big", 0, end)
    await ack_some(client, "big", 20)
    await client.groups.SeekGroup(SeekGroupRequest(channel="big", name="g", to=Start(offset=30)))
    await until(lambda: refused(client), "the node to say so")
    node.kill()
    node.start()
    async with Client(node.address) as client:
        group = (await client.groups.GetGroup(GetGroupRequest(channel="big", name="g"))).group
        assert (group.settled_below, group.end_offset) == (30, end)
        await check_stored(client, "big", 0, end)
        await until(lambda: refused(client), "the started node to see the full disk")
        await purge_and_publish_again(client, end)
    assert node.faults() == []


async def refused(client: Client) -> bool:
    return (await client.node()).disk in ("refusing publishes", "failed")


async def purge_and_publish_again(client: Client, end: int) -> None:
    """A purge is the way out: reclaiming gives the space back, without a restart."""
    kept = end - 20
    await client.channels.PurgeChannel(PurgeChannelRequest(name="big", before_offset=kept))
    await until(lambda: accepted(client, "big", end), "the purged space", 40)
    await check_stored(client, "big", kept, end + 1)


async def test_deleting_a_channel_frees_its_space(pair: SimpleNamespace) -> None:
    client = pair.client
    for number in range(10):
        assert await accepted(client, "small", number)
    await fill(client, "big")

    await client.channels.DeleteChannel(DeleteChannelRequest(name="big"))
    await until(lambda: accepted(client, "small", 10), "the space of the deleted channel", 40)
    await check_stored(client, "small", 0, 11)
    assert pair.node.faults() == []


async def test_a_disk_that_somebody_else_fills(pair: SimpleNamespace) -> None:
    """Publishing goes on by itself when the space is back; what was stored meanwhile survives a crash."""
    client, node = pair.client, pair.node
    for number in range(10):
        assert await accepted(client, "orders", number)
    ballast = pair.disk / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(pair.disk)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - 2 * MIB)

    await until(lambda: refused(client), "the node to notice")
    assert not await accepted(client, "orders", 10)
    await check_stored(client, "orders", 0, 10)
    ballast.unlink()
    await until(lambda: accepted(client, "orders", 10), "the space")
    node.kill()
    node.start()
    async with Client(node.address) as again:
        await check_stored(again, "orders", 0, 11)
    assert node.faults() == []


async def test_a_burst_that_is_faster_than_the_watch(pair: SimpleNamespace) -> None:
    """Producers that fill the disk within a moment: the node lives, and keeps what it answered."""
    client = pair.client
    stream = client.publish_stream()
    stored: list[Any] = []

    async def read() -> None:
        failures = 0
        while not failures:
            response = await stream.read()
            assert response is not grpc.aio.EOF
            for result in response.results:
                if result.HasField("failure"):
                    check_disk_full(told_by_failure(result.failure))
                    failures += 1
                else:
                    stored.append(result)

    reading = asyncio.ensure_future(read())
    number = 0
    while not reading.done():
        await stream.write(publish("burst", data_of(number), correlation=number))
        number += 1
    await reading
    stream.cancel()

    assert pair.node.running
    end = len(stored)
    assert [result.stored.first_offset for result in stored] == list(range(end))
    pair.node.kill()
    pair.node.start()
    async with Client(pair.node.address) as again:
        info = (await again.channels.GetChannel(GetChannelRequest(name="burst"))).channel
        assert info.end_offset >= end
        await check_stored(again, "burst", 0, info.end_offset)
    assert pair.node.faults() == []
