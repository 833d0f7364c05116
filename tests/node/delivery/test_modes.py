"""Modes of a group, as its subscriptions meet them: order per key, one consumer, one active consumer."""

from typing import Any

import grpc
import pytest
from crc32c import crc32c

from ringpost.node.delivery.hub import Hub
from ringpost.node.services.group_info import info
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.shard import Publish
from ringpost.v1.common_pb2 import Durability, GroupMode
from ringpost.v1.publish_pb2 import Batch, Message
from ringpost.v1.subscribe_pb2 import Ack, Nack, Reject
from tests.node.delivery.fakes import Stream, code, hub_of, numbered, ranges, reason_of, stored, turns
from tests.node.delivery.test_lost import lose
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed

S = 1_000_000
KEYED = GroupMode.GROUP_MODE_KEY_ORDERED
EXCLUSIVE, FAILOVER = GroupMode.GROUP_MODE_EXCLUSIVE, GroupMode.GROUP_MODE_FAILOVER


def keyed_batch(texts: str) -> bytes:
    """ "a1 b1 a2" are three messages, with keys a and b; a dash is no key."""
    keys = ((text[0].replace("-", "").encode(), text.encode()) for text in texts.split())
    return Batch(messages=[Message(key=key, data=data) for key, data in keys]).SerializeToString()


def publish(rig: Rig, channel: Channel, *batches: str) -> None:
    for texts in batches:
        batch = keyed_batch(texts)
        request = Publish(batch, len(texts.split()), crc32c(batch), Durability.DURABILITY_QUORUM)
        channel.shard.publish(channel, request, lambda _: None)
    rig.commit()


def made(rig: Rig, *batches: str, mode: GroupMode.ValueType = KEYED, **settings: int) -> tuple[Group, Hub]:
    channel = rig.channel()
    publish(rig, channel, *batches)
    group = add_group(channel, "g", GroupSettings(mode=mode, **settings), 0, Outcomes())
    rig.commit()
    return group, hub_of(rig)


def joined(hub: Hub, **fields: Any) -> Stream:
    stream = Stream(hub)
    stream.open(group="g", **fields)
    return stream


def settle(rig: Rig, stream: Stream, *pairs: tuple[int, int], **action: Any) -> None:
    stream.settle(correlation=1, ranges=ranges(*pairs), **(action or {"ack": Ack()}))
    stored(rig)


async def texts(stream: Stream) -> str:
    """What came, answers to settlements left out."""
    said = await stream.said()
    assert {response.WhichOneof("event") for response in said} <= {"opened", "deliver", "settled"}
    found = (message for response in said for batch in response.deliver.batches for message in batch.batch.messages)
    return " ".join(message.data.decode() for message in found)


# -- key order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_one_message_of_a_key_at_a_time_whether_from_memory_or_disk(cache_bytes: int) -> None:
    rig = Rig(cache_bytes=cache_bytes)
    group, hub = made(rig, "a1 b1 a2 -1", "b2 a3 -2 c1")
    stream = joined(hub, mode=KEYED)
    assert await texts(stream) == "a1 b1 -1 -2 c1"
    settle(rig, stream, (0, 0))
    assert await texts(stream) == "a2"
    settle(rig, stream, (1, 3), reject=Reject(reason="no"))
    assert await texts(stream) == "b2 a3"
    publish(rig, group.channel, "c2 d1")
    assert await texts(stream) == "d1"
    settle(rig, stream, (0, 99))
    assert await texts(stream) == "c2"


async def test_a_nacked_message_parks_its_key_and_others_flow() -> None:
    rig = Rig()
    _, hub = made(rig, "a1 b1 a2 b2 b3")
    stream = joined(hub, messages=4)
    assert await texts(stream) == "a1 b1"
    settle(rig, stream, (0, 0), nack=Nack(delay_ms=5_000))
    settle(rig, stream, (1, 1))
    assert await texts(stream) == "b2"
    settle(rig, stream, (3, 3))
    assert await texts(stream) == "b3", "what is parked uses no credit"
    stream.credit(100)
    assert await texts(stream) == ""
    rig.time.pass_us(5 * S + 2_000)
    assert await texts(stream) == "a1"
    settle(rig, stream, (0, 0))
    assert await texts(stream) == "a2"


