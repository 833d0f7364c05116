"""What a node answers that leads nothing: the same statuses, details and sentences as the leader itself."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1 import publish_pb2
from ringpost.v1.channel_pb2 import AddChannelRequest
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.subscribe_pb2 import OpenSubscription, SubscribeRequest
from tests.integration.bad_requests import (
    CHANNELS,
    GROUPS,
    MAX_BATCH,
    MAX_MESSAGE,
    OPENS,
    PUBLISHES,
    READS,
    SETTLES,
    OpenRefusal,
    Refusal,
    SettleRefusal,
)
from tests.integration.broker import next_event, open_subscription, told_by_failure, told_by_status
from tests.integration.test_bad_input import check, encoded, prepare, titles
from tests.node.routing.cluster import Nodes, running

LIMITS = {"max_message_bytes": MAX_MESSAGE, "max_batch_bytes": MAX_BATCH, "max_channels": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def clusters(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[bool, Nodes]]:
    """In both, "leader" has everything and "entry" has nothing; one (True) makes no channels by first use."""
    directory: Path = tmp_path_factory.mktemp("clusters")
    async with (
        running(directory / "lax", ("entry", "leader"), **LIMITS) as lax,
        running(directory / "strict", ("entry", "leader"), auto_create_channels=False, **LIMITS) as strict,
    ):
        for nodes in (lax, strict):
            nodes.world.assign(dict.fromkeys(range(nodes.world.shard_count), "leader"))
        await prepare(lax.clients["entry"])
        await strict.clients["entry"].channels.AddChannel(AddChannelRequest(name="orders"))
        yield {False: lax, True: strict}
        for nodes in (lax, strict):
            assert len(nodes.servers["entry"].storage.store) == 0


@pytest.mark.parametrize("case", **titles(PUBLISHES + CHANNELS + GROUPS + READS))
async def test_a_bad_call(clusters: dict[bool, Nodes], case: Refusal) -> None:
    told = {}
    for name, client in clusters[case.strict].clients.items():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.raw_unary(f"ringpost.v1.{case.method}")(encoded(case.request), timeout=10)
        told[name] = told_by_status(error.value)
    check(told["entry"], case)
    assert told["entry"] == told["leader"]


@pytest.mark.parametrize("case", **titles(PUBLISHES))
async def test_a_bad_batch_on_a_stream(clusters: dict[bool, Nodes], case: Refusal) -> None:
    request = encoded(case.request)
    head = b"\x08\x09\x12" + publish_pb2.PublishResult(correlation=len(request)).SerializeToString()[1:]
    found: dict[str, Any] = {}
    for name, client in clusters[case.strict].clients.items():
        stream = client.raw_stream("ringpost.v1.PublisherService/PublishStream")(timeout=10)
        await stream.write(head + request)
        await stream.done_writing()
        responses = [publish_pb2.PublishStreamResponse.FromString(message) async for message in stream]
        (found[name],) = [result for response in responses for result in response.results]
        assert await stream.code() == grpc.StatusCode.OK
    check(told_by_failure(found["entry"].failure), case)
    assert found["entry"] == found["leader"]


@pytest.mark.parametrize("case", **titles(OPENS))
async def test_a_bad_subscription(clusters: dict[bool, Nodes], case: OpenRefusal) -> None:
    fields = {"subscription_id": 1, "channel": "orders", **case.fields}
    found: dict[str, Any] = {}
    for name, client in clusters[case.strict].clients.items():
        stream = client.subscribe(10)
        await stream.write(SubscribeRequest(open=OpenSubscription(**fields)))
        found[name] = await next_event(stream, "closed")
        stream.cancel()
    check(told_by_failure(found["entry"].failure), case)
    assert found["entry"] == found["leader"]


@pytest.mark.parametrize("case", **titles(SETTLES))
async def test_a_bad_settlement(clusters: dict[bool, Nodes], case: SettleRefusal) -> None:
    found: dict[str, Any] = {}
    for name, client in clusters[False].clients.items():
        stream = client.subscribe(10)
        await stream.write(open_subscription("orders", 1, credit=0, group="billing"))
        await next_event(stream, "opened")
        await stream.write(open_subscription("orders", 2, credit=0))
        await next_event(stream, "opened")
        await stream.write(SubscribeRequest(settle=case.settle))
        found[name] = await next_event(stream, "settled")
        stream.cancel()
    check(told_by_failure(found["entry"].failure), case)
    assert found["entry"] == found["leader"]
    assert OffsetRange() not in found["entry"].results
