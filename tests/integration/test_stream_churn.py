"""Twenty thousand streams, opened and cancelled: over the last 16,000 the node's memory grows less than leaked streams
would make it, and threads and descriptors stay about as many.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import (
    MIB,
    Client,
    batch_of,
    gathered,
    next_event,
    open_subscription,
    publish,
    serving,
    until,
)

STREAMS = 20_000
WARM_UP = 4_000
AT_A_TIME = 200
# Python and gRPC keep freed memory for the next time; a session that leaked would cost about 5 KB a stream, and
# 16,000 of them so 80 MB.
GROWTH_BYTES_MAX = 30 * MIB
DESCRIPTORS_MORE_MAX = 8  # a journal segment or two, a connection that is being closed


def refused(error: grpc.aio.AioRpcError) -> bool:
    """Cancelled streams count until their handlers have ended: above the connection's limit gRPC refuses new ones.

    grpcio tells it as RST_STREAM, as CANCELLED, or as an error of its own when it was about to write. The node itself
    would say RESOURCE_EXHAUSTED.
    """
    details = error.details() or ""
    return "RST_STREAM" in details or details == "CANCELLED" or "Internal error from Core" in details


async def churn(client: Client, number: int) -> None:
    """One stream, tried again when it was refused."""
    while True:
        try:
            await churn_once(client, number)
        except grpc.aio.AioRpcError as error:
            if not refused(error):
                raise
            await asyncio.sleep(0.05)
        else:
            return


async def churn_once(client: Client, number: int) -> None:
    """One stream that is cancelled while it works: by turns one with a group, without one, and of a producer."""
    kind = number % 4
    if kind == 3:
        stream = client.publish_stream()
        await stream.write(publish(f"churn.{number % 10}", b"x"))
        if number % 8 == 3:  # the others leave before the first word
            await stream.read()
    else:
        stream = client.subscribe()
        await stream.write(open_subscription(f"churn.{number % 10}", credit=5, group="g" if kind else ""))
        if kind:
            await next_event(stream, "opened")
    stream.cancel()


async def churn_all(address: str, numbers: Iterator[int]) -> None:
    """From four connections, each with a quarter of AT_A_TIME streams."""

    async def one(share: list[int]) -> None:
        async with Client(address) as client:
            await gathered((churn(client, number) for number in share), AT_A_TIME // 4)

    todo = list(numbers)
    await asyncio.gather(*(one(todo[start::4]) for start in range(4)))


async def settled_down(pair: SimpleNamespace) -> dict[str, float]:
    """Waits until the node knows of no stream; its memory in bytes and its descriptors."""

    def quiet() -> bool:
        metrics = pair.node.metrics()
        return not any(metrics[f"ringpost_{n}"] for n in ("streams{publish}", "streams{subscribe}", "subscriptions"))

    await until(quiet, "the streams to be gone", 60)
    await until(lambda: len(pair.node.process.net_connections()) <= 3, "the connections to be gone", 60)
    process = pair.node.process
    return {"rss": process.memory_info().rss, "fds": process.num_fds(), "threads": process.num_threads()}


@pytest.mark.long
async def test_twenty_thousand_streams(tmp_path: Path) -> None:
    async with serving(tmp_path / "n", "--segment-bytes", "16MiB", "--tail-cache-bytes", "1MiB") as pair:
        for number in range(10):
            await pair.client.publisher.Publish(PublishRequest(channel=f"churn.{number}", batch=batch_of(b"x")))
        numbers = itertools.count()
        await churn_all(pair.node.address, itertools.islice(numbers, WARM_UP))
        before = await settled_down(pair)
        started = time.monotonic()
        await churn_all(pair.node.address, itertools.islice(numbers, STREAMS - WARM_UP))
        seconds = time.monotonic() - started
        after = await settled_down(pair)

        groups = await pair.client.all_groups()
        assert [(group.in_flight, list(group.members)) for group in groups] == [(0, [])] * 10
        assert pair.node.faults() == []
        print(
            f"\n{STREAMS} streams, {(STREAMS - WARM_UP) / seconds:.0f} a second; memory {before['rss'] / MIB:.1f} → "
            f"{after['rss'] / MIB:.1f} MiB, descriptors {before['fds']} → {after['fds']}"
        )
        assert after["rss"] - before["rss"] < GROWTH_BYTES_MAX
        assert after["fds"] - before["fds"] <= DESCRIPTORS_MORE_MAX
        assert after["threads"] - before["threads"] <= 4