async def test_an_expired_message_comes_again_before_the_next_of_its_key() -> None:
    rig = Rig()
    _, hub = made(rig, "a1 a2 b1", ack_deadline_ms=1_000)
    slow, other = joined(hub), joined(hub, messages=0)
    assert await texts(slow) == "a1 b1"
    slow.credit(0)
    settle(rig, slow, (2, 2))
    other.credit(100)
    await turns()
    rig.time.pass_us(S + 2_000)
    stored(rig)
    assert await texts(other) == "a1"


async def test_what_a_consumer_leaves_behind_goes_on_in_order_with_the_others() -> None:
    rig = Rig()
    _, hub = made(rig, "a1 b1 a2 b2 a3")
    first = joined(hub)
    assert await texts(first) == "a1 b1"
    second = joined(hub)
    assert await texts(second) == ""
    settle(rig, first, (0, 0))
    assert await texts(first) == "a2"
    first.close()
    assert await texts(second) == "b1 a2"
    settle(rig, second, (1, 1))
    assert await texts(second) == "b2"


async def test_keys_are_shared_by_those_that_are_there() -> None:
    rig = Rig()
    group, hub = made(rig)
    streams = [joined(hub) for _ in range(4)]
    for stream in streams:
        await texts(stream)
    publish(rig, group.channel, " ".join(f"{key}1" for key in "abcdefgh"))
    had = [await texts(stream) for stream in streams]
    assert sorted(" ".join(had).split()) == [f"{key}1" for key in "abcdefgh"]
    assert max(len(one.split()) for one in had) <= 3


async def test_a_seek_begins_anew() -> None:
    rig = Rig()
    group, hub = made(rig, "a1 b1 a2 b2")
    stream = joined(hub)
    await texts(stream)
    settle(rig, stream, (0, 1))
    await texts(stream)
    seek_group(group, 1, Outcomes())
    rig.commit()
    assert reason_of((await stream.said())[-1]) == (code(grpc.StatusCode.UNAVAILABLE), "GROUP_MOVED")
    again = joined(hub)
    assert await texts(again) == "b1 a2"


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_the_mode_and_the_order_survive_a_restart(checkpoint: bool) -> None:
    rig = Rig()
    _, hub = made(rig, "a1 b1 a2", "b2 a3")
    stream = joined(hub)
    await texts(stream)
    settle(rig, stream, (0, 0))
    settle(rig, stream, (1, 1), nack=Nack(delay_ms=60_000))
    saved = checkpoint_of(rig.store) if checkpoint else None
    again, _ = replayed(rig.journal.frames, checkpoint=saved)
    again.journal.frames = rig.journal.frames
    again.lead(2)
    stream = joined(hub_of(again), mode=KEYED)
    assert await texts(stream) == "a2"
    settle(again, stream, (2, 2))
    assert await texts(stream) == "a3"
    again.time.pass_us(61 * S)
    assert await texts(stream) == "b1"


async def test_messages_that_cannot_be_read_end_the_subscription_with_the_reason() -> None:
    rig = Rig(cache_bytes=0)
    _, hub = made(rig, "a1 a2")
    rig.read_error = OSError(5, "Input/output error")
    stream = joined(hub)
    said = await stream.said()
    assert reason_of(said[-1])[0] == code(grpc.StatusCode.DATA_LOSS)
    rig.read_error = None
    assert await texts(joined(hub)) == "a1"


async def test_lost_messages_hold_back_no_key() -> None:
    rig = Rig()
    group, hub = made(rig, "a1 b1", "a2 b2", "a3 b3")
    lose(rig, group.channel, 1)
    stream = joined(hub)
    assert await texts(stream) == "a1 b1"
    stored(rig)
    settle(rig, stream, (0, 1))
    assert await texts(stream) == "a3 b3"
    assert group.core.settled_below == 4


