"""ExplainMessage on a real node: causes are staged with clients, and each is answered right."""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from ringpost.v1.channel_pb2 import PurgeChannelRequest
from ringpost.v1.common_pb2 import GroupMode, OffsetRange, Start
from ringpost.v1.dead_letter_pb2 import DeadLetterSelection, DropDeadLettersRequest, RedriveDeadLettersRequest
from ringpost.v1.group_pb2 import AddGroupRequest, GroupConfig, PauseGroupRequest, ResumeGroupRequest
from ringpost.v1.message_pb2 import (
    CAUSE_DEAD_LETTER,
    CAUSE_DELAYED,
    CAUSE_KEY_UNKNOWN,
    CAUSE_LEASED,
    CAUSE_MAX_IN_FLIGHT,
    CAUSE_NO_CONSUMERS,
    CAUSE_NO_CREDIT,
    CAUSE_NO_MESSAGE,
    CAUSE_PARKED,
    CAUSE_PAUSED,
    CAUSE_SETTLED,
    MESSAGE_STATE_NOT_PUBLISHED,
    MESSAGE_STATE_REMOVED,
    MESSAGE_STATE_STORED,
    ExplainMessageRequest,
    ExplainMessageResponse,
    GroupExplanation,
)
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Extend, Nack, Reject, Settle, SubscribeRequest
from tests.integration.broker import Client, next_event, open_subscription, serving

KEYED = GroupMode.GROUP_MODE_KEY_ORDERED
FAILOVER = GroupMode.GROUP_MODE_FAILOVER
HOUR_US = 3_600_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SimpleNamespace]:
    async with serving(tmp_path_factory.mktemp("explain") / "n") as pair:
        yield pair
        assert pair.node.faults() == []


class Stage:
    """A channel with one group "g"; messages have the keys that are given, in one batch."""

    def __init__(self, client: Client, channel: str) -> None:
        self.client = client
        self.channel = channel

    async def publish(self, *keys: bytes) -> None:
        batch = Batch(messages=[Message(key=key, data=b"data") for key in keys])
        await self.client.publisher.Publish(PublishRequest(channel=self.channel, batch=batch))

    async def group(self, start: Start | None = None, **config: Any) -> None:
        request = AddGroupRequest(channel=self.channel, name="g", start=start, config=GroupConfig(**config))
        await self.client.groups.AddGroup(request)

    async def pause(self) -> None:
        await self.client.groups.PauseGroup(PauseGroupRequest(channel=self.channel, name="g"))

    async def member(self, name: str, credit: int, expected: int | None = None) -> Any:
        """A stream that takes part, and has got `expected` messages (default: as its credit)."""
        stream = self.client.subscribe()
        await stream.write(open_subscription(self.channel, credit=credit, group="g", consumer=name))
        await next_event(stream, "opened")
        got = 0
        while got < (credit if expected is None else expected):
            got += sum(batch.count for batch in (await next_event(stream, "deliver")).batches)
        return stream

    async def settle(self, stream: Any, offset: int, **action: Any) -> None:
        ranges = [OffsetRange(first=offset, last=offset)]
        settle = Settle(subscription_id=1, correlation=1, ranges=ranges, **action)
        await stream.write(SubscribeRequest(settle=settle))
        await next_event(stream, "settled")

    async def answer(self, offset: int, group: str = "") -> ExplainMessageResponse:
        request = ExplainMessageRequest(channel=self.channel, offset=offset, group=group)
        return await self.client.messages.ExplainMessage(request, timeout=30)

    async def told(self, offset: int) -> GroupExplanation:
        (group,) = (await self.answer(offset)).groups
        assert group.group == "g"
        return group


