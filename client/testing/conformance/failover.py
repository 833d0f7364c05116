"""One failover under a publisher, a subscriber and a group's member: the node that serves all three is killed."""

import asyncio
import itertools
from collections import Counter
from typing import NamedTuple

from ringpost.client.testing.conformance.bench import Bench
from ringpost.client.testing.conformance.contract import Printed, message, require, spans
from ringpost.client.testing.conformance.publishing import exactly_once
from ringpost.client.testing.conformance.registry import LeftOut, check
from ringpost.client.testing.conformance.subscribing import as_published
from ringpost.client.testing.conformance.targets import OwnCluster
from ringpost.client.testing.conformance.working import GROUP, all_settled

COUNT, BATCH, PAUSE_MS = 600, 10, 20
_turns = itertools.count()


class Survivors(NamedTuple):
    """What the three programs printed, and how many messages were stored when the node died."""

    channel: str
    published: Printed
    read: Printed
    worked: Printed
    stored_before: int


async def kill(bench: Bench) -> Survivors:
    """Runs the three and kills the first of their addresses, whose node leads the channel, in the middle."""
    cluster = bench.target
    if not isinstance(cluster, OwnCluster):
        raise LeftOut("only nodes of a cluster of its own are killed")
    turn = next(_turns) % len(cluster.addresses)
    addresses = cluster.addresses[turn:] + cluster.addresses[:turn]
    channel = await bench.channel_led_by(addresses[0], "failover", GROUP)
    publishing = bench.publishing(addresses, channel, count=COUNT, batch=BATCH, pause_ms=PAUSE_MS)
    reading = bench.subscribing(addresses, channel, count=COUNT)
    try:
        async with (
            bench.working(addresses, channel, count=COUNT) as worker,
            reading as reader,
            publishing as publisher,
        ):
            await publisher.until(lambda printed: len(printed.stored) >= COUNT // 5, "acknowledged a fifth")
            await reader.until(lambda printed: len(printed.got) > 0, "received anything")
            await worker.until(lambda printed: len(printed.acked) > 0, "acked anything")
            before = len(publisher.printed.stored)
            await asyncio.to_thread(cluster.kill, addresses[0])
            published, read, worked = [await one.success() for one in (publisher, reader, worker)]
            return Survivors(channel, published, read, worked, before)
    finally:
        await cluster.restart()


@check("failover.publish", alone=True)
async def publish(bench: Bench) -> str:
    """The node is killed in the middle of publishing: nothing is lost, nothing doubled, order is kept."""
    seen = await bench.once(kill)
    require(seen.stored_before < COUNT, "it was done before the node died")
    await exactly_once(bench, seen.channel, seen.published, COUNT)
    return f"SIGKILL after {seen.stored_before} of {COUNT} messages; {seen.published.duplicates} answered as duplicates"


@check("failover.subscribe", alone=True)
async def subscribe(bench: Bench) -> str:
    """The node is killed in the middle of reading: every message comes once, in order, through another node."""
    seen = await bench.once(kill)
    as_published(seen.read.got, [message("p", number) for number in range(COUNT)])
    return f"{COUNT} messages once, in order"


@check("failover.group", alone=True)
async def group(bench: Bench) -> str:
    """The node is killed in the middle of a group's work: all is settled, what was confirmed does not come again."""
    seen = await bench.once(kill)
    await all_settled(bench, seen.channel, seen.worked, COUNT)
    again = seen.worked.after_ack
    require(not again, f"came again after the ack was confirmed: {spans(again)}")
    times = Counter(one.offset for one in seen.worked.got)
    missing = sorted(set(range(COUNT)) - set(times))
    require(not missing, f"never received: {spans(missing)}")
    return f"{COUNT} messages settled, {sum(times.values()) - COUNT} of them delivered again"