# -- one consumer -----------------------------------------------------------------------------------------------------


async def test_an_exclusive_group_refuses_a_second_consumer_until_the_first_has_left() -> None:
    rig = Rig()
    _, hub = made(rig, "a1 a2", mode=EXCLUSIVE)
    first, second = joined(hub, consumer="w1"), joined(hub)
    assert await texts(first) == "a1 a2"
    (closed,) = await second.said()
    assert reason_of(closed) == (code(grpc.StatusCode.RESOURCE_EXHAUSTED), "GROUP_OCCUPIED")
    assert "has its consumer 'w1'" in closed.closed.failure.message
    assert closed.closed.failure.retry_after_ms > 0
    first.close()
    assert await texts(joined(hub)) == "a1 a2"


async def test_of_a_failover_group_the_first_is_active_and_the_next_takes_over_at_once() -> None:
    rig = Rig()
    group, hub = made(rig, "a1 a2", "b1", mode=FAILOVER)
    first, second, third = (joined(hub, consumer=f"w{n}") for n in (1, 2, 3))
    assert [await texts(stream) for stream in (first, second, third)] == ["a1 a2 b1", "", ""]
    assert [(m.consumer, m.active) for m in info(group).members] == [("w1", True), ("w2", False), ("w3", False)]
    settle(rig, first, (0, 0))
    publish(rig, group.channel, "c1")
    assert await texts(second) == ""
    first.close()
    assert [await texts(stream) for stream in (third, second)] == ["", "a2 b1 c1"]
    third.close()
    settle(rig, second, (1, 3))
    second.close()
    publish(rig, group.channel, "d1")
    assert await texts(joined(hub)) == "d1"


async def test_the_active_one_that_leaves_with_nothing_in_hand_is_succeeded_too() -> None:
    rig = Rig()
    _, hub = made(rig, "a1", mode=FAILOVER)
    first, second = joined(hub, messages=0), joined(hub)
    assert await texts(second) == ""
    first.close()
    assert await texts(second) == "a1"


# -- which mode -------------------------------------------------------------------------------------------------------


async def test_a_group_made_by_first_use_has_the_mode_that_was_asked_for() -> None:
    rig = Rig()
    channel, hub = numbered(rig, 1), hub_of(rig)
    joined(hub, mode=FAILOVER)
    await turns()
    rig.commit()
    assert channel.groups is not None
    assert channel.groups["g"].settings.mode == FAILOVER
    assert info(channel.groups["g"]).config.mode == FAILOVER


async def test_another_mode_than_the_group_has_is_refused_by_name() -> None:
    rig = Rig()
    _, hub = made(rig, "a1")
    (closed,) = await joined(hub, mode=GroupMode.GROUP_MODE_SHARED).said()
    assert reason_of(closed) == (code(grpc.StatusCode.FAILED_PRECONDITION), "GROUP_MODE")
    failure = closed.closed.failure
    assert dict(failure.metadata) == {"mode": "GROUP_MODE_KEY_ORDERED", "wanted": "GROUP_MODE_SHARED"}
    assert "has mode GROUP_MODE_KEY_ORDERED, wanted is GROUP_MODE_SHARED" in failure.message
    assert await texts(joined(hub)) == "a1"


@pytest.mark.parametrize("fields", [{"group": "g", "mode": 9}, {"mode": KEYED}])
async def test_a_mode_that_is_none_or_without_a_group_makes_nothing(fields: dict[str, Any]) -> None:
    rig = Rig()
    stream = Stream(hub_of(rig))
    stream.open(channel="new", **fields)
    (closed,) = await stream.said()
    assert reason_of(closed) == (code(grpc.StatusCode.INVALID_ARGUMENT), "INVALID_ARGUMENT")
    assert [violation.field for violation in closed.closed.failure.violations] == ["open.mode"]
    assert rig.store.get("new") is None
