"""Random and mutated bytes at every method of a real node: a definite answer, no fault, nothing else touched."""

import asyncio
import functools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringpost.v1 import channel_pb2, cluster_pb2, dead_letter_pb2, group_pb2, message_pb2
from ringpost.v1.channel_pb2 import ChannelConfig, ChannelInfo
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest, PublishStreamRequest, PublishStreamResponse
from ringpost.v1.subscribe_pb2 import (
    Ack,
    CloseSubscription,
    Credit,
    GrantCredit,
    Nack,
    Reject,
    Settle,
    SubscribeRequest,
    SubscribeResponse,
)
from tests.integration.broker import (
    Client,
    Told,
    batch_of,
    open_subscription,
    serving,
    told_by_failure,
    told_by_status,
)

KEPT = "kept.b8f0c7d2e95a"  # no mutation comes upon this name
FLAGS = ("--segment-bytes", "16MiB", "--max-channels", "300")
SECONDS = 10
NEVER = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
OF_THE_CLIENT = "Internal error from Core"  # grpcio, when a write meets a call that has just ended

bounded = functools.partial(
    settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimpleNamespace]:
    """A node with a channel that must stay as it is, and one that everybody shoots at."""
    async with serving(tmp_path_factory.mktemp("fuzz") / "n", *FLAGS) as pair:
        for channel in (KEPT, "orders"):
            batch = batch_of(*(b"%d" % number for number in range(100)))
            await pair.client.publisher.Publish(PublishRequest(channel=channel, batch=batch))
        await pair.client.groups.AddGroup(group_pb2.AddGroupRequest(channel=KEPT, name="g"))
        before = await kept(pair.client)
        yield pair
        assert await kept(pair.client) == before
        pair.node.kill()
        pair.node.start()
        async with Client(pair.node.address) as client:
            assert (await kept(client))[1:] == before[1:]
            assert not (await client.node()).quarantined_shards
        assert pair.node.faults() == []


async def kept(client: Client) -> list[Any]:
    found = (await client.channels.GetChannel(channel_pb2.GetChannelRequest(name=KEPT))).channel
    found.ClearField("epoch")
    assert isinstance(found, ChannelInfo)
    group = (await client.groups.GetGroup(group_pb2.GetGroupRequest(channel=KEPT, name="g"))).group
    group.ClearField("lag_ms")  # which grows by itself
    return [found.subscription_count, found, group, [message async for message in client.read(KEPT, 0, 100)]]


# -- messages -------------------------------------------------------------------------------------------------------

BATCH = Batch(messages=[Message(key=b"k", data=b"data", headers={"a": "b"}, message_id="m"), Message(data=b"x" * 300)])
PUBLISH = PublishRequest(
    channel="orders", batch=BATCH, count=2, durability=2, producer_id=77, producer_epoch=1, first_sequence=0
)
RANGES = [OffsetRange(first=0, last=5), OffsetRange(first=50, last=1 << 62)]
SELECT = dead_letter_pb2.DeadLetterSelection(from_number=1, until_number=9, max_letters=5, filters=["header.a=b"])
UNARY = {
    "PublisherService/Publish": PUBLISH,
    "ChannelService/AddChannel": channel_pb2.AddChannelRequest(
        name="new", config=ChannelConfig(retention_bytes=1 << 40, max_message_bytes=100)
    ),
    "ChannelService/GetChannel": channel_pb2.GetChannelRequest(name="orders"),
    "ChannelService/ListChannels": channel_pb2.ListChannelsRequest(prefix="or", page_size=5, page_token="b3JkZXJz"),
    "ChannelService/SetChannel": channel_pb2.SetChannelRequest(
        name="orders", config=ChannelConfig(retention_age_ms=1 << 50)
    ),
    "ChannelService/PurgeChannel": channel_pb2.PurgeChannelRequest(name="orders", before_offset=3),
    "ChannelService/DeleteChannel": channel_pb2.DeleteChannelRequest(name="new"),
    "GroupService/AddGroup": group_pb2.AddGroupRequest(
        channel="orders", name="g", start=Start(time_us=5), config=group_pb2.GroupConfig(ack_deadline_ms=5_000)
    ),
    "GroupService/GetGroup": group_pb2.GetGroupRequest(channel="orders", name="g"),
    "GroupService/ListGroups": group_pb2.ListGroupsRequest(channel="orders", page_size=3, page_token="b3JkZXJzCmc="),
    "GroupService/SeekGroup": group_pb2.SeekGroupRequest(channel="orders", name="g", to=Start(offset=7)),
    "GroupService/PauseGroup": group_pb2.PauseGroupRequest(channel="orders", name="g"),
    "GroupService/ResumeGroup": group_pb2.ResumeGroupRequest(channel="orders", name="g"),
    "GroupService/DeleteGroup": group_pb2.DeleteGroupRequest(channel="orders", name="g"),
    "GroupService/SetGroup": group_pb2.SetGroupRequest(
        channel="orders",
        name="g",
        config=group_pb2.GroupConfig(retry=group_pb2.RetryPolicy(backoff=3, delay_ms=5), max_attempts=2),
    ),
    "DeadLetterService/ListDeadLetters": dead_letter_pb2.ListDeadLettersRequest(
        channel="orders", group="g", select=SELECT, without_message=True
    ),
    "DeadLetterService/GetDeadLetter": dead_letter_pb2.GetDeadLetterRequest(channel="orders", group="g", number=1),
    "DeadLetterService/RedriveDeadLetters": dead_letter_pb2.RedriveDeadLettersRequest(
        channel="orders", group="g", numbers=[0, 1, 1 << 62]
    ),
    "DeadLetterService/DropDeadLetters": dead_letter_pb2.DropDeadLettersRequest(
        channel="orders", group="g", select=SELECT
    ),
    "MessageService/GetMessages": message_pb2.GetMessagesRequest(channel="orders", offset=50, max_messages=20),
    "MessageService/ExplainMessage": message_pb2.ExplainMessageRequest(channel="orders", offset=50, group="g"),
    "ClusterService/GetRoutes": cluster_pb2.GetRoutesRequest(channels=["orders", "x"]),
    "ClusterService/GetNode": cluster_pb2.GetNodeRequest(),
}
PUBLISHES = [PublishStreamRequest(correlation=3, publish=PUBLISH)]
SUBSCRIBES = [
    open_subscription("orders", 1, credit=20, start=Start(offset=5), consumer="c", heartbeat_interval_ms=2_000),
    open_subscription("orders", 2, credit=20, group="g"),
    SubscribeRequest(credit=GrantCredit(subscription_id=1, credit=Credit(messages=50, bytes=1 << 40))),
    SubscribeRequest(settle=Settle(subscription_id=2, correlation=4, ranges=RANGES, cumulative=True, ack=Ack())),
    SubscribeRequest(settle=Settle(subscription_id=2, ranges=RANGES[:1], nack=Nack(delay_ms=1))),
    SubscribeRequest(settle=Settle(subscription_id=2, ranges=RANGES[:1], reject=Reject(reason="no"))),
    SubscribeRequest(close=CloseSubscription(subscription_id=2)),
]