async def test_where_a_message_is(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "where.it.is")
    before_us = time.time_ns() // 1_000
    await stage.publish(b"k", b"", b"")
    stored = await stage.answer(0)
    assert (stored.state, stored.key, stored.in_sync, stored.owner) == (MESSAGE_STATE_STORED, b"k", ["n1"], "n1")
    assert before_us <= stored.append_time_us <= time.time_ns() // 1_000
    assert stored.size_bytes == Message(key=b"k", data=b"data").ByteSize()
    assert (stored.first_offset, stored.end_offset, stored.epoch, list(stored.groups)) == (0, 3, 1, [])
    await stage.client.channels.PurgeChannel(PurgeChannelRequest(name=stage.channel, before_offset=2))
    await stage.group()
    removed = await stage.answer(1)
    assert (removed.state, removed.append_time_us, removed.groups[0].cause) == (
        MESSAGE_STATE_REMOVED,
        0,
        CAUSE_NO_MESSAGE,
    )
    ahead = await stage.answer(3)
    assert (ahead.state, ahead.groups[0].cause) == (MESSAGE_STATE_NOT_PUBLISHED, CAUSE_NO_MESSAGE)
    assert ahead.sentence == "Nobody has published it yet: the next message gets offset 3."
    assert (await stage.answer((1 << 64) - 1)).state == MESSAGE_STATE_NOT_PUBLISHED


async def test_settled_or_in_somebodys_hands(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "in.hands")
    await stage.publish(*[b""] * 5)
    await stage.group(Start(offset=1))
    assert (await stage.told(0)).cause == CAUSE_SETTLED
    assert (await stage.told(3)).cause == CAUSE_NO_CONSUMERS
    ann = await stage.member("ann", 3)
    leased = await stage.told(1)
    now_us = time.time_ns() // 1_000
    assert (leased.cause, leased.consumer, leased.attempt, leased.consumers) == (CAUSE_LEASED, "ann", 1, 1)
    assert now_us < leased.until_time_us <= now_us + 30_000_000
    await stage.settle(ann, 1, extend=Extend(deadline_ms=3_600_000))
    assert (await stage.told(1)).until_time_us > now_us + HOUR_US // 2
    await stage.settle(ann, 3, ack=Ack())
    acked = await stage.told(3)
    assert (acked.cause, acked.consumer) == (CAUSE_SETTLED, "ann")
    assert acked.sentence.startswith("It is settled: acked by ann at 20")
    assert now_us <= acked.since_time_us <= time.time_ns() // 1_000
    spent = await stage.told(4)
    assert (spent.cause, spent.sentence) == (CAUSE_NO_CREDIT, "It waits for credit: ann takes no more for now.")
    assert (await stage.told(2)).cause == CAUSE_LEASED
    ann.cancel()


async def test_failed_and_waiting(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "waiting")
    await stage.publish(b"", b"")
    await stage.group()
    ann = await stage.member("ann", 100, expected=2)
    before_us = time.time_ns() // 1_000
    await stage.settle(ann, 0, nack=Nack(delay_ms=3_600_000, reason="no stock"))
    told = await stage.told(0)
    assert (told.cause, list(told.also), told.attempt) == (CAUSE_DELAYED, [], 1)
    assert before_us + HOUR_US <= told.until_time_us <= time.time_ns() // 1_000 + HOUR_US
    assert [(one.attempt, one.reason) for one in told.failures] == [(1, "no stock")]
    await stage.settle(ann, 1, nack=Nack(reason="try again"))
    await next_event(ann, "deliver")
    again = await stage.told(1)
    assert (again.cause, again.attempt, again.failures[0].reason) == (CAUSE_LEASED, 2, "try again")
    ann.cancel()


async def test_a_dead_letter_has_its_number_and_since_when(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "dead")
    await stage.publish(*[b""] * 300)
    await stage.group()
    ann = await stage.member("ann", 300)
    before_us = time.time_ns() // 1_000
    for offset in (250, 7, 8):
        await stage.settle(ann, offset, reject=Reject(reason="no such customer"))
    dead = await stage.told(7)
    assert (dead.cause, dead.dead_letter, dead.attempt) == (CAUSE_DEAD_LETTER, 1, 1)
    assert before_us <= dead.since_time_us <= time.time_ns() // 1_000
    assert dead.sentence.startswith("It is dead letter 1 since 20")
    assert dead.sentence.endswith("Z: given up after delivery 1 (no such customer); a redrive brings it back.")
    assert [(await stage.told(offset)).dead_letter for offset in (250, 8)] == [0, 2]
    select = DeadLetterSelection(from_number=1, until_number=2)
    redrive = RedriveDeadLettersRequest(channel=stage.channel, group="g", select=select)
    await stage.client.letters.RedriveDeadLetters(redrive)
    assert (await stage.told(7)).cause == CAUSE_NO_CREDIT
    drop = DropDeadLettersRequest(channel=stage.channel, group="g", select=DeadLetterSelection(from_number=2))
    await stage.client.letters.DropDeadLetters(drop)
    dropped = await stage.told(8)
    assert (dropped.cause, dropped.HasField("dead_letter")) == (CAUSE_SETTLED, False)
    ann.cancel()


