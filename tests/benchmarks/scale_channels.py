"""Many channels on one node: memory of each, time to make them, restart, idle CPU. Prints JSON.

Each channel is made by its first publish, a batch of one message of 100 B that carries a producer's numbers, as the
Python client's do (`--anonymous`: none). The tail cache is 1 MiB, so that what grows is channels. Memory is resident
memory (RSS) after the idle time less that of the node before its first channel.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from ringpost.client.testing.broker import BrokerProcess
from ringpost.v1.channel_pb2 import ListChannelsRequest
from ringpost.v1.channel_pb2_grpc import ChannelServiceStub
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest, PublishStreamRequest
from ringpost.v1.publish_pb2_grpc import PublisherServiceStub
from tests.benchmarks.filling import fill
from tests.benchmarks.measure import Span, machine, payload, report, scratch

FLAGS = ("--tail-cache-bytes", "1MiB")
PRODUCER = 0x1234_5678_9ABC_DEF0
START_SECONDS_MAX = 600.0


def name_of(number: int) -> str:
    """22 characters, in no order that the node could profit from."""
    return f"fleet.{number % 97:02d}.truck-{number:07d}"


async def make_all(address: str, count: int, producer: int) -> None:
    """Publishes once to each channel, over one stream; returns when everything is answered."""
    batch = Batch(messages=[Message(data=payload(100))])
    async with grpc.aio.insecure_channel(address) as channel:
        stream = PublisherServiceStub(channel).PublishStream()

        async def answers() -> int:
            stored = 0
            while (response := await stream.read()) is not grpc.aio.EOF:
                stored += sum(result.HasField("stored") for result in response.results)
            return stored

        reading = asyncio.ensure_future(answers())
        for number in range(count):
            request = PublishRequest(channel=name_of(number), batch=batch, producer_id=producer)
            await stream.write(PublishStreamRequest(correlation=number, publish=request))
        await stream.done_writing()
        assert await reading == count, "some were refused"


async def list_all(address: str) -> int:
    found, token = 0, ""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = ChannelServiceStub(channel)
        while True:
            page = await stub.ListChannels(ListChannelsRequest(page_size=1_000, page_token=token))
            found += len(page.channels)
            token = page.next_page_token
            if not token:
                return found


def rss(node: BrokerProcess) -> int:
    return int(psutil.Process(node.pid).memory_info().rss)


def idle(node: BrokerProcess, seconds: float) -> float:
    """CPU milliseconds a second of a node that nobody asks anything."""
    assert node.pid is not None
    span = Span(node.pid)
    time.sleep(seconds)
    return span.stop().cpu_seconds * 1_000 / span.seconds


def timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def make_by_clients(node: BrokerProcess, count: int, producer: int) -> dict[str, Any]:
    """Publishes to a running node, then kills it."""
    before = rss(node)
    assert node.pid is not None
    span = Span(node.pid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(make_all(node.address, count, producer))
    figures = {"make_seconds": span.stop().seconds, "make_cpu_us": span.cpu_us(count)}
    figures["made_bytes_at_once"] = (rss(node) - before) / count
    node.kill()
    figures["restart_seconds_after_kill"] = timed(node.start)
    return figures


def make_directly(node: BrokerProcess, count: int, producer: int, rest_s: float) -> dict[str, Any]:
    """Fills the directory of a node, which is stopped meanwhile."""
    node.terminate()
    batch = Batch(messages=[Message(data=payload(100))]).SerializeToString()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        cpu_s = runner.run(fill(node.data_dir, node.node, name_of, count, batch, producer, rest_s))
    return {"fill_cpu_us": cpu_s * 1e6 / count, "start_seconds": timed(node.start)}


def measure(folder: Path, arguments: argparse.Namespace, producer: int) -> dict[str, Any]:
    count = arguments.channels
    node = BrokerProcess(folder / "data", arguments=FLAGS, timeout=START_SECONDS_MAX)
    with node:
        figures: dict[str, Any] = {"channels": count, "producer_numbers": bool(producer)}
        figures["idle_empty_cpu_ms_per_s"] = idle(node, arguments.idle)
        before = rss(node)
        if arguments.direct:
            figures |= make_directly(node, count, producer, arguments.rest)
        else:
            figures |= make_by_clients(node, count, producer)
        figures["stop_seconds"] = timed(node.terminate)
        figures["restart_seconds_after_stop"] = timed(node.start)
        figures["idle_cpu_ms_per_s"] = idle(node, arguments.idle)
        figures["restarted_bytes"] = (rss(node) - before) / count
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures["list_seconds"] = timed(lambda: runner.run(list_all(node.address)))
        checkpoint = max(node.data_dir.glob("checkpoint-*"))
        figures["checkpoint_bytes"] = checkpoint.stat().st_size / count
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds over which idle CPU is taken")
    parser.add_argument("--anonymous", action="store_true", help="publish without a producer's numbers")
    parser.add_argument("--direct", action="store_true", help="make them without gRPC, while the node is stopped")
    parser.add_argument("--rest", type=float, default=0.0, help="with --direct: seconds of pause every 2,000 channels")
    arguments = parser.parse_args()
    with scratch() as folder:
        producer = 0 if arguments.anonymous else PRODUCER
        figures = measure(folder, arguments, producer)
    report({"machine": machine(), **figures})


if __name__ == "__main__":
    main()
