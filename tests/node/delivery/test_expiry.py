"""Messages whose time to live is over: nobody gets them any more, and whoever would have is told or goes on."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.internal.v1.record_pb2 import DeadLetterFrame
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.dead_letter_pb2 import DeadLetter
from ringpost.v1.subscribe_pb2 import Ack, Nack
from tests.node.delivery.fakes import Stream, batches_of, events, hub_of, ranges, spans, stored
from tests.node.shard.fakes import Outcomes, Rig, replayed, texts_of

SECOND = 1_000_000


def published(rig: Rig, *ttls: int, name: str = "a") -> Channel:
    """Batches of two messages each, with these times to live in seconds."""
    channel = rig.channel(name)
    for ttl in ttls:
        end = channel.next_offset
        rig.publish(channel, f"m{end}", f"m{end + 1}", ttl_ms=ttl * 1000)
    return channel


def grouped(rig: Rig, *ttls: int, **how: Any) -> Group:
    how.setdefault("policy", RetryPolicy(dead_letters=True))
    group = add_group(published(rig, *ttls), "g", GroupSettings(**how), 0, Outcomes())
    rig.commit()
    return group


def letters(rig: Rig, group: Group) -> list[DeadLetter]:
    box = box_of(group)
    if box is None:
        return []
    frames = [f for f in rig.journal.frames if f.kind == FrameType.DATA and f.decoded.channel == box.number]
    return [letter for frame in frames for letter in DeadLetterFrame.FromString(frame.body).letters]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_a_subscription_without_a_group_gets_a_gap_in_its_place(cache_bytes: int) -> None:
    rig = Rig(cache_bytes=cache_bytes)
    published(rig, 0, 5, 5, 0, 5)
    rig.time.now_us += 5 * SECOND - 1
    in_time, late = Stream(hub_of(rig)), Stream(hub_of(rig))
    in_time.open()
    assert await in_time.texts() == [f"m{n}" for n in range(10)]
    rig.time.now_us += 1
    late.open()
    said = await late.said()
    assert spans(said) == [(0, 1, 0), (6, 7, 0)]
    gaps = [(one.gap.missing.first, one.gap.missing.last) for one in said if one.WhichOneof("event") == "gap"]
    assert gaps in ([(2, 5), (8, 9)], [(2, 3), (4, 5), (8, 9)])
    assert events(said)[:2] == ["opened", "deliver"], "no gap overtakes what comes before it"
    assert late.session.hub.counters.expired == 6
    rig.publish(rig.store.find("a"), "news")
    assert await late.texts() == ["news"]


@given(st.lists(st.sampled_from((0, 3)), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
async def test_deliveries_and_gaps_come_in_order_and_leave_nothing_out(ttls: list[int], credit: int) -> None:
    rig = Rig()
    published(rig, *ttls)
    rig.time.now_us += 3 * SECOND
    stream = Stream(hub_of(rig))
    stream.open(messages=credit)
    reached = 0
    said = await stream.said()
    for total in range(2 * credit, 60, credit):
        stream.credit(total)
        said += await stream.said()
    for one in said:
        if one.WhichOneof("event") == "gap":
            assert one.gap.missing.first == reached
            reached = one.gap.missing.last + 1
        for batch in one.deliver.batches:
            assert batch.first_offset == reached
            reached += batch.count
    assert reached == 2 * len(ttls)
    assert {b.first_offset // 2 for b in batches_of(said)} == {n for n, ttl in enumerate(ttls) if not ttl}


async def test_many_that_are_over_let_others_have_their_turn() -> None:
    rig = Rig()
    published(rig, *[1] * 1_000, 0)
    rig.time.now_us += 2 * SECOND
    stream = Stream(hub_of(rig))
    stream.open()
    said = await stream.said()
    for _ in range(10):
        said += await stream.said()
    assert spans(said) == [(2_000, 2_001, 0)]
    assert events(said).count("gap") == 4, "joined, 256 batches a turn"


@pytest.mark.parametrize("mode", [GroupMode.GROUP_MODE_SHARED, GroupMode.GROUP_MODE_KEY_ORDERED])
async def test_a_group_settles_what_is_over_and_goes_on(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = grouped(rig, 0, 5, 0, 5, mode=mode)
    rig.time.now_us += 6 * SECOND
    stream = Stream(hub_of(rig))
    stream.open(group="g")
    said: list[Any] = []
    for _ in range(8):
        said += await stream.said()
        for first, last, _ in spans(said):
            stream.settle(correlation=1, ranges=ranges((first, last)), ack=Ack())
        stored(rig)
    assert {(first, last) for first, last, _ in spans(said)} <= {(0, 1), (0, 0), (1, 1), (4, 5), (4, 4), (5, 5)}
    assert "gap" not in events(said)
    assert (group.core.settled_below, group.core.in_flight, group.core.rejected) == (8, 0, 0)
    assert letters(rig, group) == []
    again, damaged = replayed(rig.journal.frames)
    assert damaged == []
    assert again.store.find_group(again.store.find("a"), "g").core.settled_below == 8


async def test_a_group_that_wants_them_keeps_them_as_dead_letters() -> None:
    rig = Rig()
    group = grouped(rig, 5, 0, expired_to_dead_letters=True)
    rig.time.now_us += 6 * SECOND
    stream = Stream(hub_of(rig))
    stream.open(group="g")
    said: list[Any] = []
    for _ in range(6):
        said += await stream.said()
        stored(rig)
    assert spans(said) == [(2, 3, 1)]
    kept = letters(rig, group)
    assert [(one.offset, one.reason, one.attempts, one.message.data) for one in kept] == [
        (0, "expired", 0, b"m0"),
        (1, "expired", 0, b"m1"),
    ]
    assert (group.core.settled_below, group.core.rejected) == (2, 2)


async def test_a_nacked_message_that_is_over_meanwhile_does_not_come_back() -> None:
    rig = Rig()
    group = grouped(rig, 5, expired_to_dead_letters=True)
    stream = Stream(hub_of(rig))
    stream.open(group="g")
    assert spans(await stream.said()) == [(0, 1, 1)]
    stream.settle(correlation=1, ranges=ranges((0, 0)), nack=Nack(reason="not now"))
    stream.settle(correlation=2, ranges=ranges((1, 1)), ack=Ack())
    rig.time.now_us += 6 * SECOND
    said: list[Any] = []
    for _ in range(6):
        stored(rig)
        said += await stream.said()
    assert spans(said) == []
    (letter,) = letters(rig, group)
    assert (letter.reason, letter.attempts, [one.reason for one in letter.failures]) == ("expired", 1, ["not now"])
    assert group.core.settled_below == 2


async def test_of_a_delayed_message_the_time_counts_from_its_release() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", due_us=rig.time.now_us + 60 * SECOND, ttl_ms=5_000)
    rig.time.pass_us(61 * SECOND)
    rig.commit()
    early, late = Stream(hub_of(rig)), Stream(hub_of(rig))
    early.open()
    assert await early.texts() == ["x"]
    rig.time.now_us += 5 * SECOND
    late.open()
    assert events(await late.said()) == ["opened", "gap"]
    assert texts_of(rig.journal.frames[-1].body) == ["x"], "it stays in the channel"
