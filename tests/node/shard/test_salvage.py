"""With `accept_loss` a damaged shard goes on with all that is whole, and no offset is given twice."""

import random

import pytest

from ringpost.node.errors import AlreadyExists, DataLoss
from ringpost.node.groups.changes import Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.journal.frame import FLAG_REWRITTEN, FRAME_OVERHEAD, FrameType
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group_frames import add_group, delete_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.salvage import UNKNOWN_SPAN
from tests.node.shard.fakes import Damage, Outcomes, Rig, Stored, checkpoint_of, publish_of, replayed, texts_of
from tests.node.shard.test_replay import altered


def lived() -> Rig:
    """One shard with the channels a and b; batches of two in turn."""
    rig = Rig()
    a, b = rig.channel("a"), rig.channel("b")
    for number in range(4):
        rig.publish(a, f"a{number}", f"a{number}'")
        rig.publish(b, f"b{number}", f"b{number}'")
    return rig


def places_of(rig: Rig, name: str, kind: FrameType = FrameType.DATA) -> list[int]:
    number = rig.store.find(name).number
    return [n for n, f in enumerate(rig.journal.frames) if f.kind == kind and f.decoded.channel == number]


def salvaged(rig: Rig, frames: list[Stored], **how: object) -> Rig:
    again, quarantined = replayed(frames, accept_loss=True, **how)  # type: ignore[arg-type]
    assert quarantined == []
    again.journal.frames, again.journal.end = list(rig.journal.frames), rig.journal.end
    again.lead(2)
    return again


async def texts(rig: Rig, channel: Channel) -> list[str | None]:
    """Messages by offset; None for what is lost."""
    found: list[str | None] = []
    for number, row in enumerate(channel.index.rows(0, len(channel.index))):
        if not row.lost:
            found += texts_of((await rig.reading.frame(channel, row)).body)
            continue
        with pytest.raises(DataLoss, match="are lost"):
            await rig.reading.frame(channel, row)
        found += [None] * (channel.end_of_row(number) - row.base)
    return found


def told(rig: Rig) -> list[tuple[str, int | None, int | None]]:
    return [(loss.channel, loss.first, loss.last) for loss in rig.losses]


ALL_A = ["a0", "a0'", "a1", "a1'", "a2", "a2'", "a3", "a3'"]
ALL_B = [text.replace("a", "b") for text in ALL_A]


@pytest.mark.parametrize("lost", range(4))
async def test_a_damaged_body_costs_its_messages_and_nothing_else(lost: int) -> None:
    rig = lived()
    broken = frozenset({rig.journal.frames[places_of(rig, "a")[lost]].address})
    again = salvaged(rig, rig.journal.frames, broken=broken)
    a, b = again.store.find("a"), again.store.find("b")
    left = [None if lost * 2 <= offset < lost * 2 + 2 else text for offset, text in enumerate(ALL_A)]
    assert await texts(again, a) == left
    assert await texts(again, b) == ALL_B
    assert told(again) == [("a", lost * 2, lost * 2 + 1)]
    assert again.store.lost_messages == 2
    assert [answer.first_offset for answer in again.publish(a, "new")] == [8]
    assert [answer.first_offset for answer in again.publish(b, "new")] == [8]


@pytest.mark.parametrize("lost", range(3))
async def test_a_missing_frame_leaves_a_hole_and_what_follows_is_there(lost: int) -> None:
    rig = lived()
    frames = list(rig.journal.frames)
    gone = frames.pop(places_of(rig, "a")[lost])
    again = salvaged(rig, frames, damages=[Damage(gone.address, None, "no header", 60)])
    left = [None if lost * 2 <= offset < lost * 2 + 2 else text for offset, text in enumerate(ALL_A)]
    assert await texts(again, again.store.find("a")) == left
    assert await texts(again, again.store.find("b")) == ALL_B
    assert told(again) == [("a", lost * 2, lost * 2 + 1)]


async def test_offsets_jump_where_nobody_knows_how_far_a_channel_had_come() -> None:
    rig = lived()
    frames = rig.journal.frames[:-2]  # the last batch of a, the last of b
    damage = Damage(rig.journal.frames[-2].address, None, "no header", 300)
    again = salvaged(rig, frames, damages=[damage])
    a, b = again.store.find("a"), again.store.find("b")
    assert (await texts(again, a))[:7] == [*ALL_A[:6], None]
    assert [answer.first_offset for answer in again.publish(a, "new")] == [306]
    assert [answer.first_offset for answer in again.publish(b, "new")] == [306]
    assert told(again) == [("a", 6, 305), ("b", 6, 305)]


