"""Subscribing to patterns over several nodes: which channels come, their order, the credit, groups, moves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from ringpost.node.delivery.fan import Fan
from ringpost.node.routing.relayed_member import RelayedMember
from ringpost.v1.channel_pb2 import AddChannelRequest, DeleteChannelRequest, PurgeChannelRequest
from ringpost.v1.common_pb2 import GroupMode, Start
from ringpost.v1.subscribe_pb2 import ChannelOffset, CloseSubscription, Outcome, SubscribeRequest
from tests.integration.broker import gathered
from tests.node.routing.cluster import Nodes, running
from tests.node.routing.pattern_reader import EARLIEST, PatternReader, fill, owners

CHANNELS = [f"orders.c{number}" for number in range(12)]


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with running(tmp_path) as nodes:
        yield nodes


async def test_all_channels_that_match_are_delivered_in_their_order_from_whatever_node_leads_them(nodes: Nodes) -> None:
    assert owners(nodes, CHANNELS) == {"n1", "n2", "n3"}
    for channel in (*CHANNELS, "bills.a", "orders.deep.er", "orders"):
        await fill(nodes.clients["n2"], channel, 0, 25)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    opened = await reader.open()
    assert opened.WhichOneof("event") == "opened"
    assert opened.opened.owner == "n1"
    assert reader.places == dict.fromkeys(CHANNELS, 0)
    await reader.take(25 * len(CHANNELS))
    assert reader.got == {key: list(range(25)) for key in CHANNELS}
    await reader.nothing_more()


async def test_without_a_start_only_what_comes_from_now_on_is_delivered_but_a_later_channel_whole(nodes: Nodes) -> None:
    for channel in CHANNELS:
        await fill(nodes.clients["n2"], channel, 0, 5)
    reader = PatternReader(nodes.clients["n3"], "orders.>")
    await reader.open()
    assert reader.places == dict.fromkeys(CHANNELS, 5)
    later = [f"orders.new.{number}" for number in range(9)]
    for channel in (*CHANNELS, *later):
        await fill(nodes.clients["n1"], channel, 5, 9)
    await reader.take(4 * (len(CHANNELS) + len(later)))
    assert reader.got == {key: [5, 6, 7, 8] for key in (*CHANNELS, *later)}
    assert {channel: reader.places[channel] for channel in later} == dict.fromkeys(later, 0)


async def test_the_credit_is_exact_and_shared_out_in_turn(nodes: Nodes) -> None:
    busy, *quiet = CHANNELS
    await fill(nodes.clients["n1"], busy, 0, 5_000, step=1_000)
    for channel in quiet:
        await fill(nodes.clients["n1"], channel, 0, 3)
    reader = PatternReader(nodes.clients["n2"], "orders.*", start=EARLIEST, credit=0)
    await reader.open()
    await reader.grant(7)
    await reader.take(7)
    await reader.nothing_more()
    assert sum(flow.credit.sent_messages for flow in _flows(nodes)) == 7, "no leader has sent more than was granted"
    await reader.grant(7 + 1_500)
    await reader.take(1_500)
    assert {channel: reader.got[channel] for channel in quiet} == {key: [0, 1, 2] for key in quiet}, "none starves"
    await reader.grant(10_000)
    await reader.take(5_000 + 3 * len(quiet) - 1_507)
    assert reader.got[busy] == list(range(5_000))


def _flows(nodes: Nodes) -> list[object]:
    """The subscriptions of the pattern's channels, wherever they are served."""
    sessions = (session for server in nodes.servers.values() for session in server.hub.sessions)
    return [
        flow for session in sessions for flow in session.subscriptions.values() if type(flow).__name__ == "Borrowing"
    ]


