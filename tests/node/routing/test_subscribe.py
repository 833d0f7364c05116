"""Subscribing through nodes that do not lead the channel: deliveries, credit, groups, sharing, moves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from ringpost.v1.channel_pb2 import DeleteChannelRequest, PurgeChannelRequest
from ringpost.v1.common_pb2 import GroupMode, OffsetRange, Start
from ringpost.v1.dead_letter_pb2 import (
    DropDeadLettersRequest,
    GetDeadLetterRequest,
    ListDeadLettersRequest,
    RedriveDeadLettersRequest,
)
from ringpost.v1.group_pb2 import (
    AddGroupRequest,
    GetGroupRequest,
    GroupConfig,
    RetryPolicy,
    SeekGroupRequest,
    SettleMessagesRequest,
)
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import (
    Ack,
    CloseSubscription,
    Credit,
    GrantCredit,
    Nack,
    Outcome,
    Reject,
    Settle,
    SubscribeRequest,
)
from tests.integration.broker import (
    Client,
    batch_of,
    next_event,
    open_subscription,
    rest_of,
    told_by_failure,
    told_by_status,
    until,
)
from tests.node.routing.cluster import Nodes, running

EARLIEST = Start(earliest=True)


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def fill(client: Client, channel: str, first: int, end: int, size: int = 0) -> None:
    """Messages that begin with their numbers, in batches of up to ten."""
    for at in range(first, end, 10):
        batch = batch_of(*(b"%d " % n + bytes(size) for n in range(at, min(at + 10, end))))
        await client.publisher.Publish(PublishRequest(channel=channel, batch=batch))


class Subscriber:
    """A stream with one subscription; `texts` is what came, in order."""

    def __init__(
        self, client: Client, channel: str, *, credit: int = 1_000_000, number: int = 1, **fields: Any
    ) -> None:
        self.client = client
        self.number = number
        self.stream = client.subscribe(120)
        self.texts: list[int] = []
        self.offsets: list[int] = []
        self.attempts: list[int] = []
        self.reasons: list[str] = []
        self.others: list[Any] = []
        self._open = open_subscription(channel, number, credit=credit, **fields)

    async def open(self) -> Any:
        await self.stream.write(self._open)
        return await next_event(self.stream, "opened")

    async def take(self, count: int) -> list[int]:
        """Reads until `count` more messages have come; their numbers."""
        goal = len(self.texts) + count
        async with asyncio.timeout(20):
            while len(self.texts) < goal:
                self._note(await self.stream.read())
        return self.texts[goal - count : goal]

    def _note(self, response: Any) -> None:
        assert response is not grpc.aio.EOF
        if response.WhichOneof("event") != "deliver":
            self.others.append(response)
            return
        assert response.deliver.subscription_id == self.number
        for batch in response.deliver.batches:
            assert batch.count == len(batch.batch.messages)
            self.offsets += range(batch.first_offset, batch.first_offset + batch.count)
            self.attempts += [batch.attempt] * batch.count
            self.reasons += [batch.last_reason] * batch.count
            self.texts += [int(message.data.split(b" ")[0]) for message in batch.batch.messages]

    async def grant(self, messages: int, size: int = 1 << 40) -> None:
        credit = GrantCredit(subscription_id=self.number, credit=Credit(messages=messages, bytes=size))
        await self.stream.write(SubscribeRequest(credit=credit))

    async def settle(self, *ranges: tuple[int, int], correlation: int = 5, **fields: Any) -> Any:
        action = fields if {"nack", "extend", "reject"} & set(fields) else {"ack": Ack(), **fields}
        pairs = [OffsetRange(first=first, last=last) for first, last in ranges]
        settle = Settle(subscription_id=self.number, correlation=correlation, ranges=pairs, **action)
        await self.stream.write(SubscribeRequest(settle=settle))
        settled = await next_event(self.stream, "settled")
        assert (settled.subscription_id, settled.correlation) == (self.number, correlation)
        return [(one.range.first, one.range.last, one.outcome) for one in settled.results] or settled.failure

    async def end(self) -> None:
        await self.stream.done_writing()
        await rest_of(self.stream)


def relay(nodes: Nodes, name: str) -> Any:
    return nodes.servers[name].hub.relay


async def sharing(nodes: Nodes, name: str, upstreams: int) -> None:
    """Waits until a node's subscriptions need so many upstreams."""
    await until(lambda: relay(nodes, name).upstreams == upstreams, f"{upstreams} upstreams")


