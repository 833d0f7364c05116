"""Many subscribers on one node that have nothing to do: memory of each, idle CPU, and a storm of them. Prints JSON.

Each has a connection of its own and one subscription to one of `--channels` channels, with the usual heartbeat (10 s).
Memory is resident memory (RSS) of the node with all of them, less before the first. The storm: all connections are cut
at once by the clients' side, and all come again at once; it is over when all subscriptions stand again.
`--floor`: the same connections to a gRPC server whose handler does nothing: what is left to a node to save.
"""

import argparse
import asyncio
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from ringpost.client.testing.broker import BrokerProcess
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.publish_pb2_grpc import PublisherServiceStub
from ringpost.v1.subscribe_pb2 import Credit, OpenSubscription, SubscribeRequest
from tests.benchmarks.http2 import Stream
from tests.benchmarks.lean import ROOT
from tests.benchmarks.measure import Span, machine, report, scratch

PATH = "/ringpost.v1.SubscriberService/Subscribe"
ALL_SECONDS_MAX = 300.0
AGAIN_S = 0.2
CALM = 500  # so many come at a time, unless it is a storm
SETTLE_S = 3.0  # what was begun by the last connections is over then


class Crowd:
    """The subscribers. `connect` all of them, `drop` all of them."""

    def __init__(self, address: str, count: int, channels: int) -> None:
        host, port = address.rsplit(":", 1)
        self._address = host, int(port)
        self._channels = channels
        self._count = count
        self._streams: dict[int, Stream] = {}
        self._numbers: dict[Stream, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0
        self._standing = 0
        self._changed = asyncio.Event()

    def _told(self, stream: Stream) -> None:
        if not stream.over:
            self._standing += 1
        elif stream.messages:
            self._standing -= 1
        else:  # gRPC drops new calls by lot while more than 1,000 wait: clients come again
            self.dropped += 1
            if stream.transport is not None:
                stream.transport.abort()
            again = asyncio.get_running_loop().create_task(self._again(self._numbers[stream]))
            self._tasks.add(again)
            again.add_done_callback(self._tasks.discard)
        self._changed.set()

    async def _again(self, number: int) -> None:
        await asyncio.sleep(AGAIN_S * (1 + random.random()))
        await self._one(number)

    async def _one(self, number: int) -> None:
        credit = Credit(messages=1_000, bytes=1 << 20)
        command = OpenSubscription(subscription_id=1, channel=f"crowd.{number % self._channels}", credit=credit)
        request = SubscribeRequest(open=command).SerializeToString()
        loop = asyncio.get_running_loop()
        stream = Stream(PATH, request, self._told)
        self._numbers[stream], self._streams[number] = number, stream
        await loop.create_connection(lambda: stream, *self._address)

    async def connect(self, at_a_time: int) -> float:
        """Seconds until all subscriptions stand."""
        begin = time.perf_counter()
        self._numbers.clear()
        self.dropped = 0
        async with asyncio.timeout(ALL_SECONDS_MAX):
            for first in range(0, self._count, at_a_time):
                numbers = range(first, min(first + at_a_time, self._count))
                await asyncio.gather(*map(self._one, numbers))
                await self._until(numbers.stop)
        return time.perf_counter() - begin

    async def _until(self, standing: int) -> None:
        while self._standing != standing:
            self._changed.clear()
            await self._changed.wait()

    async def drop(self) -> None:
        for stream in self._streams.values():
            assert stream.transport is not None
            stream.transport.abort()
        await self._until(0)

    @property
    def standing(self) -> int:
        return self._standing

    @property
    def messages(self) -> int:
        return sum(stream.messages for stream in self._streams.values())


async def publish_to_all(address: str, channels: int) -> None:
    batch = Batch(messages=[Message(data=b"hello")])
    async with grpc.aio.insecure_channel(address) as channel:
        stub = PublisherServiceStub(channel)
        for number in range(channels):
            await stub.Publish(PublishRequest(channel=f"crowd.{number}", batch=batch))


async def idle(pid: int, seconds: float) -> float:
    """CPU milliseconds a second."""
    span = Span(pid)
    await asyncio.sleep(seconds)
    return span.stop().cpu_seconds * 1_000 / span.seconds


async def measure(node: BrokerProcess, count: int, channels: int, idle_s: float) -> dict[str, Any]:
    assert node.pid is not None
    process = psutil.Process(node.pid)
    await publish_to_all(node.address, channels)
    figures: dict[str, Any] = {"subscribers": count, "channels": channels}
    figures["idle_empty_cpu_ms_per_s"] = await idle(node.pid, idle_s)
    before = process.memory_info().rss
    crowd = Crowd(node.address, count, channels)
    span = Span(node.pid)
    figures["connect_seconds"] = await crowd.connect(CALM)
    figures |= {"connect_cpu_us": span.stop().cpu_us(count), "connect_dropped": crowd.dropped}
    await asyncio.sleep(SETTLE_S)
    figures["subscriber_bytes"] = (process.memory_info().rss - before) / count
    figures["idle_cpu_ms_per_s"] = await idle(node.pid, idle_s)
    heard = crowd.messages
    begin = time.perf_counter()
    await publish_to_all(node.address, channels)
    while crowd.messages < heard + count:
        await asyncio.sleep(0.01)
    figures["one_message_to_all_seconds"] = time.perf_counter() - begin
    assert crowd.standing == count, "some have fallen"
    await crowd.drop()
    span = Span(node.pid)
    figures["storm_seconds"] = await crowd.connect(count)
    figures |= {"storm_cpu_us": span.stop().cpu_us(count), "storm_dropped": crowd.dropped}
    await asyncio.sleep(SETTLE_S)
    figures["subscriber_bytes_after_storm"] = (process.memory_info().rss - before) / count
    await crowd.drop()
    await asyncio.sleep(SETTLE_S)
    figures["left_behind_bytes"] = (process.memory_info().rss - before) / count
    return figures


async def serve_floor() -> None:
    """Answers the first message of each stream, and waits for the next. Prints its port."""

    async def handler(_: Any, context: Any) -> None:
        await context.read()
        await context.write(b"x")
        await context.read()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Subscribe": grpc.stream_stream_rpc_method_handler(handler)}
    service = PATH.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def floor(pid: int, address: str, count: int) -> dict[str, Any]:
    process = psutil.Process(pid)
    before = process.memory_info().rss
    await Crowd(address, count, 1).connect(CALM)
    await asyncio.sleep(SETTLE_S)
    return {"subscribers": count, "floor_bytes": (process.memory_info().rss - before) / count}


def run_floor(count: int) -> dict[str, Any]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.scale_connections", "--serve-floor"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert server.stdout
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(floor(server.pid, address, count))
    finally:
        server.kill()
        server.wait()


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    flags = ("--streams-max", str(2 * arguments.subscribers), "--log-level", "warning")
    with (
        BrokerProcess(folder / "data", arguments=flags) as node,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(measure(node, arguments.subscribers, arguments.channels, arguments.idle))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--channels", type=int, default=100)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds over which idle CPU is taken")
    parser.add_argument("--floor", action="store_true", help="a server that does nothing in place of a node")
    parser.add_argument("--serve-floor", action="store_true", help="be that server")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.serve_floor:
        uvloop.run(serve_floor())
        return
    with scratch() as folder:
        figures = run_floor(arguments.subscribers) if arguments.floor else run(folder, arguments)
    report({"machine": machine(), **figures})


if __name__ == "__main__":
    main()
