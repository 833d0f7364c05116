"""Channels, groups, messages, node: the unary calls, their errors and their pages."""

import pytest

from ringpost.client import AlreadyExists, Client, NotFound, OutOfRange, Violation
from ringpost.v1 import channel_pb2, group_pb2, subscribe_pb2
from tests.client.fake_broker import FakeBroker


async def test_a_channel_s_life(mq: Client, broker: FakeBroker) -> None:
    added = await mq.channels.add("orders", channel_pb2.ChannelConfig(retention_bytes=1_000))
    assert (added.name, added.config.retention_bytes, added.config.HasField("retention_age_ms")) == (
        "orders",
        1_000,
        False,
    )
    broker.put("orders", b"a", b"b", b"c")
    assert (await mq.channels.get("orders")).end_offset == 3
    changed = await mq.channels.set("orders", channel_pb2.ChannelConfig(retention_age_ms=5))
    assert changed.config.retention_age_ms == 5
    assert (await mq.channels.purge("orders", 1)).first_offset == 1
    assert (await mq.channels.purge("orders")).first_offset == 3
    await mq.channels.delete("orders")
    with pytest.raises(NotFound):
        await mq.channels.get("orders")


async def test_lists_go_over_all_pages(mq: Client, broker: FakeBroker) -> None:
    for n in range(5):
        broker.channel(f"a.{n}")
        await mq.groups.add("a.0", f"g{n}")
    broker.channel("b")
    assert [channel.name async for channel in mq.channels.list("a.")] == [f"a.{n}" for n in range(5)]
    assert [group.name async for group in mq.groups.list("a.0")] == [f"g{n}" for n in range(5)]
    assert len([group async for group in mq.groups.list()]) == 5


async def test_a_group_s_life(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a", b"b")
    config = group_pb2.GroupConfig(ack_deadline_ms=5_000)
    assert (await mq.groups.add("orders", "billing", start=1, config=config)).settled_below == 1
    assert broker.channels["orders"].groups["billing"].ack_deadline_ms == 5_000
    assert (await mq.groups.seek("orders", "billing", "earliest")).settled_below == 0
    assert (await mq.groups.pause("orders", "billing")).paused
    assert (await mq.groups.get("orders", "billing")).paused
    assert not (await mq.groups.resume("orders", "billing")).paused
    assert (await mq.groups.get("orders", "billing")).name == "billing"
    await mq.groups.delete("orders", "billing")
    with pytest.raises(NotFound, match="GROUP_NOT_FOUND"):
        await mq.groups.get("orders", "billing")


async def test_work_is_settled_by_whoever_has_done_it(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a", b"b", b"c")
    await mq.groups.add("orders", "billing")
    done = [result.outcome for result in await mq.groups.settle("orders", "billing", (0, 1))]
    assert done == [subscribe_pb2.OUTCOME_DONE] * 2
    again = [result.outcome for result in await mq.groups.settle("orders", "billing", (1, 1), (3, 3))]
    assert again == [subscribe_pb2.OUTCOME_ALREADY, subscribe_pb2.OUTCOME_UNKNOWN]
    await mq.groups.settle("orders", "billing", (2, 2), reject="cannot be read")
    group = broker.channels["orders"].groups["billing"]
    assert (group.settled_below, group.rejected) == (3, 1)


async def test_messages_by_offset(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a", b"b", b"c")
    assert [stored.message.data for stored in await mq.messages.get("orders", 1, 5)] == [b"b", b"c"]
    with pytest.raises(OutOfRange) as caught:
        await mq.messages.get("orders", 3)
    assert caught.value.metadata == {"end_offset": "3"}


async def test_the_node_and_its_routes(mq: Client) -> None:
    assert (await mq.node.info()).node == "fake-1"
    assert (await mq.node.routes("orders")).shard_count == 256
    assert mq.connected_to is not None


async def test_an_error_carries_all_that_the_broker_said(mq: Client) -> None:
    await mq.channels.add("orders")
    with pytest.raises(AlreadyExists) as caught:
        await mq.channels.add("orders")
    error = caught.value
    assert (error.reason, error.message, error.retry_after_ms) == ("CHANNEL_EXISTS", "there is one", 250)
    assert error.violations == (Violation("name", "there is one"),)
    assert not error.outcome_open


async def test_reading_waits_for_a_node_that_restarts(mq: Client, broker: FakeBroker) -> None:
    broker.channel("orders")
    await broker.restart()
    assert (await mq.channels.get("orders")).name == "orders"
