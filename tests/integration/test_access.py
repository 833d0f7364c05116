"""The security matrix: each call x {no token, a wrong one, an expired one, one without the permission, one with it}.

On three nodes in this process, asked where the channel is led and where it is not.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message as AnyMessage
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ringpost.node.access.guard import NEEDS
from ringpost.node.access.tokens import token_hash
from ringpost.v1 import (
    channel_pb2,
    cluster_pb2,
    dead_letter_pb2,
    group_pb2,
    message_pb2,
    publish_pb2,
    subscribe_pb2,
)
from ringpost.v1.common_pb2 import OffsetRange, Start
from tests.integration.broker import Client, batch_of, open_subscription, publish, told_by_failure, told_by_status
from tests.node.access.issuing import Issuer
from tests.node.routing.cluster import Nodes, running

TOKENS = ("publish", "consume", "manage", "view", "admin", "nothing")
FILES = (channel_pb2, cluster_pb2, dead_letter_pb2, group_pb2, message_pb2, publish_pb2, subscribe_pb2)
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def access_file(folder: Path) -> tuple[Path, Issuer]:
    """Principals that may do one thing each, on channels c0, c1 …; and an issuer."""
    issuer = Issuer(folder / "keys.json")
    issuer.add("k1")
    issuer.publish()
    sections = []
    for name in TOKENS:
        sections.append(f'[principals.{name}]\ntokens = ["sha256:{token_hash(name)}"]')
        if name in ("publish", "consume", "manage"):
            sections.append(f'{name} = ["*"]')
        if name in ("view", "admin"):
            sections.append(f'cluster = "{name}"')
    sections.append(issuer.section())
    path = folder / "access.toml"
    path.write_text("\n".join(sections))
    return path, issuer


class Rig(NamedTuple):
    nodes: Nodes
    issuer: Issuer
    channel: str  # led by n1

    def client(self, node: str) -> Client:
        return self.nodes.clients[node]


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    folder = tmp_path_factory.mktemp("access")
    path, issuer = access_file(folder)
    async with running(folder, access_file=str(path)) as nodes:
        made = Rig(nodes, issuer, nodes.channel("n1"))
        await made.client("n1").publisher.Publish(
            publish_pb2.PublishRequest(channel=made.channel, batch=batch_of(b"first")), metadata=bearer("publish")
        )
        yield made


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


class Case(NamedTuple):
    """A unary call; `by`: the principal that may make it, "" if every token does."""

    service: str
    method: str
    request: Any
    by: str


def cases(channel: str) -> list[Case]:
    group, start = "g", Start(earliest=True) if "earliest" in Start.DESCRIPTOR.fields_by_name else Start(offset=0)
    a, c, g, m = channel_pb2, cluster_pb2, group_pb2, message_pb2
    d, on = dead_letter_pb2, {"channel": channel, "group": group}
    settle = g.SettleMessagesRequest(channel=channel, group=group, ranges=[OffsetRange(first=0, last=0)])
    settle.ack.SetInParent()
    return [
        Case("Publisher", "Publish", publish_pb2.PublishRequest(channel=channel, batch=batch_of(b"x")), "publish"),
        Case("Channel", "AddChannel", a.AddChannelRequest(name=channel), "manage"),
        Case("Channel", "GetChannel", a.GetChannelRequest(name=channel), "consume"),
        Case("Channel", "ListChannels", a.ListChannelsRequest(), ""),
        Case("Channel", "SetChannel", a.SetChannelRequest(name=channel), "manage"),
        Case("Group", "AddGroup", g.AddGroupRequest(channel=channel, name=group), "consume"),
        Case("Group", "GetGroup", g.GetGroupRequest(channel=channel, name=group), "consume"),
        Case("Group", "ListGroups", g.ListGroupsRequest(), ""),
        Case("Group", "ListGroups", g.ListGroupsRequest(channel=channel), "consume"),
        Case("Group", "Settle", settle, "consume"),
        Case("Group", "SeekGroup", g.SeekGroupRequest(channel=channel, name=group, to=start), "manage"),
        Case("Group", "SetGroup", g.SetGroupRequest(channel=channel, name=group), "manage"),
        Case("DeadLetter", "ListDeadLetters", d.ListDeadLettersRequest(**on), "consume"),
        Case("DeadLetter", "GetDeadLetter", d.GetDeadLetterRequest(**on), "consume"),
        Case("DeadLetter", "RedriveDeadLetters", d.RedriveDeadLettersRequest(**on), "manage"),
        Case("DeadLetter", "DropDeadLetters", d.DropDeadLettersRequest(**on), "manage"),
        Case("Group", "PauseGroup", g.PauseGroupRequest(channel=channel, name=group), "manage"),
        Case("Group", "ResumeGroup", g.ResumeGroupRequest(channel=channel, name=group), "manage"),
        Case("Group", "DeleteConsumer", g.DeleteConsumerRequest(channel=channel, group=group, consumer="c"), "manage"),
        Case("Group", "DeleteGroup", g.DeleteGroupRequest(channel=channel, name=group), "manage"),
        Case("Message", "GetMessages", m.GetMessagesRequest(channel=channel, max_messages=1), "consume"),
        Case("Message", "ExplainMessage", m.ExplainMessageRequest(channel=channel), "consume"),
        Case("Cluster", "GetRoutes", c.GetRoutesRequest(channels=[channel]), ""),
        Case("Cluster", "GetNode", c.GetNodeRequest(), ""),
        Case("Cluster", "GetNode", c.GetNodeRequest(node="n3"), "view"),
        Case("Cluster", "ListNodes", c.ListNodesRequest(), "view"),
        Case("Cluster", "GetCluster", c.GetClusterRequest(), "view"),
        Case("Cluster", "SetNode", c.SetNodeRequest(node="n2", desired=c.DESIRED_REST), "admin"),
        Case("Cluster", "RemoveNode", c.RemoveNodeRequest(node="n2"), "admin"),
        Case("Cluster", "AcceptLoss", c.AcceptLossRequest(shard=0, node="n2"), "admin"),
        Case("Channel", "PurgeChannel", a.PurgeChannelRequest(name=channel), "manage"),
        Case("Channel", "DeleteChannel", a.DeleteChannelRequest(name=f"{channel}x"), "manage"),
    ]


def path(case: Case) -> str:
    return f"ringpost.v1.{case.service}Service/{case.method}"


async def answer(client: Client, case: Case, token: str) -> tuple[grpc.StatusCode, str]:
    """Code and reason; OK and "" when it worked."""
    try:
        await client.raw_unary(path(case))(case.request.SerializeToString(), metadata=bearer(token), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code(), told_by_status(error).reason
    return grpc.StatusCode.OK, ""


def test_no_call_is_without_a_rule_and_a_case() -> None:
    declared = {
        f"ringpost.v1.{service.name}/{method.name}"
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    streams = {"ringpost.v1.PublisherService/PublishStream", "ringpost.v1.SubscriberService/Subscribe"}
    assert {path(case) for case in cases("c")} | streams == declared
    assert {f"/{name}" for name in declared - streams - {"ringpost.v1.PublisherService/Publish"}} == NEEDS.keys()


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_each_unary_call_with_each_kind_of_token(rig: Rig, node: str) -> None:
    client = rig.client(node)
    wrong = []
    for case in cases(rig.channel):
        expired = rig.issuer.token("k1", lives_s=-60)
        lacking = next(name for name in ("nothing", "view") if name != case.by)
        answers = [await answer(client, case, token) for token in ("", "wrong", expired, lacking)]
        expected = [
            (UNAUTHENTICATED, "NO_TOKEN"),
            (UNAUTHENTICATED, "TOKEN_INVALID"),
            (UNAUTHENTICATED, "TOKEN_EXPIRED"),
        ]
        expected.append((DENIED, "NOT_PERMITTED") if case.by else (grpc.StatusCode.OK, ""))
        permitted = await answer(client, case, case.by or "nothing")
        if answers != expected or permitted[0] in (UNAUTHENTICATED, DENIED, grpc.StatusCode.UNKNOWN):
            wrong.append((path(case), answers, permitted))
    assert wrong == []


async def test_each_permission_permits_nothing_else(rig: Rig) -> None:
    """Every principal x every call: only its own, and administering includes looking."""
    wrong = []
    for case in cases(rig.channel):
        for name in TOKENS:
            permitted = (await answer(rig.client("n2"), case, name))[0] is not DENIED
            expected = case.by in ("", name) or (case.by, name) == ("view", "admin")
            if case.method == "GetChannel":
                expected = name in ("publish", "consume", "manage")
            if permitted != expected:
                wrong.append((path(case), name, permitted))
    assert wrong == []


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_each_stream_with_each_kind_of_token(rig: Rig, node: str) -> None:
    client = rig.client(node)
    tokens = {"": "NO_TOKEN", "wrong": "TOKEN_INVALID", rig.issuer.token("k1", lives_s=-60): "TOKEN_EXPIRED"}
    for method in ("PublisherService/PublishStream", "SubscriberService/Subscribe"):
        for token, reason in tokens.items():
            call = client.raw_stream(f"ringpost.v1.{method}")(metadata=bearer(token), timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert (raised.value.code(), told_by_status(raised.value).reason) == (UNAUTHENTICATED, reason)


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_publish_stream_answers_each_batch_by_its_channel(rig: Rig, node: str) -> None:
    end = (await _channel(rig)).end_offset
    for token, stored in (("publish", True), ("consume", False), ("nothing", False)):
        call = rig.client(node).publisher.PublishStream(metadata=bearer(token), timeout=20)
        await call.write(publish(rig.channel, b"x", correlation=7))
        results: list[Any] = []
        while not results:
            results = list((await call.read()).results)
        assert results[0].correlation == 7
        assert results[0].HasField("stored") == stored
        if not stored:
            told = told_by_failure(results[0].failure)
            assert (told.code, told.reason, told.metadata["verb"]) == (DENIED, "NOT_PERMITTED", "publish")
        call.cancel()
    assert (await _channel(rig)).end_offset == end + 1


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_subscription_to_a_channel_that_is_not_permitted_is_closed_at_once(rig: Rig, node: str) -> None:
    for token, expected in (("consume", "opened"), ("publish", "closed"), ("nothing", "closed")):
        call = rig.client(node).subscriber.Subscribe(metadata=bearer(token), timeout=20)
        await call.write(open_subscription(rig.channel))
        event = await call.read()
        assert event.WhichOneof("event") == expected
        if expected == "closed":
            assert told_by_failure(event.closed.failure).code is DENIED
        call.cancel()


async def test_lists_show_what_the_caller_may_do_something_with(rig: Rig) -> None:
    seen = {}
    for name in ("consume", "publish", "nothing", "admin"):
        found = await rig.client("n2").channels.ListChannels(channel_pb2.ListChannelsRequest(), metadata=bearer(name))
        seen[name] = rig.channel in {one.name for one in found.channels}
    assert seen == {"consume": True, "publish": True, "nothing": False, "admin": False}


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_consumer_may_not_have_dead_letters_kept_for_ever(rig: Rig, node: str) -> None:
    config = group_pb2.GroupConfig(dead_letter_bytes=0)
    request = group_pb2.AddGroupRequest(channel=rig.channel, name="hoard", config=config)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rig.client(node).groups.AddGroup(request, metadata=bearer("consume"))
    assert (refused.value.code(), told_by_status(refused.value).reason) == (DENIED, "NOT_PERMITTED")
    assert (refused.value.details() or "").startswith("config.dead_letter_bytes: is 0")


async def test_who_may_not_look_learns_of_a_node_only_what_a_client_needs(rig: Rig) -> None:
    ask = rig.client("n1").cluster.GetNode
    little, much = [
        (await ask(cluster_pb2.GetNodeRequest(), metadata=bearer(name))).node for name in ("publish", "view")
    ]
    assert little.limits == much.limits
    assert (little.node, little.state, little.address) == (much.node, much.state, much.address)
    assert (little.resident_bytes, little.journal_bytes) == (0, 0)
    assert much.resident_bytes > 0


async def test_health_answers_everybody_and_the_looks_into_the_node_only_who_may(rig: Rig) -> None:
    wire = rig.client("n1").wire
    health = await health_pb2_grpc.HealthStub(wire).Check(health_pb2.HealthCheckRequest(service="live"))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    servers = channelz_pb2_grpc.ChannelzStub(wire).GetServers
    codes = [await _code(servers(channelz_pb2.GetServersRequest(), metadata=bearer(t))) for t in ("", "admin", "view")]
    assert codes == [UNAUTHENTICATED, grpc.StatusCode.OK, grpc.StatusCode.OK]
    assert await _code(servers(channelz_pb2.GetServersRequest(), metadata=bearer("publish"))) is DENIED
    ask: AnyMessage = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = reflection_pb2_grpc.ServerReflectionStub(wire).ServerReflectionInfo
    found = [one async for one in listed(iter([ask]), metadata=bearer("nothing"))]
    assert "ringpost.v1.PublisherService" in {one.name for one in found[0].list_services_response.service}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        _ = [one async for one in listed(iter([ask]))]
    assert raised.value.code() is UNAUTHENTICATED


async def test_a_signed_token_with_a_role_that_the_file_lacks_may_do_nothing(rig: Rig) -> None:
    token = rig.issuer.token("k1", roles=["admin"], exp=time.time() + 60)
    case = cases(rig.channel)[0]
    assert await answer(rig.client("n2"), case, token) == (DENIED, "NOT_PERMITTED")


async def _code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _channel(rig: Rig) -> channel_pb2.ChannelInfo:
    request = channel_pb2.GetChannelRequest(name=rig.channel)
    return (await rig.client("n1").channels.GetChannel(request, metadata=bearer("manage"))).channel


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_name_that_is_too_long_is_named_to_who_might_use_it_and_denied_to_others(rig: Rig, node: str) -> None:
    name = "x" * 100_000
    client = rig.client(node)
    calls = [
        (client.publisher.Publish, publish(name, b"x").publish, "publish", "channel"),
        (client.channels.GetChannel, channel_pb2.GetChannelRequest(name=name), "consume", "name"),
        (client.channels.AddChannel, channel_pb2.AddChannelRequest(name=name), "manage", "name"),
        (client.messages.GetMessages, message_pb2.GetMessagesRequest(channel=name), "consume", "channel"),
    ]
    for call, request, token, field in calls:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request, metadata=(("authorization", f"Bearer {token}"),))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, request
        assert field in (raised.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request, metadata=(("authorization", "Bearer nothing"),))
        assert raised.value.code() is DENIED
