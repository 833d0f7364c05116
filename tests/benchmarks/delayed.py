"""Delayed messages by the million on one node: memory, CPU at rest, restart, lateness under load, and the proof.

Each message is a batch of its own, of 100 B, with a time of its own, spread over an hour that begins when all are
published. Then: SIGKILL and a start; a rest before the first is due; a part of the hour, while another channel takes
a steady load; SIGKILL; and a start with a clock that is an hour ahead, so that all the rest is due at once. At the end
the channel must hold each message once, none appended before its time. Prints JSON.
"""

import argparse
import asyncio
import struct
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop

from ringpost.client import Client, connect
from ringpost.client.testing import broker
from ringpost.client.testing.broker import BrokerProcess
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest, PublishStreamRequest
from ringpost.v1.publish_pb2_grpc import PublisherServiceStub
from tests.benchmarks.measure import Span, machine, payload, report, scratch
from tests.benchmarks.shifted_node import SHIFT

# Without the scrub, which reads what was written once and would be all that is seen at rest.
FLAGS = ("--tail-cache-bytes", "1MiB", "--scrub-bytes-per-s", "0")
HOUR_US = 3_600_000_000
CHANNEL = "delayed"
START_SECONDS_MAX = 600.0
LOAD_BATCH, LOAD_PERIOD_S = 100, 0.01
_DUE = struct.Struct("<qI")


def now_us() -> int:
    return time.time_ns() // 1000


async def schedule(address: str, count: int, begin_us: int, span_us: int) -> None:
    """Publishes all, over one stream, in an order that is not that of their times."""
    filler = payload(100 - _DUE.size)
    async with grpc.aio.insecure_channel(address) as channel:
        stream = PublisherServiceStub(channel).PublishStream()

        async def answers() -> int:
            stored = 0
            while (response := await stream.read()) is not grpc.aio.EOF:
                stored += sum(result.stored.scheduled_time_us > 0 for result in response.results)
            return stored

        reading = asyncio.ensure_future(answers())
        for number in range(count):
            due = begin_us + number * 7_919 % count * span_us // count
            batch = Batch(messages=[Message(data=_DUE.pack(due, number) + filler)])
            request = PublishRequest(channel=CHANNEL, batch=batch, deliver_time_us=due)
            await stream.write(PublishStreamRequest(correlation=number, publish=request))
        await stream.done_writing()
        assert await reading == count, "some were refused, or not delayed"


async def load(mq: Client) -> int:
    """A steady load on another channel, until cancelled; messages stored."""
    messages, stored, loop = [payload(128)] * LOAD_BATCH, 0, asyncio.get_running_loop()
    due = loop.time()
    try:
        while True:
            await mq.publish_many("load", messages)
            stored += LOAD_BATCH
            due = max(due + LOAD_PERIOD_S, loop.time())
            await asyncio.sleep(due - loop.time())
    except asyncio.CancelledError:
        return stored


async def lateness(address: str, seconds: float) -> dict[str, Any]:
    """How late messages are appended, and at a subscriber, while another channel is busy."""
    appended: list[int] = []
    received: list[int] = []
    async with connect(address) as mq:
        loading = asyncio.create_task(load(mq))
        await asyncio.sleep(0)
        begin = now_us()
        try:
            async with asyncio.timeout(seconds):
                async for message in mq.subscription(CHANNEL, start="earliest"):
                    due, _ = _DUE.unpack_from(message.data)
                    if due >= begin:
                        received.append(now_us() - due)
                        appended.append(message.append_time_us - due)
        except TimeoutError:
            pass
        loading.cancel()
        load_messages = await loading
    assert min(appended) >= 0, "one came early"
    figures: dict[str, Any] = {"measured_messages": len(received), "load_msg_per_s": load_messages / seconds}
    for name, found in (("appended", sorted(appended)), ("received", sorted(received))):
        for part, at in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            figures[f"late_{name}_{part}_ms"] = found[min(int(len(found) * at), len(found) - 1)] / 1000
    return figures


async def drained(address: str) -> float:
    """Seconds until nothing is scheduled any more."""
    begin = time.perf_counter()
    async with connect(address) as mq:
        async with asyncio.timeout(START_SECONDS_MAX):
            while (await mq.channels.get(CHANNEL)).scheduled:
                await asyncio.sleep(0.2)
    return time.perf_counter() - begin


async def proved(address: str, count: int) -> None:
    """Each is there once, none before its time."""
    seen = bytearray(count)
    async with connect(address) as mq:
        assert (await mq.channels.get(CHANNEL)).end_offset == count, "some are lost, or came twice"
        left = count
        async with asyncio.timeout(START_SECONDS_MAX):
            async for message in mq.subscription(CHANNEL, start="earliest"):
                due, number = _DUE.unpack_from(message.data)
                assert message.append_time_us >= due, "one came early"
                seen[number] += 1
                left -= 1
                if not left:
                    break
    assert seen == b"\1" * count, "some are lost, or came twice"


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    count = arguments.messages
    node = BrokerProcess(folder / "data", arguments=FLAGS, timeout=START_SECONDS_MAX)
    run = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with node, run:
        assert node.pid is not None
        before = _rss(node)
        begin = now_us() + round(arguments.lead * 1e6)
        span = Span(node.pid)
        run.run(schedule(node.address, count, begin, HOUR_US))
        figures: dict[str, Any] = {"messages": count, "publish_seconds": span.stop().seconds}
        figures["publish_cpu_us"] = span.cpu_us(count)
        figures["published_bytes_each"] = (_rss(node) - before) / count
        node.kill()
        figures["restart_seconds_after_kill"] = _timed(node.start)
        figures["restarted_bytes_each"] = (_rss(node) - before) / count
        assert run.run(_scheduled(node.address)) == count, "not all are there"
        rest = Span(node.pid)
        time.sleep(arguments.idle)
        figures["idle_cpu_ms_per_s"] = rest.stop().cpu_seconds * 1_000 / rest.seconds
        figures["idle_over_seconds_before_due"] = (begin - now_us()) / 1e6
        assert now_us() < begin, "they are due already: take a longer --lead"
        time.sleep(max(begin - now_us(), 0) / 1e6)
        figures |= run.run(lateness(node.address, arguments.seconds))
        node.kill()
        node._environ[SHIFT] = str(HOUR_US)
        node.start()
        figures["overdue"] = run.run(_scheduled(node.address))
        busy = Span(node.pid)
        figures["drain_seconds"] = run.run(drained(node.address))
        figures["drain_cpu_us_each"] = busy.stop().cpu_us(max(figures["overdue"], 1))
        run.run(proved(node.address, count))
        figures["drained_rss_mib"] = _rss(node) / (1 << 20)
    return figures


async def _scheduled(address: str) -> int:
    async with connect(address) as mq:
        return (await mq.channels.get(CHANNEL)).scheduled


def _rss(node: BrokerProcess) -> int:
    return int(psutil.Process(node.pid).memory_info().rss)


def _timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--lead", type=float, default=300.0, help="seconds from the beginning until the first is due")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds over which idle CPU is taken")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the hour, in which lateness is taken")
    arguments = parser.parse_args()
    broker._MODULE = "tests.benchmarks.shifted_node"
    with scratch() as folder:
        report({"machine": machine(), **measure(folder, arguments)})


if __name__ == "__main__":
    main()
