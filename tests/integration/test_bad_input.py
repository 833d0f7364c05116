"""Whatever a client sends wrongly is answered with the right status and a sentence that helps, and changes nothing."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1 import (
    channel_pb2,
    cluster_pb2,
    dead_letter_pb2,
    group_pb2,
    message_pb2,
    publish_pb2,
    subscribe_pb2,
)
from ringpost.v1.channel_pb2 import PurgeChannelRequest
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import (
    Ack,
    CloseSubscription,
    Credit,
    GrantCredit,
    OpenSubscription,
    Outcome,
    Settle,
    SubscribeRequest,
)
from tests.integration.bad_requests import (
    CHANNELS,
    CLUSTER,
    GROUPS,
    INVALID,
    LETTERS,
    LIMITS,
    OPENS,
    PUBLISHES,
    READS,
    SETTLES,
    OpenRefusal,
    Refusal,
    SettleRefusal,
)
from tests.integration.broker import (
    MIB,
    Client,
    Told,
    batch_of,
    next_event,
    open_subscription,
    publish,
    serving,
    told_by_failure,
    told_by_status,
    until,
)

UNARY = PUBLISHES + CHANNELS + GROUPS + LETTERS + READS + CLUSTER
FILES = (publish_pb2, channel_pb2, group_pb2, dead_letter_pb2, message_pb2, cluster_pb2)
UNARY_METHODS = [
    f"{service.full_name}/{method.name}"
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "PublishStream"
]


def titles(cases: tuple[Any, ...]) -> dict[str, Any]:
    """Ids for parametrize."""
    return {"argvalues": cases, "ids": [f"{getattr(case, 'method', '')} {case.title}".strip() for case in cases]}


async def prepare(client: Client) -> None:
    """Makes what bad_requests.py describes."""
    first = PublishRequest(channel="orders", batch=batch_of(b"0", b"1"), producer_id=77, producer_epoch=3)
    await client.publisher.Publish(first)
    rest = batch_of(*(b"%d" % number for number in range(2, 10)))
    await client.publisher.Publish(PublishRequest(channel="orders", batch=rest))
    await client.publisher.Publish(PublishRequest(channel="other", batch=batch_of(b"x")))
    await client.groups.AddGroup(AddGroupRequest(channel="orders", name="billing"))
    await client.channels.PurgeChannel(PurgeChannelRequest(name="orders", before_offset=3))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[bool, SimpleNamespace]]:
    """The node and the strict one (True), which makes no channel by first use."""
    directory: Path = tmp_path_factory.mktemp("nodes")
    async with serving(directory / "lax", *LIMITS) as lax:
        await prepare(lax.client)
        lax.node.stop()
        lax.node.start()
        async with Client(lax.node.address) as client:
            lax.client = client
            flags = ("--no-auto-create-channels", *LIMITS)
            async with serving(directory / "strict", *flags) as strict:
                await strict.client.channels.AddChannel(channel_pb2.AddChannelRequest(name="orders"))
                yield {False: lax, True: strict}


async def everything(client: Client) -> list[Any]:
    """What a bad request could have changed."""
    node = await client.node()
    channels = await client.all_channels()
    for channel in channels:
        channel.ClearField("subscription_count")
    groups = await client.all_groups()
    for group in groups:
        group.ClearField("members")
        group.ClearField("lag_ms")
    return [node.published_messages, node.boot, channels, groups]


@pytest_asyncio.fixture(loop_scope="session")
async def unchanged(nodes: dict[bool, SimpleNamespace]) -> AsyncIterator[Callable[[bool], Client]]:
    """Gives a client; afterwards both nodes must be as before, and must not have logged a fault."""
    before = {strict: await everything(pair.client) for strict, pair in nodes.items()}
    yield lambda strict=False: nodes[strict].client
    for strict, pair in nodes.items():
        assert await everything(pair.client) == before[strict]
        assert pair.node.faults() == []


def check(told: Told, case: Refusal | OpenRefusal | SettleRefusal) -> None:
    """The status, the stable reason, and a sentence with the field and what is allowed."""
    assert (told.code, told.reason) == (case.code, case.reason), told
    assert case.says in told.message, told
    if case.code == INVALID:
        assert told.fields == (case.field,)
        assert told.message.startswith(case.field)


def encoded(request: Any) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def test_the_table_has_every_call() -> None:
    assert {f"ringpost.v1.{case.method}" for case in UNARY} == set(UNARY_METHODS) - EMPTY


@pytest.mark.parametrize("case", **titles(UNARY))
async def test_a_bad_call_is_refused(unchanged: Callable[..., Client], case: Refusal) -> None:
    call = unchanged(case.strict).raw_unary(f"ringpost.v1.{case.method}")

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(encoded(case.request), timeout=10)

    check(told_by_status(error.value), case)


@pytest.mark.parametrize("case", **titles(PUBLISHES))
async def test_a_bad_batch_does_not_end_its_stream(unchanged: Callable[..., Client], case: Refusal) -> None:
    stream = unchanged(case.strict).raw_stream("ringpost.v1.PublisherService/PublishStream")(timeout=10)
    request = encoded(case.request)

    head = b"\x08\x09\x12" + publish_pb2.PublishResult(correlation=len(request)).SerializeToString()[1:]
    await stream.write(head + request)
    await stream.done_writing()
    responses = [publish_pb2.PublishStreamResponse.FromString(message) async for message in stream]

    (result,) = [result for response in responses for result in response.results]
    assert result.correlation == 9
    check(told_by_failure(result.failure), case)
    assert await stream.code() == grpc.StatusCode.OK


EMPTY = {"ringpost.v1.ClusterService/ListNodes", "ringpost.v1.ClusterService/GetCluster"}  # requests without fields
NAMELESS = EMPTY | {"ringpost.v1.ClusterService/AcceptLoss"}  # field 1 is a number


@pytest.mark.parametrize(
    ("method", "garbage"),
    [(method, garbage) for method in UNARY_METHODS for garbage in (b"\xff" * 40, b"\x0a\x05ab")]
    + [(method, b"\x0a\x02\xff\xfe") for method in UNARY_METHODS if method not in NAMELESS],
)
async def test_what_is_no_request_is_refused(unchanged: Callable[..., Client], method: str, garbage: bytes) -> None:
    """Also a channel's name that is not UTF-8: field 1 of almost every request is a name."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await unchanged().raw_unary(method)(garbage, timeout=10)

    told = told_by_status(error.value)
    assert (told.code, told.reason) == (INVALID, "INVALID_ARGUMENT"), told
    assert method.rpartition("/")[2] in told.message


