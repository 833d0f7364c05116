"""Clients that do not keep up: the node's memory stays within its configuration, and others hardly notice."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Credit, GrantCredit, Settle, SubscribeRequest
from tests.integration.broker import (
    MIB,
    Client,
    Node,
    Told,
    batch_of,
    next_event,
    open_subscription,
    publish,
    serving,
    told_by_status,
    until,
)

pytestmark = pytest.mark.long

TAIL_CACHE = 16 * MIB
COLD_CACHE = 16 * MIB  # not a setting
UNANSWERED = 16 * MIB
FLAGS = (
    *("--segment-bytes", "32MiB", "--max-batch-bytes", "1MiB"),
    *("--tail-cache-bytes", str(TAIL_CACHE), "--node-unanswered-bytes", str(UNANSWERED)),
    *("--stream-unanswered-batches", "32", "--stream-unanswered-bytes", "2MiB"),
    *("--subscriber-queue-bytes", "256KiB", "--delivery-bytes-max", "128KiB", "--scrub-bytes-per-s", "0"),
    *("--connection-streams-max", "100"),  # each of these calls may hold a whole message within gRPC
)
# What gRPC holds on each stream and connection, a group of the journal while it is written, and what the allocator
# keeps of all this: measured 20 to 40 MiB in these tests. A node that piled up would take hundreds.
SLACK = 80 * MIB
MORE_MAX = TAIL_CACHE + COLD_CACHE + UNANSWERED + SLACK
DEAF = 16  # producers that read no answers
STREAM_WINDOW = 2 * MIB  # what gRPC takes in of a stream that the node does not read: 1 MiB, and its parts
SHARE_MIN = 0.35  # of the rate without the bad client; two cores are shared with the bad client's own work
ROUNDS = 3

REFUSED_STREAM = "RST_STREAM with error code 7"

BATCH = [bytes([n]) * 1024 for n in range(128)]  # 128 KiB


class Meter:
    """Watches the node's memory from its start on."""

    def __init__(self, node: Node) -> None:
        self._process = node.process
        self.base = self.most = self._process.memory_info().rss

    def look(self) -> None:
        self.most = max(self.most, self._process.memory_info().rss)

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0.02)

    def check(self, more: int) -> None:
        assert self.most - self.base < MORE_MAX + more, f"{self.base / MIB:.0f} → {self.most / MIB:.0f} MiB"


@asynccontextmanager
async def metered(data_dir: Path, more: int = 0) -> AsyncIterator[SimpleNamespace]:
    """A node, a client, and a meter that has the last word."""
    async with serving(data_dir, *FLAGS) as pair:
        pair.meter = Meter(pair.node)
        watching = asyncio.ensure_future(pair.meter.run())
        try:
            yield pair
        finally:
            watching.cancel()
        pair.meter.check(more)
        assert pair.node.faults() == []


async def push(client: Client, channel: str, mebibytes: int) -> None:
    """Publishes batches of 128 KiB, as fast as they are answered."""
    stream = client.publish_stream(120)
    request = publish(channel, *BATCH)
    room = asyncio.Semaphore(16)

    async def read() -> None:
        answered = 0
        while answered < mebibytes * 8:
            for result in (await stream.read()).results:
                assert result.HasField("stored"), result
                answered += 1
                room.release()

    reading = asyncio.ensure_future(read())
    for _ in range(mebibytes * 8):
        await room.acquire()
        await stream.write(request)
    await reading
    stream.cancel()


async def rate(address: str, channel: str, mebibytes: int) -> float:
    """MiB a second from a producer through the node to a subscriber, both well-behaved."""
    async with Client(address) as producer, Client(address) as consumer:
        stream = consumer.subscribe(120)
        await stream.write(open_subscription(channel, credit=1 << 40))
        await next_event(stream, "opened")
        started = time.monotonic()
        pushing = asyncio.ensure_future(push(producer, channel, mebibytes))
        todo = mebibytes * 1024
        while todo:
            todo -= sum(batch.count for batch in (await next_event(stream, "deliver")).batches)
        await pushing
        return mebibytes / (time.monotonic() - started)