async def test_hundreds_of_quiet_channels_take_no_credit_from_one_that_has_something(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    await gathered((client.channels.AddChannel(AddChannelRequest(name=f"q.{n}")) for n in range(300)), 50)
    reader = PatternReader(nodes.clients["n3"], "q.*", credit=20)
    await reader.open()
    assert len(reader.places) == 300
    for number in (5, 250, 111):
        await fill(client, f"q.{number}", 0, 20, step=20)
        await reader.take(20)
        assert reader.got[f"q.{number}"] == list(range(20))
        await reader.grant(len(reader.order) + 20)


async def test_a_deleted_channel_leaves_quietly_and_one_made_anew_is_read_from_its_beginning(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 2)
    reader = PatternReader(nodes.clients["n2"], "orders.*", start=EARLIEST)
    await reader.open()
    await reader.take(2 * len(CHANNELS))
    for channel in CHANNELS[:4]:
        await client.channels.DeleteChannel(DeleteChannelRequest(name=channel))
    await reader.until(lambda it: len(it.gone) == 4)
    assert sorted(reader.gone) == sorted(CHANNELS[:4])
    await fill(client, CHANNELS[0], 7, 9)
    await fill(client, CHANNELS[11], 2, 3)
    await reader.take(3)
    assert (reader.got[CHANNELS[0]], reader.got[CHANNELS[11]]) == ([0, 1, 7, 8], [0, 1, 2])
    assert reader.closed is None
    assert CHANNELS[1] not in {info.name for info in await client.all_channels()}, "reading makes no channel"


async def test_what_was_purged_is_a_gap_that_names_its_channel(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 20)
    reader = PatternReader(nodes.clients["n2"], "orders.*", start=EARLIEST, credit=0)
    await reader.open()
    for channel in CHANNELS:
        await client.channels.PurgeChannel(PurgeChannelRequest(name=channel, before_offset=10))
    await reader.grant(10_000)
    await reader.take(10 * len(CHANNELS))
    assert sorted(reader.gaps) == sorted((channel, 0, 9) for channel in CHANNELS)


async def test_resuming_goes_on_behind_what_came_and_takes_new_channels_from_their_beginning(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 10)
    await client.channels.AddChannel(AddChannelRequest(name="orders.anew"))
    places = [ChannelOffset(channel=channel, offset=4) for channel in CHANNELS[:6]]
    places += [ChannelOffset(channel="orders.gone", offset=3), ChannelOffset(channel="orders.anew", offset=9)]
    reader = PatternReader(nodes.clients["n3"], "orders.*", start=EARLIEST, resume=places)
    await reader.open()
    await fill(client, "orders.anew", 0, 2)
    await fill(client, "orders.gone", 0, 1)
    await reader.take(6 * 6 + 6 * 10 + 3)
    assert {channel: reader.got[channel] for channel in CHANNELS[:6]} == {
        key: list(range(4, 10)) for key in CHANNELS[:6]
    }
    assert {channel: reader.got[channel] for channel in CHANNELS[6:]} == {key: list(range(10)) for key in CHANNELS[6:]}
    assert (reader.got["orders.anew"], reader.got["orders.gone"]) == ([0, 1], [0])


async def test_who_resumes_is_told_which_of_its_channels_are_no_more(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS[:3]:
        await fill(client, channel, 0, 5)
    places = [ChannelOffset(channel=channel, offset=5) for channel in (*CHANNELS[:2], "orders.away", "orders.too")]
    reader = PatternReader(nodes.clients["n3"], "orders.*", start=EARLIEST, resume=places)
    await reader.open()
    assert sorted(reader.gone) == ["orders.away", "orders.too"], "or a place would wait for a channel of that name"
    await fill(client, "orders.away", 0, 8)
    await reader.take(5 + 8)
    assert reader.got == {CHANNELS[2]: list(range(5)), "orders.away": list(range(8))}


async def test_inboxes_match_only_when_the_pattern_says_so(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    await client.channels.AddChannel(AddChannelRequest(name="_inbox.ann"))
    for name in ("a.b", "_inbox.ann"):
        await fill(client, name, 0, 1)
    wide = PatternReader(client, ">", start=EARLIEST)
    inboxes = PatternReader(client, "_inbox.*", start=EARLIEST)
    await wide.open()
    await inboxes.open()
    assert (set(wide.places), set(inboxes.places)) == ({"a.b"}, {"_inbox.ann"})


async def test_wrong_use_is_refused_with_what_to_do(nodes: Nodes) -> None:
    client = nodes.clients["n1"]

    async def refused(pattern: str, **fields: object) -> tuple[int, str]:
        reader = PatternReader(client, pattern, **fields)
        event = await reader.open()
        assert event.WhichOneof("event") == "closed"
        return event.closed.failure.code, event.closed.failure.violations[0].field

    assert await refused("a.>.b") == (3, "open.pattern")
    assert await refused("a.*", channel="a") == (3, "open.pattern")
    assert await refused("a.*", start=Start(offset=3)) == (3, "open.start.offset")
    assert await refused("a.*", group="g", resume=[ChannelOffset(channel="a.b")]) == (3, "open.resume")
    assert await refused("a.*", resume=[ChannelOffset(channel="a.*")]) == (3, "open.resume[0].channel")
    assert await refused("a.*", mode=GroupMode.GROUP_MODE_SHARED) == (3, "open.mode")
    assert await refused("a.*", group="g.h") == (3, "open.group")
    assert await refused("", channel="a", resume=[ChannelOffset(channel="a")]) == (3, "open.resume")


async def test_too_many_channels_end_it_with_the_limit(nodes: Nodes) -> None:
    for server in nodes.servers.values():
        object.__setattr__(server.hub.limits, "pattern_channels", 12)
    for channel in CHANNELS:
        await fill(nodes.clients["n2"], channel, 0, 1)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    await reader.open()
    await reader.take(12)
    await fill(nodes.clients["n2"], "orders.onemore", 0, 1)
    await reader.until(lambda it: it.closed)
    failure = reader.closed.failure
    assert (failure.code, failure.reason, failure.metadata["limit"]) == (8, "PATTERN_LIMIT", "12")


async def test_the_patterns_of_one_stream_together_have_a_limit_and_one_that_ends_makes_room(nodes: Nodes) -> None:
    object.__setattr__(nodes.servers["n1"].hub.limits, "stream_pattern_channels", 15)
    for channel in CHANNELS:
        await fill(nodes.clients["n2"], channel, 0, 1)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    assert (await reader.open()).WhichOneof("event") == "opened"
    second = await reader.also(2, "orders.>")
    failure = second.closed.failure
    assert (failure.code, failure.reason, failure.metadata["limit"]) == (8, "PATTERN_LIMIT", "15")
    await reader.stream.write(SubscribeRequest(close=CloseSubscription(subscription_id=1)))
    assert (await reader.also(3, "orders.>")).WhichOneof("event") == "opened"


async def test_one_client_s_many_patterns_do_not_end_what_others_hear_of_new_channels(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("node.services.channel_feed", "node.delivery.catalog"):
        monkeypatch.setattr(f"ringpost.{module}.PATTERNS_MAX", 3, raising=False)
    client = nodes.clients["n1"]
    reader = PatternReader(client, "orders.*", start=EARLIEST)
    await reader.open()
    others = [PatternReader(client, f"bills.{number}.*") for number in range(3)]
    said = [await other.open() for other in others]
    assert [one.WhichOneof("event") for one in said] == ["opened", "opened", "closed"]
    assert (said[2].closed.failure.code, said[2].closed.failure.reason) == (8, "PATTERN_LIMIT")
    assert (await PatternReader(client, "orders.*").open()).WhichOneof("event") == "opened", "the same costs nothing"
    for channel in CHANNELS:
        await fill(client, channel, 0, 1)
    await reader.take(len(CHANNELS))
    others[0].stream.cancel()
    async with asyncio.timeout(30):
        while (await PatternReader(client, "bills.*").open()).WhichOneof("event") != "opened":
            await asyncio.sleep(0.05)


# -- leaders change ---------------------------------------------------------------------------------------------------


async def test_channels_go_on_without_loss_or_doubles_when_their_shards_move(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 10)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    await reader.open()
    await reader.take(10 * len(CHANNELS))
    for round_, to in enumerate(("n2", "n1", "n3"), start=1):
        for shard in range(nodes.world.shard_count):
            await nodes.hand_over(shard, to)
        for channel in CHANNELS:
            await fill(client, channel, round_ * 10, round_ * 10 + 10)
        await fill(client, f"orders.later{round_}", 0, 10)
        await reader.take(10 * len(CHANNELS) + 10)
    assert {channel: reader.got[channel] for channel in CHANNELS} == {key: list(range(40)) for key in CHANNELS}
    assert all(reader.got[f"orders.later{round_}"] == list(range(10)) for round_ in (1, 2, 3))
    assert (reader.gone, reader.gaps, reader.closed) == ([], [], None)


async def test_a_channel_made_anew_while_its_leader_was_away_is_read_from_its_beginning(nodes: Nodes) -> None:
    """By its place it would end far before: the channels beside it go on."""
    client, channel, other = nodes.clients["n1"], CHANNELS[0], CHANNELS[1]
    shard = nodes.shard(channel)
    assert nodes.shard(other) != shard
    nodes.world.assign({shard: "n3"})
    await fill(client, channel, 50, 52)
    nodes.world.assign({shard: "n2"})  # which knows nothing of that
    await fill(client, channel, 0, 20)
    await fill(client, other, 0, 1)
    reader = PatternReader(client, "orders.*", start=EARLIEST)
    await reader.open()
    await reader.take(21)
    nodes.world.assign({shard: "n3"})
    await fill(client, other, 1, 2)
    await reader.take(3)
    assert (reader.got[channel], reader.got[other]) == ([*range(20), 50, 51], [0, 1])
    assert (reader.gone, reader.closed) == ([channel], None)


async def test_a_group_that_a_new_leader_does_not_know_begins_as_on_any_channel(nodes: Nodes) -> None:
    """And not behind what had been delivered, which nobody may have acked."""
    client, channel = nodes.clients["n1"], CHANNELS[0]
    shard = nodes.shard(channel)
    for node in ("n3", "n2"):
        nodes.world.assign({shard: node})
        await fill(client, channel, 0, 20)
    reader = PatternReader(client, "orders.*", group="g", start=EARLIEST)
    await reader.open()
    await reader.take(20)
    nodes.world.assign({shard: "n3"})
    await reader.take(20)
    assert reader.got[channel] == [*range(20), *range(20)]
    assert (reader.gone, reader.closed) == ([], None)


def fan_of(nodes: Nodes, node: str) -> Fan:
    """The one subscription to a pattern that a client has on a node."""
    flows = (flow for session in nodes.servers[node].hub.sessions for flow in session.subscriptions.values())
    (fan,) = (flow for flow in flows if isinstance(flow, Fan))
    return fan


async def test_who_asked_a_leader_for_credit_and_lost_it_is_lent_some_at_the_next(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 5)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST, credit=0)
    await reader.open()
    fan = fan_of(nodes, "n1")
    for turn, to in enumerate(("n2", "n3", "n2", "n3", "n2"), start=1):
        async with asyncio.timeout(20):
            while len(fan._loans._waits) < len(CHANNELS):  # until all have asked
                await asyncio.sleep(0.01)
        before = {shard: led[0] for shard, led in nodes.world.leaders.items() if led}
        nodes.world.assign(dict.fromkeys(range(nodes.world.shard_count)))
        relayed = {number for number, flow in fan._inner.subscriptions.items() if isinstance(flow, RelayedMember)}
        assert not fan._loans._waits & relayed, "what the old leader asked for is not the new one's"
        nodes.world.assign(before)
        for shard in range(nodes.world.shard_count):
            await nodes.hand_over(shard, to)
        await reader.grant(turn * 5 * len(CHANNELS))
        await reader.take(5 * len(CHANNELS))
        for channel in CHANNELS:
            await fill(client, channel, turn * 5, turn * 5 + 5)
    assert reader.got == {channel: list(range(25)) for channel in CHANNELS}


async def test_a_group_s_leases_come_again_from_the_new_leader_and_what_was_acked_does_not(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 4)
    reader = PatternReader(nodes.clients["n1"], "orders.*", group="g")
    await reader.open()
    await reader.take(4 * len(CHANNELS))
    for channel in CHANNELS:
        assert await reader.settle(channel, (0, 1)) == [(0, 1, Outcome.OUTCOME_DONE)]
    reader.places.clear()
    for shard in range(nodes.world.shard_count):
        await nodes.hand_over(shard, "n2")
    await reader.take(2 * len(CHANNELS))
    assert {channel: texts[4:] for channel, texts in reader.got.items()} == {key: [2, 3] for key in CHANNELS}
    assert reader.places == dict.fromkeys(CHANNELS, 2), "the place comes again, so that a client drops its old leases"
    assert await reader.settle(CHANNELS[0], (2, 3)) == [(2, 3, Outcome.OUTCOME_DONE)]


async def test_while_a_node_is_away_the_others_channels_flow_and_its_own_go_on_when_it_is_back(nodes: Nodes) -> None:
    client = nodes.clients["n1"]
    for channel in CHANNELS:
        await fill(client, channel, 0, 5)
    away = [channel for channel in CHANNELS if owners(nodes, [channel]) == {"n3"}]
    here = [channel for channel in CHANNELS if channel not in away]
    assert away
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    await reader.open()
    await reader.take(5 * len(CHANNELS))
    await nodes.kill("n3")
    for channel in here:
        await fill(client, channel, 5, 10)
    await reader.take(5 * len(here))
    await nodes.start("n3")
    nodes.world.spread()
    for channel in away:
        await fill(client, channel, 5, 10)
    await reader.take(5 * len(away))
    assert reader.got == {key: list(range(10)) for key in CHANNELS}
    assert (reader.gone, reader.gaps, reader.closed) == ([], [], None)


@pytest.mark.long
async def test_a_client_that_does_not_read_costs_a_window(nodes: Nodes) -> None:
    for channel in CHANNELS:
        await fill(nodes.clients["n2"], channel, 0, 40, size=100_000)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST)
    await reader.open()
    await asyncio.sleep(0.5)
    fan = fan_of(nodes, "n1")
    assert fan._loans.held_bytes <= (4 << 20) + 2 * 1_000_000
    assert fan.credit.sent_bytes < 20 << 20, "most of it has not left the leaders"
    await reader.take(40 * len(CHANNELS))
    assert reader.got == {channel: list(range(40)) for channel in CHANNELS}


@pytest.mark.long
async def test_a_leader_that_does_not_answer_keeps_nobody_s_credit(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringpost.node.delivery.fan.LOAN_S", 0.2)
    away = [channel for channel in CHANNELS if owners(nodes, [channel]) == {"n3"}]
    here = [channel for channel in CHANNELS if channel not in away]
    for channel in CHANNELS:
        await fill(nodes.clients["n1"], channel, 0, 10)
    reader = PatternReader(nodes.clients["n1"], "orders.*", start=EARLIEST, credit=0)
    await reader.open()
    with pytest.MonkeyPatch.context() as frozen:
        frozen.setattr(nodes.servers["n3"].hub, "queue_bytes", lambda: 0)
        await reader.grant(10)
        await reader.until(lambda it: sum(map(len, it.got.values())) == 10)
        await reader.grant(10 * len(here))
        await reader.until(lambda it: all(len(it.got.get(channel, ())) == 10 for channel in here))
    nodes.servers["n3"].hub.made_room()
    await reader.grant(10_000)
    await reader.take(10 * len(away))
    assert reader.got == {channel: list(range(10)) for channel in CHANNELS}


async def test_nothing_is_watched_once_nobody_reads_a_pattern(nodes: Nodes) -> None:
    reader = PatternReader(nodes.clients["n1"], "orders.*")
    await reader.open()
    assert [len(server.storage.store.name_watches) for server in nodes.servers.values()] == [1, 1, 1]
    reader.stream.cancel()
    async with asyncio.timeout(10):
        while any(server.storage.store.name_watches for server in nodes.servers.values()):
            await asyncio.sleep(0.01)
    assert all(not server.hub.subscriptions for server in nodes.servers.values())
