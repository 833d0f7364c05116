"""One subscribe stream: several subscriptions, wrong commands, bounds, silence, and every way to end."""

import asyncio
from typing import Any

import grpc
import pytest

from ringpost.node.errors import InvalidRequest, Unavailable
from ringpost.node.shard.shard import Shard
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import Ack, Extend, Nack, Outcome, Reject, SubscribeRequest, SubscribeResponse
from tests.node.delivery.fakes import (
    MANY,
    Stream,
    code,
    events,
    hub_of,
    numbered,
    ranges,
    reason_of,
    stored,
    turns,
    with_group,
)
from tests.node.shard.fakes import START_US, Rig

DONE = Outcome.OUTCOME_DONE


# -- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"ack": Ack()}, "settle.ranges"),
        ({"ack": Ack(), "ranges": ranges(*[(0, 0)] * 1001)}, "settle.ranges"),
        ({"ack": Ack(), "ranges": ranges((0, 0), (2, 1))}, "settle.ranges[1]"),
        ({"ranges": ranges((0, 0))}, "settle.action"),
        ({"ranges": ranges((0, 0)), "nack": Nack(delay_ms=604_800_001)}, "settle.nack.delay_ms"),
        ({"ranges": ranges((0, 0)), "extend": Extend(deadline_ms=999)}, "settle.extend.deadline_ms"),
        ({"ranges": ranges((0, 0)), "extend": Extend(deadline_ms=43_200_001)}, "settle.extend.deadline_ms"),
        ({"ranges": ranges((0, 0)), "reject": Reject(reason="ä" * 513)}, "settle.reject.reason"),
    ],
    ids=str,
)
async def test_a_wrong_settlement_names_its_field_and_changes_nothing(fields: Any, place: str) -> None:
    rig = Rig()
    group, stream = with_group(rig, 2), Stream(hub_of(rig))
    stream.open(group="g")
    await stream.said()
    stream.settle(correlation=3, **fields)
    (answer,) = await stream.said()
    assert answer.settled.correlation == 3
    assert [violation.field for violation in answer.settled.failure.violations] == [place]
    assert group.core.in_flight == 2


async def test_settling_needs_a_subscription_with_a_group() -> None:
    rig = Rig()
    numbered(rig, 1)
    stream = Stream(hub_of(rig))
    stream.open()
    await stream.said()
    stream.settle(ranges=ranges((0, 0)), ack=Ack())
    stream.settle(number=5, ranges=ranges((0, 0)), ack=Ack())
    no_group, unknown = await stream.said()
    assert reason_of(no_group)[0] == code(grpc.StatusCode.INVALID_ARGUMENT)
    assert reason_of(unknown) == (code(grpc.StatusCode.NOT_FOUND), "SUBSCRIPTION_NOT_FOUND")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"number": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"channel": "bad name"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"group": "bad.name"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"consumer": "bad name"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"heartbeat_interval_ms": 999}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"start": Start(offset=3)}, grpc.StatusCode.OUT_OF_RANGE),
        ({"start": Start(time_us=-1)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"channel": "new", "start": Start(offset=1)}, grpc.StatusCode.OUT_OF_RANGE),
    ],
    ids=str,
)
async def test_a_subscription_that_cannot_begin_is_closed_with_the_reason(fields: Any, status: Any) -> None:
    rig = Rig()
    numbered(rig, 2)
    stream = Stream(hub_of(rig))
    frames = len(rig.journal.frames)
    stream.open(**fields)
    (closed,) = await stream.said()
    assert closed.closed.subscription_id == fields.get("number", 1)
    assert reason_of(closed)[0] == code(status)
    assert stream.session.subscriptions == {}
    assert stream.session.hub.subscriptions == 0
    assert len(rig.journal.frames) == frames
    stream.open()
    assert await stream.texts() == ["m0", "m1"], "the stream goes on"


async def test_a_number_in_use_ends_the_stream() -> None:
    rig = Rig()
    stream = Stream(hub_of(rig))
    stream.open()
    stream.open()
    with pytest.raises(InvalidRequest, match="in use"):
        await stream.session.next_message()


async def test_an_empty_command_ends_the_stream() -> None:
    stream = Stream(hub_of(Rig()))
    stream.session.handle(SubscribeRequest())
    with pytest.raises(InvalidRequest, match="command"):
        await stream.session.next_message()


