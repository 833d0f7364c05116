"""The life of streams: how they begin, how they may end on either side, what is left behind, and what watches them."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ringpost.node.metrics import ROWS
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.group_pb2 import GetGroupRequest, GroupInfo
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, CloseSubscription, Credit, GrantCredit, Outcome, Settle, SubscribeRequest
from tests.integration.broker import (
    MIB,
    Client,
    Node,
    batch_of,
    next_event,
    open_subscription,
    publish,
    rest_of,
    serving,
    told_by_status,
    until,
)

FLAGS = ("--segment-bytes", "16MiB", "--stream-unanswered-batches", "16")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimpleNamespace]:
    """A node and a client for all tests of this file that do not stop it."""
    async with serving(tmp_path_factory.mktemp("streams") / "n", *FLAGS) as pair:
        yield pair
        assert pair.node.faults() == []


async def fill(client: Client, channel: str, count: int) -> None:
    batch = batch_of(*(b"%d" % number for number in range(count)))
    await client.publisher.Publish(PublishRequest(channel=channel, batch=batch))


async def group(client: Client, channel: str) -> GroupInfo:
    return (await client.groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group


async def join(client: Client, channel: str, credit: int) -> Any:
    """A stream of a member of group "g" that has got `credit` messages."""
    stream = client.subscribe()
    await stream.write(open_subscription(channel, credit=credit, group="g"))
    got = 0
    while got < credit:
        got += sum(batch.count for batch in (await next_event(stream, "deliver")).batches)
    return stream


async def no_streams(pair: SimpleNamespace) -> None:
    """Waits until the node knows of no stream and no subscription."""

    async def gone() -> bool:
        metrics = pair.node.metrics()
        counts = [metrics["ringpost_streams{publish}"], metrics["ringpost_streams{subscribe}"]]
        return not any([*counts, metrics["ringpost_subscriptions"], (await pair.client.node()).subscription_count])

    await until(gone, "no streams")


# -- leases and the ways to leave -----------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from tests.integration.broker import Client, open_subscription, next_event, publish

async def main():
    async with Client(sys.argv[1]) as client:
        producer, consumer = client.publish_stream(), client.subscribe()
        await producer.write(publish(sys.argv[2], b"from the child"))
        await consumer.write(open_subscription(sys.argv[2], credit=5, group="g"))
        while not (await producer.read()).results:
            pass
        await next_event(consumer, "deliver")
        print("has messages", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def _half_close(stream: Any, _: Client) -> None:
    await stream.done_writing()
    assert await rest_of(stream) == []


async def _cancel(stream: Any, _: Client) -> None:
    assert stream.cancel()


async def _close_channel(_: Any, client: Client) -> None:
    await client.wire.close()


async def _close_subscription(stream: Any, _: Client) -> None:
    await stream.write(SubscribeRequest(close=CloseSubscription(subscription_id=1)))
    assert not (await next_event(stream, "closed")).HasField("failure")
    stream.cancel()


@pytest.mark.parametrize("leave", [_half_close, _cancel, _close_channel, _close_subscription])
async def test_who_leaves_gives_its_leases_back_at_once(pair: SimpleNamespace, leave: Any) -> None:
    """The next member gets the same messages, and they are still the first delivery."""
    channel = f"leases.{leave.__name__}"
    await fill(pair.client, channel, 5)
    async with Client(pair.node.address) as leaver:
        stream = await join(leaver, channel, 5)
        assert (await group(pair.client, channel)).in_flight == 5
        await leave(stream, leaver)

        heir = pair.client.subscribe()
        await heir.write(open_subscription(channel, credit=5, group="g"))
        batches = [batch async for batch in delivered(heir, 5)]
        heir.cancel()

    assert [(batch.first_offset, batch.count, batch.attempt) for batch in batches] == [(0, 5, 1)]
    await no_streams(pair)


async def delivered(stream: Any, count: int) -> AsyncIterator[Any]:
    """Batches until there were `count` messages."""
    while count > 0:
        for batch in (await next_event(stream, "deliver")).batches:
            count -= batch.count
            yield batch


async def test_a_client_that_is_killed(pair: SimpleNamespace) -> None:
    """Nothing tells the node but the connection's end."""
    command = [sys.executable, "-c", CHILD, pair.node.address, "killed"]
    root = Path(__file__).parents[2]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=root)
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"has messages\n"
        assert (await group(pair.client, "killed")).in_flight == 1
    finally:
        child.kill()
        await child.wait()

    await no_streams(pair)
    told = await group(pair.client, "killed")
    assert (told.in_flight, told.pending, told.to_redeliver, list(told.members)) == (0, 1, 0, [])


async def test_a_half_closed_subscriber_still_gets_its_answers(pair: SimpleNamespace) -> None:
    await fill(pair.client, "answers", 5)
    stream = await join(pair.client, "answers", 5)
    for offset in (0, 2, 4):
        ranges = [OffsetRange(first=offset, last=offset)]
        await stream.write(SubscribeRequest(settle=Settle(subscription_id=1, ranges=ranges, ack=Ack())))
    await stream.done_writing()

    results = [result for event in await rest_of(stream) for result in event.settled.results]
    assert [(result.range.first, result.outcome) for result in results] == [
        (offset, Outcome.OUTCOME_DONE) for offset in (0, 2, 4)
    ]
    told = await group(pair.client, "answers")
    assert (told.settled_below, told.pending, told.in_flight) == (1, 2, 0)


