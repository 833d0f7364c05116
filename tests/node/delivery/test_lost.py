"""Messages that damage took, in every reader's way: told, passed over, never the end of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.errors import DataLoss
from ringpost.node.services.messages import Messages
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.group_frames import seek_group
from ringpost.node.shard.retention import AgeRetention
from ringpost.v1 import message_pb2
from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import Ack
from tests.node.delivery.fakes import Stream, batches_of, events, hub_of, numbered, ranges, spans, stored, with_group
from tests.node.shard.fakes import START_US, Outcomes, Rig

S = 1_000_000


def lose(rig: Rig, channel: Channel, *rows: int) -> None:
    """The frames of these rows are lost."""
    for number in rows:
        row = channel.index.lose(number)
        rig.log.ledger.drop(row.address, row.length)
        channel.stored_bytes -= row.length
    channel.lossy = True
    rig.store.lossy.add(channel)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("lost", [(0,), (1,), (1, 2), (0, 1, 3), (3,), (0, 1, 2, 3)])
async def test_a_cursor_is_told_of_the_gap_in_its_place(cache_bytes: int, lost: tuple[int, ...]) -> None:
    rig = Rig(cache_bytes=cache_bytes)
    channel, stream = numbered(rig, 2, 2, 2, 2), Stream(hub_of(rig))
    lose(rig, channel, *lost)
    stream.open()
    said = await stream.said()
    reached = 0
    for response in said[1:]:
        gap = response.gap.missing
        first = gap.first if response.WhichOneof("event") == "gap" else response.deliver.batches[0].first_offset
        assert first == reached, "in order, nothing left out"
        reached = gap.last + 1 if response.WhichOneof("event") == "gap" else spans([response])[-1][1] + 1
    assert reached == 8
    assert [b.first_offset // 2 for b in batches_of(said)] == [n for n in range(4) if n not in lost]
    rig.publish(channel, "later")
    assert await stream.texts() == ["later"]


async def test_a_cursor_that_begins_within_the_loss() -> None:
    rig = Rig()
    channel, stream = numbered(rig, 2, 3, 2), Stream(hub_of(rig))
    lose(rig, channel, 1)
    stream.open(start=Start(offset=3))
    said = await stream.said()
    assert events(said) == ["opened", "gap", "deliver"]
    assert (said[1].gap.missing.first, said[1].gap.missing.last) == (3, 4)


async def test_a_group_takes_what_is_lost_as_settled_and_goes_on() -> None:
    rig = Rig()
    group = with_group(rig, 2, 2, 2)
    channel, stream = group.channel, Stream(hub_of(rig))
    lose(rig, channel, 0, 1)
    stream.open(group="g", messages=1)
    assert batches_of(await stream.said()) == []
    stored(rig)
    assert spans(await stream.said()) == [(4, 4, 1)]
    stream.credit()
    assert spans(await stream.said()) == [(5, 5, 1)]
    stream.settle(correlation=1, ranges=ranges((4, 5)), ack=Ack())
    stored(rig)
    await stream.said()
    assert group.core.settled_below == 6
    assert group.core.in_flight == 0

    seek_group(group, 0, Outcomes())
    rig.commit()
    again = Stream(stream.session.hub)
    again.open(group="g")
    await again.said()
    stored(rig)
    assert spans(await again.said()) == [(4, 5, 1)]


async def test_two_members_meet_the_same_loss() -> None:
    rig = Rig()
    group = with_group(rig, 4, 4)
    lose(rig, group.channel, 0)
    hub = hub_of(rig)
    streams = [Stream(hub), Stream(hub)]
    for stream in streams:
        stream.open(group="g")
    got = [span for stream in streams for span in spans(await stream.said())]
    stored(rig)
    for stream in streams:
        got += spans(await stream.said())
    assert sorted(offset for first, last, _ in got for offset in range(first, last + 1)) == [4, 5, 6, 7]


async def test_single_messages_say_what_is_lost() -> None:
    rig = Rig()
    channel = numbered(rig, 2, 2, 2)
    lose(rig, channel, 1)
    service = Messages(rig.store, rig.reading)

    async def read(offset: int, count: int) -> list[int]:
        response = message_pb2.GetMessagesResponse()
        await service._read(channel, offset, count, response)
        return [message.offset for message in response.messages]

    assert await read(0, 6) == [0, 1], "as far as they are there"
    assert await read(4, 6) == [4, 5]
    with pytest.raises(DataLoss, match="offsets 2 to 3 are lost") as caught:
        await read(3, 1)
    assert caught.value.metadata["next_offset"] == "4"
    assert rig.damaged == [], "the operator has accepted it"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
@settings(deadline=None)
async def test_a_time_is_found_around_what_has_none(times: list[int], data: st.DataObject) -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    for time in sorted(times):
        rig.time.now_us = START_US + time * S
        rig.publish(channel, "x")
    wanted = data.draw(st.integers(0, 10))
    lost = data.draw(st.sets(st.integers(0, len(times) - 1)))
    lose(rig, channel, *lost)
    found = await rig.reading.offset_at(channel, START_US + wanted * S)
    there = [n for n in range(len(times)) if n not in lost]
    assert [n for n in there if n >= found] == [n for n in there if sorted(times)[n] >= wanted]


async def test_old_messages_go_though_the_oldest_are_lost() -> None:
    rig = Rig()
    channel = numbered(rig, 1, 1)
    channel.limits = ChannelLimits(retention_age_ms=1_000)
    rig.time.now_us += 2 * S
    rig.publish(channel, "new")
    lose(rig, channel, 0)
    retention = AgeRetention(rig.reading)
    assert await retention.keep_from(channel, rig.time.now_us) == 2
    lose(rig, channel, 1, 2)
    assert await AgeRetention(rig.reading).keep_from(channel, rig.time.now_us + 9 * S) == 0
