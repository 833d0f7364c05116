"""Broadcast groups in the shard: places by consumer, made, moved, paused and deleted; in the log, in checkpoints."""

from typing import Any

import pytest

from ringpost.node.errors import Exhausted, InvalidRequest, NotFound
from ringpost.node.groups.changes import Ack, Nack
from ringpost.node.groups.lease_token import decode_lease_token
from ringpost.node.shard.claims import Mint
from ringpost.node.shard.configure import pause_group, set_group
from ringpost.node.shard.consumers import (
    IdleConsumers,
    check_room,
    claimed_cursor,
    consumer_of,
    cursor_name,
    cursors_of,
    find_cursor,
    is_broadcast,
)
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed
from tests.node.shard.test_settle_any import Member

BROADCAST = GroupMode.GROUP_MODE_BROADCAST


def broadcast(rig: Rig, *consumers: str, messages: int = 6, start: int = 0, **config: Any) -> Group:
    """A committed broadcast group "g" whose consumers have come once."""
    channel = rig.channel()
    rig.publish(channel, *(f"m{n}" for n in range(messages)))
    group = add_group(channel, "g", GroupSettings.of(GroupConfig(mode=BROADCAST, **config)), start, Outcomes())
    for consumer in consumers:
        come(group, consumer)
    rig.commit()
    return group


def come(group: Group, consumer: str) -> Group:
    name, begin = cursor_name(group.name, consumer), group.core.settled_below
    return add_group(group.channel, name, group.next_settings, begin, Outcomes())


def settled(rig: Rig, group: Group, action: Any, *ranges: tuple[int, int]) -> None:
    if not group.members:
        group.join(1, Member())
    group.take(1, 100, rig.time.clock())
    group.settle(1, action, list(ranges), False, lambda _: None)
    rig.time.turn()
    rig.commit()


def places(rig: Rig) -> dict[str, tuple[int, int, bool]]:
    """Of all groups: settled below, failed, paused."""
    found = rig.store.get("a")
    assert found is not None
    groups = found.groups or {}
    return {name: (g.core.settled_below, g.core.to_redeliver, g.paused) for name, g in sorted(groups.items())}


def check_replay(rig: Rig) -> None:
    """The frames alone, and a checkpoint alone, say the same."""
    again, _ = replayed(rig.journal.frames)
    from_checkpoint, _ = replayed([], checkpoint=checkpoint_of(rig.store))
    assert places(again) == places(from_checkpoint) == places(rig)


def test_each_consumer_has_its_own_place_and_retries() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", "bob")
    ann, bob = cursors_of(group)
    assert (consumer_of(ann), consumer_of(bob), is_broadcast(group), is_broadcast(ann)) == ("ann", "bob", True, False)
    settled(rig, ann, Ack(), (0, 3))
    settled(rig, bob, Nack(60_000_000), (0, 1))
    bob.leave(1)
    assert places(rig) == {"g": (0, 0, False), "g/ann": (4, 0, False), "g/bob": (0, 2, False)}
    assert (ann.core.pending(6), bob.core.pending(6)) == (2, 6)
    check_replay(rig)


def test_a_new_one_begins_where_the_group_says() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", start=2)
    seek_group(group, 5, Outcomes())
    rig.commit()
    come(group, "bob")
    rig.commit()
    assert places(rig) == {"g": (5, 0, False), "g/ann": (2, 0, False), "g/bob": (5, 0, False)}
    seek_group(find_cursor(group, "ann", "consumer"), 4, Outcomes())
    rig.commit()
    assert places(rig)["g/ann"][0] == 4
    check_replay(rig)


def test_a_pause_and_settings_are_for_all_also_for_those_that_come_later() -> None:
    rig = Rig()
    group = broadcast(rig, "ann")
    pause_group(group, True, Outcomes())
    come(group, "bob")
    set_group(group, GroupConfig(ack_deadline_ms=5_000), Outcomes())
    rig.commit()
    come(group, "eve")
    rig.commit()
    assert {name: paused for name, (_, _, paused) in places(rig).items()} == dict.fromkeys(
        ("g", "g/ann", "g/bob", "g/eve"), True
    )
    assert {one.settings.ack_deadline_ms for one in (group, *cursors_of(group))} == {5_000}
    check_replay(rig)
    pause_group(group, False, Outcomes())
    rig.commit()
    assert not any(paused for _, _, paused in places(rig).values())
    check_replay(rig)


