"""What the journal says is what the node was: replay of random histories, and damage that stays in its shard."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.internal.v1.record_pb2 import ShardSnapshot
from ringpost.node.errors import DataLoss
from ringpost.node.journal.checkpoint import CheckpointDamaged
from ringpost.node.journal.frame import FLAG_REWRITTEN, FRAME_OVERHEAD, FrameType, encode_header
from ringpost.node.shard.snapshot import snapshot_shard
from ringpost.node.shard.store import Store
from tests.node.shard.fakes import Damage, Outcomes, Rig, Stored, checkpoint_of, replayed
from tests.node.shard.histories import History, Member, Operation, operations

SHARDS = 2


def state(store: Store) -> list[ShardSnapshot]:
    """All that a client can see, and what idempotence needs. A shard that refused something may have a later clock."""
    snapshots = [snapshot_shard(shard) for shard in store.shards]
    for snapshot in snapshots:
        snapshot.last_time_us = 0
    return snapshots


def lived(history: list[Operation], *, snapshot_at: int = -1) -> tuple[Rig, list[ShardSnapshot] | None]:
    rig = Rig(shards=SHARDS)
    life = History(rig)
    checkpoint = None
    for number, operation in enumerate(history):
        if number == snapshot_at:
            checkpoint = checkpoint_of(rig.store)
        life.do(operation)
    life.end()
    assert not any(life.done), "nothing failed"
    return rig, checkpoint


@given(st.lists(operations, max_size=60))
@settings(max_examples=250, deadline=None)
def test_replay_of_all_frames_gives_the_same_state(history: list[Operation]) -> None:
    rig, _ = lived(history)
    again, quarantined = replayed(rig.journal.frames, shards=SHARDS)
    assert quarantined == []
    assert state(again.store) == state(rig.store)
    assert {channel.name: channel.number for channel in again.store} == {
        channel.name: channel.number for channel in rig.store
    }
    ledgers = [{segment: r.log.ledger.live(segment) for segment in (1,)} for r in (rig, again)]
    assert ledgers[0] == ledgers[1]


@given(st.lists(operations, max_size=60), st.integers(0, 60), st.integers(0, 200))
@settings(max_examples=250, deadline=None)
def test_a_checkpoint_and_the_frames_after_it_give_the_same_state(
    history: list[Operation], moment: int, scan_from: int
) -> None:
    rig, checkpoint = lived(history, snapshot_at=min(moment, max(len(history) - 1, 0)))
    frames = rig.journal.frames
    if checkpoint is not None:
        # The journal is read from some place before the checkpoint's positions, never from a later one.
        unknown = [n for n, f in enumerate(frames) if f.decoded.position > position_in(checkpoint, f.decoded.shard)]
        frames = frames[min(scan_from, unknown[0] if unknown else len(frames)) :]
    again, quarantined = replayed(frames, shards=SHARDS, checkpoint=checkpoint)
    assert quarantined == []
    assert state(again.store) == state(rig.store)


def position_in(checkpoint: list[ShardSnapshot], shard: int) -> int:
    return next((snapshot.position for snapshot in checkpoint if snapshot.shard == shard), 0)


@given(st.lists(operations, max_size=40), st.data())
@settings(max_examples=150, deadline=None)
def test_a_store_goes_on_after_replay_as_if_it_had_never_stopped(history: list[Operation], data: Any) -> None:
    rig, _ = lived(history)
    again, _ = replayed(rig.journal.frames, shards=SHARDS)
    again.journal.frames, again.journal.end = list(rig.journal.frames), rig.journal.end
    again.time.now_us = rig.time.now_us
    again.lead(2)
    for group in again.store.groups():
        group.join(1, Member())
    life = History(again)
    for operation in data.draw(
        st.lists(operations.filter(lambda op: op[0] not in ("produce", "repeat", "delay")), max_size=20)
    ):
        life.do(operation)
    life.end()
    third, quarantined = replayed(again.journal.frames, shards=SHARDS)
    assert quarantined == []
    assert state(third.store) == state(again.store)


# -- damage -----------------------------------------------------------------------------------------------------------


def two_shards() -> Rig:
    """Channels a and d live in different shards, a few frames each."""
    rig = Rig(shards=SHARDS)
    a, d = rig.channel("a"), rig.channel("d")
    assert a.shard is not d.shard
    for number in range(4):
        rig.publish(a, f"a{number}")
        rig.publish(d, f"d{number}")
    return rig


def of_shard(rig: Rig, name: str) -> tuple[int, list[int]]:
    """A channel's shard and the places of its frames in the journal."""
    channel = rig.store.find(name)
    number = channel.shard.number
    return number, [n for n, frame in enumerate(rig.journal.frames) if frame.decoded.shard == number]


