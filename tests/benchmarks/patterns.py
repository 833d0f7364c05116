"""What patterns cost: one without a match on a node with many channels; delivery against single subscriptions. JSON.

`--channels`: how many the node has for the first. The second publishes to 100 channels in batches of `--batch`, and
counts the CPU of the node, or of all three nodes of a cluster, until the same messages have come (a) by 100
subscriptions on one stream and (b) by one to the pattern; the publishing's own cost is that of a run without readers.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from ringpost.client.testing.broker import BrokerProcess
from ringpost.v1.publish_pb2 import PublishRequest, PublishStreamRequest
from ringpost.v1.subscribe_pb2 import Credit, OpenSubscription, SubscribeRequest
from tests.benchmarks.measure import Span, machine, payload, report, scratch
from tests.benchmarks.scale_channels import idle, make_all, rss
from tests.integration.broker import Client, batch_of
from tests.system.local import LocalCluster

CHANNELS = 100
MATCHED = 10_000
WITHOUT_LIMIT = Credit(messages=1 << 40, bytes=1 << 40)


def opening(number: int, **fields: str) -> SubscribeRequest:
    return SubscribeRequest(open=OpenSubscription(subscription_id=number, credit=WITHOUT_LIMIT, **fields))


async def opened(client: Client, *openings: SubscribeRequest) -> Any:
    """A stream whose subscriptions all stand."""
    stream = client.subscribe(600)
    for one in openings:
        await stream.write(one)
    left = len(openings)
    while left:
        response = await stream.read()
        assert response.WhichOneof("event") in ("opened", "deliver"), response
        left -= response.WhichOneof("event") == "opened"
    return stream


async def count(stream: Any, messages: int) -> None:
    while messages:
        response = await stream.read()
        assert response.WhichOneof("event") != "closed", response
        messages -= sum(batch.count for batch in response.deliver.batches)


async def publish(client: Client, rounds: int, batch: int) -> None:
    """To each channel in turn; returns when everything is answered."""
    stream = client.publish_stream(600)
    body = batch_of(*[payload(128)] * batch)
    left = rounds * CHANNELS

    async def answers() -> None:
        nonlocal left
        while left:
            response = await stream.read()
            assert not any(result.HasField("failure") for result in response.results), response
            left -= len(response.results)

    reading = asyncio.ensure_future(answers())
    for number in range(rounds * CHANNELS):
        request = PublishRequest(channel=f"load.c{number % CHANNELS}", batch=body)
        await stream.write(PublishStreamRequest(correlation=number + 1, publish=request))
    await reading
    stream.cancel()


async def deliveries(at: str, through: str, pids: list[int], rounds: int, batch: int) -> dict[str, float]:
    """CPU µs a message of all nodes, of publishing alone and with either kind of reader."""
    messages = rounds * CHANNELS * batch
    found: dict[str, float] = {}
    async with Client(at) as publisher, Client(through) as reader:
        names = [f"load.c{number}" for number in range(CHANNELS)]
        singles = [opening(number, channel=name) for number, name in enumerate(names, start=1)]
        kinds: dict[str, Callable[[], Awaitable[Any]]] = {
            "publish only": lambda: opened(reader),
            "100 subscriptions": lambda: opened(reader, *singles),
            "1 pattern": lambda: opened(reader, opening(1, pattern="load.*")),
        }
        for kind, begin in kinds.items():
            stream = await begin()
            span = Span(*pids)
            counting = asyncio.ensure_future(count(stream, messages if kind != "publish only" else 0))
            await publish(publisher, rounds, batch)
            await counting
            found[kind] = span.stop().cpu_us(messages)
            stream.cancel()
    return found


async def medians(at: str, through: str, pids: list[int], batch: int, repetitions: int) -> dict[str, float]:
    rounds = max(3, 60_000 // (CHANNELS * batch)) if batch > 1 else 60
    async with Client(at) as client:
        await publish(client, 1, 1)  # the channels are there
    runs = [await deliveries(at, through, pids, rounds, batch) for _ in range(repetitions)]
    middle = {kind: round(statistics.median(run[kind] for run in runs), 2) for kind in runs[0]}
    base = middle["publish only"]
    return {**middle, "added by one": round((middle["1 pattern"] - base) / (middle["100 subscriptions"] - base), 2)}


async def without_match(node: BrokerProcess, channels: int) -> dict[str, float]:
    """The opening of a pattern without a match, and what making a channel costs with it and without."""
    assert node.pid is not None
    found: dict[str, float] = {}
    span = Span(node.pid)
    await make_all(node.address, channels, 1)
    found["µs to make a channel"] = round(span.stop().cpu_us(channels), 1)
    async with Client(node.address) as client:
        for pattern in ("orders.*", "*.orders.>"):
            span, begun = Span(node.pid), time.perf_counter()
            stream = await opened(client, opening(1, pattern=pattern))
            found[f"ms until {pattern} stands"] = round((time.perf_counter() - begun) * 1e3, 1)
            found[f"ms of CPU to open {pattern}"] = round(span.stop().cpu_seconds * 1e3, 1)
            if pattern == "orders.*":
                stream.cancel()
        found["idle CPU ms/s with it"] = round(await asyncio.to_thread(idle, node, 5.0), 2)
        stream.cancel()
        await asyncio.sleep(1.0)
        found["idle CPU ms/s without"] = round(await asyncio.to_thread(idle, node, 5.0), 2)
    return found


async def many_match(node: BrokerProcess) -> dict[str, float]:
    """The opening of a pattern with as many channels as it may have."""
    assert node.pid is not None
    await make_all(node.address, MATCHED, 1)
    async with Client(node.address) as client:
        before, span = rss(node), Span(node.pid)
        stream = await opened(client, opening(1, pattern="fleet.>"))
        seconds = span.stop().seconds
        memory = (rss(node) - before) / MATCHED
        stream.cancel()
    return {"seconds until it stands": round(seconds, 2), "bytes of memory a channel": round(memory)}


async def made_meanwhile(node: BrokerProcess, channels: int) -> float:
    """CPU µs to make a channel while ten patterns stand that do not match."""
    assert node.pid is not None
    async with Client(node.address) as client:
        stream = await opened(client, *(opening(number, pattern=f"orders{number}.*") for number in range(1, 11)))
        span = Span(node.pid)
        await make_all(node.address, channels, 1)
        made = round(span.stop().cpu_us(channels), 1)
        stream.cancel()
    return made


async def run(options: argparse.Namespace) -> None:
    found: dict[str, Any] = {"machine": machine()}
    with scratch() as folder:
        with BrokerProcess(data_dir=folder / "many") as node:
            found[f"without a match, {options.channels} channels"] = await without_match(node, options.channels)
        with BrokerProcess(data_dir=folder / "wide") as node:
            found[f"with {MATCHED} matches"] = await many_match(node)
        with BrokerProcess(data_dir=folder / "watched") as node:
            found["µs to make a channel beside 10 patterns"] = await made_meanwhile(node, options.channels)
        with BrokerProcess(data_dir=folder / "one") as node:
            assert node.pid is not None
            for batch in options.batch:
                one = await medians(node.address, node.address, [node.pid], batch, options.repetitions)
                found[f"one node, batches of {batch}"] = one
        await cluster_of_three(folder, options, found)
    report(found)


async def cluster_of_three(folder: Path, options: argparse.Namespace, found: dict[str, Any]) -> None:
    cluster = LocalCluster(folder / "three")
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        pids = [node.process.pid for node in cluster.nodes.values()]
        for batch in options.batch:
            three = await medians(cluster.address("n1"), cluster.address("n2"), pids, batch, options.repetitions)
            found[f"three nodes, batches of {batch}"] = three
    finally:
        cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 100])
    parser.add_argument("--repetitions", type=int, default=3)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