async def test_a_frame_that_is_gone_without_a_trace_is_taken_for_the_greatest() -> None:
    rig = lived()
    frames = list(rig.journal.frames)
    del frames[places_of(rig, "a")[3]]
    again = salvaged(rig, frames)
    assert [answer.first_offset for answer in again.publish(again.store.find("a"), "new")] == [6 + UNKNOWN_SPAN]
    assert [answer.first_offset for answer in again.publish(again.store.find("b"), "new")] == [8], "its end is known"


async def test_a_row_of_the_checkpoint_in_what_cannot_be_read_is_lost_too() -> None:
    rig = lived()
    frames = list(rig.journal.frames)
    place = places_of(rig, "a")[1]
    gone = frames.pop(place)
    checkpoint = checkpoint_of(rig.store)
    damage = Damage(gone.address, None, "no header", 100)
    again = salvaged(rig, frames, checkpoint=checkpoint, damages=[damage])
    assert (await texts(again, again.store.find("a")))[:8] == ["a0", "a0'", None, None, "a2", "a2'", "a3", "a3'"]
    broken = frozenset({gone.address})
    again = salvaged(
        rig, rig.journal.frames, checkpoint=checkpoint, broken=broken, damages=[Damage(gone.address, 0, "x")]
    )
    assert await texts(again, again.store.find("a")) == ["a0", "a0'", None, None, "a2", "a2'", "a3", "a3'"]
    assert [answer.first_offset for answer in again.publish(again.store.find("a"), "new")] == [8]


async def test_a_channel_that_nobody_made_any_more_is_lost_and_said_so() -> None:
    rig = lived()
    frames = rig.journal.frames
    made = next(f for f in frames if f.kind == FrameType.CONFIG)
    again = salvaged(rig, frames, broken=frozenset({made.address}))
    assert again.store.get("a") is None
    assert await texts(again, again.store.find("b")) == ALL_B
    assert told(again)[1:] == [(f"(number {made.decoded.position}, name unknown)", 0, 7)]


async def test_control_frames_count_as_far_as_they_fit() -> None:
    rig = Rig()
    a = rig.channel("a")
    rig.publish(a, "0", "1")
    add_group(a, "g", GroupSettings(), 0, Outcomes())
    lost_config = len(rig.journal.frames)
    rig.store.delete(rig.channel("b"), Outcomes())
    again_b = rig.channel("b")
    a.shard.trim(a, 1, Outcomes())
    rig.commit()
    rig.publish(again_b, "new b")
    frames = rig.journal.frames
    deleted = next(f for f in frames[lost_config + 1 :] if f.kind == FrameType.CONFIG)
    again = salvaged(rig, frames, broken=frozenset({deleted.address}))
    assert again.store.find("a").first_offset == 1
    assert list(again.store.find("a").groups or ()) == ["g"]
    assert await texts(again, again.store.find("b")) == ["new b"], "the older b gave way, so it had been deleted"
    assert len(again.store.page("", "", 10)) == 2
    (loss,) = again.losses
    assert loss.first is None


def test_stale_and_late_frames_change_nothing() -> None:
    rig = lived()
    places = places_of(rig, "a")
    frames = list(rig.journal.frames)
    for changes in ({"epoch": 0}, {"base_offset": 0}, {"position": 2}):
        bent = list(frames)
        bent[places[3]] = altered(bent[places[3]], **changes)
        again = salvaged(rig, bent)
        a = again.store.find("a")
        assert a.index.row(2).base == 4
        assert a.next_offset >= 8 or (a.next_offset == 6 and changes == {"base_offset": 0})
        assert again.losses


async def test_a_producer_goes_on_and_is_not_told_of_offsets_that_are_lost() -> None:
    rig = Rig()
    a = rig.channel("a")
    for number in range(3):
        rig.publish(a, f"{number}", producer=7, producer_epoch=1, first_sequence=number)
    broken = frozenset({rig.journal.frames[-1].address})
    again = salvaged(rig, rig.journal.frames, broken=broken)
    a = again.store.find("a")
    with pytest.raises(AlreadyExists):
        again.publish(a, "2", producer=7, producer_epoch=1, first_sequence=2)
    (stored,) = again.publish(a, "3", producer=7, producer_epoch=1, first_sequence=3)
    assert (stored.first_offset, stored.duplicate) == (3, False)
    (repeat,) = again.publish(a, "1", producer=7, producer_epoch=1, first_sequence=1)
    assert (repeat.first_offset, repeat.duplicate) == (1, True)


async def test_the_loss_survives_a_checkpoint_and_ends_with_a_purge() -> None:
    rig = lived()
    broken = frozenset({rig.journal.frames[places_of(rig, "a")[1]].address})
    again = salvaged(rig, rig.journal.frames, broken=broken)
    later, quarantined = replayed([], checkpoint=checkpoint_of(again.store))
    assert quarantined == []
    later.journal.frames = list(rig.journal.frames)
    a = later.store.find("a")
    assert (await texts(later, a))[2:4] == [None, None]
    assert later.store.lost_messages == 2
    assert later.log.ledger.segments() == [1]
    later.lead(3)
    a.shard.trim(a, 3, Outcomes())
    later.journal.end = rig.journal.end
    later.commit()
    assert later.store.lost_messages == 1
    a.shard.trim(a, 4, Outcomes())
    later.commit()
    assert later.store.lost_messages == 0


