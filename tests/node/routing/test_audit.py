"""The log tells who did what, and who was denied what, from where: also of what a lying node has its hands in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ringpost.internal.v1.forward_pb2 import ForwardedSubscribeRequest
from ringpost.v1 import channel_pb2, cluster_pb2, group_pb2, publish_pb2
from ringpost.v1.common_pb2 import Start
from tests.integration.broker import batch_of, next_event, open_subscription, publish, until
from tests.node.routing.access_rig import Rig, answers, bearer, forwarded, principal, rigged

CHANNELS, GROUPS = "/ringpost.v1.ChannelService", "/ringpost.v1.GroupService"
PUBLISH, STREAM = "/ringpost.v1.PublisherService/Publish", "/ringpost.v1.PublisherService/PublishStream"
SUBSCRIBE = "/ringpost.v1.SubscriberService/Subscribe"
BOSS = principal("boss", publish=">", consume=">", manage=">") + '\ncluster = "admin"'

Lines = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        made.permit(principal("writer", publish=">"), principal("reader", consume=">"), BOSS)
        await made.renew()
        yield made


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The facts of what was logged under a name."""
    caplog.set_level("INFO", logger="ringpost")
    return lambda event: [record.ringpost_facts for record in caplog.records if record.msg == event]  # type: ignore[attr-defined]