def check_only(broken: int, rig: Rig, again: Rig, quarantined: list[int]) -> None:
    """Exactly that shard refuses everything, the other one is as it was."""
    assert quarantined == [broken]
    other = 1 - broken
    assert state(again.store)[other] == state(rig.store)[other]
    for channel in rig.store:
        if channel.shard.number == broken:
            with pytest.raises(DataLoss, match="quarantined"):
                again.store.find_or_add(channel.name)
        else:
            again.lead(2)
            again.publish(again.store.find(channel.name), "goes on")


def test_a_damaged_body_quarantines_its_shard() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    for place in places:
        broken = frozenset({rig.journal.frames[place].address})
        again, quarantined = replayed(rig.journal.frames, shards=SHARDS, broken=broken)
        check_only(shard, rig, again, quarantined)


def test_a_missing_frame_quarantines_its_shard() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "d")
    for place in places[:-1]:
        frames = rig.journal.frames[:place] + rig.journal.frames[place + 1 :]
        again, quarantined = replayed(frames, shards=SHARDS)
        check_only(shard, rig, again, quarantined)


def test_swapped_frames_quarantine_their_shard() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    frames = list(rig.journal.frames)
    frames[places[3]], frames[places[4]] = frames[places[4]], frames[places[3]]
    again, quarantined = replayed(frames, shards=SHARDS)
    check_only(shard, rig, again, quarantined)


def altered(frame: Stored, **changes: int) -> Stored:
    fields = frame.decoded._asdict() | changes
    del fields["header_crc"]
    return Stored(frame.address, encode_header(**fields), frame.body)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0},
        {"previous_crc": 1},
        {"base_offset": 7},
        {"channel": 99},
        {"position": 1},
        {"position": 2},
        {"type": 77},
    ],
    ids=str,
)
def test_a_frame_that_does_not_fit_quarantines_its_shard(changes: dict[str, int]) -> None:
    """A valid header of another time or place, as a misdirected or stale write leaves it."""
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    frames = list(rig.journal.frames)
    frames[places[-2]] = altered(frames[places[-2]], **changes)
    again, quarantined = replayed(frames, shards=SHARDS)
    check_only(shard, rig, again, quarantined)


def test_two_frames_with_the_last_position_quarantine_the_shard() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    other = altered(rig.journal.frames[places[-1]], time_us=1)._replace(address=rig.journal.end)
    again, quarantined = replayed([*rig.journal.frames, other], shards=SHARDS)
    check_only(shard, rig, again, quarantined)


def test_a_frame_for_an_unknown_shard_stops_the_start() -> None:
    rig = two_shards()
    with pytest.raises(CheckpointDamaged, match="names shard"):
        replayed(rig.journal.frames, shards=1)


def test_a_quarantine_is_found_anew_at_each_start_so_that_a_repair_ends_it() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    frames = rig.journal.frames
    _, quarantined = replayed(frames, shards=SHARDS, broken=frozenset({frames[places[3]].address}))
    assert quarantined == [shard]
    again, quarantined = replayed(frames, shards=SHARDS)
    assert quarantined == []
    assert again.snapshots() == rig.snapshots()