async def test_a_half_closed_producer_gets_every_answer(pair: SimpleNamespace) -> None:
    """Of 100 batches in flight; then the stream ends with OK."""
    stream = pair.client.publish_stream()
    reading = asyncio.ensure_future(results_of(stream))
    for number in range(100):
        await stream.write(publish(f"half.{number % 3}", b"x", correlation=number))
    await stream.done_writing()

    results = await reading
    assert sorted(result.correlation for result in results) == list(range(100))
    for index in range(3):
        offsets = [r.stored.first_offset for r in results if r.stored.channel == f"half.{index}"]
        assert offsets == list(range(len(offsets)))


async def results_of(stream: Any) -> list[Any]:
    return [result for response in await rest_of(stream) for result in response.results]


async def test_an_abandoned_producer_leaves_whole_batches(pair: SimpleNamespace) -> None:
    stream = pair.client.publish_stream()
    for _ in range(10):
        await stream.write(publish("abandoned", b"1", b"2", b"3"))
    stream.cancel()

    await no_streams(pair)
    channels = {channel.name: channel.end_offset for channel in await pair.client.all_channels()}
    assert channels.get("abandoned", 0) in range(0, 31, 3)


# -- what a stream carries ------------------------------------------------------------------------------------------


async def test_answers_come_in_the_order_of_each_channel(pair: SimpleNamespace) -> None:
    """With durabilities mixed over the channels, and refused batches in between."""
    stream = pair.client.publish_stream()
    opened = (await stream.read()).opened
    assert (opened.node, opened.max_unanswered_batches) == ("n1", 16)
    reading = asyncio.ensure_future(results_of(stream))
    sent: dict[str, list[int]] = {"order.a": [], "order.b": [], "order.c": []}
    for number in range(300):
        channel = f"order.{'abc'[number % 3]}"
        sent[channel].append(number)
        wrong = {"count": 7} if number % 50 == 49 else {}
        await stream.write(publish(channel, b"x", correlation=number, durability=number % 3 + 1, **wrong))
    await stream.done_writing()
    results = await reading

    assert len(results) == 300
    refused = {result.correlation for result in results if result.HasField("failure")}
    assert refused == set(range(49, 300, 50))
    for channel, numbers in sent.items():
        stored = [result for result in results if result.stored.channel == channel]
        assert [result.correlation for result in stored] == [n for n in numbers if n not in refused]
        assert [result.stored.first_offset for result in stored] == list(range(len(stored)))


async def test_several_subscriptions_on_one_stream(pair: SimpleNamespace) -> None:
    """With and without a group, two on the same channel; one is closed, the others go on."""
    for channel in ("many.a", "many.b"):
        await fill(pair.client, channel, 3)
    stream = pair.client.subscribe()
    await stream.write(open_subscription("many.a", 1, start=Start(earliest=True)))
    await stream.write(open_subscription("many.a", 2, start=Start(offset=2)))
    await stream.write(open_subscription("many.b", 3, group="g"))
    await stream.write(open_subscription("many.b", 4, start=Start(latest=True)))
    first = await gather(stream, 7)
    assert first == {1: [0, 1, 2], 2: [2], 3: [0, 1, 2]}

    await stream.write(SubscribeRequest(close=CloseSubscription(subscription_id=2)))
    assert (await next_event(stream, "closed")).subscription_id == 2
    for channel in ("many.a", "many.b"):
        await fill(pair.client, channel, 1)
    assert await gather(stream, 3) == {1: [3], 3: [3], 4: [3]}
    stream.cancel()
    await no_streams(pair)


async def gather(stream: Any, count: int) -> dict[int, list[int]]:
    """Offsets by subscription, of `count` messages."""
    got: dict[int, list[int]] = {}
    while count > 0:
        deliver = await next_event(stream, "deliver")
        for batch in deliver.batches:
            offsets = range(batch.first_offset, batch.first_offset + batch.count)
            got.setdefault(deliver.subscription_id, []).extend(offsets)
            count -= batch.count
    return got


async def test_credit_is_exact_in_messages_and_can_be_lowered(pair: SimpleNamespace) -> None:
    await fill(pair.client, "credit", 10)
    stream = pair.client.subscribe()
    await stream.write(open_subscription("credit", credit=3, start=Start(earliest=True)))
    assert await gather(stream, 3) == {1: [0, 1, 2]}

    for total in (7, 1, 1):  # lowered below what was sent: nothing comes until it is above that again
        credit = Credit(messages=total, bytes=MIB)
        await stream.write(SubscribeRequest(credit=GrantCredit(subscription_id=1, credit=credit)))
    await stream.write(open_subscription("credit", 2, credit=1, start=Start(offset=9)))
    got = await gather(stream, 1)
    while 2 not in got:
        got.update(await gather(stream, 1))
    assert got[2] == [9]
    assert got.get(1, []) in ([], [3, 4, 5, 6])
    stream.cancel()