STREAMS = {
    "PublisherService/PublishStream": publish("orders", b"x").SerializeToString(),
    "SubscriberService/Subscribe": open_subscription("orders").SerializeToString(),
}


NOT_UTF8 = {"PublishStream": b"\x12\x05\x0a\x03a\xff\xff", "Subscribe": b"\x0a\x05\x12\x03a\xff\xff"}


@pytest.mark.parametrize("method", STREAMS)
@pytest.mark.parametrize("kind", ["garbage", "a channel that is not UTF-8", "no command"])
async def test_what_is_no_command_ends_the_stream(unchanged: Callable[..., Client], method: str, kind: str) -> None:
    not_utf8 = NOT_UTF8[method.rpartition("/")[2]]
    message = {"garbage": b"\xff" * 9, "no command": b""}.get(kind, not_utf8)
    says = "command: is not set" if kind == "no command" else "not an encoded"
    stream = unchanged().raw_stream(f"ringpost.v1.{method}")(timeout=10)
    await stream.write(message)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in stream:
            pass

    told = told_by_status(error.value)
    assert (told.code, told.reason) == (INVALID, "INVALID_ARGUMENT"), told
    assert says in told.message


@pytest.mark.parametrize("case", **titles(OPENS))
async def test_a_bad_subscription_is_closed_and_its_stream_goes_on(
    unchanged: Callable[..., Client], case: OpenRefusal
) -> None:
    fields = {"subscription_id": 1, "channel": "orders", **case.fields}
    stream = unchanged(case.strict).subscribe(10)

    await stream.write(SubscribeRequest(open=OpenSubscription(**fields)))
    closed = await next_event(stream, "closed")
    await stream.write(open_subscription("orders", 2, credit=0))
    opened = await next_event(stream, "opened")
    await stream.done_writing()

    assert (closed.subscription_id, opened.subscription_id) == (fields["subscription_id"], 2)
    check(told_by_failure(closed.failure), case)
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("case", **titles(SETTLES))
async def test_a_bad_settlement_settles_nothing(unchanged: Callable[..., Client], case: SettleRefusal) -> None:
    client = unchanged()
    stream = client.subscribe(10)
    await stream.write(open_subscription("orders", 1, credit=2, group="billing"))
    await stream.write(open_subscription("orders", 2, credit=0))
    delivered = await next_event(stream, "deliver")
    assert delivered.batches[0].first_offset == 3

    await stream.write(SubscribeRequest(settle=case.settle))
    settled = await next_event(stream, "settled")
    await stream.done_writing()

    assert (settled.subscription_id, settled.correlation) == (case.settle.subscription_id, 9)
    assert not settled.results
    told = told_by_failure(settled.failure)
    assert (told.code, told.reason) == (case.code, case.reason)
    assert told.fields == ((case.field,) if case.field else ())
    assert case.says in told.message
    await left(client, stream)


async def left(client: Client, stream: Any) -> None:
    """Waits until a half-closed stream is over, so that its leases are back."""
    while await stream.read() is not grpc.aio.EOF:
        pass
    assert await stream.code() == grpc.StatusCode.OK


