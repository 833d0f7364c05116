"""Subscriptions of a group: leases, settlements, shares, and how members come and go."""

import asyncio

import grpc
import pytest

from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import delete_group, seek_group
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import Ack, Nack, Outcome
from tests.node.delivery.fakes import (
    Stream,
    batches_of,
    code,
    events,
    hub_of,
    numbered,
    ranges,
    reason_of,
    spans,
    stored,
    turns,
    with_group,
)
from tests.node.shard.fakes import Outcomes, Rig, batch_of

S = 1_000_000
DONE, UNKNOWN = Outcome.OUTCOME_DONE, Outcome.OUTCOME_UNKNOWN


async def test_a_group_delivers_with_leases_and_settles() -> None:
    rig = Rig()
    group, stream = with_group(rig, 3, 2), Stream(hub_of(rig))
    stream.open(group="g")
    said = await stream.said()
    assert (said[0].opened.next_offset, said[0].opened.ack_deadline_ms) == (0, 30_000)
    assert spans(said) == [(0, 2, 1), (3, 4, 1)]
    assert {batch.lease_ms for batch in batches_of(said)} == {30_000}
    stream.settle(correlation=8, ranges=ranges((0, 1), (7, 7)), ack=Ack())
    assert await stream.said() == [], "not yet stored"
    stored(rig)
    (answer,) = await stream.said()
    assert (answer.settled.subscription_id, answer.settled.correlation) == (1, 8)
    results = [(r.range.first, r.range.last, r.outcome) for r in answer.settled.results]
    assert results == [(0, 1, DONE), (7, 7, UNKNOWN)]
    assert group.core.settled_below == 2
    assert stream.session.hub.counters.settled == {"DONE": 2}


async def test_a_node_that_may_have_been_replaced_gives_groups_nothing_and_readers_all_the_same() -> None:
    """What is committed stays so, whoever leads; but a message may be settled by now, where another node leads."""
    rig = Rig()
    with_group(rig, 3)
    hub = hub_of(rig)
    hub.may_deliver = lambda _: False
    member, reader = Stream(hub), Stream(hub)
    member.open(group="g")
    reader.open(start=Start(earliest=True))
    assert spans(await member.said()) == []
    assert spans(await reader.said()) == [(0, 2, 0)]
    hub.may_deliver = lambda _: True
    async with asyncio.timeout(5):
        while not (said := spans(await member.said())):
            await asyncio.sleep(0.005)
    assert said == [(0, 2, 1)]


async def test_a_group_is_made_by_first_use_where_asked() -> None:
    rig = Rig()
    numbered(rig, 3)
    stream = Stream(hub_of(rig))
    stream.open(group="g", start=Start(offset=2))
    await turns()
    rig.commit()
    said = await stream.said()
    assert events(said) == ["opened", "deliver"]
    assert spans(said) == [(2, 2, 1)]
    other = Stream(stream.session.hub)
    other.open(group="g", start=Start(earliest=True))
    (closed,) = await other.said()
    assert reason_of(closed) == (code(grpc.StatusCode.INVALID_ARGUMENT), "INVALID_ARGUMENT")


async def test_members_share_and_nobody_gets_what_another_has() -> None:
    rig = Rig()
    with_group(rig, *[1] * 12)
    hub = hub_of(rig)
    streams = [Stream(hub) for _ in range(3)]
    for stream in streams:
        stream.open(group="g", messages=0)
        await stream.said()
    got: list[list[int]] = [[], [], []]
    for stream in streams:
        stream.credit()
    for _ in range(6):
        for mine, stream in zip(got, streams, strict=True):
            mine += [offset for first, last, _ in spans(await stream.said()) for offset in range(first, last + 1)]
    assert sorted(offset for mine in got for offset in mine) == list(range(12))
    assert all(got)


async def test_a_nack_comes_again_with_the_next_attempt() -> None:
    rig = Rig()
    with_group(rig, 2)
    stream = Stream(hub_of(rig))
    stream.open(group="g")
    await stream.said()
    stream.settle(ranges=ranges((1, 1)), nack=Nack(reason="busy"))
    stored(rig)
    said = await stream.said()
    assert sorted(events(said)) == ["deliver", "settled"]
    assert spans(said) == [(1, 1, 2)]
    assert [batch.last_reason for event in said for batch in event.deliver.batches] == ["busy"]
    assert stream.session.hub.counters.redeliveries == 1


async def test_an_expired_lease_is_delivered_again() -> None:
    rig = Rig()
    with_group(rig, 2, ack_deadline_ms=2_000)
    stream = Stream(hub_of(rig))
    stream.open(group="g")
    assert spans(await stream.said()) == [(0, 1, 1)]
    rig.time.pass_us(2 * S + 2_000)
    rig.commit()
    assert spans(await stream.said()) == [(0, 1, 2)]


async def test_a_lease_that_ended_before_it_was_sent_is_not_sent() -> None:
    rig = Rig()
    with_large_first(rig, ack_deadline_ms=2_000)
    stream = Stream(hub_of(rig))
    stream.open(group="g", bytes=50)
    assert spans(await stream.said()) == [(0, 0, 1)]
    assert stream.session.subscriptions[1].membership.unsent == [(1, 3)]
    rig.time.pass_us(2 * S + 2_000)
    rig.commit()
    stream.credit(messages=6)
    assert spans(await stream.said()) == [(0, 0, 2), (1, 3, 2), (4, 4, 1)]