async def test_an_idle_stream_gets_heartbeats(pair: SimpleNamespace) -> None:
    stream = pair.client.subscribe()
    await stream.write(open_subscription("idle", heartbeat_interval_ms=1_000))
    await next_event(stream, "opened")

    # A busy machine may be late with some of them, not with all.
    beats = [await next_event(stream, "heartbeat") for _ in range(2)]
    while (apart := beats[-1].node_time_us - beats[-2].node_time_us) >= 3_000_000:
        assert len(beats) < 10
        beats.append(await next_event(stream, "heartbeat"))
    stream.cancel()
    assert apart > 0


async def test_the_node_stops_reading_at_the_unanswered_limit(pair: SimpleNamespace) -> None:
    """A producer that reads no answers is soon not read either; when it reads them, all goes on."""
    channel = "held." + "x" * 250  # long answers and a small window: what gRPC itself buffers is soon full
    window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with Client(pair.node.address, *window) as client:
        stream = client.publish_stream()
        written, enough = 0, 20_000

        async def write() -> None:
            nonlocal written
            while written < enough:
                await stream.write(publish(channel, bytes(16_384), correlation=written))
                written += 1
            await stream.done_writing()

        async def stands() -> bool:
            """Nothing is taken from the producer while another one is served a hundred times."""
            before = written
            for _ in range(100):
                await fill(pair.client, "others", 1)
            return written == before

        writing = asyncio.ensure_future(write())
        await until(stands, "the node to stop reading")
        stopped_at = written
        assert 16 < stopped_at < 5_000
        reading = asyncio.ensure_future(results_of(stream))
        await until(lambda: written > stopped_at, "the node to read again")
        enough = written
        await writing
        results = await reading

    assert [result.correlation for result in results] == list(range(written))
    assert [result.stored.first_offset for result in results] == list(range(len(results)))


# -- what watches ---------------------------------------------------------------------------------------------------


async def test_reflection_lists_the_services(pair: SimpleNamespace) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(pair.client.wire)
    call = stub.ServerReflectionInfo(timeout=20)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    ours = ("Publisher", "Subscriber", "Channel", "Group", "Message", "Cluster")
    assert {f"ringpost.v1.{name}Service" for name in ours} <= names
    assert {"grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= names

    for name in sorted(names):
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto, name
    call.cancel()


async def test_channelz_answers(pair: SimpleNamespace) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(pair.client.wire)
    (server,) = (await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20)).server
    assert server.data.calls_started > 0
    sockets = await stub.GetServerSockets(channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id))
    assert sockets.socket_ref


async def test_metrics_are_the_documented_ones(pair: SimpleNamespace) -> None:
    await fill(pair.client, "metrics", 1)
    samples = pair.node.metrics()
    ours = {name.partition("{")[0] for name in samples if name.startswith("ringpost_")}
    documented = {row.name for row in ROWS.values()}
    labelled = {row.name for row in ROWS.values() if row.meaning.label}

    assert ours <= documented
    assert documented - ours <= labelled  # a label that has not come up yet
    assert samples["ringpost_published_messages_total"] == (await pair.client.node()).published_messages > 0
    assert samples["process_resident_memory_bytes"] > MIB


# -- the end of the node --------------------------------------------------------------------------------------------


async def test_a_node_that_is_told_to_stop(tmp_path: Path) -> None:
    """Says so on every stream and in its health, still works, then ends the streams with UNAVAILABLE; exit code 0."""
    async with serving(tmp_path / "n", *FLAGS, "--drain-grace-ms", "1500") as pair:
        client, node = pair.client, pair.node
        await fill(client, "orders", 3)
        consumer = await join(client, "orders", 3)
        producer = client.publish_stream()
        await producer.write(publish("orders", b"before"))
        await until_stored(producer, 3)
        watch = health_pb2_grpc.HealthStub(client.wire).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        node.signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        notice = await next_event(consumer, "drain")
        assert 0 < notice.grace_ms <= 1_500
        assert notice.retry_after_ms > 0
        drain = (await producer.read()).drain
        assert drain.grace_ms == notice.grace_ms
        await producer.write(publish("orders", b"within the grace"))
        await until_stored(producer, 4)

        for stream in (consumer, producer):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await rest_of(stream)
            told = told_by_status(error.value)
            assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert told.retry_after_ms > 0
        assert await asyncio.to_thread(node.wait) == 0
        assert node.faults() == []
        assert json.loads(node.stderr.splitlines()[-1])["event"] == "node.stopped"


async def until_stored(stream: Any, offset: int) -> None:
    while True:
        response = await stream.read()
        if any(result.stored.first_offset == offset for result in response.results):
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_did_nothing_stops_and_starts_again(tmp_path: Path, number: signal.Signals) -> None:
    with Node(tmp_path / "n", *FLAGS) as node:
        for boot in (1, 2, 3):
            async with Client(node.address) as client:
                told = await client.node()
                assert (told.boot, list(told.quarantined_shards)) == (boot, [])
            node.signal(number)
            assert node.wait() == 0
            node.start()
        assert node.faults() == []
