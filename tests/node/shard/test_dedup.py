"""Channels that deduplicate by message ids: answers, numbers of producers, restarts."""

from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.errors import AlreadyExists, Precondition
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.shard import Publish
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message
from tests.node.shard.fakes import Damage, Outcomes, Rig, checkpoint_of, replayed

WINDOW_MS = 2_000
WINDOW_US = WINDOW_MS * 1_000


def windowed(rig: Rig, window_ms: int = WINDOW_MS) -> Channel:
    """The channel "a" with a window, or without one."""
    channel = rig.channel()
    rig.store.set(channel, ChannelLimits(dedup_window_ms=window_ms), Outcomes())
    rig.commit()
    return channel


def publish_ids(channel: Channel, *ids: str, **how: Any) -> list[Any]:
    """One batch with such ids; the answers as they come."""
    batch = Batch(messages=[Message(data=b"x", message_id=one) for one in ids]).SerializeToString()
    how.setdefault("durability", Durability.DURABILITY_QUORUM)
    answers: list[Any] = []
    channel.shard.publish(channel, Publish(batch, len(ids), crc32c(batch), **how), answers.append)
    return answers


def stored(rig: Rig, channel: Channel, *ids: str, **how: Any) -> tuple[int, bool]:
    """Offset and `duplicate` of a batch, committed."""
    answers = publish_ids(channel, *ids, **how)
    rig.commit()
    (answer,) = answers
    return answer.first_offset, answer.duplicate


def again(rig: Rig, *, checkpoint: bool = False) -> tuple[Rig, Channel]:
    """The same after a restart."""
    rig.commit()
    frames = list(rig.journal.frames)
    made, damaged = replayed(() if checkpoint else frames, checkpoint=checkpoint_of(rig.store) if checkpoint else None)
    assert damaged == []
    made.journal.frames, made.journal.end = frames, rig.journal.end
    made.journal.durable = made.journal.end
    made.time.now_us = rig.time.now_us
    made.lead(made.shard.epoch + 1)
    return made, made.store.find("a")


def test_an_id_is_stored_once_in_its_window() -> None:
    rig = Rig()
    channel = windowed(rig)
    assert stored(rig, channel, "a", "b") == (0, False)
    assert stored(rig, channel, "b") == (1, True)
    assert stored(rig, channel, "a", "b") == (0, True)
    assert channel.next_offset == 2
    rig.time.pass_us(WINDOW_US - 1)
    assert stored(rig, channel, "a") == (0, True)
    rig.time.pass_us(1)
    assert stored(rig, channel, "a") == (2, False)
    assert stored(rig, channel, "a") == (2, True)
    assert rig.store.message_ids == 1, "b has fallen out"


def test_a_mixture_appends_nothing() -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a")
    frames = len(rig.journal.frames)
    for ids in (("a", "b"), ("b", "a"), ("b", "b"), ("a", "")):
        with pytest.raises(AlreadyExists) as caught:
            publish_ids(channel, *ids)
        assert caught.value.reason == "DUPLICATE_IDS"
    assert (len(rig.journal.frames), channel.next_offset) == (frames, 1)


def test_messages_without_an_id_and_channels_without_a_window_are_left_alone() -> None:
    rig = Rig()
    channel = windowed(rig)
    assert [stored(rig, channel, "", "") for _ in range(2)] == [(0, False), (2, False)]
    assert [stored(rig, rig.channel("plain"), "a") for _ in range(2)] == [(0, False), (1, False)]
    assert rig.store.message_ids == 0


def test_a_repeat_in_flight_waits_for_the_same_commit() -> None:
    rig = Rig()
    channel = windowed(rig)
    first, second = publish_ids(channel, "a"), publish_ids(channel, "a")
    assert first == second == []
    rig.commit()
    assert [(answer.first_offset, answer.duplicate) for answer in first + second] == [(0, False), (0, True)]
    assert publish_ids(channel, "a", durability=Durability.DURABILITY_MEMORY)[0].duplicate, "needs no commit"


def test_the_numbers_of_a_producer_go_on_behind_a_duplicate() -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a")
    how = {"producer": 7, "producer_epoch": 1}
    assert stored(rig, channel, "a", **how) == (0, True)
    assert rig.journal.kinds()[-1] == FrameType.REPEAT
    assert stored(rig, channel, "b", first_sequence=1, **how) == (1, False)
    rig, channel = again(rig)
    assert stored(rig, channel, "a", **how) == (0, True)
    assert rig.journal.kinds()[-1] != FrameType.REPEAT, "a repeat of the numbers, known as such"
    assert stored(rig, channel, "c", first_sequence=2, **how) == (2, False)


def test_a_duplicate_that_is_sent_again_waits_for_its_numbers() -> None:
    """Otherwise they could be lost with a node that has answered, and the producer's next batch would be a gap."""
    rig = Rig()
    channel = windowed(rig)
    assert stored(rig, channel, "a", producer=7, first_sequence=0) == (0, False)
    first = publish_ids(channel, "a", producer=7, first_sequence=1)
    again_sent = publish_ids(channel, "a", producer=7, first_sequence=1)
    assert (first, again_sent) == ([], [])
    rig.commit()
    assert [(one.first_offset, one.duplicate) for one in (*first, *again_sent)] == [(0, True), (0, True)]