async def test_about_as_much_is_leased_as_the_bytes_allow() -> None:
    rig = Rig()
    group = with_group(rig, 100)
    stream = Stream(hub_of(rig))
    stream.open(group="g", bytes=len(batch_of("m0")))
    assert spans(await stream.said()) == [(0, 0, 1)]
    assert group.core.in_flight == 1


async def test_a_late_ack_of_what_waits_to_be_sent_again_is_the_last_word() -> None:
    rig = Rig()
    with_large_first(rig)
    stream = Stream(hub_of(rig))
    await two_again_one_unsent(rig, stream)
    stream.settle(ranges=ranges((1, 1)), ack=Ack())
    stored(rig)
    assert events(await stream.said()) == ["settled"]
    stream.credit(messages=9)
    assert spans(await stream.said()) == [(6, 7, 1)], "not message 1"


async def test_a_cumulative_ack_leaves_out_what_never_arrived() -> None:
    rig = Rig()
    group = with_large_first(rig)
    stream = Stream(hub_of(rig))
    await two_again_one_unsent(rig, stream)
    stream.settle(ranges=ranges((5, 5)), cumulative=True, ack=Ack())
    stored(rig)
    assert events(await stream.said()) == ["settled"]
    assert group.core.settled_below == 1
    stream.credit(messages=8)
    assert spans(await stream.said()) == [(1, 1, 2)]


def with_large_first(rig: Rig, **settings: int) -> Group:
    """A group on a channel with one message of 1,000 bytes before 200 small ones."""
    channel = rig.channel()
    rig.publish(channel, "x" * 1_000)
    rig.publish(channel, *["m"] * 200)
    return with_group(rig, **settings)


async def two_again_one_unsent(rig: Rig, stream: Stream) -> None:
    """Messages 0 to 5 arrived; 0 and 1 were nacked and leased again, and only 0 has left."""
    stream.open(group="g", messages=6)
    assert spans(await stream.said()) == [(0, 0, 1), (1, 5, 1)]
    stream.settle(ranges=ranges((0, 1)), nack=Nack())
    stored(rig)
    assert events(await stream.said()) == ["settled"]
    subscription = stream.session.subscriptions[1]
    stream.credit(messages=8, size=subscription.credit.sent_bytes + 50)
    assert spans(await stream.said()) == [(0, 0, 2)]
    assert subscription.membership.unsent == [(1, 1)]


async def test_a_seek_ends_subscriptions_so_that_old_settlements_mean_nothing() -> None:
    rig = Rig()
    group = with_large_first(rig)
    stream = Stream(hub_of(rig))
    stream.open(group="g", bytes=50)
    assert spans(await stream.said()) == [(0, 0, 1)]
    seek_group(group, 4, Outcomes())
    rig.commit()
    (closed,) = await stream.said()
    assert reason_of(closed) == (code(grpc.StatusCode.UNAVAILABLE), "GROUP_MOVED")
    stream.open(group="g", messages=3)
    assert spans(await stream.said()) == [(4, 6, 1)]


async def test_close_releases_leases_at_once_without_an_attempt() -> None:
    rig = Rig()
    group = with_group(rig, 4)
    hub = hub_of(rig)
    one, two = Stream(hub), Stream(hub)
    one.open(group="g")
    assert spans(await one.said()) == [(0, 3, 1)]
    two.open(group="g")
    assert events(await two.said()) == ["opened"]
    one.close()
    assert events(await one.said()) == ["closed"]
    assert spans(await two.said()) == [(0, 3, 1)]
    assert set(group.members) == {2}
    two.session.close()
    assert group.members == {}
    assert group.core.in_flight == 0


async def test_a_deleted_group_or_channel_closes_its_subscriptions() -> None:
    rig = Rig()
    group, stream = with_group(rig, 2), Stream(hub_of(rig))
    stream.open(1, group="g")
    stream.open(2)
    await stream.said()
    delete_group(group, Outcomes())
    (closed,) = await stream.said()
    assert closed.closed.subscription_id == 1
    assert reason_of(closed) == (code(grpc.StatusCode.NOT_FOUND), "GROUP_DELETED")
    rig.store.delete(group.channel, Outcomes())
    rig.commit()
    (closed,) = await stream.said()
    assert closed.closed.subscription_id == 2
    assert reason_of(closed)[1] == "CHANNEL_DELETED"
    assert stream.session.hub.subscriptions == 0


async def test_a_settlement_is_answered_though_its_group_goes() -> None:
    rig = Rig()
    group, stream = with_group(rig, 2), Stream(hub_of(rig))
    stream.open(group="g")
    await stream.said()
    stream.settle(correlation=1, ranges=ranges((0, 0)), ack=Ack())
    delete_group(group, Outcomes())
    rig.commit()
    said = await stream.said()
    assert sorted(events(said)) == ["closed", "settled"]
    assert stream.session.unanswered == 0


@pytest.mark.parametrize("what", ["group", "channel"])
async def test_a_group_deleted_while_it_is_joined_closes_the_subscription(what: str) -> None:
    rig = Rig()
    channel, stream = numbered(rig, 2), Stream(hub_of(rig))
    stream.open(group="g")
    await turns()
    made = (channel.groups or {})["g"]
    if what == "group":
        delete_group(made, Outcomes())
    else:
        rig.store.delete(channel, Outcomes())
    rig.commit()
    (closed,) = await stream.said()
    assert reason_of(closed)[0] == code(grpc.StatusCode.NOT_FOUND)
    assert made.members == {}
