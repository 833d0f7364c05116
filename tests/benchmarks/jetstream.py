"""nats-server with JetStream in files, under nats-py. Prints one JSON object.

The server answers a publish when the message is in its file, written but not fsynced (that comes every two minutes).
"""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import uvloop
from measure import Span, payload, report, scratch
from nats.js import JetStreamContext

WINDOW = 1_000


async def publish(js: JetStreamContext, pid: int, size: int, count: int) -> Span:
    """At most WINDOW unanswered."""
    message = payload(size)
    span = Span(pid)
    waiting: list[asyncio.Future[Any]] = []
    for _ in range(count):
        waiting.append(await js.publish_async("bench.one", message))
        if len(waiting) == WINDOW:
            await waiting[0]
            waiting = [w for w in waiting if not w.done()]
    await asyncio.gather(*waiting)
    return span.stop()


async def consume(js: JetStreamContext, pid: int, count: int) -> Span:
    """Fetches WINDOW at a time and acks each; the last ack is confirmed."""
    subscription = await js.pull_subscribe("bench.one", "worker")
    span = Span(pid)
    left = count
    while left:
        messages = await subscription.fetch(min(WINDOW, left), timeout=10)
        left -= len(messages)
        for message in messages[:-1]:
            await message.ack()
        await messages[-1].ack_sync(timeout=10)
    return span.stop()


async def listening(port: int) -> None:
    for _ in range(100):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise SystemExit("nats-server does not answer")


async def measure(port: int, pid: int, size: int, count: int) -> dict[str, Any]:
    await listening(port)
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    js = connection.jetstream(publish_async_max_pending=4 * WINDOW)
    await js.add_stream(name="bench", subjects=["bench.*"], storage="file")
    published = await publish(js, pid, size, count)
    consumed = await consume(js, pid, count)
    figures = {
        "published_per_s": published.per_s(count),
        "publish_server_cpu_us": published.cpu_us(count),
        "consumed_per_s": consumed.per_s(count),
        "consume_server_cpu_us": consumed.cpu_us(count),
    }
    await connection.close()
    return figures


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(folder: Path, size: int, count: int) -> dict[str, Any]:
    port = free_port()
    command = ["nats-server", "-js", "-sd", str(folder), "-a", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(measure(port, server.pid, size, count))
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="bytes of payload")
    parser.add_argument("--count", type=int, default=50_000, help="messages")
    arguments = parser.parse_args()
    with scratch() as folder:
        report(run(folder, arguments.size, arguments.count))


if __name__ == "__main__":
    main()
