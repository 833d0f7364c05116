"""The client's own life: entering, leaving, the event loop that it belongs to."""

import asyncio

import pytest

from ringpost.client import Client, Closed, Options, Precondition, Timeout, Unavailable, connect
from tests.client.fake_broker import FakeBroker


async def test_a_closed_client_is_not_entered_again(broker: FakeBroker) -> None:
    mq = await connect(broker.address)
    await mq.close()
    with pytest.raises(Closed):
        async with mq:
            pass


async def test_an_awaited_client_may_be_entered(broker: FakeBroker) -> None:
    mq = await connect(broker.address)
    await mq.publish("orders", "a")
    async with mq as same:
        assert same is mq
        await mq.publish("orders", "b")
    assert broker.publish_streams == 1


async def test_another_thread_is_told_what_to_do(mq: Client) -> None:
    with pytest.raises(Precondition, match="run_coroutine_threadsafe") as caught:
        await asyncio.to_thread(mq.publish_nowait, "orders", "a")
    assert caught.value.reason == "WRONG_EVENT_LOOP"


async def test_another_event_loop_is_refused(mq: Client) -> None:
    def elsewhere(work) -> None:
        asyncio.run(work())

    for work in (lambda: mq.publish("orders", "a"), lambda: mq.channels.get("orders"), mq.flush, mq.close):
        with pytest.raises(Precondition, match="event loop"):
            await asyncio.to_thread(elsewhere, work)


async def test_a_read_that_failed_leaves_nothing_open(broker: FakeBroker) -> None:
    async with connect(broker.address, options=Options(request_timeout=0.3)) as mq:
        await broker.stop()
        with pytest.raises((Unavailable, Timeout)) as caught:  # late if this machine is
            await mq.channels.get("orders")
    assert not caught.value.outcome_open
