"""Groups with a filter, in each mode: what is let through is delivered, the rest is settled, nothing is held back."""

import asyncio
from random import Random
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.internal.v1.record_pb2 import SettleRecord
from ringpost.node.delivery.hub import Hub
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FrameType
from ringpost.node.services.explain import explained
from ringpost.node.services.groups import info
from ringpost.node.shard import filter_scan, sieve
from ringpost.node.shard.configure import pause_group, set_group
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig
from ringpost.v1.message_pb2 import CAUSE_FILTERED, CAUSE_IN_LINE, CAUSE_LEASED, CAUSE_PARKED, CAUSE_SETTLED
from ringpost.v1.publish_pb2 import Message
from ringpost.v1.subscribe_pb2 import Ack, Nack
from tests.node.delivery.fakes import Stream, code, events, hub_of, ranges, reason_of, spans, stored, turns
from tests.node.delivery.test_filtered import Ticking
from tests.node.delivery.test_lost import lose
from tests.node.delivery.test_modes import publish
from tests.node.shard.fakes import Outcomes, Rig, checkpoint_of, replayed

S = 1_000_000
SHARED, KEYED = GroupMode.GROUP_MODE_SHARED, GroupMode.GROUP_MODE_KEY_ORDERED
EXCLUSIVE, FAILOVER = GroupMode.GROUP_MODE_EXCLUSIVE, GroupMode.GROUP_MODE_FAILOVER
MODES = [SHARED, KEYED, EXCLUSIVE, FAILOVER]
WANTED = 'key in ["a", "b"]'


def made(rig: Rig, *batches: str, mode: GroupMode.ValueType = SHARED, wanted: str = WANTED, **config: int) -> Group:
    """A group with a filter; "a1 b1 x1" are three messages with keys a, b and x."""
    channel = rig.channel()
    publish(rig, channel, *batches)
    group = add_group(channel, "g", GroupSettings(mode=mode, filter=wanted, **config), 0, Outcomes())
    rig.commit()
    return group


async def joined(hub: Hub, **fields: Any) -> Stream:
    stream = Stream(hub)
    stream.open(group="g", **fields)
    await turns()
    return stream


async def delivered(rig: Rig, stream: Stream) -> list[str]:
    """What comes, with all that is settled on the way stored."""
    found: list[str] = []
    for _ in range(3):
        batches = [batch for response in await stream.said() for batch in response.deliver.batches]
        found += [m.data.decode() for batch in batches for m in batch.batch.messages]
        stored(rig)
    return found


def settle(rig: Rig, stream: Stream, *pairs: tuple[int, int], **action: Any) -> None:
    stream.settle(correlation=1, ranges=ranges(*pairs), **(action or {"ack": Ack()}))
    stored(rig)


def restarted(rig: Rig) -> Rig:
    """The node comes back with the same journal."""
    rig.abandon()
    again, quarantined = replayed(rig.journal.frames)
    assert quarantined == []
    again.journal.frames, again.journal.end, again.journal.durable = (
        rig.journal.frames,
        rig.journal.end,
        rig.journal.end,
    )
    again.time.now_us = rig.time.now_us
    again.lead(rig.shard.epoch + 1)
    return again


def filtered_frames(rig: Rig) -> list[list[int]]:
    frames = [SettleRecord.FromString(f.body) for f in rig.journal.frames if f.kind == FrameType.SETTLE]
    return [list(frame.filtered) for frame in frames if frame.filtered]


def check_replay(rig: Rig) -> None:
    """A restart, from the log alone and from a checkpoint, ends where the group is."""
    for checkpoint in (None, checkpoint_of(rig.store)):
        again, quarantined = replayed(rig.journal.frames, checkpoint=checkpoint)
        assert quarantined == []
        assert again.snapshots() == rig.snapshots()