async def test_parked_behind_its_key(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "parked")
    await stage.publish(b"a", b"b", b"a", b"a")
    await stage.group(mode=KEYED)
    ann = await stage.member("ann", 100, expected=2)
    parked = await stage.told(2)
    assert (parked.cause, parked.behind_offset, parked.mode) == (CAUSE_PARKED, 0, KEYED)
    assert "leased to ann" in parked.sentence
    await stage.settle(ann, 0, nack=Nack(delay_ms=3_600_000, reason="busy"))
    assert "parked behind offset 0 of its key, which waits until" in (await stage.told(3)).sentence
    assert (await stage.told(0)).cause == CAUSE_DELAYED
    ann.cancel()


async def test_a_key_that_nobody_looked_at(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "unknown.key")
    await stage.publish(b"a", b"b")
    await stage.publish(b"c")
    await stage.group(mode=KEYED)
    ann = await stage.member("ann", 1)
    told = await stage.told(2)
    assert (told.cause, list(told.also), told.behind_offset) == (CAUSE_NO_CREDIT, [CAUSE_KEY_UNKNOWN], 2)
    ann.cancel()


async def test_the_group_is_held_back(pair: SimpleNamespace) -> None:
    full = Stage(pair.client, "full")
    await full.publish(*[b""] * 4)
    await full.group(max_in_flight=2)
    ann = await full.member("ann", 100, expected=2)
    told = await full.told(2)
    assert (told.cause, list(told.also)) == (CAUSE_MAX_IN_FLIGHT, [])
    assert "2 messages are out, and the group's max_in_flight is 2" in told.sentence
    await full.pause()
    told = await full.told(2)
    assert (told.cause, list(told.also)) == (CAUSE_PAUSED, [CAUSE_MAX_IN_FLIGHT])
    assert (await full.told(0)).cause == CAUSE_LEASED, "leases go on"
    await full.settle(ann, 0, ack=Ack())
    assert (await full.told(0)).cause == CAUSE_SETTLED
    assert list((await full.told(2)).also) == []
    ann.cancel()


async def test_a_pause_ends_and_the_consumer_gets_the_rest(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "paused.for.a.while")
    await stage.publish(b"")
    await stage.group()
    ann = await stage.member("ann", 100, expected=1)
    await stage.pause()
    await stage.publish(b"", b"")
    told = await stage.told(1)
    assert (told.cause, list(told.also), told.sentence) == (
        CAUSE_PAUSED,
        [],
        "It is held back because the group is paused.",
    )
    await stage.client.groups.ResumeGroup(ResumeGroupRequest(channel=stage.channel, name="g"))
    assert sum(batch.count for batch in (await next_event(ann, "deliver")).batches) == 2
    assert (await stage.told(1)).cause == CAUSE_LEASED
    ann.cancel()


async def test_in_failover_the_active_consumer_is_named(pair: SimpleNamespace) -> None:
    stage = Stage(pair.client, "one.active")
    await stage.publish(*[b""] * 3)
    await stage.group(mode=FAILOVER)
    ann = await stage.member("ann", 2)
    bob = await stage.member("bob", 100, expected=0)
    told = await stage.told(2)
    assert (told.cause, told.active_consumer, told.consumers) == (CAUSE_NO_CREDIT, "ann", 2)
    assert told.sentence.endswith("; the active consumer is ann.")
    for stream in (ann, bob):
        stream.cancel()
