"""The ceiling: what gRPC in Python and this disk allow at most, with a server that does nothing. Prints JSON.

Messages are bytes that nobody parses. `small` is 100 B, `large` 128 KiB, as much as a batch of 1,000 times 128 B.
`python -m tests.benchmarks.ceiling --serve` is that server alone, for the lean load generator.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import Any

import grpc
import uvloop

from tests.benchmarks.measure import Span, payload, report, scratch

SMALL, LARGE = 100, 128 * 1024  # bytes
ANSWER = bytes(40)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0), ("grpc.use_local_subchannel_pool", 1)]


async def echo(_: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def sink(_: Any, context: Any) -> None:
    count = 0
    while await context.read() is not grpc.aio.EOF:
        count += 1
    await context.write(str(count).encode())


async def source(_: Any, context: Any) -> None:
    size, count = map(int, (await context.read()).split())
    message = payload(size)
    for _ in range(count):
        await context.write(message)


async def take(_: Any, context: Any) -> None:
    """A small answer for each frame, as a publish stream gives."""
    while await context.read() is not grpc.aio.EOF:
        await context.write(ANSWER)


async def call(_: bytes, __: Any) -> bytes:
    return ANSWER


class Hub:
    """Writes each frame that comes on a `talk` stream to every `listen` stream."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()

    async def talk(self, _: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        while (frame := await context.read()) is not grpc.aio.EOF:
            for queue in self._queues:
                queue.put_nowait(frame)

    async def listen(self, _: Any, context: Any) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        try:
            await context.write(ANSWER)
            while True:
                await context.write(await queue.get())
        finally:
            self._queues.discard(queue)


async def serve() -> None:
    """Prints the port."""
    server = grpc.aio.server(options=OPTIONS)
    hub = Hub()
    streams_of = (echo, sink, source, take, hub.talk, hub.listen)
    handlers: dict[str, Any] = {f.__name__: grpc.stream_stream_rpc_method_handler(f) for f in streams_of}
    handlers["call"] = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ceiling", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def ping_pong(channel: grpc.aio.Channel, pid: int, count: int) -> dict[str, float]:
    call: Any = channel.stream_stream("/ceiling/echo")()
    message, waits = payload(SMALL), []
    span = Span(pid)
    for _ in range(count):
        begin = time.perf_counter()
        await call.write(message)
        await call.read()
        waits.append(time.perf_counter() - begin)
    span.stop()
    await call.done_writing()
    await call.read()
    percentiles = quantiles(waits, n=100)
    return {
        "ping_pong_p50_us": median(waits) * 1e6,
        "ping_pong_p99_us": percentiles[98] * 1e6,
        "ping_pong_server_cpu_us": span.cpu_us(count),
    }


async def upload(channel: grpc.aio.Channel, pid: int, size: int, count: int) -> Span:
    call: Any = channel.stream_stream("/ceiling/sink")()
    message = payload(size)
    span = Span(pid)
    for _ in range(count):
        await call.write(message)
    await call.done_writing()
    assert int(await call.read()) == count
    return span.stop()


async def download(channel: grpc.aio.Channel, pid: int, size: int, count: int) -> Span:
    call: Any = channel.stream_stream("/ceiling/source")()
    span = Span(pid)
    await call.write(f"{size} {count}".encode())
    for _ in range(count):
        assert await call.read() is not grpc.aio.EOF
    return span.stop()


async def streams(port: int, pid: int, scale: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        await ping_pong(channel, pid, 200)  # warms both ends up
        figures |= await ping_pong(channel, pid, int(4_000 * scale))
        for way, run in (("upload", upload), ("download", download)):
            for name, size, count in (("small", SMALL, int(20_000 * scale)), ("large", LARGE, int(6_000 * scale))):
                span = await run(channel, pid, size, count)
                figures |= {
                    f"{way}_{name}_per_s": span.per_s(count),
                    f"{way}_{name}_server_cpu_us": span.cpu_us(count),
                    f"{way}_{name}_mb_per_s": span.per_s(count) * size / 1e6,
                }
    return figures


def disk(count: int) -> dict[str, float]:
    """Latency of appending 4 KiB and fdatasync, in a file that has its blocks already, as the journal's files do."""
    block, waits = payload(4096), []
    with scratch() as folder, open(folder / "disk", "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(block) * count)
        os.fsync(file.fileno())
        for _ in range(count):
            begin = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            waits.append(time.perf_counter() - begin)
    return {"fdatasync_p50_us": median(waits) * 1e6, "fdatasync_p99_us": quantiles(waits, n=100)[98] * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of operations")
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve())
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.ceiling", "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        port = int(server.stdout.readline())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(streams(port, server.pid, arguments.scale))
    finally:
        server.terminate()
        server.wait()
    report(figures | disk(int(400 * arguments.scale)))


if __name__ == "__main__":
    main()