async def test_any_node_delivers(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n3"], channel, 0, 50)
    subscriber = Subscriber(nodes.clients["n1"], channel, start=EARLIEST, number=300)
    opened = await subscriber.open()
    assert (opened.subscription_id, opened.next_offset, opened.end_offset, opened.owner) == (300, 0, 50, "n2")
    assert await subscriber.take(50) == list(range(50))
    await fill(nodes.clients["n1"], channel, 50, 60)
    assert await subscriber.take(10) == list(range(50, 60))
    await subscriber.end()
    await sharing(nodes, "n1", 0)


async def test_credit_is_the_client_s(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n3"], channel, 0, 50)
    subscriber = Subscriber(nodes.clients["n1"], channel, start=EARLIEST, credit=7)
    await subscriber.open()
    assert await subscriber.take(7) == list(range(7))
    await subscriber.grant(8)
    assert await subscriber.take(1) == [7]
    await subscriber.grant(20, 1 << 40)
    await subscriber.take(12)
    await subscriber.grant(1_000, 5)  # fewer bytes than were sent
    await subscriber.grant(25, 1 << 40)
    assert await subscriber.take(5) == list(range(20, 25))
    server = nodes.servers["n2"]
    assert sum(flow.credit.sent_messages for s in server.hub.sessions for flow in s.subscriptions.values()) == 25


async def test_a_client_that_does_not_read_costs_a_window(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 300, size=100_000)
    subscriber = Subscriber(nodes.clients["n1"], channel, start=EARLIEST)
    await subscriber.open()
    await asyncio.sleep(0.5)
    (flow,) = relay(nodes, "n1")._relayed
    window = flow.window
    assert flow._buffered_bytes <= window + 100_100
    # gRPC takes a few MiB on the client's side, in this process.
    assert flow.credit.sent_bytes < 15 << 20, "most of it has not left the leader"
    assert await subscriber.take(300) == list(range(300))


async def test_a_group_works_through_any_nodes(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 40)
    ann = Subscriber(nodes.clients["n1"], channel, group="g", credit=10)
    bob = Subscriber(nodes.clients["n3"], channel, group="g", credit=30, number=2)
    assert (await ann.open()).ack_deadline_ms == 30_000
    await ann.take(10)
    await bob.open()
    await bob.take(30)
    assert sorted(ann.texts + bob.texts) == list(range(40))

    assert await ann.settle((0, 3)) == [(0, 3, Outcome.OUTCOME_DONE)]
    assert await ann.settle((0, 4)) == [(0, 3, Outcome.OUTCOME_ALREADY), (4, 4, Outcome.OUTCOME_DONE)]
    assert await bob.settle((10, 39), cumulative=True) == [(10, 39, Outcome.OUTCOME_DONE)]
    assert await ann.settle((5, 5), nack=Nack()) == [(5, 5, Outcome.OUTCOME_DONE)]
    await ann.grant(11)
    assert await ann.take(1) == [5]
    assert ann.attempts[-1] == 2
    group = (await nodes.clients["n1"].groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group
    assert (group.settled_below, group.pending, group.in_flight) == (5, 5, 5)
    await ann.end()
    await bob.grant(35)
    assert sorted(await bob.take(5)) == [5, 6, 7, 8, 9]


async def test_a_cumulative_ack_leaves_out_what_the_client_has_not_got(nodes: Nodes) -> None:
    """A redelivery that still waits at the entry node is older than what the client acknowledges."""
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 6)
    subscriber = Subscriber(nodes.clients["n1"], channel, group="g", credit=6)
    await subscriber.open()
    await subscriber.take(6)
    (flow,) = relay(nodes, "n1")._relayed
    flow._handed.remove(2, 2)  # as if 2 were still here

    assert await subscriber.settle((5, 5), cumulative=True) == [
        (0, 1, Outcome.OUTCOME_DONE),
        (3, 5, Outcome.OUTCOME_DONE),
    ]
    assert await subscriber.settle((4, 7), cumulative=True) == [
        (4, 5, Outcome.OUTCOME_ALREADY),
        (6, 7, Outcome.OUTCOME_UNKNOWN),
    ]


async def test_work_is_confirmed_after_the_entry_node_died(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 20)
    subscriber = Subscriber(nodes.clients["n1"], channel, group="g")
    await subscriber.open()
    await subscriber.take(20)
    await nodes.kill("n1")

    ranges = [OffsetRange(first=0, last=9)]
    request = SettleMessagesRequest(channel=channel, group="g", ranges=ranges, ack=Ack())
    (result,) = (await nodes.clients["n3"].groups.Settle(request)).results
    assert result.outcome == Outcome.OUTCOME_DONE
    again = Subscriber(nodes.clients["n3"], channel, group="g")
    await again.open()
    assert sorted(await again.take(10)) == list(range(10, 20))


async def test_the_mode_of_a_group_is_the_same_through_any_node(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 6)
    ann = Subscriber(nodes.clients["n1"], channel, group="g", mode=GroupMode.GROUP_MODE_FAILOVER, consumer="ann")
    bob = Subscriber(nodes.clients["n3"], channel, group="g", mode=GroupMode.GROUP_MODE_FAILOVER, consumer="bob")
    await ann.open()
    await bob.open()
    assert await ann.take(6) == list(range(6))
    group = (await nodes.clients["n3"].groups.GetGroup(GetGroupRequest(channel=channel, name="g"))).group
    assert [(member.consumer, member.active) for member in group.members] == [("ann", True), ("bob", False)]
    await ann.end()
    assert await bob.take(6) == list(range(6))

    other = nodes.clients["n1"].subscribe(120)
    await other.write(open_subscription(channel, group="g", mode=GroupMode.GROUP_MODE_EXCLUSIVE))
    told = told_by_failure((await next_event(other, "closed")).failure)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GROUP_MODE")
    alone = [nodes.clients[name].subscribe(120) for name in ("n1", "n3")]
    for stream in alone:
        await stream.write(open_subscription(channel, group="h", mode=GroupMode.GROUP_MODE_EXCLUSIVE))
        if stream is alone[0]:
            await next_event(stream, "opened")
    told = told_by_failure((await next_event(alone[1], "closed")).failure)
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "GROUP_OCCUPIED")
    assert told.retry_after_ms > 0


async def test_dead_letters_are_looked_after_through_any_node(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n2"], channel, 0, 3)
    one, three = nodes.clients["n1"], nodes.clients["n3"]
    config = GroupConfig(retry=RetryPolicy(backoff=1, delay_ms=1), max_attempts=2)
    await three.groups.AddGroup(AddGroupRequest(channel=channel, name="g", config=config))
    subscriber = Subscriber(one, channel, group="g")
    await subscriber.open()
    await subscriber.take(3)
    await subscriber.settle((2, 2), reject=Reject(reason="bad"))
    await subscriber.settle((0, 1), nack=Nack(reason="busy"))
    await subscriber.take(2)
    assert subscriber.reasons == ["", "", "", "busy", "busy"]
    assert await subscriber.settle((0, 1), nack=Nack(reason="down")) == [(0, 1, Outcome.OUTCOME_DONE)]
    on = {"channel": channel, "group": "g"}
    listed = (await three.letters.ListDeadLetters(ListDeadLettersRequest(**on))).letters
    assert [(letter.offset, letter.reason, letter.attempts) for letter in listed] == [
        (2, "bad", 1),
        (0, "down", 2),
        (1, "down", 2),
    ]
    answer = await one.letters.RedriveDeadLetters(RedriveDeadLettersRequest(**on, numbers=[1, 2]))
    assert (answer.redriven, answer.numbers_done) == (2, 2)
    await subscriber.take(2)
    assert subscriber.offsets[-2:] == [0, 1]
    assert subscriber.attempts[-2:] == [1, 1]
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await three.letters.GetDeadLetter(GetDeadLetterRequest(**on, number=1))
    assert told_by_status(error.value).reason == "DEAD_LETTER_NOT_FOUND"
    assert (await three.letters.DropDeadLetters(DropDeadLettersRequest(**on))).dropped == 1


# -- sharing --------------------------------------------------------------------------------------------------------


async def test_subscribers_at_the_live_tail_share_one_upstream(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    subscribers = [Subscriber(nodes.clients["n1"], channel, number=n) for n in (1, 2, 3, 3)]
    for subscriber in subscribers:
        await subscriber.open()
    await sharing(nodes, "n1", 1)
    await fill(nodes.clients["n3"], channel, 0, 100)
    for subscriber in subscribers:
        assert await subscriber.take(100) == list(range(100))
    (session,) = (s for s in nodes.servers["n2"].hub.sessions if s.forwarded)
    assert len(session.subscriptions) == 1

    late = Subscriber(nodes.clients["n1"], channel, start=EARLIEST)
    await late.open()
    assert await late.take(100) == list(range(100))
    await fill(nodes.clients["n3"], channel, 100, 110)
    await sharing(nodes, "n1", 1)
    for subscriber in (*subscribers, late):
        assert await subscriber.take(10) == list(range(100, 110))
        await subscriber.end()
    await sharing(nodes, "n1", 0)


async def test_a_slow_one_costs_the_fast_one_nothing_and_misses_nothing(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    fast = Subscriber(nodes.clients["n1"], channel)
    slow = Subscriber(nodes.clients["n1"], channel, credit=15)
    for subscriber in (fast, slow):
        await subscriber.open()
    await sharing(nodes, "n1", 1)
    await fill(nodes.clients["n3"], channel, 0, 100)
    assert await fast.take(100) == list(range(100))
    assert await slow.take(15) == list(range(15))
    await sharing(nodes, "n1", 2)

    await slow.grant(1_000_000)
    assert await slow.take(85) == list(range(15, 100))
    await asyncio.sleep(1.1)  # it is left alone for a second
    await fill(nodes.clients["n3"], channel, 100, 110)
    await sharing(nodes, "n1", 1)
    await fill(nodes.clients["n3"], channel, 110, 120)
    assert await slow.take(20) == list(range(100, 120)) == await fast.take(20)


async def test_one_that_does_not_read_is_left_behind(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    reading, asleep = (Subscriber(nodes.clients["n1"], channel) for _ in range(2))
    for subscriber in (reading, asleep):
        await subscriber.open()
    await sharing(nodes, "n1", 1)
    async with asyncio.TaskGroup() as both:
        both.create_task(fill(nodes.clients["n3"], channel, 0, 200, size=100_000))
        got = both.create_task(reading.take(200))
    assert got.result() == list(range(200))
    await sharing(nodes, "n1", 2)
    held = {flow.session: flow._buffered_bytes for flow in relay(nodes, "n1")._relayed}
    assert max(held.values()) < 3 << 20
    assert await asleep.take(200) == list(range(200))


# -- moves ----------------------------------------------------------------------------------------------------------


async def test_an_ephemeral_subscription_goes_along(nodes: Nodes) -> None:
    """Through an entry node, through the old leader, through the new one: each message once, in order."""
    channel = nodes.channel("n1")
    shard = nodes.shard(channel)
    subscribers = [Subscriber(client, channel) for client in nodes.clients.values()]
    for subscriber in subscribers:
        await subscriber.open()
    end = 0
    for to in ("n2", "n3", "n1", "n2", "n1"):
        await fill(nodes.clients["n3"], channel, end, end + 30)
        await nodes.hand_over(shard, to)
        await fill(nodes.clients["n2"], channel, end + 30, end + 40)
        end += 40
    for subscriber in subscribers:
        assert await subscriber.take(end) == list(range(end))
        assert subscriber.offsets == list(range(end))
        assert subscriber.others == []


async def test_credit_survives_a_move(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    subscribers = [Subscriber(client, channel, credit=15) for client in nodes.clients.values()]
    for subscriber in subscribers:
        await subscriber.open()
    await fill(nodes.clients["n3"], channel, 0, 10)
    await nodes.hand_over(nodes.shard(channel), "n2")
    await fill(nodes.clients["n3"], channel, 10, 30)
    for subscriber in subscribers:
        assert await subscriber.take(15) == list(range(15))
        await subscriber.grant(16)
        assert await subscriber.take(1) == [15]


async def test_a_group_is_told_to_come_again(nodes: Nodes) -> None:
    channel = nodes.channel("n1")
    await fill(nodes.clients["n3"], channel, 0, 10)
    subscribers = [Subscriber(client, channel, group="g", credit=3) for client in nodes.clients.values()]
    for subscriber in subscribers:
        await subscriber.open()
        await subscriber.take(3)
    assert await subscribers[1].settle((0, 9), cumulative=True) is not None
    await nodes.hand_over(nodes.shard(channel), "n2")

    for subscriber in subscribers:
        closed = told_by_failure((await next_event(subscriber.stream, "closed")).failure)
        assert (closed.code, closed.reason) == (grpc.StatusCode.UNAVAILABLE, "GROUP_MOVED")
        assert closed.retry_after_ms > 0
        await subscriber.open()


async def test_a_leader_that_dies_and_comes_back_is_found_again(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    await fill(nodes.clients["n1"], channel, 0, 10)
    plain = Subscriber(nodes.clients["n1"], channel, start=EARLIEST)
    member = Subscriber(nodes.clients["n1"], channel, group="g")
    for subscriber in (plain, member):
        await subscriber.open()
        await subscriber.take(10)
    await nodes.kill("n2")
    assert (await next_event(member.stream, "closed")).failure.reason == "GROUP_MOVED"
    await member.stream.write(member._open)  # waits for the leader
    await nodes.start("n2")
    nodes.world.assign({nodes.shard(channel): "n2"})
    await next_event(member.stream, "opened")
    await fill(nodes.clients["n3"], channel, 10, 20)
    assert await plain.take(10) == list(range(10, 20))
    assert sorted(await member.take(20)) == list(range(20))


async def test_no_leader_for_long_closes_the_subscription(tmp_path: Path) -> None:
    async with running(tmp_path, ("n1", "n2"), forward_patience_ms=200) as nodes:
        channel = nodes.channel("n2")
        plain = Subscriber(nodes.clients["n1"], channel)
        await plain.open()
        nodes.world.assign({nodes.shard(channel): None})
        closed = told_by_failure((await next_event(plain.stream, "closed")).failure)
        assert (closed.code, closed.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
        await plain.stream.write(plain._open)
        assert (await next_event(plain.stream, "closed")).failure.reason == "NOT_LEADER"


# -- the rest of the story ------------------------------------------------------------------------------------------


async def test_what_happens_to_the_channel_is_told(nodes: Nodes) -> None:
    channel, client = nodes.channel("n2"), nodes.clients["n1"]
    await fill(client, channel, 0, 20)
    await client.groups.AddGroup(AddGroupRequest(channel=channel, name="g"))
    await client.channels.PurgeChannel(PurgeChannelRequest(name=channel, before_offset=5))
    plain = Subscriber(client, channel, start=Start(offset=2))
    member = Subscriber(client, channel, group="g")
    await plain.open()
    await plain.take(15)
    (gap,) = (other.gap.missing for other in plain.others)
    assert ((gap.first, gap.last), plain.offsets[0]) == ((2, 4), 5)

    await member.open()
    await member.take(15)
    await nodes.clients["n3"].groups.SeekGroup(SeekGroupRequest(channel=channel, name="g", to=EARLIEST))
    assert (await next_event(member.stream, "closed")).failure.reason == "GROUP_MOVED"
    await nodes.clients["n3"].channels.DeleteChannel(DeleteChannelRequest(name=channel))
    assert (await next_event(plain.stream, "closed")).failure.reason == "CHANNEL_DELETED"


async def test_a_closed_subscription_gives_its_leases_back(nodes: Nodes) -> None:
    channel, client = nodes.channel("n2"), nodes.clients["n1"]
    await fill(client, channel, 0, 10)
    ann, bob = Subscriber(client, channel, group="g"), Subscriber(client, channel, group="g")
    await ann.open()
    await ann.take(10)
    await bob.open()
    await ann.stream.write(SubscribeRequest(close=CloseSubscription(subscription_id=1)))
    assert not (await next_event(ann.stream, "closed")).HasField("failure")
    assert sorted(await bob.take(10)) == list(range(10))
    assert bob.attempts == [1] * 10


async def test_the_peer_port_serves_only_what_its_node_leads(nodes: Nodes) -> None:
    channel = nodes.channel("n2")
    async with Client(f"127.0.0.1:{nodes.servers['n1'].peer_port}") as peer:
        stream = peer.subscribe()
        await stream.write(open_subscription(channel))
        closed = told_by_failure((await next_event(stream, "closed")).failure)
        with pytest.raises(grpc.aio.AioRpcError) as call:
            await peer.groups.GetGroup(GetGroupRequest(channel=channel, name="g"))
        with pytest.raises(grpc.aio.AioRpcError) as publish:
            await peer.publisher.Publish(PublishRequest(channel=channel, batch=batch_of(b"x")))
    for told in (closed, told_by_status(call.value), told_by_status(publish.value)):
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
        assert told.metadata == {"shard": str(nodes.shard(channel)), "leader": "n2", "epoch": "1"}
