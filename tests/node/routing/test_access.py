"""The owner of a channel believes no other node: it looks at the token of the client that a request is for."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.internal.v1.forward_pb2 import ForwardedPublishRequest, ForwardedSubscribeRequest
from ringpost.node.delivery.encode import varint
from ringpost.v1 import channel_pb2, cluster_pb2, group_pb2, message_pb2, publish_pb2
from ringpost.v1.subscribe_pb2 import SubscribeResponse
from tests.integration.broker import (
    Told,
    batch_of,
    next_event,
    open_subscription,
    publish,
    told_by_failure,
    told_by_status,
    until,
)
from tests.node.access.issuing import Issuer
from tests.node.routing.access_rig import ROLES, Rig, answers, bearer, forwarded, principal, rigged

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        yield made


async def test_a_lying_node_publishes_nothing_without_a_clients_token(rig: Rig) -> None:
    stolen_key = Issuer(rig.file.with_name("other.json"))
    stolen_key.add("k1")
    lies = {
        1: {},
        2: {"token_number": 5},
        3: {"token_number": 1, "token": b"reader"},
        4: {"token_number": 2, "token": b"made up"},
        5: {"token_number": 3, "token": stolen_key.token("k1", "admin", roles=["all"]).encode()},
        6: {"token_number": 4, "token": rig.issuer.token("k1", lives_s=-60, roles=["all"]).encode()},
        7: {"token_number": 1 << 20, "token": b"writer"},
    }
    async with rig.peer() as peer:
        end = rig.end()
        told = await answers(peer, *(forwarded(rig, number, **lie) for number, lie in lies.items()))
        reasons = [told_by_failure(told[number].failure).reason for number in sorted(told)]
        assert reasons == [
            *("NO_TOKEN", "NO_TOKEN", "NOT_PERMITTED", "TOKEN_INVALID"),
            *("TOKEN_INVALID", "TOKEN_EXPIRED", "NO_TOKEN"),
        ]
        assert rig.end() == end
        honest = [forwarded(rig, 8, token_number=1, token=b"writer"), forwarded(rig, 9, token_number=1)]
        told = await answers(peer, *honest)
        assert all(told[number].HasField("stored") for number in (8, 9)), "the token is shown once"
        assert rig.end() == end + 2


async def test_a_token_shown_with_a_batch_that_is_refused_counts_for_those_behind_it(rig: Rig) -> None:
    """Else a good client would be refused after each change of a leader, or judged by the number's last token."""
    epoch = rig.nodes.world.epochs[rig.nodes.shard(rig.channel)]
    async with rig.peer() as peer:
        told = await answers(
            peer,
            forwarded(rig, 1, token_number=1, token=b"reader"),
            forwarded(rig, 2, token_number=1, token=b"writer", epoch=epoch - 1),
            forwarded(rig, 3, token_number=1, attempt=1),
            forwarded(rig, 4, token_number=1, token=b"reader", epoch=epoch - 1, attempt=2),
            forwarded(rig, 5, token_number=1, attempt=3),
        )
    reasons = [told_by_failure(told[number].failure).reason for number in (1, 2, 4, 5)]
    assert reasons == ["NOT_PERMITTED", "NOT_LEADER", "NOT_LEADER", "NOT_PERMITTED"]
    assert told[3].HasField("stored")


async def test_a_client_goes_on_through_a_change_of_the_leader_that_its_node_has_not_seen(rig: Rig) -> None:
    world = rig.nodes.world
    shard = rig.nodes.shard(rig.channel)
    other = world.channel(next(s for s, led in world.leaders.items() if led and led[0] == "n1" and s != shard))
    rig.permit(principal("fresh", publish=">"))
    await rig.renew()
    entry = world.coordinations["n2"]
    entry.blind = True
    world.assign({shard: "n3"})
    call = rig.nodes.clients["n2"].publisher.PublishStream(metadata=bearer("fresh"), timeout=20)
    await call.write(publish(rig.channel, b"x", correlation=1))
    lanes = rig.nodes.servers["n2"].publisher.lanes
    assert lanes is not None
    await until(lambda: lanes.lane_for(rig.channel).attempt > 0, "the old leader has refused it")  # type: ignore[union-attr]
    entry.blind = False
    entry.look()
    await call.write(publish(other, b"x", correlation=2))
    stored: set[int] = set()
    while len(stored) < 2:
        for result in (await call.read()).results:
            assert result.HasField("stored"), result
            stored.add(result.correlation)
    call.cancel()


