"""Expected offsets through any node: of several publishers exactly one gets the place."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import Client, batch_of, publish, told_by_failure, told_by_status, until
from tests.node.routing.cluster import Nodes, running


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told_by_status(caught.value)


async def results(stream: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        found += (await stream.read()).results
    return found


def wanted(channel: str, data: bytes, expected: int, **fields: Any) -> PublishRequest:
    return PublishRequest(channel=channel, batch=batch_of(data), expected_offset=expected, **fields)


@pytest.mark.parametrize("entry", ["n1", "n2"])
async def test_calls_and_streams_say_the_same_on_any_node(nodes: Nodes, entry: str) -> None:
    channel, client = nodes.channel("n2"), nodes.clients[entry]
    told = await refused(client.publisher.Publish(wanted(channel, b"early", 3)))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OFFSET_MISMATCH")
    assert told.metadata["next_offset"] == "0"
    assert nodes.servers["n2"].storage.store.get(channel) is None, "nothing was made"

    assert (await client.publisher.Publish(wanted(channel, b"a", 0))).first_offset == 0
    told = await refused(client.publisher.Publish(wanted(channel, b"late", 0)))
    assert told.metadata["next_offset"] == "1"

    stream = client.publish_stream()
    await stream.write(publish(channel, b"late", correlation=1, expected_offset=0))
    await stream.write(publish(channel, b"b", correlation=2, expected_offset=1))
    answers = {result.correlation: result for result in await results(stream, 2)}
    told = told_by_failure(answers[1].failure)
    assert (told.code, told.reason, told.metadata["next_offset"]) == (
        *(grpc.StatusCode.FAILED_PRECONDITION, "OFFSET_MISMATCH"),
        "1",
    )
    assert answers[2].stored.first_offset == 1
    assert [m.message.data async for m in client.read(channel, 0, 2)] == [b"a", b"b"]


async def test_a_repeat_is_a_repeat_on_another_node_too(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    request = wanted(channel, b"a", 0, producer_id=9)
    answers = [await client.publisher.Publish(request) for client in nodes.clients.values()]
    assert [(answer.first_offset, answer.duplicate) for answer in answers] == [(0, False), (0, True), (0, True)]


async def test_a_name_that_no_channel_can_have_is_refused_for_that(nodes: Nodes) -> None:
    told = await refused(nodes.clients["n1"].publisher.Publish(wanted("bad..name", b"a", 5)))
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT


async def counted_up(client: Client, channel: str, number: int, stop: asyncio.Event) -> list[int]:
    """Appends one more than what is there, again and again, as several hands on one counter do."""
    mine, expected = [], 0
    while not stop.is_set():
        request = wanted(channel, b"%d:%d" % (number, expected), expected, producer_id=number, first_sequence=len(mine))
        try:
            stored = await client.publisher.Publish(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            told = told_by_status(error)
            assert told.reason == "OFFSET_MISMATCH"
            expected = int(told.metadata["next_offset"])
        else:
            mine.append(stored.first_offset)
            expected = stored.first_offset + 1
    return mine


async def end_of(nodes: Nodes, node: str, channel: str) -> int:
    found = nodes.servers[node].storage.store.get(channel)
    return 0 if found is None else found.next_offset


async def grown(nodes: Nodes, node: str, channel: str, offset: int) -> bool:
    return await end_of(nodes, node, channel) >= offset


async def test_exactly_one_gets_each_place_while_the_channel_moves(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    shard = nodes.shard(channel)
    stop = asyncio.Event()
    hands = [
        asyncio.create_task(counted_up(client, channel, number, stop))
        for number, client in enumerate(nodes.clients.values(), 1)
    ]
    for target in ("n2", "n3", "n1"):
        led = nodes.world.leaders[shard]
        assert led is not None
        begun = await end_of(nodes, led[0], channel)
        await until(lambda led=led, begun=begun: grown(nodes, led[0], channel, begun + 5), "the channel grows")
        await nodes.hand_over(shard, target)
    await until(lambda: grown(nodes, "n1", channel, 60), "the channel grows at home")
    stop.set()
    places = [place for hand in hands for place in await hand]
    assert sorted(places) == list(range(len(places)))
    texts = [m.message.data async for m in nodes.clients["n2"].read(channel, 0, len(places))]
    assert [int(text.split(b":")[1]) for text in texts] == sorted(places), "each saw what was before it"
