"""Subscriptions with a filter: what they are sent, what that costs, and that nobody waits for it."""

import asyncio
from typing import Any

import grpc
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.delivery.session import Session
from ringpost.node.delivery.subscription import PIECES_MAX
from ringpost.node.shard import sieve
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.shard import Publish
from ringpost.v1.common_pb2 import Durability, Start
from ringpost.v1.publish_pb2 import Batch, Message
from ringpost.v1.subscribe_pb2 import SubscribeResponse
from tests.node.delivery.fakes import Stream, batches_of, code, events, hub_of, reason_of, turns
from tests.node.shard.fakes import Outcomes, Rig

WANTED = 'key == "x"'


def put(rig: Rig, keys: str, name: str = "a", commit: bool = True, ttl_ms: int = 0) -> Channel:
    """One batch, a message for each letter, which is its key; its text is its offset."""
    channel = rig.channel(name)
    end = channel.next_offset
    messages = [Message(key=key.encode(), data=str(end + n).encode()) for n, key in enumerate(keys)]
    batch = Batch(messages=messages).SerializeToString()
    publish = Publish(batch, len(keys), crc32c(batch), Durability.DURABILITY_QUORUM, ttl_ms=ttl_ms)
    channel.shard.publish(channel, publish, lambda _: None)
    if commit:
        rig.commit()
    return channel


def spans(said: list[SubscribeResponse]) -> list[tuple[int, int]]:
    return [(batch.first_offset, batch.count) for batch in batches_of(said)]


async def texts(stream: Stream) -> list[int]:
    return [int(text) for text in await stream.texts()]


def cursor(stream: Stream, number: int = 1) -> int:
    """Where the subscription stands."""
    source: Any = stream.session.subscriptions[number]
    return int(source.source.offset)


async def test_only_what_the_filter_lets_through_is_sent_at_its_offsets() -> None:
    rig = Rig()
    for keys in ("xoxxo", "ooo", "xxx", "o"):
        put(rig, keys)
    hub = hub_of(rig)
    stream = Stream(hub)
    stream.open(filter=WANTED)
    said = await stream.said()
    assert events(said) == ["opened", "deliver"]
    assert spans(said) == [(0, 1), (2, 2), (8, 3)]
    assert [m.data for batch in batches_of(said) for m in batch.batch.messages] == [b"0", b"2", b"3", b"8", b"9", b"10"]
    assert cursor(stream) == 12, "the position moves on past what is filtered out"
    assert rig.reading.sieve.filtered == {"subscription": 6, "group": 0}
    put(rig, "oxo", commit=False)
    assert await texts(stream) == []
    rig.commit()
    assert await texts(stream) == [13]
    assert cursor(stream) == 15
    assert hub.counters.messages == 7


async def test_a_whole_batch_that_is_let_through_is_sent_as_it_is() -> None:
    rig = Rig()
    put(rig, "xxxx")
    hub = hub_of(rig)
    stream, other = Stream(hub), Stream(hub)
    stream.open(filter=WANTED)
    other.open()
    await stream.said()
    await other.said()
    assert stream.raw[1] is other.raw[1], "the same bytes as for one without a filter"


async def test_credit_counts_what_is_sent() -> None:
    rig = Rig()
    put(rig, "oxxoxoooxx")
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED, messages=2)
    assert await texts(stream) == [1, 2]
    stream.credit(messages=3)
    assert await texts(stream) == [4]
    stream.credit(messages=3)
    assert await texts(stream) == []
    stream.credit(messages=9)
    assert await texts(stream) == [8, 9]


async def test_without_credit_nothing_is_looked_at() -> None:
    rig = Rig()
    put(rig, "oo")
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED, messages=0)
    await stream.said()
    assert cursor(stream) == 0


async def test_a_batch_is_looked_at_once_for_all_who_have_the_filter_and_opened_once_for_all() -> None:
    rig = Rig()
    rig.reading.sieve._clock_ns = Ticking(0)  # or a slice may end, on a busy machine, before all is looked at
    hub = hub_of(rig)
    opened, matched = [], []
    looks, rig.reading.sieve._look = rig.reading.sieve._look, lambda *what: (matched.append(1), looks(*what))[1]  # type: ignore[method-assign]
    parse = Batch.FromString
    streams = [Stream(hub) for _ in range(6)]
    rig.channel()
    for number, stream in enumerate(streams):
        stream.open(filter=WANTED if number % 2 else 'key == "o"')
        await stream.said()

    class Counting:
        @staticmethod
        def FromString(body: bytes) -> Batch:
            opened.append(1)
            return parse(body)

    sieve.Batch = Counting  # type: ignore[misc, assignment]
    try:
        put(rig, "xoxo")
        found = [await texts(stream) for stream in streams]
    finally:
        sieve.Batch = Batch  # type: ignore[misc]
    assert found == [[1, 3], [0, 2]] * 3
    assert (len(opened), len(matched)) == (1, 2)


async def test_from_the_disk_it_is_the_same() -> None:
    rig = Rig(cache_bytes=0)
    for keys in ("oo", "ox", "oo", "xo"):
        put(rig, keys)
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED)
    assert await texts(stream) == [3, 6]
    assert len(rig.reads) >= 1
    assert cursor(stream) == 8