async def refused(call: Awaitable[Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_an_act_names_who_what_and_from_where_at_the_entry_and_at_the_owner(rig: Rig, lines: Lines) -> None:
    client = rig.nodes.clients["n2"]
    seek = group_pb2.SeekGroupRequest(channel=rig.channel, name="g", to=Start(earliest=True))
    await client.groups.AddGroup(group_pb2.AddGroupRequest(channel=rig.channel, name="g"), metadata=bearer("boss"))
    await client.groups.SeekGroup(seek, metadata=bearer("boss"))
    await client.channels.DeleteChannel(channel_pb2.DeleteChannelRequest(name=rig.channel), metadata=bearer("boss"))
    acts = lines("audit.act")
    methods = [f"{GROUPS}/AddGroup", f"{GROUPS}/SeekGroup", f"{CHANNELS}/DeleteChannel"]
    assert [act["method"] for act in acts] == [method for method in methods for _ in ("owner", "entry")]
    assert {(act["principal"], act["channel"], act["outcome"]) for act in acts} == {("boss", rig.channel, "done")}
    assert [act.get("group") for act in acts] == ["g"] * 4 + [None] * 2
    assert [act["peer"].startswith("node ? at ipv4:127.0.0.1:") for act in acts] == [True, False] * 3
    assert [act["peer"].startswith("ipv4:127.0.0.1:") for act in acts] == [False, True] * 3


async def test_acts_on_the_cluster_name_the_wanted_state_and_the_shard(rig: Rig, lines: Lines) -> None:
    cluster = rig.nodes.clients["n1"].cluster
    await refused(
        cluster.SetNode(
            cluster_pb2.SetNodeRequest(node="n2", desired=cluster_pb2.DESIRED_DRAIN), metadata=bearer("boss")
        )
    )
    await refused(cluster.AcceptLoss(cluster_pb2.AcceptLossRequest(shard=3, node="n2"), metadata=bearer("boss")))
    await until(lambda: len(lines("audit.act")) == 2, "both are told")  # after the answer
    drained, accepted = lines("audit.act")
    assert (drained["node"], drained["desired"]) == ("n2", "DESIRED_DRAIN")
    assert (accepted["node"], accepted["shard"]) == ("n2", 3)


async def test_a_lying_node_that_has_a_clients_token_cannot_act_without_a_line(rig: Rig, lines: Lines) -> None:
    async with rig.peer("n2") as wrong:  # where only the leader is looked for, nobody acts
        delete = channel_pb2.DeleteChannelRequest(name=rig.channel)
        await refused(wrong.channels.DeleteChannel(delete, metadata=bearer("boss")))
    assert lines("audit.act") == []
    async with rig.peer() as peer:
        await peer.channels.DeleteChannel(delete, metadata=bearer("boss"))
    (act,) = lines("audit.act")
    assert (act["principal"], act["channel"], act["outcome"]) == ("boss", rig.channel, "done")
    assert act["peer"].startswith("node ? at ipv4:")


async def test_a_denial_names_principal_method_and_peer_whatever_is_called(rig: Rig, lines: Lines) -> None:
    client = rig.nodes.clients["n1"]
    request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(b"x"))
    await refused(client.publisher.Publish(request, metadata=bearer("reader")))
    publishing = client.publisher.PublishStream(metadata=bearer("reader"), timeout=20)
    await publishing.write(publish(rig.channel, b"x"))
    while not (await publishing.read()).results:
        pass
    reading = client.subscriber.Subscribe(metadata=bearer("writer"), timeout=20)
    await reading.write(open_subscription(rig.channel))
    await next_event(reading, "closed")
    told = [(line["principal"], line["method"], line["peer"][:15]) for line in lines("audit.denied")]
    address = "ipv4:127.0.0.1:"
    assert told == [("reader", PUBLISH, address), ("reader", STREAM, address), ("writer", SUBSCRIBE, address)]
    for call in (
        client.publisher.Publish(request, metadata=bearer("nobody")),
        client.publisher.PublishStream(metadata=bearer("nobody")).read(),
        client.subscriber.Subscribe(metadata=bearer("nobody")).read(),
        client.channels.ListChannels(channel_pb2.ListChannelsRequest(), metadata=bearer("nobody")),
    ):
        await refused(call)
    told = [(line["method"], line["peer"][:15]) for line in lines("audit.unauthenticated")]  # type: ignore[misc]
    assert told == [(method, address) for method in (PUBLISH, STREAM, SUBSCRIBE, f"{CHANNELS}/ListChannels")]  # type: ignore[comparison-overlap]


async def test_the_end_of_a_token_is_told_with_its_stream_s_method_and_peer(rig: Rig, lines: Lines) -> None:
    client = rig.nodes.clients["n1"]
    publishing = client.publisher.PublishStream(metadata=bearer("writer"), timeout=20)
    reading = client.subscriber.Subscribe(metadata=bearer("reader"), timeout=20)
    await publishing.read()
    await reading.write(open_subscription(rig.channel))
    await next_event(reading, "opened")
    rig.permit(BOSS)
    await until(lambda: len(lines("audit.denied")) >= 2, "both are told")
    told = {(line["principal"], line["method"], line["peer"][:5]) for line in lines("audit.denied")}
    assert told == {("writer", STREAM, "ipv4:"), ("reader", SUBSCRIBE, "ipv4:")}


async def test_what_the_owner_denies_names_the_node_that_asked(rig: Rig, lines: Lines) -> None:
    async with rig.peer() as peer:
        batches = [forwarded(rig, n, token_number=n, token=token) for n, token in ((1, b"made up"), (2, b"reader"))]
        await answers(peer, *batches)
        call = peer.raw_stream("ringpost.v1.SubscriberService/Subscribe")(timeout=20)
        for number, token in ((1, b"made up"), (2, b"writer")):
            opening = open_subscription(rig.channel, number).SerializeToString()
            await call.write(opening + ForwardedSubscribeRequest(token=token).SerializeToString())
            await call.read()
        request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(b"x"))
        await refused(peer.publisher.Publish(request, metadata=bearer("reader")))
        await refused(peer.channels.ListChannels(channel_pb2.ListChannelsRequest()))
    denials = lines("audit.denied") + lines("audit.unauthenticated")
    assert [(line["method"], line["reason"]) for line in denials] == [
        *((STREAM, "TOKEN_INVALID"), (STREAM, "NOT_PERMITTED"), (SUBSCRIBE, "TOKEN_INVALID")),
        *((SUBSCRIBE, "NOT_PERMITTED"), (PUBLISH, "NOT_PERMITTED"), (f"{CHANNELS}/ListChannels", "NO_TOKEN")),
    ]
    assert all(line["peer"].startswith("node ? at ipv4:127.0.0.1:") for line in denials)
