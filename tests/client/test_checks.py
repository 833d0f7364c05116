"""Arguments that cannot be sent are refused at once, and disturb nobody else."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ringpost.client import Client, InvalidRequest, OutMessage
from tests.client.fake_broker import FakeBroker

HALF = "a\ud800"  # half a surrogate pair: a str that no UTF-8 can hold
BAD_NAMES = (HALF, None, 7, "", b"orders")


async def refused(work: Callable[[], Awaitable[object]], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await work()
    assert caught.value.violations[0].field == field
    assert not caught.value.outcome_open


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_a_channel_name_that_cannot_be_sent_disturbs_no_other_publish(
    mq: Client, broker: FakeBroker, name: Any
) -> None:
    broker.answering.clear()
    others = [mq.publish_nowait("orders", f"{n}") for n in range(3)]
    await refused(lambda: mq.publish(name, "x"), "channel")
    await refused(lambda: mq.publish_many(name, ["x"]), "channel")
    with pytest.raises(InvalidRequest):
        mq.publish_nowait(name, "x")
    broker.answering.set()
    assert [(await one).offset for one in others] == [0, 1, 2]
    assert (await mq.publish("orders", "later")).offset == 3
    assert broker.publish_streams == 1
    assert list(broker.channels) == ["orders"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"data": None}, "data"),
        ({"data": HALF}, "data"),
        ({"data": bytearray(b"x")}, "data"),
        ({"key": HALF}, "key"),
        ({"key": 5}, "key"),
        ({"headers": {HALF: "v"}}, "headers"),
        ({"headers": {"n": HALF}}, "headers"),
        ({"headers": {"n": b"v"}}, "headers"),
        ({"headers": {1: "v"}}, "headers"),
        ({"headers": [("n", "v")]}, "headers"),
        ({"message_id": HALF}, "message_id"),
        ({"message_id": 3}, "message_id"),
    ],
    ids=str,
)
async def test_a_message_that_cannot_be_sent_names_its_field(mq: Client, message: dict[str, Any], field: str) -> None:
    whole = {"data": "x"} | message
    await refused(lambda: mq.publish("orders", **whole), field)
    await refused(lambda: mq.publish_many("orders", [OutMessage(**whole)]), field)
    assert (await mq.publish("orders", "fine")).offset == 0


async def test_durability_is_one_of_three(mq: Client) -> None:
    for wrong in ("fsync", None, []):
        await refused(lambda wrong=wrong: mq.publish("orders", "x", durability=wrong), "durability")


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
async def test_subscriptions_and_admin_calls_refuse_such_names_too(mq: Client, broker: FakeBroker, name: Any) -> None:
    async def listed(items: Any) -> None:
        async for _ in items:
            pass

    await refused(lambda: mq.subscribe(name, print), "channel")
    with pytest.raises(InvalidRequest):
        mq.subscription(name)
    for call in (mq.channels.add, mq.channels.get, mq.channels.purge, mq.channels.delete):
        await refused(lambda call=call: call(name), "name")
    for call in (mq.groups.add, mq.groups.get, mq.groups.delete, mq.groups.pause, mq.groups.resume):
        await refused(lambda call=call: call(name, "g"), "channel")
        await refused(lambda call=call: call("orders", name), "name")
    await refused(lambda: mq.groups.seek("orders", name, 0), "name")
    await refused(lambda: mq.groups.settle("orders", name, (0, 0)), "name")
    await refused(lambda: mq.messages.get(name, 0), "channel")
    await refused(lambda: mq.messages.explain(name, 0), "channel")
    if name:  # without one it is about all groups
        await refused(lambda: mq.messages.explain("orders", 0, name), "group")
    await refused(lambda: mq.node.routes(name), "channels")
    if name:
        await refused(lambda: listed(mq.channels.list(name)), "prefix")
        await refused(lambda: listed(mq.groups.list(name)), "channel")
        await refused(lambda: mq.subscribe("orders", print, group=name), "group")
        await refused(lambda: mq.subscribe("orders", print, consumer=name), "consumer")
    assert not broker.opens
    await asyncio.sleep(0)


@pytest.mark.parametrize("offset", [-1, 2**64, 2**70, 1.0, "1", True, None], ids=repr)
async def test_an_offset_is_a_whole_number_within_64_bits(mq: Client, broker: FakeBroker, offset: Any) -> None:
    broker.channel("orders")
    await refused(lambda: mq.messages.get("orders", offset), "offset")
    await refused(lambda: mq.messages.explain("orders", offset), "offset")
    if offset is not None:
        await refused(lambda: mq.channels.purge("orders", offset), "before_offset")
        await refused(lambda: mq.groups.add("orders", "g", start=offset), "start")
        await refused(lambda: mq.groups.seek("orders", "g", offset), "start")
        await refused(lambda: mq.groups.settle("orders", "g", (0, offset)), "last")
        await refused(lambda: mq.groups.settle("orders", "g", (offset, 5)), "first")
        await refused(lambda: mq.subscribe("orders", print, start=offset), "start")
        await refused(lambda: mq.subscribe("orders", print, group="g", start=offset), "start")


async def test_other_numbers_and_times_name_their_bounds_too(mq: Client) -> None:
    before_1970 = datetime(1969, 12, 31, tzinfo=UTC)
    await refused(lambda: mq.subscribe("orders", print, start=before_1970), "start")
    await refused(lambda: mq.subscribe("orders", print, prefetch=2**70), "prefetch")
    await refused(lambda: mq.subscribe("orders", print, prefetch_bytes=0), "prefetch_bytes")
    await refused(lambda: mq.subscribe("orders", print, max_concurrency=0), "max_concurrency")
    await refused(lambda: mq.subscribe("orders", print, nack_delay=float("inf")), "nack_delay")
    await refused(lambda: mq.subscribe("orders", print, heartbeat_interval=float("nan")), "heartbeat_interval")
    await refused(lambda: mq.messages.get("orders", 0, 1_001), "max_messages")
    for time_us in (-(2**63) - 1, 2**63):
        await refused(lambda time_us=time_us: mq.publish_many("orders", [OutMessage("x", time_us=time_us)]), "time")
    for time in (before_1970, datetime(2026, 1, 1), "now", 2**63):  # noqa: DTZ001
        await refused(lambda time=time: mq.publish("orders", "x", time=time), "time")
