"""A worker that holds 1,000 leases is cancelled, killed or frozen: who gets them, when, and as which delivery.

Three nodes with three copies; workers are processes and go to the owner or to another node, which relays.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig, SettleMessagesRequest
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Extend, Outcome
from tests.integration.broker import Client, batch_of, next_event, open_subscription
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system
MESSAGES, DEADLINE_S = 1_000, 4.0
DONE, EXPIRED = Outcome.OUTCOME_DONE, Outcome.OUTCOME_EXPIRED


async def filled(client: Client, channel: str) -> None:
    """1,000 messages, and a group whose leases end after four seconds."""
    for _ in range(10):
        batch = batch_of(*[b"work"] * (MESSAGES // 10))
        await client.publisher.Publish(PublishRequest(channel=channel, batch=batch), timeout=30)
    config = GroupConfig(ack_deadline_ms=round(DEADLINE_S * 1000))
    await client.groups.AddGroup(AddGroupRequest(channel=channel, name="g", config=config), timeout=30)


@asynccontextmanager
async def worker(address: str, channel: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that holds all of them."""
    command = [sys.executable, "-m", "tests.system.worker", address, channel, "g", str(MESSAGES)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"%d\n" % MESSAGES
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(10):
            await process.wait()


async def next_deliveries(client: Client, channel: str, seconds: float = 60) -> tuple[set[int], float]:
    """The attempts of 1,000 deliveries to another worker, which acks them; and when the last of them came."""
    stream = client.subscribe(seconds)
    await stream.write(open_subscription(channel, credit=MESSAGES, group="g", consumer="heir"))
    await next_event(stream, "opened")
    attempts, count = set(), 0
    while count < MESSAGES:
        for batch in (await next_event(stream, "deliver")).batches:
            attempts.add(batch.attempt)
            count += batch.count
    at = time.monotonic()
    ranges = [OffsetRange(first=0, last=MESSAGES - 1)]
    request = SettleMessagesRequest(channel=channel, group="g", ranges=ranges, ack=Ack())
    (result,) = (await client.groups.Settle(request, timeout=30)).results
    assert (result.range.first, result.range.last, result.outcome) == (0, MESSAGES - 1, DONE)
    stream.cancel()
    return attempts, at


async def at_nodes(cluster: LocalCluster, channel: str) -> tuple[str, str, str]:
    """Addresses of the channel's owner and of the two others."""
    async with Client(cluster.address("n1")) as client:
        await filled(client, channel)
    owner = await cluster.leader_of(channel)
    others = [name for name in cluster.up if name != owner]
    return cluster.address(owner), cluster.address(others[0]), cluster.address(others[1])


@pytest.mark.parametrize("relayed", [False, True], ids=["at the owner", "through another node"])
async def test_a_killed_worker_s_leases_come_back_at_once(
    cluster: LocalCluster, relayed: bool, record_property: Any
) -> None:
    """Its connection ends with it, so nobody has to wait for a deadline, and no attempt is counted."""
    channel = f"killed.{relayed}"
    owner, entry, third = await at_nodes(cluster, channel)
    async with Client(third) as client, worker(entry if relayed else owner, channel) as process:
        heir = asyncio.ensure_future(next_deliveries(client, channel))
        await asyncio.sleep(0)
        begun = time.monotonic()
        process.kill()
        attempts, at = await heir
    record_property("redelivered after", f"{at - begun:.3f} s")
    print(f"SIGKILL, relayed {relayed}: redelivered after {at - begun:.3f} s, attempts {attempts}")
    assert attempts == {1}
    assert at - begun < DEADLINE_S


@pytest.mark.parametrize("relayed", [False, True], ids=["at the owner", "through another node"])
async def test_a_frozen_worker_s_leases_come_back_after_the_deadline(
    cluster: LocalCluster, relayed: bool, record_property: Any
) -> None:
    channel = f"frozen.{relayed}"
    owner, entry, third = await at_nodes(cluster, channel)
    async with Client(third) as client:
        before = time.monotonic()
        async with worker(entry if relayed else owner, channel) as process:
            process.send_signal(signal.SIGSTOP)
            attempts, at = await next_deliveries(client, channel)
    record_property("redelivered after", f"{at - before:.3f} s since before the worker was started")
    print(f"SIGSTOP, relayed {relayed}: redelivered {at - before:.3f} s after its start began, attempts {attempts}")
    assert attempts == {2}
    assert at - before >= DEADLINE_S


@pytest.mark.parametrize("relayed", [False, True], ids=["at the owner", "through another node"])
async def test_a_cancelled_stream_s_leases_are_elsewhere_at_once(
    cluster: LocalCluster, relayed: bool, record_property: Any
) -> None:
    channel = f"cancelled.{relayed}"
    owner, entry, third = await at_nodes(cluster, channel)
    async with Client(entry if relayed else owner) as holder, Client(third) as client:
        stream = holder.subscribe(60)
        await stream.write(open_subscription(channel, credit=MESSAGES, group="g"))
        await next_event(stream, "opened")
        held = 0
        while held < MESSAGES:
            held += sum(batch.count for batch in (await next_event(stream, "deliver")).batches)
        heir = asyncio.ensure_future(next_deliveries(client, channel))
        await asyncio.sleep(0)
        begun = time.monotonic()
        stream.cancel()
        attempts, at = await heir
    record_property("redelivered after", f"{at - begun:.3f} s")
    print(f"cancelled, relayed {relayed}: redelivered after {at - begun:.3f} s, attempts {attempts}")
    assert attempts == {1}
    assert at - begun < DEADLINE_S


async def test_a_token_is_good_when_the_owner_was_killed(own_cluster: LocalCluster) -> None:
    """Leases go with the owner; what was finished is confirmed at the next one, and nothing else is touched."""
    cluster, channel = own_cluster, "token.failover"
    owner, entry, third = await at_nodes(cluster, channel)
    name = await cluster.leader_of(channel)
    async with Client(entry) as holder, Client(third) as client:
        stream = holder.subscribe(60)
        await stream.write(open_subscription(channel, credit=MESSAGES, group="g", lease_tokens=True))
        await next_event(stream, "opened")
        tokens: list[bytes] = []
        held = 0
        while held < MESSAGES:
            for batch in (await next_event(stream, "deliver")).batches:
                tokens.append(batch.lease_token)
                held += batch.count
        await asyncio.to_thread(cluster.kill, name)
        half = [OffsetRange(first=0, last=MESSAGES // 2 - 1)]
        for verb, outcome in (({"extend": Extend()}, EXPIRED), ({"ack": Ack()}, DONE)):
            request = SettleMessagesRequest(channel=channel, group="g", ranges=half, lease_tokens=tokens, **verb)
            answer = await client.groups.Settle(request, timeout=30)
            assert {one.outcome for one in answer.results} == {outcome}
        info = (await client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"), timeout=30)).group
        assert (info.settled_below, info.pending) == (MESSAGES // 2, MESSAGES // 2)
        stream.cancel()
    assert owner == cluster.address(name)
    assert cluster.faults() == []
