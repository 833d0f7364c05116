"""Channels that nobody needs are packed: they take little memory, and nobody can tell."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.internal.v1.record_pb2 import ShardSnapshot
from ringpost.node.errors import RingpostError
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.group_frames import add_group, delete_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.snapshot import encode_shard, snapshot_shard
from ringpost.node.shard.warm import Warm
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, publish_of, replayed
from tests.node.shard.histories import History, Member, Operation, operations
from tests.node.shard.test_replay import SHARDS, state


def cold_rig(**settings: Any) -> Rig:
    """A rig that packs whatever may be packed when it is told to."""
    rig = Rig(**settings)
    rig.log.warm.kept = 0
    return rig


def cool(rig: Rig, rounds: int = 1) -> None:
    for _ in range(rounds):
        rig.log.warm.cool(1_000)


def looks(channel: Channel) -> tuple[Any, ...]:
    """All that its state says."""
    found = channel.peek()
    rows = found.index.rows(0, len(found.index))
    offsets = (found.first_offset, found.trim_to, found.end_offset, found.next_offset)
    return (*offsets, found.stored_bytes, found.created_time_us, found.limits, found.next_limits, found.lossy, rows)


def packed_channel(rig: Rig, *texts: str, **how: Any) -> Channel:
    channel = rig.channel()
    rig.publish(channel, *texts or ("hello",), **how)
    cool(rig)
    assert channel.packed is not None
    return channel


def test_a_quiet_channel_is_packed_and_says_what_it_said_before() -> None:
    rig = cold_rig()
    channel = rig.channel()
    rig.publish(channel, "a", "b")
    rig.publish(channel, "c")
    channel.shard.trim(channel, 2, Outcomes())
    rig.commit()
    before, snapshot = looks(channel), snapshot_shard(channel.shard)
    cool(rig)
    assert channel.packed is not None
    assert len(channel.packed) < 100
    assert looks(channel) == before
    assert snapshot_shard(channel.shard) == snapshot
    assert channel.packed is not None, "looking at it does not unpack it"


def test_whoever_uses_it_unpacks_it() -> None:
    rig = cold_rig()
    channel = packed_channel(rig, "a")
    assert channel.end_offset == 1
    assert channel.packed is None
    rig.publish(channel, "b")
    assert (channel.end_offset, len(channel.index)) == (2, 2)
    cool(rig)
    assert channel.packed is not None
    rig.publish(channel, "c")
    assert (channel.end_offset, channel.stored_bytes) == (3, rig.log.ledger.live(1))


def test_what_is_known_of_every_packed_channel_does_not_unpack_it() -> None:
    rig = cold_rig()
    channel = packed_channel(rig)
    assert (channel.groups, channel.watchers, channel.removed, channel.lossy) == (None, None, False, False)
    channel.unwatch(Member())
    channel.drop_group("nobody")
    assert list(rig.store.groups()) == []
    assert rig.store.page("", "", 10) == [channel]
    assert channel.packed is not None


def test_there_is_nothing_beside_the_state() -> None:
    rig = cold_rig()
    for channel in (rig.channel(), packed_channel(rig)):
        with pytest.raises(AttributeError, match="no 'colour'"):
            channel.colour  # type: ignore[attr-defined]  # noqa: B018


def test_a_producer_is_still_known() -> None:
    rig = cold_rig()
    first = {"producer": 7, "producer_epoch": 1, "first_sequence": 0}
    channel = packed_channel(rig, "a", "b", **first)
    (repeat,) = rig.publish(channel, "a", "b", **first)
    assert (repeat.duplicate, repeat.first_offset) == (True, 0)
    cool(rig)
    (refused,) = [problem_of(channel, first_sequence=5)]
    assert refused.reason == "SEQUENCE_GAP"
    assert channel.end_offset == 2


def problem_of(channel: Channel, first_sequence: int) -> RingpostError:
    publish = publish_of("x", producer=7, producer_epoch=1, first_sequence=first_sequence)
    with pytest.raises(RingpostError) as caught:
        channel.shard.publish(channel, publish, Outcomes().append)
    return caught.value


# -- who stays unpacked -----------------------------------------------------------------------------------------------


def test_what_is_not_committed_is_packed_later() -> None:
    rig = cold_rig()
    channel = rig.store.find_or_add("a")
    cool(rig, 3)
    assert channel.packed is None, "the frame that makes it"
    rig.commit()
    rig.publish(channel, "a", commit=False)
    cool(rig, 3)
    assert channel.packed is None, "a batch"
    rig.commit()
    channel.shard.trim(channel, 1, Outcomes())
    cool(rig, 3)
    assert channel.packed is None, "a trim"
    rig.commit()
    cool(rig)
    assert channel.packed is not None


def test_a_channel_with_a_subscriber_stays_until_that_leaves() -> None:
    rig = cold_rig()
    channel, member = packed_channel(rig), Member()
    channel.watch(member)
    cool(rig, 3)
    assert channel.packed is None
    assert len(rig.log.warm) == 0, "it is not looked at again and again"
    channel.unwatch(member)
    cool(rig)
    assert channel.packed is not None


def test_a_channel_with_a_group_stays_until_that_is_gone() -> None:
    rig = cold_rig()
    channel = packed_channel(rig)
    group = add_group(channel, "g", GroupSettings(), 0, Outcomes())
    rig.commit()
    cool(rig, 3)
    assert channel.packed is None
    assert [group.name for group in rig.store.groups()] == ["g"]
    delete_group(group, Outcomes())
    rig.commit()
    cool(rig, 3)
    assert channel.packed is not None
    assert list(rig.store.groups()) == []


def test_a_channel_that_lets_messages_go_stays() -> None:
    rig = cold_rig()
    channel = packed_channel(rig)
    rig.store.set(channel, ChannelLimits(retention_messages=1), Outcomes())
    rig.commit()
    cool(rig, 3)
    assert channel.packed is None
    assert rig.store.retaining == {channel}


def test_a_deleted_channel_is_forgotten() -> None:
    rig = cold_rig()
    channel = packed_channel(rig)
    rig.store.delete(channel, Outcomes())
    rig.commit()
    cool(rig)
    assert (channel.packed, channel.removed, len(rig.log.warm)) == (None, True, 0)
    assert rig.log.ledger.live(1) == 0


def test_the_latest_stay_and_a_turn_is_short() -> None:
    warm, rig = Warm(kept=2), Rig()
    rig.log.warm = warm
    channels = [rig.channel(f"c{number}") for number in range(10)]
    assert warm.cool(steps_max=3)
    assert [channel.packed is None for channel in channels] == [False] * 3 + [True] * 7
    assert not warm.cool()
    assert [channel.packed is None for channel in channels] == [False] * 8 + [True] * 2


# -- whatever happens -------------------------------------------------------------------------------------------------


@given(st.lists(operations, max_size=60), st.sets(st.integers(0, 60)))
@settings(max_examples=250, deadline=None)
def test_nobody_can_tell_whether_and_when_channels_are_packed(history: list[Operation], moments: set[int]) -> None:
    plain, packing = Rig(shards=SHARDS), cold_rig(shards=SHARDS)
    lives = [History(plain), History(packing)]
    for number, operation in enumerate(history):
        for life in lives:
            life.do(operation)
        if number in moments:
            cool(packing)
    for life in lives:
        life.end()
    cool(packing)
    assert packing.journal.frames == plain.journal.frames
    assert state(packing.store) == state(plain.store)
    assert lives[0].answers == lives[1].answers
    assert packing.log.ledger.live(1) == plain.log.ledger.live(1)

    again, quarantined = replayed([], shards=SHARDS, checkpoint=checkpoint_of(packing.store))
    assert quarantined == []
    assert [channel.packed is None for channel in again.store] == [
        bool(channel.groups) or not channel.limits.retains_all for channel in again.store
    ]
    assert state(again.store) == state(plain.store)


def test_a_checkpoint_takes_packed_channels_as_they_are() -> None:
    rig = cold_rig()
    channel = packed_channel(rig)
    assert channel.packed is not None
    encoded = encode_shard(channel.shard)
    assert encoded.endswith(channel.packed)
    assert ShardSnapshot.FromString(encoded).channels[0].name == "a"
