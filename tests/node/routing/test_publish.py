"""Publishing through nodes that do not lead the channel: order, answers, moves, lost nodes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.internal.v1.forward_pb2 import ForwardedPublishRequest
from ringpost.v1.publish_pb2 import PublishRequest, PublishStreamResponse
from tests.integration.broker import Client, batch_of, publish, told_by_failure, told_by_status
from tests.node.routing.cluster import Nodes, running


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def payloads(client: Client, channel: str, count: int) -> list[bytes]:
    return [message.message.data async for message in client.read(channel, 0, count)]


async def results(stream: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        response = await stream.read()
        assert response is not grpc.aio.EOF
        found += response.results
    return found


async def test_any_node_takes_a_call(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    for name, client in nodes.clients.items():
        answer = await client.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(name.encode())))
        assert (answer.owner, answer.replicas, answer.epoch) == ("n2", ["n2"], 1)

    assert await payloads(nodes.clients["n3"], channel, 3) == [b"n1", b"n2", b"n3"]
    assert nodes.servers["n1"].storage.store.get(channel) is None


@pytest.mark.parametrize("producer", [0, 7])
async def test_a_stream_carries_channels_of_all_nodes(nodes: Nodes, producer: int) -> None:
    channels = [nodes.channel(name) for name in ("n1", "n2", "n3")]
    stream = nodes.clients["n1"].publish_stream()
    for n in range(300):
        await stream.write(
            publish(channels[n % 3], b"%d" % n, correlation=n, producer_id=producer, first_sequence=n // 3)
        )
    found = await results(stream, 300)
    await stream.done_writing()

    assert {result.correlation for result in found} == set(range(300))
    assert all(result.stored.first_offset == result.correlation // 3 for result in found)
    for n, channel in enumerate(channels):
        assert await payloads(nodes.clients["n2"], channel, 100) == [b"%d" % i for i in range(n, 300, 3)]


class Producer:
    """Publishes numbered messages through one node, many at a time, and expects each to be stored."""

    def __init__(self, client: Client, channel: str, number: int, *, idempotent: bool = True) -> None:
        self.channel = channel
        self.number = number
        self.idempotent = idempotent
        self.offsets: dict[int, int] = {}
        self.failures: list[Any] = []
        self.stopping = asyncio.Event()
        self._stream = client.publish_stream(120)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        reader = asyncio.create_task(self._read())
        sent = 0
        while not self.stopping.is_set():
            fields = {"producer_id": self.number, "first_sequence": sent} if self.idempotent else {}
            await self._stream.write(publish(self.channel, self.payload(sent), correlation=sent, **fields))
            sent += 1
            await asyncio.sleep(0.0005)
        await self._stream.done_writing()
        await reader
        assert len(self.offsets) + len(self.failures) == sent

    def payload(self, n: int) -> bytes:
        return b"%d:%d" % (self.number, n)

    async def _read(self) -> None:
        while (response := await self._stream.read()) is not grpc.aio.EOF:
            for result in response.results:
                if result.WhichOneof("outcome") == "stored":
                    self.offsets[result.correlation] = result.stored.first_offset
                else:
                    self.failures.append(told_by_failure(result.failure))

    async def has_stored(self, more: int) -> None:
        goal = len(self.offsets) + more
        async with asyncio.timeout(20):
            while len(self.offsets) < goal and not self._task.done():
                await asyncio.sleep(0.002)

    async def stop(self) -> int:
        """How many were sent."""
        self.stopping.set()
        await asyncio.wait_for(self._task, 30)
        return len(self.offsets)


async def test_three_entry_nodes_keep_every_producer_s_order(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    producers = [Producer(client, channel, n) for n, client in enumerate(nodes.clients.values(), 1)]
    for producer in producers:
        await producer.has_stored(200)
    counts = [await producer.stop() for producer in producers]

    found = await payloads(nodes.clients["n2"], channel, sum(counts))
    for producer, count in zip(producers, counts, strict=True):
        assert producer.failures == []
        assert [p for p in found if p.startswith(b"%d:" % producer.number)] == [*map(producer.payload, range(count))]


async def test_moves_under_load_are_a_pause_and_nothing_else(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    producers = [Producer(client, channel, n) for n, client in enumerate(nodes.clients.values(), 1)]
    for to in ("n2", "n3", "n1", "n3", "n2", "n1", "n2"):
        await producers[0].has_stored(50)
        await nodes.hand_over(nodes.shard(channel), to)
    counts = [await producer.stop() for producer in producers]

    found = await payloads(nodes.clients["n3"], channel, sum(counts))
    assert nodes.stored("n2", channel).end_offset == sum(counts), "stored twice"
    for producer, count in zip(producers, counts, strict=True):
        assert producer.failures == []
        assert [p for p in found if p.startswith(b"%d:" % producer.number)] == [*map(producer.payload, range(count))]
        assert all(found[offset] == producer.payload(n) for n, offset in producer.offsets.items())


async def test_without_a_producer_id_a_move_loses_doubles_and_reorders_nothing_either(nodes: Nodes) -> None:
    """The old leader says which batches it did not take; nothing is left open by a planned move."""
    channel = nodes.channel("n1")
    producers = [Producer(client, channel, n, idempotent=False) for n, client in enumerate(nodes.clients.values(), 1)]
    for to in ("n2", "n3", "n1"):
        await producers[2].has_stored(50)
        await nodes.hand_over(nodes.shard(channel), to)
    counts = [await producer.stop() for producer in producers]

    found = await payloads(nodes.clients["n1"], channel, sum(counts))
    assert nodes.stored("n1", channel).end_offset == sum(counts)
    for producer, count in zip(producers, counts, strict=True):
        assert producer.failures == []
        assert [p for p in found if p.startswith(b"%d:" % producer.number)] == [*map(producer.payload, range(count))]


async def test_a_node_that_looks_away_is_told_and_nothing_is_out_of_order(nodes: Nodes) -> None:
    """The entry node still believes in the old leader, which refuses; then it sees the new one."""
    channel = nodes.channel("n2")
    producer = Producer(nodes.clients["n1"], channel, 1)
    await producer.has_stored(20)
    nodes.world.coordinations["n1"].blind = True
    await nodes.hand_over(nodes.shard(channel), "n3")
    await asyncio.sleep(0.3)
    stored = len(producer.offsets)
    nodes.world.coordinations["n1"].blind = False
    nodes.world.coordinations["n1"].look()
    await producer.has_stored(50)
    count = await producer.stop()

    assert count > stored + 50
    assert producer.failures == []
    assert await payloads(nodes.clients["n1"], channel, count) == [*map(producer.payload, range(count))]


async def test_a_leader_that_has_not_heard_of_it_yet_refuses_in_order(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    nodes.world.coordinations["n3"].blind = True
    nodes.world.assign({nodes.shard(channel): "n3"})
    producer = Producer(nodes.clients["n1"], channel, 1)
    await asyncio.sleep(0.3)
    assert producer.offsets == {}
    nodes.world.coordinations["n3"].blind = False
    nodes.world.coordinations["n3"].look()
    await producer.has_stored(50)
    count = await producer.stop()

    assert producer.failures == []
    assert await payloads(nodes.clients["n2"], channel, count) == [*map(producer.payload, range(count))]


async def test_a_leader_that_dies_and_comes_back_costs_a_pause(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    producer = Producer(nodes.clients["n1"], channel, 1)
    await producer.has_stored(100)
    await nodes.kill("n2")
    await asyncio.sleep(0.2)
    await nodes.start("n2")
    nodes.world.assign({nodes.shard(channel): "n2"})
    await producer.has_stored(100)
    count = await producer.stop()

    assert producer.failures == []
    assert nodes.stored("n2", channel).end_offset == count, "stored twice"
    assert await payloads(nodes.clients["n1"], channel, count) == [*map(producer.payload, range(count))]


async def test_what_a_lost_leader_leaves_open_is_told_to_who_has_no_producer_id(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    producer = Producer(nodes.clients["n1"], channel, 1, idempotent=False)
    await producer.has_stored(100)
    await nodes.kill("n2")
    await asyncio.sleep(0.2)
    await nodes.start("n2")
    nodes.world.assign({nodes.shard(channel): "n2"})
    await producer.has_stored(100)
    stored = await producer.stop()

    assert {(told.code, told.reason) for told in producer.failures} <= {(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")}
    assert stored <= nodes.stored("n2", channel).end_offset <= stored + len(producer.failures)


async def test_behind_a_refused_batch_all_are_refused_until_the_sender_begins_again(nodes: Nodes) -> None:
    """On the peer port: so nothing overtakes when a node becomes the leader between two batches."""
    channel = nodes.channel("n2")
    seen = []
    async with Client(f"127.0.0.1:{nodes.servers['n2'].peer_port}") as peer:
        stream = peer.raw_stream("ringpost.v1.PublisherService/PublishStream")(timeout=20)
        for epoch, attempt in ((2, 0), (1, 0), (1, 1), (0, 1), (1, 1), (1, 2)):
            batch = envelope.PublishRequest(channel=channel, batch=batch_of(b"x").SerializeToString())
            request = ForwardedPublishRequest(correlation=9, publish=batch, epoch=epoch, attempt=attempt)
            await stream.write(request.SerializeToString())
            results: list[Any] = []
            while not results:
                results += PublishStreamResponse.FromString(await stream.read()).results
            seen.append(results[0].failure.reason or results[0].stored.first_offset)
        stream.cancel()
    assert seen == ["NOT_LEADER", "NOT_LEADER", 0, "NOT_LEADER", "NOT_LEADER", 1]


async def test_patience_has_an_end(tmp_path: Path) -> None:
    async with running(tmp_path, ("n1", "n2"), forward_patience_ms=300) as nodes:
        channel = nodes.channel("n2")
        shard = nodes.shard(channel)
        nodes.world.assign({shard: None})
        client = nodes.clients["n1"]
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"x")))
        stream = client.publish_stream()
        for n in range(3):
            await stream.write(publish(channel, b"x", correlation=n, producer_id=5, first_sequence=n))
        failed = await results(stream, 3)
        nodes.world.assign({shard: "n2"})
        await stream.write(publish(channel, b"x", correlation=3, producer_id=5, first_sequence=3))
        for n in range(4):
            await stream.write(publish(channel, b"x", correlation=10 + n, producer_id=5, first_sequence=n))
        later = await results(stream, 5)

    told = told_by_status(error.value)
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
    assert told.metadata == {"shard": str(shard), "leader": "", "epoch": "1"}
    assert told.retry_after_ms > 0
    assert {told_by_failure(result.failure).reason for result in failed} == {"UNAVAILABLE"}
    assert "send that first" in later[0].failure.message, "a gap is not of our making"
    assert [result.stored.first_offset for result in later[1:]] == [0, 1, 2, 3]


async def test_a_full_way_holds_back_only_those_who_use_it(tmp_path: Path) -> None:
    async with running(tmp_path, peer_unanswered_bytes=100_000) as nodes:
        channel = nodes.channel("n2")
        nodes.world.assign({nodes.shard(channel): None})
        stuck, free = nodes.clients["n1"].publish_stream(), nodes.clients["n1"].publish_stream()
        for n in range(100):
            await stuck.write(publish(channel, bytes(10_000), correlation=n))
        await asyncio.sleep(0.2)
        lanes = nodes.servers["n1"].publisher.lanes
        assert lanes is not None
        held = sum(lane._size for lane in lanes._lanes.values())
        await free.write(publish(nodes.channel("n3"), b"x"))
        await results(free, 1)
        with pytest.raises(grpc.aio.AioRpcError) as busy:
            await nodes.clients["n1"].publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"x")))
        nodes.world.assign({nodes.shard(channel): "n2"})
        found = await results(stuck, 100)

    assert 100_000 <= held < 120_000
    assert told_by_status(busy.value).reason == "BUSY"
    assert [result.stored.first_offset for result in found] == list(range(100))
