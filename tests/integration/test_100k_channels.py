"""A hundred thousand channels on one node: made by first use, kept in little memory, there again after a restart."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from ringpost.v1.channel_pb2 import ListChannelsRequest
from tests.integration.broker import MIB, Client, Node, publish

COUNT = 100_000
PER_CHANNEL_BYTES_MAX = 2_048
SECONDS_MAX = 150.0  # to make them all, in one stream, each by a batch of its own
RESTART_SECONDS_MAX = 15.0
FLAGS = ("--tail-cache-bytes", "1MiB", "--segment-bytes", "64MiB")


def name_of(number: int) -> str:
    return f"fleet.{number % 97}.truck-{number:06d}"


async def make_all(address: str) -> None:
    """One message on each channel; every batch is answered."""
    async with Client(address) as client:
        stream = client.publish_stream(300)
        answered = 0

        async def read() -> None:
            nonlocal answered
            while (response := await stream.read()) is not grpc.aio.EOF:
                for result in response.results:
                    assert (result.stored.first_offset, result.stored.count) == (0, 1), result
                    assert result.stored.channel == name_of(result.correlation)
                    answered += 1

        reading = asyncio.ensure_future(read())
        for number in range(COUNT):
            await stream.write(publish(name_of(number), b"hello", correlation=number))
        await stream.done_writing()
        await reading
        assert answered == COUNT


async def check_all(address: str) -> float:
    """Pages through the list; all are there, in order, with their message. Seconds that it took."""
    async with Client(address) as client:
        started = time.monotonic()
        channels = await client.all_channels()
        seconds = time.monotonic() - started
        assert [channel.name for channel in channels] == sorted(map(name_of, range(COUNT)))
        assert {(channel.first_offset, channel.end_offset) for channel in channels} == {(0, 1)}
        page = await client.channels.ListChannels(ListChannelsRequest(prefix="fleet.42.", page_size=1_000))
        in_42 = [name for name in map(name_of, range(COUNT)) if name.startswith("fleet.42.")]
        assert [channel.name for channel in page.channels] == sorted(in_42)[:1_000]
        (message,) = [message async for message in client.read(name_of(77_777), 0, 1)]
        assert message.message.data == b"hello"
        node = await client.node()
        assert (node.channel_count, list(node.quarantined_shards)) == (COUNT, [])
    return seconds


def restart(node: Node) -> float:
    """Seconds until it serves."""
    started = time.monotonic()
    node.start()
    return time.monotonic() - started


@pytest.mark.long
async def test_a_hundred_thousand_channels(tmp_path: Path) -> None:
    with Node(tmp_path / "n", *FLAGS) as node:
        base = node.process.memory_info().rss
        started = time.monotonic()
        await make_all(node.address)
        seconds = time.monotonic() - started
        per_channel = (node.process.memory_info().rss - base) / COUNT
        listing = await check_all(node.address)

        node.kill()
        after_kill = await asyncio.to_thread(restart, node)
        await check_all(node.address)
        per_channel_recovered = (node.process.memory_info().rss - base) / COUNT
        stopped = time.monotonic()
        assert await asyncio.to_thread(node.stop) == 0
        stopping = time.monotonic() - stopped
        after_stop = await asyncio.to_thread(restart, node)
        await check_all(node.address)
        disk = sum(path.stat().st_blocks * 512 for path in node.data_dir.iterdir())
        assert node.faults() == []

    print(
        f"\n{COUNT} channels made in {seconds:.1f} s, {per_channel:.0f} B of memory each ({per_channel_recovered:.0f} "
        f"after recovery); listed in {listing:.2f} s; start after SIGKILL {after_kill:.2f} s, clean stop "
        f"{stopping:.2f} s, start after it {after_stop:.2f} s; {disk / MIB:.0f} MiB on disk"
    )
    assert seconds < SECONDS_MAX
    assert per_channel < PER_CHANNEL_BYTES_MAX
    assert per_channel_recovered < PER_CHANNEL_BYTES_MAX
    assert max(after_kill, after_stop) < RESTART_SECONDS_MAX