async def test_a_batch_larger_than_a_chunk_is_opened_in_parts() -> None:
    rig = Rig(cache_bytes=8 << 20)
    many = 2 * sieve.CHUNK + 3
    put(rig, "o" * (many - 2) + "xx")
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED)
    found: list[int] = []
    async with asyncio.timeout(30):
        while not found:
            found = await texts(stream)
    assert found == [many - 2, many - 1]


async def test_sparse_messages_come_in_deliveries_of_bounded_work() -> None:
    rig = Rig(cache_bytes=8 << 20)
    put(rig, "xo" * (2 * PIECES_MAX))
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED)
    said: list[SubscribeResponse] = []
    async with asyncio.timeout(30):
        while len(spans(said)) < 2 * PIECES_MAX:
            said += await stream.said()
    assert max(len(response.deliver.batches) for response in said) == PIECES_MAX
    assert spans(said) == [(offset, 1) for offset in range(0, 4 * PIECES_MAX, 2)]


async def test_what_is_remembered_of_sparse_batches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "RUNS_MAX", 3)
    monkeypatch.setattr(sieve, "_RUNS_HELD_MAX", 20)
    rig = Rig(cache_bytes=8 << 20)
    for _ in range(9):
        put(rig, "xo" * 8)
    hub = hub_of(rig)
    streams = [Stream(hub) for _ in range(3)]
    for stream in streams:
        stream.open(filter=WANTED)
        assert await texts(stream) == list(range(0, 144, 2))
    known = rig.reading.sieve._known
    assert rig.reading.sieve._runs_held == sum(len(one.runs) for one in known.values()) <= 20


async def test_what_is_removed_is_told_as_a_gap_and_what_is_filtered_out_is_not() -> None:
    rig = Rig()
    channel = put(rig, "xooxo")
    put(rig, "ooxoo")
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED, messages=1)
    assert await texts(stream) == [0]
    channel.shard.trim(channel, 7, Outcomes())
    rig.commit()
    stream.credit()
    said = await stream.said()
    assert events(said) == ["gap", "deliver"]
    assert (said[0].gap.missing.first, said[0].gap.missing.last) == (3, 6)
    assert spans(said) == [(7, 1)]
    assert cursor(stream) == 10


async def test_a_filter_that_lets_nothing_through_holds_nobody_up() -> None:
    """Work is in slices: while a backlog is looked at others get their deliveries, and the position goes on."""
    rig = Rig(cache_bytes=64 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // 50)
    for _ in range(30):
        put(rig, "o" * sieve.CHUNK)
    put(rig, "x", name="b")
    hub = hub_of(rig)
    searching, other = Stream(hub), Stream(hub)
    searching.open(filter='key == "x" || headers.none == "y" || key.contains("none")')
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    other.open(channel="b")
    assert await texts(other) == [0]
    assert cursor(searching) < 30 * sieve.CHUNK, "long before the search has come to its end"
    async with asyncio.timeout(60):
        while cursor(searching) < 30 * sieve.CHUNK:
            await asyncio.sleep(0)
    assert batches_of(await searching.said()) == []


class Ticking:
    """A clock that every look moves."""

    def __init__(self, step_ns: int) -> None:
        self.now = 0
        self.step_ns = step_ns

    def __call__(self) -> int:
        self.now += self.step_ns
        return self.now


async def test_a_slice_is_as_long_however_many_batches_are_opened_in_it() -> None:
    """A batch takes a quarter of a slice here."""
    rig = Rig(cache_bytes=64 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // sieve.CHUNK)
    for _ in range(20):
        put(rig, "o" * sieve.CHUNK)
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED)
    steps, before = [], 0
    async with asyncio.timeout(60):
        while before < 20 * sieve.CHUNK:
            await asyncio.sleep(0)
            source: Any = stream.session.subscriptions[1]
            at = int(source.source.offset) if source.source is not None else 0
            steps.append(at - before)
            before = at
    assert max(steps) <= 5 * sieve.CHUNK


async def test_many_who_search_take_turns() -> None:
    """Time for a few messages a turn: each comes to its end, and none much later than another."""
    rig = Rig(cache_bytes=8 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // 3)
    put(rig, "o" * 60 + "x")
    hub = hub_of(rig)
    streams = [Stream(hub) for _ in range(7)]
    for number, stream in enumerate(streams):
        stream.open(filter=f'key == "x" || key == "{number}"')
    found: list[list[int]] = [[] for _ in streams]
    order: list[int] = []
    async with asyncio.timeout(30):
        while len(order) < len(streams):
            await asyncio.sleep(0)
            for number, stream in enumerate(streams):
                if stream.session.queued_bytes and number not in order and cursor(stream) == 61:
                    order.append(number)
    for number, stream in enumerate(streams):
        found[number] = await texts(stream)
    assert found == [[60]] * 7
    assert order == sorted(order), "who came first is served first"


async def test_who_leaves_while_it_waits_for_its_turn_holds_nobody_up() -> None:
    rig = Rig()
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS)
    put(rig, "o" * 20 + "x")
    hub = hub_of(rig)
    streams = [Stream(hub) for _ in range(4)]
    for number, stream in enumerate(streams):
        stream.open(filter=f'key == "x" || key == "{number}"')
    await turns(3)
    for stream in streams[:3]:
        stream.session.close()
    found: list[int] = []
    async with asyncio.timeout(30):
        while not found:
            found = await texts(streams[3])
    assert found == [20]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("key = 'a'", "open.filter: goes wrong at line 1, column 5: '=' has no meaning here; equality is =="),
        ("true" + " " * 1021, "open.filter: is 1025 bytes long, allowed are 1024"),
    ],
)
async def test_a_wrong_filter_closes_the_subscription_before_anything_is_made(text: str, problem: str) -> None:
    rig = Rig()
    hub = hub_of(rig)
    stream = Stream(hub)
    stream.open(channel="new", filter=text)
    (closed,) = await stream.said()
    assert closed.closed.failure.message == problem
    assert reason_of(closed)[0] == code(grpc.StatusCode.INVALID_ARGUMENT)
    assert [violation.field for violation in closed.closed.failure.violations] == ["open.filter"]
    assert rig.store.get("new") is None
    assert hub.subscriptions == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("xo", min_size=1, max_size=9), max_size=8),
    st.integers(0, 20),
    st.integers(1, 5),
    st.sampled_from([0, 1 << 20]),
    st.booleans(),
)
def test_whatever_the_batches_and_the_credit_exactly_the_wanted_messages_come(
    batches: list[str], start: int, grant: int, cache: int, slow: bool
) -> None:
    asyncio.run(_check_any(batches, start, grant, cache, slow))