def test_a_copy_of_a_lost_frame_does_not_half_revive_it() -> None:
    rig = lived()
    data = rig.journal.frames[places_of(rig, "a")[1]]
    copy = altered(data, flags=FLAG_REWRITTEN)._replace(address=rig.journal.end)
    again = salvaged(rig, [*rig.journal.frames, copy], broken=frozenset({data.address}))
    assert again.store.find("a").index.row(1).lost


def test_retention_by_number_counts_what_is_there() -> None:
    rig = lived()
    broken = frozenset({rig.journal.frames[places_of(rig, "a")[2]].address})
    again = salvaged(rig, rig.journal.frames, broken=broken)
    a = again.store.find("a")
    assert [a.newest(count) for count in range(7)] == [8, 7, 6, 3, 2, 1, 0]


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_is_damaged_what_is_whole_is_there_and_no_offset_comes_twice(seed: int) -> None:
    """Frames vanish or rot at random places behind the ones that make the channels."""
    rng = random.Random(seed)
    rig = lived()
    frames = list(rig.journal.frames)
    data = [place for place, frame in enumerate(frames) if frame.kind == FrameType.DATA]
    hit = rng.sample(data, rng.randint(1, 4))
    rotten = {place for place in hit if rng.random() < 0.5}
    broken = frozenset(frames[place].address for place in rotten)
    left = [frame for place, frame in enumerate(frames) if place not in hit or place in rotten]
    gone = [frames[place] for place in sorted(hit) if place not in rotten]
    damages = [Damage(frame.address, None, "no header", FRAME_OVERHEAD + len(frame.body)) for frame in gone]
    again = salvaged(rig, left, broken=broken, damages=damages)
    for name, all_of_it in (("a", ALL_A), ("b", ALL_B)):
        channel = again.store.find(name)
        lost = {frames[place].decoded.base_offset // 2 for place in hit if place in places_of(rig, name)}
        found = await texts(again, channel)
        assert found[:8] == [None if offset // 2 in lost else text for offset, text in enumerate(all_of_it)]
        assert not any(found[8:])
        answers: list[object] = []
        channel.shard.publish(channel, publish_of("new"), answers.append)
        assert channel.next_offset > 8


# -- dead letters -----------------------------------------------------------------------------------------------------


def buried() -> Rig:
    """Channel a, whose group g has given up offset 0, and then 1."""
    rig = Rig()
    channel = rig.channel("a")
    rig.publish(channel, "m0", "m1")
    group = add_group(channel, "g", GroupSettings(policy=RetryPolicy(dead_letters=True)), 0, Outcomes())
    for offset in (0, 1):
        group.settle_any(Reject("x"), [(offset, offset)], lambda _: None)
        rig.time.turn()
        rig.commit()
    return rig


def test_a_lost_dead_letter_makes_its_message_pending_again() -> None:
    rig = buried()
    first, last = (frame for frame in rig.journal.frames if frame.kind == FrameType.DATA and b"x" in frame.body)
    again = salvaged(rig, rig.journal.frames, broken=frozenset({first.address}))
    group = again.store.find_group(again.store.find("a"), "g")
    box = box_of(group)
    assert box is not None
    assert [group.core.pending(2), group.core.rejected, box.lost_at(0)] == [1, 1, (0, 0)]
    assert again.store.lost_messages == 1
    assert last.address == box.index.row(1).address


def test_a_box_whose_group_was_deleted_by_a_lost_frame_makes_room() -> None:
    rig = buried()
    group = rig.store.find_group(rig.store.find("a"), "g")
    old = box_of(group)
    assert old is not None
    delete_group(group, Outcomes())
    rig.commit()
    anew = add_group(rig.store.find("a"), "g", group.settings, 0, Outcomes())
    anew.settle_any(Reject("y"), [(0, 0)], lambda _: None)
    rig.time.turn()
    rig.commit()
    (deletion,) = (n for n, f in enumerate(rig.journal.frames) if f.kind == FrameType.GROUP and f.body.endswith(b"(\1"))
    frames = [frame for n, frame in enumerate(rig.journal.frames) if n != deletion]
    again = salvaged(rig, frames)
    found = again.store.find_group(again.store.find("a"), "g")
    box = box_of(found)
    assert box is not None
    assert [one.name for one in again.shard.channels.values()] == ["a", "$dead.g.a"]
    assert box.number != old.number
