"""Quotas of a principal, whatever number of streams and calls it spreads what it publishes over."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ringpost.v1 import publish_pb2
from tests.integration.broker import Told, batch_of, publish, told_by_status, until
from tests.node.routing.access_rig import Rig, bearer, principal, rigged

PER_S = 50
BATCH = [b"x"] * 100


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        made.permit(principal("slow", publish=">") + f"\nquota = {{ messages_per_s = {PER_S} }}")
        await made.renew()
        yield made


def stream(rig: Rig, node: str = "n1") -> Any:
    return rig.nodes.clients[node].publisher.PublishStream(metadata=bearer("slow"), timeout=30)


async def stored_within(rig: Rig, seconds: float) -> int:
    """How many messages came during that time."""
    before = rig.end()
    await asyncio.sleep(seconds)
    return rig.end() - before


def debts(batches: int) -> float:
    """Seconds until so many batches are paid for, of which the burst pays the first 50 messages."""
    return (batches * len(BATCH) - PER_S) / PER_S


async def test_a_stream_after_the_other_is_as_slow_as_one(rig: Rig) -> None:
    async def one_after_the_other() -> None:
        while True:
            call = stream(rig)
            await call.write(publish(rig.channel, *BATCH, correlation=1))
            results: list[Any] = []
            while not results:
                results = list((await call.read()).results)
            assert results[0].HasField("stored")
            call.cancel()

    working = asyncio.create_task(one_after_the_other())
    stored = await stored_within(rig, 3.5)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    assert 2 * len(BATCH) <= stored <= 3 * len(BATCH), "one at once, the others after 1 s and 3 s"


@pytest.mark.parametrize("waiting", [True, False], ids=["streams that stood before", "new streams"])
async def test_many_streams_at_once_share_one_debt(rig: Rig, waiting: bool) -> None:
    calls = [stream(rig, node) for node in ("n1",) * 20]
    if waiting:
        for call in calls:
            await call.read()  # opened: the node waits for the first batch of each
    counting = asyncio.create_task(stored_within(rig, 3.5))
    for call in calls:
        await call.write(publish(rig.channel, *BATCH, correlation=1))
    stored = await counting
    assert 2 * len(BATCH) <= stored <= 3 * len(BATCH)
    for call in calls:
        call.cancel()


async def test_a_batch_whose_client_has_gone_while_it_waited_is_not_taken(rig: Rig) -> None:
    calls = [stream(rig) for _ in range(10)]
    for call in calls:
        await call.read()
        await call.write(publish(rig.channel, *BATCH, correlation=1))
    await asyncio.sleep(0.3)
    before = rig.end()
    for call in calls:
        call.cancel()
    await asyncio.sleep(0.3)
    assert rig.end() == before


async def test_calls_and_streams_share_one_debt_too(rig: Rig) -> None:
    call = stream(rig)
    await call.write(publish(rig.channel, *BATCH, correlation=1))
    while not (await call.read()).results:
        pass
    request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(*BATCH))
    refused = await asyncio.gather(
        *(rig.nodes.clients["n1"].publisher.Publish(request, metadata=bearer("slow")) for _ in range(5)),
        return_exceptions=True,
    )
    for error in refused:
        assert isinstance(error, grpc.aio.AioRpcError)
        assert told_by_status(error).reason == "QUOTA_RATE"
    call.cancel()


async def test_a_quota_slows_a_stream_down_and_refuses_a_call(rig: Rig) -> None:
    quota = "quota = { streams = 1, messages_per_s = 50 }"
    rig.permit(principal("slow", publish=">") + "\n" + quota)
    await rig.renew()
    client = rig.nodes.clients["n2"]
    call = client.publisher.PublishStream(metadata=bearer("slow"), timeout=20)
    begun = asyncio.get_running_loop().time()
    for number in range(20):
        await call.write(publish(rig.channel, *([b"x"] * 10), correlation=number))
    answered = 0
    while answered < 20:
        answered += len((await call.read()).results)
    took = asyncio.get_running_loop().time() - begun
    assert took >= 2.5, "200 messages at 50 a second, of which the first 50 and the last batch may burst"
    request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(*([b"x"] * 100)))

    async def refusal() -> Told | None:
        try:
            await client.publisher.Publish(request, metadata=bearer("slow"))
        except grpc.aio.AioRpcError as error:
            return told_by_status(error)
        return None

    told = await until(refusal, "a call above the rate is refused")
    assert (told.code, told.reason, told.retry_after_ms > 0) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_RATE",
        True,
    )
    second = client.publisher.PublishStream(metadata=bearer("slow"), timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await second.read()
    assert told_by_status(raised.value).reason == "QUOTA_STREAMS"
    call.cancel()
