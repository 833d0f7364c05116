"""The client among several nodes: straight to owners, through failovers, never twice."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from ringpost.client import Client, LeaseLost, NotFound, Options, Precondition, Unavailable, connect
from tests.client.fake_ring import FakeRing

# Bounds are for a busy machine; what they exclude is a wait of the client's own.
SOON_S = 3.0


@pytest_asyncio.fixture
async def ring() -> AsyncIterator[FakeRing]:
    ring = FakeRing()
    await ring.start()
    yield ring
    await ring.stop()


@pytest_asyncio.fixture
async def mq(ring: FakeRing) -> AsyncIterator[Client]:
    """Knows only the first node's address."""
    async with connect(ring.addresses[0]) as client:
        yield client


def published_at(ring: FakeRing, channel: str) -> set[str]:
    return {n.node for n in ring.nodes if any(request.channel == channel for request in n.publishes)}


async def cut_off(mq: Client, address: str) -> None:
    """Returns when the client's channel for calls to that address knows that its connection is gone."""
    channel = mq._connections.channel("admin", address)
    while (state := channel.get_state()) is grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)


async def test_publishes_go_straight_to_the_owner(ring: FakeRing, mq: Client) -> None:
    for node in ring.nodes:
        channel = ring.owned_by(node.node)
        receipt = await mq.publish(channel, "x")
        assert receipt.offset == 0
        assert published_at(ring, channel) == {node.node}
    assert [node.publish_streams for node in ring.nodes] == [1, 1, 1]


async def test_any_routing_keeps_to_the_address_that_was_given(ring: FakeRing) -> None:
    async with connect(ring.addresses[1], options=Options(routing="any")) as mq:
        for n in range(10):
            await mq.publish(f"c{n}", "x")
    assert [node.publish_streams for node in ring.nodes] == [0, 1, 0]
    assert ring.route_calls == 0


async def test_addresses_that_lead_nowhere_cost_a_moment_and_no_more(ring: FakeRing) -> None:
    ring.advertised = {"n1": "127.0.0.1:1", "n2": "unknown.invalid:1", "n3": "127.0.0.1:2"}
    async with connect(ring.addresses[2]) as mq:
        await asyncio.wait_for(asyncio.gather(*(mq.publish(f"c{n}", "x") for n in range(10))), SOON_S)
    assert published_at(ring, "c1") == {"n3"}


async def test_subscriptions_pass_over_names_that_lead_nowhere(ring: FakeRing) -> None:
    """As behind mapped ports: what nodes call themselves has no meaning for the client."""
    ring.advertised = {node.node: f"{node.node}.invalid:1" for node in ring.nodes}
    channels = [f"c{n}" for n in range(40)]
    async with connect(ring.addresses) as mq:
        await asyncio.gather(*(mq.publish(channel, "x") for channel in channels))

    async def first(mq: Client, channel: str) -> bytes:
        async with mq.subscription(channel, start="earliest") as subscription:
            return (await anext(aiter(subscription))).data

    async with connect(ring.addresses) as mq:
        got = await asyncio.wait_for(asyncio.gather(*(first(mq, channel) for channel in channels)), 2 * SOON_S)
    assert got == [b"x"] * len(channels)


async def test_the_second_address_is_tried_at_once_when_the_first_is_dead(ring: FakeRing) -> None:
    await ring.kill(ring.nodes[0])
    begin = time.monotonic()
    async with connect(f"{ring.addresses[0]},{ring.addresses[1]}") as mq:
        assert mq.connected_to is not None
        assert mq.connected_to.node == "n2"
        await mq.publish("a", "x")
    assert time.monotonic() - begin < SOON_S


async def test_a_killed_owner_is_ridden_through_without_loss_double_or_disorder(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n2")
    await mq.publish(channel, "0")
    owner = ring.node("n2")
    owner.answering.clear()  # stored, and the answer lost with the node
    pending = [mq.publish_nowait(channel, str(n)) for n in range(1, 200)]
    await owner.until(lambda: len(ring.channels[channel].messages) > 1)
    await ring.kill(owner)
    pending += [mq.publish_nowait(channel, str(n)) for n in range(200, 300)]

    begin = time.monotonic()
    receipts = [await asyncio.wait_for(one, SOON_S) for one in pending]
    assert time.monotonic() - begin < SOON_S
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(300)]
    assert [receipt.offset for receipt in receipts] == list(range(1, 300))
    assert published_at(ring, channel) > {"n2"}