async def check_share(pair: SimpleNamespace, channel: str, mebibytes: int, bad: Callable[[], Any]) -> None:
    """Measures by turns without and with `bad`, a context manager; compares the medians."""
    await rate(pair.node.address, channel, 16)
    alone, beside = [], []
    for _ in range(ROUNDS):
        alone.append(await rate(pair.node.address, channel, mebibytes // 2))
        async with bad():
            beside.append(await rate(pair.node.address, channel, mebibytes))
    print(
        f"\nalone {statistics.median(alone):.0f} MiB/s, beside the bad client {statistics.median(beside):.0f}; "
        f"memory {pair.meter.base / MIB:.0f} → {pair.meter.most / MIB:.0f} MiB"
    )
    assert statistics.median(beside) > SHARE_MIN * statistics.median(alone)


async def test_a_subscriber_that_never_reads(tmp_path: Path) -> None:
    """With credit for everything; 300 MiB go past it, and its place in the channel is kept without their bytes."""
    async with metered(tmp_path / "n") as pair:

        @asynccontextmanager
        async def sleeper() -> AsyncIterator[None]:
            async with Client(pair.node.address) as client:
                streams = [client.subscribe() for _ in range(4)]
                for number, stream in enumerate(streams):
                    await stream.write(open_subscription("busy", credit=1 << 40, group="g" if number == 3 else ""))
                await pair.client.node()
                yield

        await check_share(pair, "busy", 100, sleeper)


async def test_producers_that_never_read_their_answers(tmp_path: Path) -> None:
    """Each goes on writing until it is held; a small window makes gRPC's own buffers full soon."""
    window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with metered(tmp_path / "n", DEAF * STREAM_WINDOW) as pair:
        request = publish("deaf." + "x" * 250, *BATCH[:16])
        written = 0

        async def deaf(client: Client) -> None:
            nonlocal written
            stream = client.publish_stream()
            while True:
                await stream.write(request)
                written += 1

        async def held() -> bool:
            before = written
            for _ in range(50):
                await pair.client.node()
            return written == before > 0

        @asynccontextmanager
        async def producers() -> AsyncIterator[None]:
            async with Client(pair.node.address, *window) as client:
                writing = [asyncio.ensure_future(deaf(client)) for _ in range(DEAF)]
                await until(held, "the node to read no more")
                yield
                assert not any(task.done() for task in writing)
                for task in writing:
                    task.cancel()
                await asyncio.wait(writing)

        await check_share(pair, "busy", 64, producers)


def outcome_of(told: Told) -> str:
    """Two ways to say that nothing was stored: the node's own, and HTTP/2's for calls above the connection's limit."""
    if told.code == grpc.StatusCode.UNAVAILABLE:
        assert REFUSED_STREAM in told.message, told
        return "refused"
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY"), told
    assert told.retry_after_ms > 0
    return "busy"


async def test_a_producer_that_never_waits(tmp_path: Path) -> None:
    """Thousands of unary publishes at once: each is stored or told that the node is busy, and when to come back."""
    async with metered(tmp_path / "n") as pair:
        request = PublishRequest(channel="flood", batch=batch_of(*BATCH))
        outcomes: list[str] = []

        async def one() -> None:
            try:
                await pair.client.publisher.Publish(request, timeout=120)
                outcomes.append("stored")
            except grpc.aio.AioRpcError as error:
                outcomes.append(outcome_of(told_by_status(error)))

        await asyncio.gather(*(one() for _ in range(2_000)))
        stored = outcomes.count("stored")
        busy, refused = outcomes.count("busy"), outcomes.count("refused")
        print(f"\n{stored} stored, {busy} busy, {refused} refused; {pair.meter.most / MIB:.0f} MiB")
        assert stored > 0
        channels = {channel.name: channel.end_offset for channel in await pair.client.all_channels()}
        assert channels["flood"] == stored * len(BATCH)


async def test_a_backlog_of_a_gigabyte(tmp_path: Path) -> None:
    """All on disk; a group works through it with little credit, while others publish and read the newest."""
    async with metered(tmp_path / "n") as pair:
        await pair.client.groups.AddGroup(AddGroupRequest(channel="old", name="g"))
        await push(pair.client, "old", 1_024)
        readers: list[int] = []

        @asynccontextmanager
        async def slow() -> AsyncIterator[None]:
            async with Client(pair.node.address) as client:
                reading = asyncio.ensure_future(work_slowly(client, "old"))
                yield
                reading.cancel()
                await asyncio.wait([reading])
            readers.append(await settled_when_idle(pair.client, "old"))

        await check_share(pair, "new", 64, slow)
        assert readers == sorted(readers)
        assert readers[-1] > 0
        async with Client(pair.node.address) as client:
            await work(client, "old", 1 << 20, (1 << 20) - readers[-1])
        group = (await pair.client.groups.GetGroup(GetGroupRequest(channel="old", name="g"))).group
        assert (group.pending, group.settled_below) == (0, 1 << 20)


async def settled_when_idle(client: Client, channel: str) -> int:
    """Where the group stands once its last consumer is gone: what that one settled at last may still be on its way."""
    settled = 0

    async def idle() -> bool:
        nonlocal settled
        group = (await client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group
        settled = group.settled_below
        return not group.members and group.in_flight == 0

    await until(idle, "the group to be without consumers")
    return settled


async def work_slowly(client: Client, channel: str) -> Awaitable[None]:
    """A message at a time, until it is cancelled."""
    return await work(client, channel, 1, 1 << 40)


async def work(client: Client, channel: str, window: int, count: int) -> None:
    """Takes and acks `count` messages, with credit for `window` at a time."""
    stream = client.subscribe(120)
    await stream.write(open_subscription(channel, credit=window, group="g"))
    done = 0
    while done < count:
        event = await stream.read()
        assert event is not grpc.aio.EOF
        for batch in event.deliver.batches:
            ranges = [OffsetRange(first=batch.first_offset, last=batch.first_offset + batch.count - 1)]
            await stream.write(SubscribeRequest(settle=Settle(subscription_id=1, ranges=ranges, ack=Ack())))
        for result in event.settled.results:
            done += result.range.last - result.range.first + 1
        if event.WhichOneof("event") == "settled":
            credit = Credit(messages=done + window, bytes=1 << 50)
            await stream.write(SubscribeRequest(credit=GrantCredit(subscription_id=1, credit=credit)))
    stream.cancel()