async def test_a_lying_node_reads_nothing_without_a_clients_token(rig: Rig) -> None:
    async with rig.peer() as peer:
        call = peer.raw_stream("ringpost.v1.SubscriberService/Subscribe")(timeout=20)
        for number, token in ((1, b""), (2, b"writer"), (3, b"made up"), (5, b"\xff")):
            opening = open_subscription(rig.channel, number).SerializeToString()
            await call.write(opening + ForwardedSubscribeRequest(token=token).SerializeToString())
        reasons = [told_by_failure((await _event(call)).closed.failure).reason for _ in range(4)]
        assert reasons == ["NO_TOKEN", "NOT_PERMITTED", "TOKEN_INVALID", "TOKEN_INVALID"]
        opening = open_subscription(rig.channel, 4).SerializeToString()
        await call.write(opening + ForwardedSubscribeRequest(token=b"reader").SerializeToString())
        assert (await _event(call)).opened.subscription_id == 4


async def _event(call: Any) -> Any:
    return SubscribeResponse.FromString(await call.read())


async def test_a_lying_node_calls_nothing_without_a_clients_token(rig: Rig) -> None:
    a, g, m = channel_pb2, group_pb2, message_pb2
    async with rig.peer() as peer:
        calls = [
            peer.publisher.Publish(publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(b"x"))),
            peer.channels.DeleteChannel(a.DeleteChannelRequest(name=rig.channel)),
            peer.channels.ListChannels(a.ListChannelsRequest()),
            peer.groups.AddGroup(g.AddGroupRequest(channel=rig.channel, name="g")),
            peer.messages.GetMessages(m.GetMessagesRequest(channel=rig.channel)),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert (raised.value.code(), told_by_status(raised.value).reason) == (UNAUTHENTICATED, "NO_TOKEN")
        denied = peer.channels.DeleteChannel(a.DeleteChannelRequest(name=rig.channel), metadata=bearer("writer"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await denied
        assert raised.value.code() is DENIED


async def test_a_client_cannot_speak_for_another_by_writing_what_nodes_add(rig: Rig) -> None:
    """Bytes that a client appends to its own request reach the owner before those of its node, which count."""
    smuggled = ForwardedPublishRequest(token_number=0, token=b"writer", epoch=1).SerializeToString()
    call = rig.nodes.clients["n2"].raw_stream("ringpost.v1.PublisherService/PublishStream")
    reader = call(metadata=bearer("reader"), timeout=20)
    writer = call(metadata=bearer("writer"), timeout=20)
    results = []
    for stream in (reader, writer):
        await stream.write(publish(rig.channel, b"x", correlation=1).SerializeToString() + smuggled)
        response = publish_pb2.PublishStreamResponse()
        while not response.results:
            response = publish_pb2.PublishStreamResponse.FromString(await stream.read())
        results.append(response.results[0].HasField("stored"))
    assert results == [False, True]


@pytest.mark.parametrize("tail", [b"\x9a\x01\x01\xff", b"\xa2\x01\x01\xff"], ids=["token", "traceparent"])
async def test_no_client_breaks_the_stream_between_nodes_by_what_only_the_owner_looks_at(rig: Rig, tail: bytes) -> None:
    """Bytes that are no text, in fields that a client has no business with: its node passes them on unopened."""
    client = rig.nodes.clients["n2"]
    victim = client.publisher.PublishStream(metadata=bearer("writer"), timeout=20)
    evil = client.raw_stream("ringpost.v1.PublisherService/PublishStream")(metadata=bearer("writer"), timeout=20)
    results: list[Any] = []

    async def published(correlation: int) -> None:
        await victim.write(publish(rig.channel, b"x", correlation=correlation))
        while not any(result.correlation == correlation for result in results):
            results.extend((await victim.read()).results)

    await published(1)
    before = set(rig.nodes.servers["n1"].publisher.sessions)
    await evil.write(publish(rig.channel, b"x", producer_id=77, producer_epoch=1).SerializeToString() + tail)
    answer = publish_pb2.PublishStreamResponse()
    while not answer.results:
        answer = publish_pb2.PublishStreamResponse.FromString(await evil.read())
    assert answer.results[0].HasField("stored"), "what stands where the node writes its own does not count"
    await published(2)
    assert set(rig.nodes.servers["n1"].publisher.sessions) == before, "the stream between the nodes stands"
    assert all(result.HasField("stored") for result in results)
    evil.cancel()
    victim.cancel()


async def test_a_token_that_is_no_text_is_an_invalid_one_and_refuses_its_own_batches_only(rig: Rig) -> None:
    async with rig.peer() as peer:
        told = await answers(
            peer,
            forwarded(rig, 1, token_number=1, token=b"writer"),
            forwarded(rig, 2, token_number=2, token=b"\xff\xfe"),
            forwarded(rig, 3, token_number=2),
            forwarded(rig, 4, token_number=1),
            forwarded(rig, 5, token_number=3, token=b"x" * 100_000),
            forwarded(rig, 6, token_number=2, token=b"writer"),
        )
    assert [told[number].HasField("stored") for number in range(1, 7)] == [True, False, False, True, False, True]
    assert {told_by_failure(told[number].failure).reason for number in (2, 3, 5)} == {"TOKEN_INVALID"}


async def test_a_batch_that_the_owner_cannot_parse_is_refused_and_those_behind_it_are_not(rig: Rig) -> None:
    """As when an owner of a newer version knows a field as text that an older node passed on unopened."""
    no_text = b"\x12\x03\x0a\x01\xff" + ForwardedPublishRequest(correlation=1).SerializeToString()
    async with rig.peer() as peer:
        told = await answers(peer, no_text, forwarded(rig, 2, token_number=1, token=b"writer"))
    assert told_by_failure(told[1].failure).code is grpc.StatusCode.INVALID_ARGUMENT
    assert told[2].HasField("stored")


@given(st.lists(st.tuples(st.integers(3, 24), st.binary(max_size=4)), max_size=5), st.binary(max_size=4))
@example([(19, b"\xff")], b"")
def test_the_owner_can_parse_whatever_a_client_has_appended_that_its_own_node_could(fields: Any, rest: bytes) -> None:
    texts = [varint(number << 3 | 2) + varint(len(value)) + value for number, value in fields]
    message = publish("c", b"x").SerializeToString() + b"".join(texts) + rest
    try:
        envelope.PublishStreamRequest.FromString(message)
    except DecodeError:
        return
    ForwardedPublishRequest.FromString(message + ForwardedPublishRequest(correlation=7, epoch=1).SerializeToString())


async def test_many_clients_share_one_stream_between_nodes_each_by_its_own_token(rig: Rig) -> None:
    rig.permit(*(principal(f"w{n}", publish=rig.channel if n % 2 else "other") for n in range(6)))
    await rig.renew()
    stored = []
    for turn in range(12):
        call = rig.nodes.clients["n2"].publisher.PublishStream(metadata=bearer(f"w{turn % 6}"), timeout=20)
        await call.write(publish(rig.channel, b"x"))
        results: list[Any] = []
        while not results:
            results = list((await call.read()).results)
        stored.append(results[0].HasField("stored"))
        call.cancel()
    assert stored == [False, True] * 6


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_an_empty_channel_is_a_wrong_field_for_who_may_everywhere_and_denied_to_others(
    rig: Rig, node: str
) -> None:
    rig.permit(principal("all", publish=">", consume=">"), principal("some", publish="a.>", consume="a.>"))
    await rig.renew()
    client = rig.nodes.clients[node]
    told: list[list[Told]] = []
    for name in ("all", "some"):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.publisher.Publish(publish_pb2.PublishRequest(batch=batch_of(b"x")), metadata=bearer(name))
        publishing = client.publisher.PublishStream(metadata=bearer(name), timeout=20)
        await publishing.write(publish("", b"x"))
        while not (results := (await publishing.read()).results):
            pass
        reading = client.subscriber.Subscribe(metadata=bearer(name), timeout=20)
        await reading.write(open_subscription(""))
        closed = await next_event(reading, "closed")
        failures = told_by_failure(results[0].failure), told_by_failure(closed.failure)
        told.append([told_by_status(raised.value), *failures])
    wrong, denied = told
    assert {one.code for one in wrong} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [one.fields for one in wrong] == [("channel",), ("channel",), ("open.channel",)]
    assert [one.code for one in denied] == [DENIED] * 3


async def test_what_another_node_refuses_to_tell_of_itself_is_told_as_it_said_it(rig: Rig) -> None:
    """A node whose access file is not yet the others' is no node that does not answer."""
    viewer = principal("viewer") + '\ncluster = "view"'
    rig.permit(viewer)
    (behind := rig.file.with_name("behind.toml")).write_text(ROLES)
    rig.nodes.servers["n3"].access._path = behind
    await rig.renew()
    ask = rig.nodes.clients["n1"].cluster.GetNode
    assert (await ask(cluster_pb2.GetNodeRequest(node="n2"), metadata=bearer("viewer"))).node.node == "n2"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ask(cluster_pb2.GetNodeRequest(node="n3"), metadata=bearer("viewer"))
    assert (raised.value.code(), told_by_status(raised.value).reason) == (UNAUTHENTICATED, "TOKEN_INVALID")