async def test_the_other_channels_do_not_notice_a_killed_node(ring: FakeRing, mq: Client) -> None:
    ours, other = ring.owned_by("n1"), ring.owned_by("n2")
    await mq.publish(ours, "0")
    await mq.publish(other, "0")
    await ring.kill(ring.node("n2"))
    await mq.publish(ours, "1")
    assert ring.node("n1").publish_streams == 1
    await asyncio.wait_for(mq.publish(other, "1"), SOON_S)
    assert ring.channels[other].payloads() == [b"0", b"1"]


async def test_an_answer_that_names_another_owner_is_followed(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n1")
    await mq.publish(channel, "0")
    ring.move(channel, ring.node("n3"))
    await mq.publish(channel, "1")  # forwarded; the answer says by whom
    await mq.publish(channel, "2")
    assert ring.node("n3").publishes[-1].batch.messages[0].data == b"2"
    assert len(ring.node("n1").publishes) == 2


async def test_not_leader_is_followed_to_the_owner(ring: FakeRing, mq: Client) -> None:
    ring.forwarding = False
    channel = ring.owned_by("n1")
    await mq.publish(channel, "0")
    ring.move(channel, ring.node("n3"))
    pending = [mq.publish_nowait(channel, str(n)) for n in range(1, 50)]
    for one in pending:
        await asyncio.wait_for(one, SOON_S)
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(50)]
    assert published_at(ring, channel) == {"n1", "n3"}


