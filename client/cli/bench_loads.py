"""The loads of `ringpost bench`: each runs one against the node at `addr` and returns its figures."""

import asyncio
import struct
import time
from functools import partial

from ringpost.client.api import Client
from ringpost.client.cli.bench_parts import (
    Load,
    Producer,
    Tally,
    Watch,
    clients,
    payloads,
    produce,
    read,
    reading,
    scratch,
)
from ringpost.client.cli.bench_report import Meter, Result
from ringpost.client.cli.stats import Latency, Samples
from ringpost.client.message import MessageBatch
from ringpost.client.receipts import PendingPublish

GROUP = "bench"
_STAMP = struct.Struct("<d")
STAMP_BYTES = _STAMP.size


async def publish(addr: str, load: Load, watch: Watch) -> Result:
    """Producers only. The ack time is of a closed loop, so it says nothing about an unloaded broker."""
    async with clients(addr, load.producers + 1) as (control, *others), scratch(control, load, others) as names:
        producers = [Producer(mq, load, names) for mq in others]
        meter = Meter(control)
        await meter.start()
        count = await produce(producers, load, watch)
        usage = await meter.stop(count, 0)
    return Result("pub", load.parameters("subscribers"), usage, {"ack_closed_loop": _join(producers)})


async def subscribe(addr: str, load: Load, watch: Watch, group: bool) -> Result:
    """First fills the channels, unmeasured; then measures how fast they are read from the start."""
    async with (
        clients(addr, load.producers + 2) as (control, reader, *others),
        scratch(control, load, [reader, *others]) as names,
    ):
        filled = await produce([Producer(mq, load, names) for mq in others], load, watch)
        tally = Tally()
        meter = Meter(control)
        await meter.start()
        async with reading([_reader(reader, name, tally, GROUP if group else None) for name in names]):
            tally.want(filled)
            await tally.done.wait()
        usage = await meter.stop(0, filled)
    return Result("sub", {**load.parameters("subscribers"), "group": group}, usage)


async def both(addr: str, load: Load, watch: Watch, group: bool) -> Result:
    """Producers and one live reader of each channel at the same time, as fast as they can."""
    async with (
        clients(addr, load.producers + 2) as (control, reader, *others),
        scratch(control, load, [reader, *others]) as names,
    ):
        tally = Tally()
        meter = Meter(control)
        async with reading([_reader(reader, name, tally, GROUP if group else None) for name in names]):
            await meter.start()
            count = await produce([Producer(mq, load, names) for mq in others], load, watch)
            tally.want(count)
            await tally.done.wait()
        usage = await meter.stop(count, count)
    return Result("pubsub", {**load.parameters("subscribers"), "group": group}, usage)


async def fan_out(addr: str, load: Load, watch: Watch) -> Result:
    """One channel, `subscribers` readers of everything. Extra: how far the last is behind the first."""
    async with (
        clients(addr, load.producers + 2) as (control, reader, *others),
        scratch(control, load, [reader, *others]) as names,
    ):
        tallies = [Tally() for _ in range(load.subscribers)]
        meter = Meter(control)
        async with reading([_reader(reader, names[0], tally, None) for tally in tallies]):
            await meter.start()
            count = await produce([Producer(mq, load, names) for mq in others], load, watch)
            for tally in tallies:
                tally.want(count)
            for tally in tallies:
                await tally.done.wait()
        usage = await meter.stop(count, count * load.subscribers)
    ends = [tally.last for tally in tallies]
    extra = {"last_subscriber_behind_first_ms": round((max(ends) - min(ends)) * 1e3, 3)}
    return Result("fanout", load.parameters(), usage, extra=extra)


async def latency(addr: str, load: Load, watch: Watch) -> Result:
    """Open loop: every message has a time at which it was to be sent, and is measured from that, late or not."""
    async with clients(addr, 3) as (control, reader, mq), scratch(control, load, [reader, mq]) as names:
        acks, deliveries, tally = Samples(), Samples(), Tally()
        note = partial(_note, deliveries)
        meter = Meter(control)
        subscription = reader.subscription(names[0], start="earliest")
        await subscription.opened()
        async with reading([read(subscription, tally, note)]):
            await meter.start()
            late = await _send_on_time(mq, names[0], load, acks, watch)
            tally.want(acks.count)
            await tally.done.wait()
        usage = await meter.stop(acks.count, acks.count)
    found = {"ack": acks.summary(), "delivery": deliveries.summary()}
    return Result(
        "latency", load.parameters("subscribers", "window", "batch"), usage, found, {"sends_later_than_1_ms": late}
    )


async def _reader(mq: Client, channel: str, tally: Tally, group: str | None) -> None:
    async with mq.subscription(channel, group=group, start="earliest") as subscription:
        await read(subscription, tally)


def _note(samples: Samples, batch: MessageBatch) -> None:
    now = time.perf_counter()
    for data in batch.payloads():
        samples.add(now - _STAMP.unpack_from(data)[0])


async def _send_on_time(mq: Client, channel: str, load: Load, acks: Samples, watch: Watch) -> int:
    """Sends on schedule; returns how many left more than 1 ms after their time."""
    data = [payload[STAMP_BYTES:] for payload in payloads(max(load.size, STAMP_BYTES))]
    total = load.messages or round(load.seconds * load.rate)
    waiting: asyncio.Queue[tuple[float, PendingPublish] | None] = asyncio.Queue()
    collector = asyncio.create_task(_collect(waiting, acks, watch))
    begin = time.perf_counter() + 0.01
    late = 0
    for number in range(total):
        due = begin + number / load.rate
        while (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        late += ahead < -1e-3
        pending = mq.publish_nowait(channel, _STAMP.pack(due) + data[number % len(data)], durability=load.durability)
        waiting.put_nowait((due, pending))
        if collector.done():
            break
        if ahead < -1e-3 and number % 64 == 0:
            # Behind the schedule: the broker's answers must still be read.
            await asyncio.sleep(0)
    waiting.put_nowait(None)
    await collector
    return late


async def _collect(waiting: "asyncio.Queue[tuple[float, PendingPublish] | None]", acks: Samples, watch: Watch) -> None:
    while (item := await waiting.get()) is not None:
        due, pending = item
        await pending
        acks.add(time.perf_counter() - due)
        watch(1)


def _join(producers: list[Producer]) -> Latency:
    return Samples(value for producer in producers for value in producer.samples).summary()
