"""Lease tokens through three nodes: any verb on any of them, and leases that come back when a stream ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig, SettleMessagesRequest
from ringpost.v1.subscribe_pb2 import Ack, Extend, Nack, Outcome, Reject
from tests.integration.broker import Client, next_event, open_subscription, told_by_status
from tests.node.routing.cluster import Nodes, running
from tests.node.routing.test_subscribe import Subscriber, fill

DONE, EXPIRED, ALREADY, UNKNOWN = (
    Outcome.OUTCOME_DONE,
    Outcome.OUTCOME_EXPIRED,
    Outcome.OUTCOME_ALREADY,
    Outcome.OUTCOME_UNKNOWN,
)


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def leased(client: Client, channel: str, messages: int, **fields: Any) -> tuple[Any, list[Any]]:
    """A stream that holds so many messages, and the batches that they came in."""
    stream = client.subscribe(120)
    await stream.write(open_subscription(channel, credit=messages, group="g", lease_tokens=True, **fields))
    batches: list[Any] = []
    while sum(batch.count for batch in batches) < messages:
        response = await next_event(stream, "deliver") if batches else await _first(stream)
        batches += response.batches
    return stream, batches


async def _first(stream: Any) -> Any:
    await next_event(stream, "opened")
    return await next_event(stream, "deliver")


async def settle(
    client: Client, channel: str, tokens: list[bytes], *ranges: tuple[int, int], group: str = "g", **action: Any
) -> list[tuple[int, int, int]]:
    pairs = [OffsetRange(first=first, last=last) for first, last in ranges]
    request = SettleMessagesRequest(channel=channel, group=group, ranges=pairs, lease_tokens=tokens, **action)
    answer = await client.groups.Settle(request, timeout=30)
    return [(one.range.first, one.range.last, one.outcome) for one in answer.results]


async def nothing_in_flight(client: Client, channel: str) -> None:
    """Waits until all leases have ended."""
    async with asyncio.timeout(20):
        while (await client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group.in_flight:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("entry", ["n1", "n2"])
async def test_every_verb_works_on_every_node(nodes: Nodes, entry: str) -> None:
    """`n2` owns the channel; the stream is there, or relayed."""
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 9)
    stream, batches = await leased(nodes.clients[entry], channel, 9)
    tokens = [batch.lease_token for batch in batches]
    for number, name in enumerate(("n1", "n2", "n3")):
        client, first = nodes.clients[name], 3 * number
        assert await settle(client, channel, tokens, (first, first), ack=Ack()) == [(first, first, DONE)]
        nack = Nack(delay_ms=60_000, reason="later")
        assert await settle(client, channel, tokens, (first + 1, first + 1), nack=nack) == [
            (first + 1, first + 1, DONE)
        ]
        extend = Extend(deadline_ms=600_000)
        assert await settle(client, channel, tokens, (first + 2, first + 2), extend=extend) == [
            (first + 2, first + 2, DONE)
        ]
    assert await settle(nodes.clients["n3"], channel, tokens, (2, 2), (50, 51), reject=Reject(reason="bad")) == [
        (2, 2, DONE),
        (50, 51, UNKNOWN),
    ]
    info = (await nodes.clients["n1"].groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group
    assert (info.pending, info.in_flight, info.to_redeliver, info.rejected, info.dead_letters) == (5, 2, 3, 1, 1)
    stream.cancel()


async def test_work_is_confirmed_by_token_after_its_stream_and_entry_node_are_gone(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 10)
    _, (batch,) = await leased(nodes.clients["n1"], channel, 10)
    await nodes.kill("n1")
    client = nodes.clients["n3"]
    await nothing_in_flight(client, channel)
    assert await settle(client, channel, [batch.lease_token], extend=Extend()) == [(0, 9, EXPIRED)]
    assert await settle(client, channel, [batch.lease_token], (0, 6), ack=Ack()) == [(0, 6, DONE)]
    _, (again,) = await leased(client, channel, 3)
    assert (again.first_offset, again.attempt) == (7, 1)
    assert await settle(client, channel, [batch.lease_token], ack=Ack()) == [(0, 6, ALREADY), (7, 9, EXPIRED)]
    assert await settle(client, channel, [again.lease_token], ack=Ack()) == [(7, 9, DONE)]


@pytest.mark.parametrize(("entry", "elsewhere"), [("n1", "n3"), ("n2", "n1"), ("n3", "n3")])
async def test_a_cancelled_stream_gives_a_thousand_leases_back(
    nodes: Nodes, entry: str, elsewhere: str, record_property: Any
) -> None:
    """Long before their deadline, at any node, and the attempt is still the first."""
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 1_000)
    stream, _ = await leased(nodes.clients[entry], channel, 1_000)
    other = Subscriber(nodes.clients[elsewhere], channel, group="g")
    await other.open()
    begun = time.monotonic()
    stream.cancel()
    assert sorted(await other.take(1_000)) == list(range(1_000))
    seconds = time.monotonic() - begun
    assert set(other.attempts) == {1}
    record_property("redelivered after", f"{seconds:.3f} s")
    print(f"1,000 leases of a stream at {entry} are delivered at {elsewhere} after {seconds * 1000:.0f} ms")
    assert seconds < 15, "the ack deadline is 30 s"
    await other.end()


async def test_a_node_that_drains_gives_its_clients_leases_back(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 100)
    await leased(nodes.clients["n1"], channel, 100)
    other = Subscriber(nodes.clients["n3"], channel, group="g")
    await other.open()
    await nodes.servers.pop("n1").stop()
    assert sorted(await other.take(100)) == list(range(100))
    assert set(other.attempts) == {1}
    await other.end()


async def test_wrong_tokens_get_definite_errors_on_any_node(nodes: Nodes) -> None:
    channel, beside = nodes.channel("n2"), nodes.channel("n2", 1)
    await fill(nodes.clients["n2"], channel, 0, 5)
    await fill(nodes.clients["n2"], beside, 0, 5)
    for name in (channel, beside):
        await nodes.clients["n1"].groups.AddGroup(AddGroupRequest(channel=name, name="h"))
    _, (batch,) = await leased(nodes.clients["n1"], channel, 5)
    good = batch.lease_token
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tokens": [b"unknown"]}, "lease_tokens[0]: is no lease token of this version of Ringpost"),
        ({"tokens": [good, good[:-1]]}, "lease_tokens[1]: has 56 bytes"),
        ({"tokens": [good], "group": "h"}, "lease_tokens[0]: is of another group than 'h'"),
        (
            {"tokens": [good], "channel": beside, "group": "h"},
            f"lease_tokens[0]: is of another channel than '{beside}'",
        ),
        ({"tokens": [good] * 1_001}, "lease_tokens: has 1001 tokens, allowed are 0 to 1000"),
        ({"tokens": [], "ack": Ack()}, "ranges: has 0 ranges, allowed are 1 to 1000"),
    ]
    for name in ("n2", "n3"):
        for fields, says in wrong:
            asked = {"channel": channel, "extend": Extend()} | fields
            if "ack" in asked:
                del asked["extend"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await settle(nodes.clients[name], **asked)
            told = told_by_status(caught.value)
            assert (told.code, told.message[: len(says)]) == (grpc.StatusCode.INVALID_ARGUMENT, says)
        with pytest.raises(grpc.aio.AioRpcError, match="lease_tokens: is empty; nack ends or changes a lease"):
            await settle(nodes.clients[name], channel, [], (0, 4), nack=Nack())
    assert await settle(nodes.clients["n3"], channel, [good], ack=Ack()) == [(0, 4, DONE)]


async def test_extend_after_expiry_says_so(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 3)
    config = GroupConfig(ack_deadline_ms=1_000)
    await nodes.clients["n3"].groups.AddGroup(AddGroupRequest(channel=channel, name="g", config=config))
    stream, (batch,) = await leased(nodes.clients["n1"], channel, 3)
    await nothing_in_flight(nodes.clients["n3"], channel)
    assert await settle(nodes.clients["n3"], channel, [batch.lease_token], extend=Extend()) == [(0, 2, EXPIRED)]
    stream.cancel()


async def test_an_old_token_on_a_relayed_stream_leaves_what_that_stream_has(nodes: Nodes) -> None:
    """The entry node knows what reached the client; an answer about another delivery says nothing of that."""
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 5)
    stream, (batch,) = await leased(nodes.clients["n1"], channel, 5)
    subscriber = Subscriber(nodes.clients["n1"], channel, group="g")
    await subscriber.open()
    stream.cancel()
    await subscriber.take(5)
    token = batch.lease_token
    assert await subscriber.settle(lease_token=token) == [(0, 4, EXPIRED)]
    assert await subscriber.settle((1, 1), lease_token=token, nack=Nack()) == [(1, 1, EXPIRED)]
    assert await subscriber.settle((4, 4), cumulative=True) == [(0, 4, DONE)]
    assert await subscriber.settle(lease_token=token) == [(0, 4, ALREADY)]
    await subscriber.end()