async def test_there_are_only_so_many_subscriptions_on_a_stream() -> None:
    rig = Rig()
    stream = Stream(hub_of(rig, subscriptions_per_stream=2))
    for number in (1, 2, 3):
        stream.open(number)
    said = await stream.said()
    (closed,) = [response for response in said if response.WhichOneof("event") == "closed"]
    assert reason_of(closed) == (code(grpc.StatusCode.RESOURCE_EXHAUSTED), "SUBSCRIPTION_LIMIT")
    stream.close(1)
    stream.open(3)
    assert events(await stream.said()) == ["closed", "opened"]
    stream.close(9)
    (closed,) = await stream.said()
    assert reason_of(closed)[1] == "SUBSCRIPTION_NOT_FOUND"


# -- turns and bounds -------------------------------------------------------------------------------------------------


async def test_subscriptions_of_one_stream_send_in_turn() -> None:
    rig = Rig()
    for name in ("a", "b"):
        channel = rig.channel(name)
        for number in range(6):
            rig.publish(channel, f"{name}{number}" + "x" * 100)
    stream = Stream(hub_of(rig, delivery_bytes=200))
    stream.open(1, "a")
    stream.open(2, "b")
    said = await stream.said()
    order = [response.deliver.subscription_id for response in said if response.HasField("deliver")]
    assert sorted(order) == [1] * len(order[::2]) + [2] * len(order[1::2])
    assert order[:6] in ([1, 2] * 3, [2, 1] * 3)


async def test_a_reader_that_does_not_read_costs_a_bounded_queue() -> None:
    rig = Rig()
    channel = rig.channel()
    for _ in range(100):
        rig.publish(channel, "x" * 1000)
    hub = hub_of(rig, queue_bytes=16 << 10, delivery_bytes=4_000)
    stream = Stream(hub)
    stream.open()
    await turns(50)
    assert 16 << 10 <= stream.session.queued_bytes <= (16 << 10) + 4_200
    sent = stream.session.subscriptions[1].credit.sent_messages
    assert sent < 25
    asyncio.get_running_loop().call_soon(lambda: None)
    room = asyncio.ensure_future(stream.session.room())
    await turns()
    assert not room.done(), "commands wait too"
    texts = await stream.texts()
    assert len(texts) == 100
    await room


async def test_queues_are_smaller_when_there_are_many_streams() -> None:
    hub = hub_of(Rig(), queue_bytes=1 << 20, queues_bytes=4 << 20)
    streams = [Stream(hub) for _ in range(8)]
    assert hub.queue_bytes() == 512 << 10
    for stream in streams[1:]:
        stream.session.close()
    assert hub.queue_bytes() == 1 << 20


async def test_settlements_without_answer_are_bounded() -> None:
    rig = Rig()
    with_group(rig, 4)
    stream = Stream(hub_of(rig, settlements_per_stream=2))
    stream.open(group="g")
    await stream.said()
    for offset in (0, 1):
        stream.settle(ranges=ranges((offset, offset)), ack=Ack())
    room = asyncio.ensure_future(stream.session.room())
    await turns()
    assert not room.done()
    stored(rig)
    await room
    assert len(await stream.said()) == 2


# -- silence and the end ----------------------------------------------------------------------------------------------


def beaten(stream: Stream, seconds: float) -> bool:
    """Whether a heartbeat is queued when the hub looks so long after now."""
    before = stream.session.queued_bytes
    stream.session.beat(asyncio.get_running_loop().time() + seconds)
    return stream.session.queued_bytes > before


async def test_a_silent_stream_gets_a_heartbeat_in_time() -> None:
    rig = Rig()
    stream = Stream(hub_of(rig))
    assert not beaten(stream, 9)
    assert beaten(stream, 9.6), "the hub looks every half second"
    assert not beaten(stream, 20), "one waits already"
    (beat,) = await stream.said()
    assert beat.heartbeat.node_time_us == START_US
    assert not beaten(stream, 9)


async def test_the_least_interval_of_the_subscriptions_counts() -> None:
    rig = Rig()
    stream = Stream(hub_of(rig))
    stream.open(1, heartbeat_interval_ms=5_000)
    stream.open(2, heartbeat_interval_ms=2_000)
    stream.open(3, heartbeat_interval_ms=60_000)
    await stream.said()
    assert not beaten(stream, 1.4)
    assert beaten(stream, 1.6)


async def test_the_hub_s_beat_reaches_every_stream() -> None:
    hub = hub_of(Rig(), heartbeat_ms=1)
    streams = [Stream(hub), Stream(hub)]
    hub.beat()
    for stream in streams:
        assert events(await stream.said()) == ["heartbeat"]