@st.composite
def mutated(draw: st.DrawFn, valid: Any) -> bytes:
    """A valid message with a few bytes changed, cut out, put in or doubled; or as it is, or nothing but noise."""
    data = bytearray(valid.SerializeToString())
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        until = at + draw(st.integers(0, 4))
        change = draw(st.sampled_from(("replace", "double", "cut")))
        data[at:until] = {"double": data[at:until] * 2, "cut": b""}.get(change, draw(st.binary(max_size=6)))
    return bytes(data)


calls = st.sampled_from(sorted(UNARY)).flatmap(lambda method: st.tuples(st.just(method), mutated(UNARY[method])))
publishes = st.lists(st.sampled_from(PUBLISHES).flatmap(mutated), min_size=1, max_size=4)
subscribes = st.lists(st.sampled_from(SUBSCRIBES).flatmap(mutated), min_size=1, max_size=8).map(
    lambda rest: [SUBSCRIBES[1].SerializeToString(), *rest]
)


def check(told: Told) -> None:
    """Definite, with a reason and a sentence."""
    assert told.code not in NEVER, told
    assert told.reason not in ("", "INTERNAL"), told
    assert told.message, told


# -- the node -------------------------------------------------------------------------------------------------------


@bounded(max_examples=1_500)
@given(call=calls)
async def test_unary_calls(pair: SimpleNamespace, call: tuple[str, bytes]) -> None:
    method, request = call
    try:
        await pair.client.raw_unary(f"ringpost.v1.{method}")(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        check(told_by_status(error))


async def talk(client: Client, method: str, messages: list[bytes]) -> list[bytes]:
    """Says all that and half-closes; what the node said. Its status must be OK, or that of a bad message."""
    stream = client.raw_stream(f"ringpost.v1.{method}")(timeout=SECONDS)
    answers = []

    async def read() -> None:
        while (answer := await stream.read()) is not grpc.aio.EOF:
            answers.append(answer)

    reading = asyncio.ensure_future(read())
    try:
        for message in messages:
            await stream.write(message)
        await stream.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # ended by the node; the reader knows why
    try:
        await reading
    except grpc.aio.AioRpcError as error:
        if error.details() != OF_THE_CLIENT:
            told = told_by_status(error)
            check(told)
            assert told.code == grpc.StatusCode.INVALID_ARGUMENT
    return answers


@bounded(max_examples=600)
@given(messages=publishes)
async def test_publish_streams(pair: SimpleNamespace, messages: list[bytes]) -> None:
    answers = await talk(pair.client, "PublisherService/PublishStream", messages)

    results = [result for answer in answers for result in PublishStreamResponse.FromString(answer).results]
    assert len(results) <= len(messages)
    for result in results:
        if result.HasField("failure"):
            check(told_by_failure(result.failure))


@bounded(max_examples=600)
@given(messages=subscribes)
async def test_subscribe_streams(pair: SimpleNamespace, messages: list[bytes]) -> None:
    for answer in await talk(pair.client, "SubscriberService/Subscribe", messages):
        event = SubscribeResponse.FromString(answer)
        for part in (event.closed, event.settled):
            if part.HasField("failure"):
                check(told_by_failure(part.failure))