def test_a_rewritten_frame_behind_the_damage_still_moves_its_row() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    data = next(frame for frame in (rig.journal.frames[at] for at in places) if frame.kind == FrameType.DATA)
    copy = altered(data, flags=FLAG_REWRITTEN)._replace(address=rig.journal.end)
    broken = frozenset({rig.journal.frames[places[-1]].address})
    again, quarantined = replayed([*rig.journal.frames, copy], shards=SHARDS, broken=broken)
    assert quarantined == [shard]
    channel = next(iter(again.store.shards[shard].channels.values()))
    assert channel.index.row(0).address == copy.address


def test_damage_of_a_known_shard_quarantines_it_though_no_frame_tells() -> None:
    rig = two_shards()
    shard, _ = of_shard(rig, "d")
    again, quarantined = replayed(rig.journal.frames, shards=SHARDS, damages=[Damage(5, shard, "rotten")])
    check_only(shard, rig, again, quarantined)
    assert "rotten" in again.store.shards[shard].quarantined


def test_damage_of_an_unknown_shard_hits_all_without_a_later_unbroken_chain() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "d")
    frames = rig.journal.frames
    last_of_other = max(n for n in range(len(frames)) if n not in places)
    assert last_of_other < places[-1]
    between = Damage(frames[last_of_other].address + 1, None, "no header")
    again, quarantined = replayed(frames, shards=SHARDS, damages=[between])
    check_only(1 - shard, rig, again, quarantined)

    _, quarantined = replayed(frames, shards=SHARDS, damages=[Damage(frames[0].address, None, "no header")])
    assert quarantined == [], "both chains go on unbroken behind it"
    _, quarantined = replayed(frames, shards=SHARDS, damages=[Damage(rig.journal.end, None, "no header")])
    assert quarantined == [0, 1]


def test_a_gap_behind_an_unreadable_header_is_seen_too() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    frames = list(rig.journal.frames)
    lost = frames.pop(places[3])
    again, quarantined = replayed(frames, shards=SHARDS, damages=[Damage(lost.address, None, "no header")])
    check_only(shard, rig, again, quarantined)


# -- rewritten frames -------------------------------------------------------------------------------------------------


def rewritten(rig: Rig, frame: Stored, address: int) -> Stored:
    return altered(frame, flags=FLAG_REWRITTEN)._replace(address=address)


def test_a_rewritten_frame_only_moves_its_index_row() -> None:
    rig = two_shards()
    original = next(f for f in rig.journal.frames if f.kind == FrameType.DATA and f.body.endswith(b"a1"))
    copy = rewritten(rig, original, 9 << 32)
    again, quarantined = replayed([*rig.journal.frames, copy], shards=SHARDS)
    assert quarantined == []
    channel = again.store.find("a")
    assert channel.index.row(1).address == 9 << 32
    assert again.log.ledger.live(9) == FRAME_OVERHEAD + len(copy.body)
    before, after = state(rig.store), state(again.store)
    for snapshot in (*before, *after):
        for row in snapshot.channels:
            row.index = b""
    assert before == after

    twice, _ = replayed([copy], shards=SHARDS, checkpoint=checkpoint_of(again.store))
    assert twice.store.find("a").index.row(1).address == 9 << 32
    assert twice.log.ledger.live(9) == FRAME_OVERHEAD + len(copy.body)


def test_a_rewritten_frame_of_what_is_gone_changes_nothing() -> None:
    rig = two_shards()
    a = rig.store.find("a")
    data = [frame for frame in rig.journal.frames if frame.kind == FrameType.DATA]
    copies = [rewritten(rig, frame, 9 << 32 | number << 10) for number, frame in enumerate(data)]
    a.shard.trim(a, 4, Outcomes())
    rig.store.delete(rig.store.find("d"), Outcomes())
    rig.commit()
    again, quarantined = replayed([*rig.journal.frames, *copies], shards=SHARDS)
    assert quarantined == []
    assert state(again.store) == state(rig.store)


def test_a_damaged_copy_quarantines_its_shard() -> None:
    rig = two_shards()
    shard, places = of_shard(rig, "a")
    copy = rewritten(rig, rig.journal.frames[places[3]], 9 << 32)
    again, quarantined = replayed([*rig.journal.frames, copy], shards=SHARDS, broken=frozenset({copy.address}))
    check_only(shard, rig, again, quarantined)
