"""Permissions end: tokens expire, files change, and what stands by them ends, whatever the client does."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest

from ringpost.v1 import publish_pb2
from ringpost.v1.common_pb2 import Start
from tests.integration.broker import (
    Client,
    Told,
    batch_of,
    next_event,
    open_subscription,
    publish,
    told_by_failure,
    told_by_status,
    until,
)
from tests.node.routing.access_rig import Rig, bearer, principal, rigged

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
EARLIEST = Start(earliest=True)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made:
        yield made


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_a_token_that_expires_ends_its_streams(rig: Rig, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.node.access.tokens.LEEWAY_S", 0)
    token = rig.issuer.token("k1", roles=["all"], exp=time.time() + 1.5)
    client = rig.nodes.clients[node]
    publishing = client.publisher.PublishStream(metadata=bearer(token), timeout=20)
    reading = client.subscriber.Subscribe(metadata=bearer(token), timeout=20)
    await publishing.write(publish(rig.channel, b"x"))
    await reading.write(open_subscription(rig.channel, start=EARLIEST))
    await next_event(reading, "deliver")
    for call in (publishing, reading):
        told = await ending(call)
        assert (told.code, told.reason) == (UNAUTHENTICATED, "TOKEN_EXPIRED")
    assert time.time() < token_end(token) + 2


async def ending(call: Any) -> Told:
    """The error that ends a stream, whatever comes before it."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return told_by_status(error)
    raise AssertionError("it ended with OK")


def token_end(token: str) -> float:
    return float(jwt.decode(token, options={"verify_signature": False})["exp"])


async def test_who_is_taken_off_the_file_is_out_and_who_shared_its_upstream_goes_on(rig: Rig) -> None:
    rig.permit(principal("writer", publish=">"), principal("first", consume=">"), principal("second", consume=">"))
    await rig.renew()
    client = rig.nodes.clients["n2"]
    streams = {}
    for name in ("first", "second"):
        streams[name] = client.subscriber.Subscribe(metadata=bearer(name), timeout=30)
        await streams[name].write(open_subscription(rig.channel, start=EARLIEST))
        await next_event(streams[name], "deliver")
    relay = rig.nodes.servers["n2"].hub.relay
    await until(lambda: relay is not None and relay.upstreams == 1, "they share an upstream")  # type: ignore[attr-defined]
    rig.permit(principal("writer", publish=">"), principal("second", consume=">"))
    # The owner takes the file up first: it closes the upstream before the entry node has ended the client's stream.
    await until(rig.nodes.servers["n1"].access.renew, "the owner has the file", 5)
    rig.nodes.servers["n1"].hub.check_access()
    request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(b"later"))
    await client.publisher.Publish(request, metadata=bearer("writer"))
    delivered = await next_event(streams["second"], "deliver")
    assert delivered.batches[0].first_offset == rig.end() - 1
    assert (await ending(streams["first"])).code is UNAUTHENTICATED


async def test_a_permission_that_is_taken_away_closes_what_it_permitted_and_no_more(rig: Rig) -> None:
    client = rig.nodes.clients["n1"]
    other = rig.nodes.channel("n1", 1)
    rig.permit(principal("writer", publish=">"), principal("reader", consume=">"))
    call = client.subscriber.Subscribe(metadata=bearer("reader"), timeout=20)
    for number, channel in ((1, rig.channel), (2, other)):
        request = publish_pb2.PublishRequest(channel=channel, batch=batch_of(b"x"))
        await client.publisher.Publish(request, metadata=bearer("writer"))
        await call.write(open_subscription(channel, number, start=EARLIEST))
        await next_event(call, "deliver")
    rig.permit(principal("writer", publish=">"), principal("reader", consume=other))
    closed = await next_event(call, "closed")
    assert (closed.subscription_id, told_by_failure(closed.failure).code) == (1, DENIED)
    request = publish_pb2.PublishRequest(channel=other, batch=batch_of(b"y"))
    await client.publisher.Publish(request, metadata=bearer("writer"))
    assert (await next_event(call, "deliver")).subscription_id == 2


async def filled(rig: Rig, mib: int) -> None:
    """More than a stream's window, for a client that does not read."""
    request = publish_pb2.PublishRequest(channel=rig.channel, batch=batch_of(b"x" * 900_000))
    for _ in range(mib):
        await rig.nodes.clients["n1"].publisher.Publish(request, metadata=bearer("writer"))


async def test_a_reader_that_takes_nothing_keeps_nothing_when_its_token_ends(
    rig: Rig,
) -> None:
    await filled(rig, 12)
    server = rig.nodes.servers["n1"]
    async with Client(f"127.0.0.1:{server.port}", ("grpc.http2.bdp_probe", 0)) as client:
        call = client.raw_stream("ringpost.v1.SubscriberService/Subscribe")(metadata=bearer("reader"), timeout=30)
        await call.write(open_subscription(rig.channel, start=EARLIEST).SerializeToString())
        (session,) = await until(lambda: [one for one in server.hub.sessions if not one.forwarded], "it is open")
        await until(lambda: session.queued_bytes > 1 << 20, "the node has more for it than it takes")
        rig.permit(principal("writer", publish=">"))
        await until(lambda: session.ended is not None, "its token counts no more")
        await until(lambda: session not in server.hub.sessions, "it is closed", 3)
        assert (session.subscriptions, session.queued_bytes) == ({}, 0)
        assert server.access.denied["TOKEN_INVALID"] == 1, "that is told once"
        told = await ending(call)
        assert (told.code, told.reason) == (UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_publisher_that_takes_no_answers_keeps_nothing_when_its_token_ends(rig: Rig) -> None:
    server = rig.nodes.servers["n1"]
    async with Client(f"127.0.0.1:{server.port}", ("grpc.http2.bdp_probe", 0)) as client:
        call = client.publisher.PublishStream(metadata=bearer("reader"), timeout=30)
        denied = publish("c" * 255, b"x")  # its answers are long
        for _ in range(250):
            await call.write(denied)
        (session,) = (one for one in server.publisher.sessions if not one.forwarded)
        await until(lambda: session._results, "its call takes no more answers")
        rig.permit(principal("writer", publish=">"))
        await until(lambda: session.ended is not None, "its token counts no more")
        await until(lambda: session not in server.publisher.sessions, "it is closed", 3)
        assert server.access.denied["TOKEN_INVALID"] == 1, "that is told once"
        told = await ending(call)
        assert (told.code, told.reason) == (UNAUTHENTICATED, "TOKEN_INVALID")