async def test_what_was_never_delivered_cannot_be_settled(unchanged: Callable[..., Client]) -> None:
    client = unchanged()
    stream = client.subscribe(10)
    await stream.write(open_subscription("orders", 1, credit=0, group="billing"))
    await next_event(stream, "opened")
    everything_there_could_be = OffsetRange(first=0, last=(1 << 64) - 1)

    settle = Settle(subscription_id=1, correlation=3, ranges=[everything_there_could_be], cumulative=True, ack=Ack())
    await stream.write(SubscribeRequest(settle=settle))
    settled = await next_event(stream, "settled")
    await stream.done_writing()

    assert not settled.HasField("failure")
    assert [(result.range, result.outcome) for result in settled.results] == [
        (everything_there_could_be, Outcome.OUTCOME_UNKNOWN)
    ]
    await left(client, stream)


async def test_a_subscription_id_in_use_ends_the_stream(unchanged: Callable[..., Client]) -> None:
    stream = unchanged().subscribe(10)
    await stream.write(open_subscription("orders", 7, credit=0))
    await next_event(stream, "opened")

    await stream.write(open_subscription("other", 7))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.read()

    told = told_by_status(error.value)
    assert (told.code, told.fields) == (INVALID, ("open.subscription_id",))
    assert "7 is in use" in told.message


async def test_commands_for_an_unknown_subscription(unchanged: Callable[..., Client]) -> None:
    """Credit is not answered: the subscription may have been closed while the grant was on its way."""
    stream = unchanged().subscribe(10)
    grant = GrantCredit(subscription_id=4, credit=Credit(messages=(1 << 64) - 1, bytes=(1 << 64) - 1))
    await stream.write(SubscribeRequest(credit=grant))
    await stream.write(SubscribeRequest(close=CloseSubscription(subscription_id=4)))
    closed = await next_event(stream, "closed")
    await stream.done_writing()

    told = told_by_failure(closed.failure)
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "SUBSCRIPTION_NOT_FOUND")
    assert await stream.read() is grpc.aio.EOF


async def answer_of(client: Client, method: str, message: bytes, metadata: Any = None) -> bytes:
    """What a call or a stream of one message gives; raises its status."""
    if method not in STREAMS:
        return await client.raw_unary(f"ringpost.v1.{method}")(message, timeout=10, metadata=metadata)
    stream = client.raw_stream(f"ringpost.v1.{method}")(timeout=10, metadata=metadata)
    await stream.write(message)
    return b"".join([answer async for answer in stream])


@pytest.mark.parametrize("method", ["PublisherService/Publish", "ChannelService/AddChannel", *STREAMS])
async def test_ten_megabytes_of_metadata(unchanged: Callable[..., Client], nodes: Any, method: str) -> None:
    async with Client(nodes[False].node.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await answer_of(client, method, STREAMS["PublisherService/PublishStream"], [("junk", "x" * 10 * MIB)])

    assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("method", ["PublisherService/Publish", "ChannelService/AddChannel", *STREAMS])
async def test_a_message_above_the_limit_of_grpc(unchanged: Callable[..., Client], method: str) -> None:
    """A message that the node does not even take in; gRPC itself answers."""
    message = publish("orders", bytes(20 * MIB)).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await answer_of(unchanged(), method, message)

    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger" in error.value.details()


async def test_the_bounds_themselves_are_allowed(nodes: dict[bool, SimpleNamespace]) -> None:
    """What the messages say is allowed, is."""
    client = nodes[True].client
    config = channel_pb2.ChannelConfig(
        retention_age_ms=(1 << 64) - 1,
        retention_bytes=(1 << 64) - 1,
        retention_messages=(1 << 64) - 1,
        max_message_bytes=65_536,
        dedup_window_ms=86_400_000,
    )
    answer = await client.channels.SetChannel(channel_pb2.SetChannelRequest(name="orders", config=config))
    assert answer.channel.config == config
    await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(bytes(65_532))))

    group = await client.groups.AddGroup(
        AddGroupRequest(
            channel="orders",
            name="g" * 127,
            config=group_pb2.GroupConfig(ack_deadline_ms=43_200_000, max_in_flight=1_000_000),
        )
    )
    assert group.group.config.max_in_flight == 1_000_000
    # Retention with the greatest numbers runs once a second and must not fail.
    await until(lambda: "retention" not in nodes[True].node.stderr, "no complaint of retention")
    assert nodes[True].node.faults() == []


def test_stream_commands_are_all_in_the_tables() -> None:
    commands = {field.name for field in subscribe_pb2.SubscribeRequest.DESCRIPTOR.fields}
    assert commands == {"open", "credit", "settle", "close"}
    actions = {field.name for field in subscribe_pb2.Settle.DESCRIPTOR.oneofs_by_name["action"].fields}
    assert actions == {case.settle.WhichOneof("action") for case in SETTLES} - {None}