async def test_a_channel_that_moves_under_load_is_never_on_two_streams(ring: FakeRing) -> None:
    channel = ring.owned_by("n1")
    async with connect(ring.addresses[0], options=Options(max_batch_messages=2)) as mq:
        pending = []
        for n in range(600):
            pending.append(mq.publish_nowait(channel, str(n)))
            if n % 100 == 99:
                ring.move(channel, ring.nodes[(n // 100 + 1) % 3])
                await pending[-50]
        for one in pending:
            await asyncio.wait_for(one, SOON_S)
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(600)]
    assert published_at(ring, channel) == {"n1", "n2", "n3"}
    # A second stream would have met a gap, and the session would have begun anew.
    assert {request.producer_epoch for node in ring.nodes for request in node.publishes} == {0}


async def test_a_frozen_owner_is_left_once_there_is_another(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n2")
    await mq.publish(channel, "0")
    frozen = ring.node("n2")
    frozen.thawed.clear()
    pending = [mq.publish_nowait(channel, str(n)) for n in range(1, 50)]
    ring.move(channel, ring.node("n3"))
    for one in pending:
        await asyncio.wait_for(one, 10)
    before = ring.channels[channel].payloads()
    frozen.thawed.set()  # it may still do what it was sent; nobody shall see it twice
    await mq.publish(channel, "50")
    assert before == [str(n).encode() for n in range(50)]
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(51)]


@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
async def test_an_owner_that_is_cut_off_from_the_others_is_left_once_there_is_another(
    ring: FakeRing, mq: Client, node: str
) -> None:
    channel, old = ring.owned_by(node), ring.node(node)
    await mq.publish(channel, "0")
    ring.cut_off(old)
    pending = [mq.publish_nowait(channel, str(n)) for n in range(1, 50)]
    await asyncio.sleep(2)  # it was asked whether it lives, and does
    ring.move(channel, ring.others(channel)[0])
    for one in pending:
        await asyncio.wait_for(one, 2 * SOON_S)
    old.answering.set()
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(50)]


async def test_a_draining_node_gets_nothing_new(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n2")
    await mq.publish(channel, "0")
    ring.move(channel, ring.node("n1"))
    ring.node("n2").drain()
    for n in range(1, 20):
        await asyncio.wait_for(mq.publish(channel, str(n)), SOON_S)
    assert ring.channels[channel].payloads() == [str(n).encode() for n in range(20)]


async def test_the_deadline_holds_when_every_node_is_gone(ring: FakeRing) -> None:
    async with connect(ring.addresses, options=Options(publish_timeout=0.5, close_timeout=0.2)) as mq:
        await mq.publish("a", "0")
        for node in ring.nodes:
            await node.stop()
        begin = time.monotonic()
        with pytest.raises(Exception, match="publish timeout"):
            await mq.publish("a", "1")
        assert time.monotonic() - begin < SOON_S


async def test_a_subscription_opens_at_the_owner_and_goes_on_elsewhere_at_once(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n2")
    async with mq.subscription(channel, start="earliest") as subscription:
        assert [len(node.opens) for node in ring.nodes] == [0, 1, 0]
        ring.nodes[0].put(channel, b"0", b"1")
        got = [(await anext(subscription)).data for _ in range(2)]
        await ring.kill(ring.node("n2"))
        begin = time.monotonic()
        ring.nodes[0].put(channel, b"2")
        got.append((await asyncio.wait_for(anext(subscription), SOON_S)).data)
    assert got == [b"0", b"1", b"2"]
    assert time.monotonic() - begin < SOON_S


async def test_a_group_s_messages_come_again_through_another_node(ring: FakeRing, mq: Client) -> None:
    channel = ring.owned_by("n3")
    ring.nodes[0].put(channel, b"0", b"1", b"2")
    async with mq.subscription(channel, group="g", start="earliest") as subscription:
        await (await anext(subscription)).ack()
        await ring.kill(ring.node("n3"))
        settled: list[bytes] = []
        while len(settled) < 2:
            message = await asyncio.wait_for(anext(subscription), SOON_S)
            with contextlib.suppress(LeaseLost):  # what was read before the kill was noticed
                await message.ack()
                settled.append(message.data)
    assert settled == [b"1", b"2"]


async def test_an_owner_that_freezes_under_a_subscription_is_left(ring: FakeRing) -> None:
    async with connect(ring.addresses[0]) as mq:
        channel = ring.owned_by("n2")
        async with mq.subscription(channel, start="earliest", heartbeat_interval=1.0) as subscription:
            ring.node("n2").thawed.clear()
            ring.move(channel, ring.node("n1"))
            ring.nodes[0].put(channel, b"0")
            assert (await asyncio.wait_for(anext(subscription), 10)).data == b"0"


async def test_reading_calls_pass_over_dead_and_frozen_nodes(ring: FakeRing, mq: Client) -> None:
    ring.nodes[0].thawed.clear()
    found = await mq.node.info()
    assert found.node in ("n2", "n3")
    await ring.kill(ring.node(found.node))
    assert (await mq.node.info()).node not in (found.node, "n1")


async def test_changing_calls_go_to_another_node_when_there_was_no_connection(ring: FakeRing, mq: Client) -> None:
    """Once the loss has shown: a call that runs into a connection which is about to break may have been carried out."""
    await ring.kill(ring.nodes[0])
    await cut_off(mq, ring.nodes[0].address)
    await mq.channels.add("made")
    assert "made" in ring.channels
    for node in ring.nodes[1:]:
        await node.stop()
        await cut_off(mq, node.address)
    with pytest.raises(Unavailable) as caught:
        await mq.channels.add("never")
    assert not caught.value.outcome_open


async def test_the_cluster_and_its_members(ring: FakeRing, mq: Client) -> None:
    status = await mq.cluster.status()
    assert (status.replication_factor, status.min_isr, list(status.offline_shards)) == (3, 2, [])
    assert [member.node for member in await mq.cluster.nodes()] == ["n1", "n2", "n3"]
    assert (await mq.cluster.set_node("n2", "drain")).node == "n2"
    assert len((await mq.cluster.routes()).shards) == 16
    ring.offline.add(3)
    await mq.cluster.accept_loss(3, "n1")
    with pytest.raises(Precondition, match="has a leader"):
        await mq.cluster.accept_loss(3, "n1")
    with pytest.raises(NotFound):
        await mq.cluster.set_node("n9", "rest")
    with pytest.raises(Precondition):
        await mq.cluster.remove_node("n1")
    with pytest.raises(ValueError, match="desired"):
        await mq.cluster.set_node("n1", "gone")