async def _check_any(batches: list[str], start: int, grant: int, cache: int, slow: bool) -> None:
    rig = Rig(cache_bytes=cache)
    if slow:
        rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS)
    rig.channel()
    for keys in batches:
        put(rig, keys)
    everything = "".join(batches)
    start = min(start, len(everything))
    stream = Stream(hub_of(rig))
    stream.open(filter=WANTED, start=Start(offset=start), messages=0)
    expected = [n for n, key in enumerate(everything) if key == "x" and n >= start]
    found: list[int] = []
    async with asyncio.timeout(30):
        while len(found) < len(expected):
            stream.credit(messages=len(found) + grant)
            came = await texts(stream)
            assert len(came) <= grant
            found += came
    assert found == expected


@given(
    st.lists(st.tuples(st.text("xo", min_size=1, max_size=4), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 4),
)
@settings(max_examples=100)
async def test_what_is_let_through_and_still_alive_is_sent_once_and_no_gap_has_any_of_it(
    batches: list[tuple[str, bool]], credit: int
) -> None:
    rig = Rig()
    for keys, mortal in batches:
        put(rig, keys, ttl_ms=1_000 if mortal else 0)
    rig.time.now_us += 2_000_000
    stream = Stream(hub_of(rig))
    stream.open(messages=credit, filter=WANTED)
    said = await stream.said()
    for total in range(2 * credit, 60, credit):
        stream.credit(total)
        said += await stream.said()
    alive = [key == "x" and not mortal for keys, mortal in batches for key in keys]
    reached, sent = 0, []
    for one in said:
        if one.WhichOneof("event") == "gap":
            assert reached <= one.gap.missing.first <= one.gap.missing.last
            assert not any(alive[one.gap.missing.first : one.gap.missing.last + 1])
            reached = one.gap.missing.last + 1
        for batch in one.deliver.batches:
            assert batch.first_offset >= reached
            reached = batch.first_offset + batch.count
            sent += range(batch.first_offset, reached)
    assert sent == [offset for offset, wanted in enumerate(alive) if wanted]


async def test_a_patterns_member_on_another_node_has_its_turns_beside_others_who_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its credit comes some turns after it was asked for; what it is asked for is not lost meanwhile."""
    rig = Rig(cache_bytes=64 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // 25)
    for _ in range(3):
        put(rig, "o" * 100)
    put(rig, "x")
    put(rig, "o" * 150 + "x" + "o" * 150 + "x")
    for _ in range(1_000):
        put(rig, "o" * 100, name="b")
    hub = hub_of(rig)
    searching, member = Stream(hub), Stream(hub)
    monkeypatch.setattr(Session, "forwarded", True)
    searching.open(channel="b", filter=WANTED)
    await turns(4)
    member.open(pattern="*", filter=WANTED, messages=0)
    found: list[int] = []
    granted = 0
    async with asyncio.timeout(60):
        while len(found) < 3:
            await turns()
            said: list[SubscribeResponse] = []
            while member.session.queued_bytes:
                said.append(SubscribeResponse.FromString(await member.session.next_message() or b""))
            found += [first for first, count in spans(said) if count]
            asked = any(one.WhichOneof("event") == "deliver" and not one.deliver.batches for one in said)
            await turns(4)
            if asked:
                granted += 1_000
                member.credit(messages=granted)
            assert cursor(searching) < 100_000, "it is not kept waiting until the other one is through"
    assert found == [300, 451, 602]
    assert cursor(member) == 603