def test_a_producer_s_duplicate_in_flight_is_answered_with_it() -> None:
    rig = Rig()
    channel = windowed(rig)
    how = {"producer": 7, "producer_epoch": 1}
    answers = publish_ids(channel, "a") + publish_ids(channel, "a", **how) + publish_ids(channel, "a", **how)
    assert answers == []
    memory = publish_ids(channel, "a", first_sequence=1, durability=Durability.DURABILITY_MEMORY, **how)
    assert memory[0].duplicate
    rig.commit()
    assert stored(rig, channel, "b", first_sequence=2, **how) == (1, False)


def test_a_duplicate_wins_over_an_expected_offset() -> None:
    rig = Rig()
    channel = windowed(rig)
    assert stored(rig, channel, "a", expected_offset=0) == (0, False)
    assert stored(rig, channel, "a", expected_offset=0) == (0, True)
    with pytest.raises(Precondition):
        publish_ids(channel, "b", expected_offset=0)
    assert stored(rig, channel, "b", expected_offset=1) == (1, False)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_window_outlives_a_restart(checkpoint: bool) -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a", "", "c")
    rig.time.pass_us(WINDOW_US // 2)
    stored(rig, channel, "d")
    rig, channel = again(rig, checkpoint=checkpoint)
    assert rig.store.message_ids == 3
    assert [stored(rig, channel, one) for one in "acd"] == [(0, True), (2, True), (3, True)]
    rig.time.pass_us(WINDOW_US // 2)
    assert [stored(rig, channel, one) for one in "ad"] == [(4, False), (3, True)]


def test_what_was_removed_is_still_a_duplicate() -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a")
    channel.shard.trim(channel, 1, Outcomes())
    rig.commit()
    assert stored(rig, channel, "a") == (0, True)


def test_a_channel_made_again_knows_nothing() -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a")
    rig.store.delete(channel, Outcomes())
    rig.commit()
    assert rig.store.message_ids == 0
    assert stored(rig, windowed(rig), "a") == (0, False)


def test_a_window_counts_from_its_place_in_the_log() -> None:
    rig = Rig()
    channel = rig.channel()
    publish_ids(channel, "early")
    rig.store.set(channel, ChannelLimits(dedup_window_ms=WINDOW_MS), Outcomes())
    publish_ids(channel, "a")  # nothing is committed yet
    rig.store.set(channel, ChannelLimits(), Outcomes())
    publish_ids(channel, "b")
    rig.store.set(channel, ChannelLimits(dedup_window_ms=WINDOW_MS), Outcomes())
    publish_ids(channel, "c")
    rig.commit()
    live = list((channel.seen or []) and channel.seen.runs(10))
    assert [run.ids for run in live] == [(b"c",)]
    rig, channel = again(rig)
    assert list((channel.seen or []) and channel.seen.runs(10)) == live
    windowed(rig, 0)
    assert (channel.seen, rig.store.windowed) == (None, set())


def test_lost_messages_may_come_again() -> None:
    rig = Rig()
    channel = windowed(rig)
    stored(rig, channel, "a")
    stored(rig, channel, "b")
    frames = list(rig.journal.frames)
    checkpoint = checkpoint_of(rig.store)
    address = frames[-2].address
    damage = Damage(address, None, "rotten", length=frames[-1].address - address)
    made, _ = replayed((), checkpoint=checkpoint, damages=[damage], accept_loss=True)
    channel = made.store.find("a")
    assert channel.lost_ranges() == [(0, 0)] or channel.lossy
    made.journal.end = made.journal.durable = frames[-1].address + 1_000
    made.lead(made.shard.epoch + 1)
    assert not stored(made, channel, "a")[1]
    assert stored(made, channel, "b") == (1, True)


_steps = st.lists(
    st.tuples(
        st.sampled_from(["publish", "produce", "commit", "restart", "checkpoint"]),
        st.lists(st.sampled_from("abcde"), min_size=1, max_size=3),
        st.sampled_from([0, 1, WINDOW_US // 3, WINDOW_US]),
    ),
    max_size=30,
)


@given(_steps)
def test_no_id_is_stored_twice_in_a_window_through_restarts(steps: list[tuple[str, list[str], int]]) -> None:
    rig = Rig()
    channel = windowed(rig)
    log: list[tuple[str, int]] = []  # what is stored, with its time
    sequence = 0
    for kind, ids, span in steps:
        rig.time.pass_us(span)
        now = rig.time.now_us
        if kind == "commit":
            rig.commit()
        elif kind in ("restart", "checkpoint"):
            rig, channel = again(rig, checkpoint=kind == "checkpoint")
        else:
            how = {"producer": 7, "producer_epoch": 1, "first_sequence": sequence} if kind == "produce" else {}
            known = {one: offset for offset, (one, at) in enumerate(log) if at > now - WINDOW_US}
            places = [known.get(one) for one in ids]
            if places[0] is not None and places == list(range(places[0], places[0] + len(ids))):
                assert stored(rig, channel, *ids, **how) == (places[0], True)
            elif any(place is not None for place in places) or len(set(ids)) < len(ids):
                with pytest.raises(AlreadyExists):
                    publish_ids(channel, *ids, **how)
                continue
            else:
                publish_ids(channel, *ids, **how)
                log += [(one, now) for one in ids]
            sequence += len(ids) if kind == "produce" else 0
    assert channel.next_offset == len(log)