@pytest.mark.parametrize("mode", MODES)
async def test_only_what_is_let_through_is_delivered_and_the_rest_counts_as_acked(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "a1 x1 x2 b1", "x3 y1", "y2 a2 -1", mode=mode)
    stream = await joined(hub_of(rig))
    assert await delivered(rig, stream) == (["a1", "b1"] if mode == KEYED else ["a1", "b1", "a2"])
    assert (group.core.filtered, group.core.pending(9)) == (6, 3)
    assert filtered_frames(rig) == [[1, 2, 4, 6, 8, 8]], "in ranges, in one frame"
    settle(rig, stream, (0, 0), (3, 3))
    assert await delivered(rig, stream) == (["a2"] if mode == KEYED else [])
    settle(rig, stream, (7, 7))
    shown = info(group)
    assert (shown.settled_below, shown.pending, shown.filtered, shown.in_flight) == (9, 0, 6, 0)
    assert shown.config.filter == WANTED
    assert rig.reading.sieve.filtered == {"subscription": 0, "group": 6}
    publish(rig, group.channel, "x4", "b2")
    assert await delivered(rig, stream) == ["b2"]
    check_replay(rig)


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_that_is_filtered_out_needs_the_filter_again_after_a_restart(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    made(rig, "x1 a1 x2", "x3 b1 x4", mode=mode)
    stream = await joined(hub_of(rig))
    await delivered(rig, stream)
    again = restarted(rig)
    group = again.store.find_group(again.store.find("a"), "g")
    assert (group.settings.filter, group.core.filtered, group.core.pending(6)) == (WANTED, 4, 2)
    later = await joined(hub_of(again))
    assert await delivered(again, later) == ["a1", "b1"]
    assert group.core.filtered == 4


async def test_a_filtered_message_of_a_key_holds_nothing_back() -> None:
    rig = Rig()
    wanted = 'key == "a" && size == 2'
    group = made(rig, "a1 a22 a3 a44", mode=KEYED, wanted=wanted)
    stream = await joined(hub_of(rig))
    assert await delivered(rig, stream) == ["a1"]
    settle(rig, stream, (0, 0), nack=Nack(delay_ms=5_000))
    publish(rig, group.channel, "a55 a6 b1")
    assert await delivered(rig, stream) == [], "a3 is parked behind a1"
    assert group.core.filtered == 4
    rig.time.pass_us(6 * S)
    assert await delivered(rig, stream) == ["a1"]
    settle(rig, stream, (0, 0))
    assert await delivered(rig, stream) == ["a3"]
    settle(rig, stream, (2, 2))
    assert await delivered(rig, stream) == ["a6"]


async def test_what_is_filtered_out_is_not_in_flight_and_takes_no_credit() -> None:
    rig = Rig()
    group = made(rig, "a1 x1 x2 a2 x3 a3", max_in_flight=2)
    stream = await joined(hub_of(rig), messages=3)
    assert await delivered(rig, stream) == ["a1", "a2"]
    assert group.core.in_flight == 2
    settle(rig, stream, (0, 3))
    assert await delivered(rig, stream) == ["a3"]
    assert group.core.filtered == 3


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_members_share_what_is_let_through(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    texts = " ".join(f"{'abx'[n % 3]}{n}" for n in range(60))
    made(rig, texts, mode=mode, wanted='key in ["a", "b"]')
    hub = hub_of(rig)
    one, two = await joined(hub, messages=0), await joined(hub, messages=0)
    found: list[str] = []
    async with asyncio.timeout(30):
        for _ in range(200):
            for stream in (one, two):
                stream.credit(messages=1 + len(found))
                came = [b for response in await stream.said() for b in response.deliver.batches]
                for batch in came:
                    found += [m.data.decode() for m in batch.batch.messages]
                    settle(rig, stream, (batch.first_offset, batch.first_offset + batch.count - 1))
    wanted = [text for text in texts.split() if text[0] in "ab"]
    assert sorted(found) == sorted(wanted)
    if mode == KEYED:
        for key in "ab":
            assert [t for t in found if t[0] == key] == [t for t in wanted if t[0] == key]


@pytest.mark.parametrize("mode", MODES)
async def test_another_filter_counts_for_what_is_not_settled_and_has_not_failed(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "a1 x1 b1 x2 c1", mode=mode)
    hub = hub_of(rig)
    stream = await joined(hub)
    assert await delivered(rig, stream) == ["a1", "b1"]
    settle(rig, stream, (0, 0), nack=Nack(delay_ms=1))
    done = Outcomes()
    set_group(group, GroupConfig(filter='key != "b"', max_in_flight=7), done)
    publish(rig, group.channel, "b2 c2")
    assert done == [None]
    (closed,) = [one for one in await stream.said() if one.WhichOneof("event") == "closed"]
    assert reason_of(closed) == (code(grpc.StatusCode.UNAVAILABLE), "GROUP_MOVED")
    rig.time.pass_us(S)
    again = await joined(hub)
    assert sorted(await delivered(rig, again)) == ["a1", "c2"], (
        "x1, x2, c1 are settled by the old one, b1, b2 by the new"
    )
    assert group.core.filtered == 5
    assert group.settings.max_in_flight == 7
    assert group.core.last_failure(0, 0)[1] == "" or group.core.failures(0)
    check_replay(rig)


async def test_another_filter_of_a_broadcast_group_counts_for_every_consumer() -> None:
    rig = Rig()
    group = made(rig, "a1 b1", mode=GroupMode.GROUP_MODE_BROADCAST, wanted='key == "a"')
    hub = hub_of(rig)
    there = await joined(hub, consumer="there")
    away = await joined(hub, consumer="away")
    assert [await delivered(rig, one) for one in (there, away)] == [["a1"], ["a1"]]
    away.close()
    await delivered(rig, away)
    done = Outcomes()
    set_group(group, GroupConfig(filter='key == "b"'), done)
    late = await joined(hub, consumer="late")
    publish(rig, group.channel, "a2 b2")
    assert done == [None]
    (closed,) = [one for one in await there.said() if one.WhichOneof("event") == "closed"]
    assert reason_of(closed) == (code(grpc.StatusCode.UNAVAILABLE), "GROUP_MOVED")
    assert await delivered(rig, late) == ["b1", "b2"]
    for consumer in ("there", "away"):
        assert await delivered(rig, await joined(hub, consumer=consumer)) == ["b2"], "b1 is settled by the old filter"
    check_replay(rig)


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_a_filter_may_be_given_to_a_group_and_taken_away(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "a1 x1 b1", mode=mode, wanted="")
    hub = hub_of(rig)
    stream = await joined(hub, messages=1)
    assert await delivered(rig, stream) == ["a1"]
    set_group(group, GroupConfig(filter=WANTED), Outcomes())
    rig.commit()
    stream = await joined(hub)
    assert await delivered(rig, stream) == ["a1", "b1"]
    assert group.core.filtered == 1
    set_group(group, GroupConfig(filter=""), Outcomes())
    publish(rig, group.channel, "x2")
    stream = await joined(hub)
    assert await delivered(rig, stream) == ["a1", "b1", "x2"]
    set_group(group, GroupConfig(max_in_flight=9), Outcomes())
    rig.commit()
    assert "closed" not in events(await stream.said()), "other settings leave subscriptions alone"
    check_replay(rig)


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_a_settlement_that_is_on_its_way_when_the_filter_changes_counts(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "a1 a2 b1 b2", mode=mode)
    hub = hub_of(rig)
    stream = await joined(hub)
    await delivered(rig, stream)
    stream.settle(correlation=1, ranges=ranges((0, 0)), ack=Ack())
    set_group(group, GroupConfig(filter="true"), Outcomes())
    stream.settle(correlation=2, ranges=ranges((2, 2)), ack=Ack())
    rig.commit()
    again = await joined(hub)
    came = await delivered(rig, again)
    came += await delivered(rig, again)
    assert sorted(came) == ["a2", "b2"]
    assert group.core.settled_below == 1
    check_replay(rig)


async def test_a_seek_brings_what_was_filtered_out_before_the_filter_again() -> None:
    rig = Rig()
    group = made(rig, "a1 x1 b1")
    hub = hub_of(rig)
    stream = await joined(hub)
    await delivered(rig, stream)
    settle(rig, stream, (0, 2))
    assert group.core.pending(3) == 0
    seek_group(group, 0, Outcomes())
    rig.commit()
    again = await joined(hub)
    assert await delivered(rig, again) == ["a1", "b1"]
    assert (group.core.filtered, group.core.pending(3)) == (2, 2)
    check_replay(rig)


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_what_could_not_be_stored_is_looked_at_again(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "x1 a1 x2", mode=mode)
    hub = hub_of(rig)
    rig.journal.failed = True
    stream = await joined(hub)
    await stream.said()
    rig.time.turn()
    rig.journal.failed = False
    assert group.core.filtered == 0
    stream.close()
    await stream.said()
    again = await joined(hub)
    assert await delivered(rig, again) == ["a1"]
    assert (group.core.filtered, group.core.pending(3)) == (2, 1)
    check_replay(rig)


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_a_paused_group_looks_at_nothing(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "x1 x2 a1", mode=mode)
    pause_group(group, True, Outcomes())
    rig.commit()
    stream = await joined(hub_of(rig))
    assert await delivered(rig, stream) == []
    assert group.core.pending(3) == 3
    pause_group(group, False, Outcomes())
    rig.commit()
    assert await delivered(rig, stream) == ["a1"]
    assert group.core.pending(3) == 1


@pytest.mark.parametrize("mode", MODES)
async def test_from_the_disk_and_around_lost_messages_it_is_the_same(mode: GroupMode.ValueType) -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, "x1 a1", "x2 x3", "b1 x4", "x5 y1", "x6 b2", mode=mode)
    lose(rig, group.channel, 3)
    stream = await joined(hub_of(rig))
    found = await delivered(rig, stream)
    found += await delivered(rig, stream)
    assert found[:2] == ["a1", "b1"]
    settle(rig, stream, (1, 1), (4, 4))
    found += await delivered(rig, stream)
    assert found == ["a1", "b1", "b2"]
    assert group.core.pending(10) == 1, "b2 alone: lost messages are settled in their turn"
    assert group.core.filtered == 5


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_a_filter_that_lets_nothing_through_takes_its_time_in_slices(mode: GroupMode.ValueType) -> None:
    rig = Rig(cache_bytes=8 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // 4)
    group = made(rig, *(" ".join(f"x{n}" for n in range(100)) for _ in range(5)), "a1", mode=mode, wanted='key == "a"')
    stream = await joined(hub_of(rig))
    await turns(4)
    rig.time.turn()
    rig.commit()
    assert 0 < group.core.filtered < 500
    found: list[str] = []
    async with asyncio.timeout(30):
        while not found:
            found = await delivered(rig, stream)
    assert found == ["a1"]
    assert group.core.filtered == 500
    assert len(group.core.snapshot().settled) == 0, "one range, from the beginning"


async def test_what_is_known_of_a_backlog_is_taken_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription with the same filter has looked before: the group needs no slice, and takes turns all the same."""
    monkeypatch.setattr(filter_scan, "TURN_MESSAGES", 10)
    rig = Rig(cache_bytes=8 << 20)
    group = made(rig, *("x1 x2 x3 x4 x5" for _ in range(20)), "a1", mode=KEYED)
    hub = hub_of(rig)
    reader = Stream(hub)
    reader.open(filter=WANTED)
    assert await delivered(rig, reader) == ["a1"]
    stream = await joined(hub)
    rig.time.turn()
    rig.commit()
    assert 10 <= group.core.filtered < 100
    found: list[str] = []
    async with asyncio.timeout(30):
        while not found:
            found = await delivered(rig, stream)
    assert (found, group.core.filtered) == (["a1"], 100)


async def test_keys_of_a_large_batch_that_the_sieve_knows_are_read_in_bounded_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was looked at for another group; its messages must be opened once more for their keys."""
    monkeypatch.setattr(filter_scan, "CHUNK", 8)
    rig = Rig(cache_bytes=8 << 20)
    made(rig, " ".join(f"{'abx'[n % 3]}{n}" for n in range(50)), mode=KEYED)
    hub = hub_of(rig)
    reader = Stream(hub)
    reader.open(filter=WANTED)
    assert len(await delivered(rig, reader)) == 34
    opened: list[int] = []
    messages = sieve.Sieve.messages

    def spied(self: sieve.Sieve, address: int, frame: CachedFrame, first: int, end: int) -> list[Message]:
        opened.append(end - first)
        return messages(self, address, frame, first, end)

    monkeypatch.setattr(sieve.Sieve, "messages", spied)
    stream = await joined(hub)
    found: list[str] = []
    async with asyncio.timeout(30):
        while len(found) < 34:
            came = await delivered(rig, stream)
            found += came
            settle(rig, stream, *((int(text[1:]), int(text[1:])) for text in came))
    assert (sum(opened), max(opened)) == (50, 8)
    for key in "ab":
        mine = [int(text[1:]) for text in found if text[0] == key]
        assert mine == sorted(mine)
        assert len(mine) == 17
    check_replay(rig)


async def test_a_first_use_makes_the_group_with_the_filter_and_a_different_one_is_refused() -> None:
    rig = Rig()
    channel = rig.channel()
    publish(rig, channel, "a1 x1")
    hub = hub_of(rig)
    stream = await joined(hub, filter=WANTED)
    rig.commit()
    assert await delivered(rig, stream) == ["a1"]
    assert (channel.groups or {})["g"].settings.filter == WANTED
    for wanted in ("", WANTED):
        other = await joined(hub, filter=wanted)
        assert events(await other.said())[:1] == ["opened"]
    different = await joined(hub, filter="true")
    (closed,) = await different.said()
    assert reason_of(closed) == (code(grpc.StatusCode.FAILED_PRECONDITION), "GROUP_FILTER")
    assert dict(closed.closed.failure.metadata) == {"filter": WANTED, "wanted": "true"}
    assert closed.closed.failure.message.startswith("open.filter: group 'g' has filter ")
    wrong = await joined(hub, filter="keyy")
    (closed,) = await wrong.said()
    assert "goes wrong at line 1, column 1: there is no 'keyy'" in closed.closed.failure.message


@pytest.mark.parametrize("mode", [SHARED, KEYED])
async def test_explain_says_what_is_filtered_out(mode: GroupMode.ValueType) -> None:
    rig = Rig()
    group = made(rig, "x1 a1 a2 x2", mode=mode)

    async def told(offset: int) -> tuple[int, str]:
        answer = (await explained(rig.store, rig.reading, "a", offset, "g")).groups[0]
        return answer.cause, answer.sentence

    why = "It is filtered out: the group's filter does not let it through"
    assert await told(0) == (CAUSE_FILTERED, f"{why}; it is settled when the group comes to it.")
    stream = await joined(hub_of(rig), messages=1)
    await delivered(rig, stream)
    said = f"{why}, so it is settled, unless it was for another reason before the group had that filter."
    assert await told(0) == (CAUSE_FILTERED, said)
    assert (await told(1))[0] == CAUSE_LEASED
    assert (await told(2))[0] == (CAUSE_PARKED if mode == KEYED else CAUSE_IN_LINE) or group.core.in_flight
    settle(rig, stream, (1, 1))
    assert (await told(1))[0] == CAUSE_SETTLED


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(MODES),
    st.lists(st.lists(st.sampled_from("abxy"), min_size=1, max_size=6), min_size=1, max_size=6),
    st.sampled_from([0, 1 << 20]),
    st.booleans(),
    st.integers(0, 1 << 32),
)
def test_whatever_happens_exactly_what_is_let_through_is_delivered_and_all_is_settled_in_the_end(
    mode: GroupMode.ValueType, batches: list[list[str]], cache: int, slow: bool, seed: int
) -> None:
    asyncio.run(_check_any(mode, batches, cache, slow, Random(seed)))


async def _check_any(
    mode: GroupMode.ValueType, batches: list[list[str]], cache: int, slow: bool, chance: Random
) -> None:
    """Acks, nacks, consumers that come and go, restarts; against a list of the messages that are wanted."""
    rig = Rig(cache_bytes=cache)
    texts = [[f"{key}{number}-{n}" for n, key in enumerate(batch)] for number, batch in enumerate(batches)]
    made(rig, *(" ".join(batch) for batch in texts), mode=mode)
    everything = [text for batch in texts for text in batch]
    wanted = {offset for offset, text in enumerate(everything) if text[0] in "ab"}
    acked: list[int] = []
    stream, sent = None, 0
    async with asyncio.timeout(60):
        for _ in range(200):
            if len(acked) == len(wanted):
                break
            if slow:
                rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS)
            if stream is None:
                stream, sent = await joined(hub_of(rig), messages=0), 0
            stream.credit(messages=sent + chance.randint(1, 4))
            said = await stream.said()
            stored(rig)
            said += await stream.said()
            for first, last, _attempt in spans(said):
                sent += last - first + 1
                assert set(range(first, last + 1)) <= wanted - set(acked)
                if chance.random() < 0.3:
                    settle(rig, stream, (first, last), nack=Nack(delay_ms=1))
                else:
                    acked += range(first, last + 1)
                    settle(rig, stream, (first, last))
            rig.time.pass_us(S)
            rig.commit()
            what = chance.choice(["go on", "go on", "leave", "restart"])
            if what == "leave":
                stream.close()
                await stream.said()
                stream = None
            elif what == "restart":
                rig = restarted(rig)
                stream = None
    stream = stream or await joined(hub_of(rig))
    stream.credit()
    assert await delivered(rig, stream) == []
    group = rig.store.find_group(rig.store.find("a"), "g")
    assert sorted(acked) == sorted(wanted)
    assert (group.core.settled_below, group.core.filtered) == (len(everything), len(everything) - len(wanted))
    if mode == KEYED:
        for key in "ab":
            mine = [offset for offset in acked if everything[offset][0] == key]
            assert mine == sorted(mine), "in order"