async def test_half_close_releases_leases_answers_what_is_open_and_ends() -> None:
    rig = Rig()
    group, stream = with_group(rig, 4), Stream(hub_of(rig))
    stream.open(group="g")
    await stream.said()
    stream.settle(correlation=5, ranges=ranges((0, 0)), ack=Ack())
    stream.session.half_close()
    assert group.core.in_flight_of(1) == 0
    end = asyncio.ensure_future(stream.session.next_message())
    await turns()
    assert not end.done()
    stored(rig)
    answer = SubscribeResponse.FromString(await end)
    assert answer.settled.correlation == 5
    assert [result.outcome for result in answer.settled.results] == [DONE]
    assert await stream.session.next_message() is None
    assert group.core.settled_below == 1


async def test_what_is_settled_while_the_shard_is_led_no_more_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    group, stream = with_group(rig, 4), Stream(hub_of(rig))
    stream.open(group="g")
    await stream.said()
    monkeypatch.setattr(Shard, "serving", False)
    stream.settle(correlation=6, ranges=ranges((0, 1), (3, 3)), ack=Ack())
    rig.time.turn()
    (answer,) = await stream.said()
    results = [(one.range.first, one.range.last, one.outcome) for one in answer.settled.results]
    assert results == [(0, 1, Outcome.OUTCOME_MOVED), (3, 3, Outcome.OUTCOME_MOVED)]
    assert not answer.settled.HasField("failure")
    assert group.core.settled_below == 0


async def test_drain_is_told_and_nothing_new_begins() -> None:
    rig = Rig()
    channel, hub = numbered(rig, 1), hub_of(rig)
    stream = Stream(hub)
    stream.open()
    await stream.said()
    hub.drain(700, 300)
    (notice,) = await stream.said()
    assert (notice.drain.grace_ms, notice.drain.retry_after_ms) == (700, 300)
    rig.publish(channel, "still")
    assert await stream.texts() == ["still"]
    stream.open(2)
    (closed,) = await stream.said()
    assert reason_of(closed) == (code(grpc.StatusCode.UNAVAILABLE), "DRAINING")
    hub.end_all()
    with pytest.raises(Unavailable):
        await stream.session.next_message()


async def test_close_leaves_nothing_behind() -> None:
    rig = Rig()
    group, hub = with_group(rig, 4), hub_of(rig)
    stream = Stream(hub)
    stream.open(1, group="g")
    stream.open(2)
    await turns()
    stream.open(3, start=Start(time_us=1))
    stream.session.close()
    stream.session.close()
    await turns()
    assert hub.sessions == set()
    assert hub.subscriptions == 0
    assert group.channel.watchers is None
    assert group.members == {}
    assert hub._tasks == set()


async def test_a_stream_that_ended_with_a_full_queue_lets_its_reader_go() -> None:
    rig = Rig()
    channel = rig.channel()
    for _ in range(20):
        rig.publish(channel, "x" * 1000)
    stream = Stream(hub_of(rig, queue_bytes=16 << 10, delivery_bytes=4_000))
    stream.open()
    await turns(50)
    reader = asyncio.ensure_future(stream.session.room())
    await turns()
    assert not reader.done()
    stream.session.close()
    await turns()
    assert reader.done()


async def test_a_stream_that_ended_with_settlements_open_lets_its_reader_go() -> None:
    rig = Rig()
    with_group(rig, 4)
    stream = Stream(hub_of(rig, settlements_per_stream=1))
    stream.open(group="g")
    await stream.said()
    stream.settle(ranges=ranges((0, 0)), ack=Ack())
    reader = asyncio.ensure_future(stream.session.room())
    await turns()
    assert not reader.done()
    stream.session.close()
    await turns()
    assert reader.done()
    stored(rig)


async def test_a_command_read_too_late_begins_nothing() -> None:
    rig = Rig()
    channel, hub = numbered(rig, 1), hub_of(rig)
    stream = Stream(hub)
    stream.session.close()
    stream.open()
    await turns()
    assert hub.subscriptions == 0
    assert channel.watchers is None


async def test_after_half_close_nothing_can_be_opened_either() -> None:
    rig = Rig()
    numbered(rig, 1)
    stream = Stream(hub_of(rig))
    stream.open(messages=MANY)
    stream.session.half_close()
    await turns()
    assert stream.session.subscriptions == {}
    assert await stream.session.next_message() is None