def test_a_consumer_goes_alone_and_a_group_with_all() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", "bob", "eve")
    beside = add_group(group.channel, "other", GroupSettings(), 0, Outcomes())
    delete_group(find_cursor(group, "bob", "consumer"), Outcomes())
    rig.commit()
    assert list(places(rig)) == ["g", "g/ann", "g/eve", "other"]
    check_replay(rig)
    settled(rig, cursors_of(group)[0], Ack(), (0, 0))
    gone, done = cursors_of(group), Outcomes()
    delete_group(group, done)
    rig.commit()
    assert (done, list(places(rig)), [one.removed for one in gone]) == ([None], ["other"], [True, True])
    assert group.channel.shard.group_count == 1
    assert not beside.removed
    check_replay(rig)


def test_a_consumer_whose_deletion_is_not_committed_takes_part_in_what_is() -> None:
    """With another leader it may yet stay, and must then be as on all other copies."""
    rig = Rig()
    group = broadcast(rig, "ann", "bob")
    ann, bob = cursors_of(group)
    pause_group(group, True, Outcomes())
    set_group(group, GroupConfig(max_in_flight=7), Outcomes())
    delete_group(ann, Outcomes())
    delete_group(group, Outcomes())
    rig.commit(2)
    assert [(one.paused, one.settings.max_in_flight) for one in (group, ann, bob)] == [(True, 7)] * 3


def test_whose_place_it_is_must_be_said_and_only_there() -> None:
    rig = Rig()
    group = broadcast(rig, "ann")
    shared = add_group(group.channel, "s", GroupSettings(), 0, Outcomes())
    assert find_cursor(shared, "", "consumer") is shared
    with pytest.raises(InvalidRequest, match="consumer: is empty; in group 'g'"):
        find_cursor(group, "", "consumer")
    with pytest.raises(InvalidRequest, match="consumer: is set, and group 's' is not in mode BROADCAST"):
        find_cursor(shared, "ann", "consumer")
    with pytest.raises(NotFound) as caught:
        find_cursor(group, "bob", "consumer")
    assert caught.value.reason == "CONSUMER_NOT_FOUND"


def test_there_are_only_so_many() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", max_consumers=2)
    check_room(group)
    come(group, "bob")
    with pytest.raises(Exhausted, match=r"open.consumer: group 'g' has its 2 consumers \(max_consumers\)") as caught:
        check_room(group)
    assert caught.value.reason == "CONSUMER_LIMIT"


def test_an_unused_one_is_over_after_its_time_and_a_used_one_never() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", "bob", consumer_expiry_ms=60_000)
    ann, bob = cursors_of(group)
    idle, minute = IdleConsumers(), 60_000_000
    bob.join(1, Member())
    assert [idle.is_over(one, 5) for one in (ann, bob)] == [False, False]
    assert not idle.is_over(ann, minute + 4)
    assert [idle.is_over(one, minute + 5) for one in (ann, bob)] == [True, False]
    bob.leave(1)
    assert not idle.is_over(bob, 9 * minute)
    bob.join(2, Member())
    assert not idle.is_over(bob, 11 * minute)
    bob.leave(2)
    assert not idle.is_over(bob, 12 * minute), "it counts anew"
    set_group(group, GroupConfig(consumer_expiry_ms=0), Outcomes())
    rig.commit()
    assert not idle.is_over(ann, 99 * minute)
    delete_group(ann, Outcomes())
    idle.forget_removed()


def test_one_that_only_comes_for_moments_is_in_use() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", consumer_expiry_ms=60_000)
    (ann,) = cursors_of(group)
    idle, minute = IdleConsumers(), 60_000_000
    assert not idle.is_over(ann, 0)
    for number in range(1, 4):  # between two looks
        ann.join(number, Member())
        ann.leave(number)
        assert not idle.is_over(ann, number * minute)
    assert idle.is_over(ann, 4 * minute)


def test_it_keeps_no_dead_letters() -> None:
    assert not GroupSettings.of(GroupConfig(mode=BROADCAST)).policy.dead_letters
    assert GroupSettings.of(GroupConfig(mode=BROADCAST)).message().max_consumers == 1_000
    assert not GroupSettings.of(GroupConfig()).message().HasField("max_consumers")


def test_a_token_finds_its_consumer() -> None:
    rig = Rig()
    group = broadcast(rig, "ann", "bob")
    bob = cursors_of(group)[1]
    token = decode_lease_token(Mint(bob, 1).token(0, 3, 1))
    assert claimed_cursor(group, token) is bob
    assert claimed_cursor(bob, token) is bob
    delete_group(bob, Outcomes())
    assert claimed_cursor(group, token) is group
