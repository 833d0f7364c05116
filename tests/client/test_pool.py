"""Callbacks in the bounded pool."""

import asyncio
import functools
import logging
import threading

import grpc
import pytest

from ringpost.client import Client, Message, NotFound, Options, Reject, Retry, RingpostError, connect
from tests.client.fake_broker import FakeBroker, failure


def payloads(count: int) -> list[bytes]:
    return [str(n).encode() for n in range(count)]


async def settled(broker: FakeBroker, offset: int, group: str = "billing") -> None:
    await broker.until(lambda: broker.channels["orders"].groups[group].settled_below >= offset)


class Gauge:
    """A slow handler that counts how many of it run."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.offsets: list[int] = []

    async def __call__(self, message: Message) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002 if message.offset % 2 else 0.001)
        self.offsets.append(message.offset)
        self.running -= 1


async def test_never_more_than_max_concurrency_run(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(100))
    gauge = Gauge()
    async with await mq.subscribe("orders", gauge, group="billing", max_concurrency=10):
        await settled(broker, 100)

    assert gauge.most == 10
    assert sorted(gauge.offsets) == list(range(100))


async def test_a_group_does_not_hoard(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(100))
    release = asyncio.Event()
    started = asyncio.Event()

    async def handler(message: Message) -> None:
        started.set()
        await release.wait()

    async with await mq.subscribe("orders", handler, group="billing", max_concurrency=4) as pool:
        await started.wait()
        await asyncio.sleep(0.05)
        assert (pool.running, broker._subscriptions[0].sent_messages) == (4, 8)
        release.set()
        await settled(broker, 100)


async def test_ordered_handlers_run_one_by_one(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(50))
    gauge = Gauge()
    async with await mq.subscribe("orders", gauge, group="billing", ordered=True, max_concurrency=10):
        await settled(broker, 50)

    assert (gauge.most, gauge.offsets) == (1, list(range(50)))


async def test_plain_functions_run_in_threads_and_do_not_stall_the_loop(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(4))
    barrier = threading.Barrier(4, timeout=10)
    threads: set[int] = set()

    def handler(extra: str, message: Message) -> None:
        threads.add(threading.get_ident())
        barrier.wait()  # passes only when four run at once, and the loop goes on handing out

    async with await mq.subscribe("orders", functools.partial(handler, "x"), group="billing", max_concurrency=4):
        await settled(broker, 4)

    assert len(threads) == 4
    assert threading.get_ident() not in threads


async def test_a_plain_function_may_settle_from_its_thread(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a", b"b")

    def handler(message: Message) -> None:
        if message.offset == 0:
            message.reject("not wanted")

    async with await mq.subscribe("orders", handler, group="billing"):
        await settled(broker, 2)
    assert broker.settled_actions() == {"reject": 1, "ack": 1}


async def test_a_handler_that_raises_nacks_and_is_logged_once(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("orders", *payloads(3))
    attempts: list[tuple[int, int]] = []

    async def handler(message: Message) -> None:
        attempts.append((message.offset, message.attempt))
        if message.offset == 1 and message.attempt == 1:
            raise ZeroDivisionError("the handler's own")

    with caplog.at_level(logging.ERROR, "ringpost.client"):
        async with await mq.subscribe("orders", handler, group="billing", nack_delay=2.5):
            await settled(broker, 3)

    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (2, 1)]
    nacks = [settle for settle in broker.settles if settle.HasField("nack")]
    assert [(nack.nack.delay_ms, nack.ranges[0].first) for nack in nacks] == [(2_500, 1)]
    assert nacks[0].nack.reason == "ZeroDivisionError: the handler's own"
    assert [record.getMessage() for record in caplog.records] == ["a handler failed on orders offset 1"]


async def test_without_a_delay_the_groups_policy_says_when(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="ringpost.client.pool")  # half a character is not for a test's report
    broker.put("orders", b"a")

    async def handler(message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("\ud800" + "x" * 2_000)

    async with await mq.subscribe("orders", handler, group="billing"):
        await settled(broker, 1)
    (nack,) = (settle.nack for settle in broker.settles if settle.HasField("nack"))
    assert (nack.delay_ms, nack.fallback_delay_ms, len(nack.reason)) == (0, 1_000, 1_024)


async def test_a_handler_says_by_its_exception_what_to_do(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("orders", *payloads(3))

    def handler(message: Message) -> None:
        if message.offset == 0:
            raise Reject("no such customer")
        if message.attempt == 1:
            raise Retry(2.0, "busy") if message.offset == 1 else Retry

    async with await mq.subscribe("orders", handler, group="billing"):
        await settled(broker, 3)
    assert broker.settled_actions() == {"reject": 1, "ack": 2, "nack": 2}
    assert [s.reject.reason for s in broker.settles if s.HasField("reject")] == ["no such customer"]
    nacks = sorted((s.nack.delay_ms, s.nack.reason) for s in broker.settles if s.HasField("nack"))
    assert nacks == [(0, ""), (2_000, "busy")]
    assert caplog.records == []


async def test_a_delay_that_nobody_may_ask_for_is_logged_and_still_a_nack(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("orders", b"a")

    async def handler(message: Message) -> None:
        if message.attempt == 1:
            raise Retry(-1.0)

    async with await mq.subscribe("orders", handler, group="billing"):
        await settled(broker, 1)
    assert [s.nack.fallback_delay_ms for s in broker.settles if s.HasField("nack")] == [1_000]
    assert [record.getMessage() for record in caplog.records] == ["a handler failed on orders offset 0"]


async def test_a_handler_that_settles_is_left_alone(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")

    async def handler(message: Message) -> None:
        await (message.ack() if message.attempt == 2 else message.nack(0))

    async with await mq.subscribe("orders", handler, group="billing"):
        await settled(broker, 1)
    assert broker.settled_actions() == {"nack": 1, "ack": 1}


async def test_leases_are_extended_while_a_handler_runs(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(8))
    await mq.groups.add("orders", "billing")
    broker.channels["orders"].groups["billing"].ack_deadline_ms = 100
    release = asyncio.Event()

    async def handler(message: Message) -> None:
        await release.wait()

    async with await mq.subscribe("orders", handler, group="billing", max_concurrency=2, prefetch=8):
        await broker.until(lambda: broker.settled_actions().get("extend", 0) >= 16)
        release.set()
        await settled(broker, 8)

    extends = [settle for settle in broker.settles if settle.HasField("extend")]
    assert [(r.first, r.last) for r in extends[0].ranges] == [(0, 7)]


async def test_without_a_group_every_subscriber_gets_everything(mq: Client, broker: FakeBroker) -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}
    done = asyncio.Event()

    async def note(name: str, message: Message) -> None:
        seen[name].append(message.data)
        if all(len(found) == 10 for found in seen.values()):
            done.set()

    await mq.subscribe("orders", functools.partial(note, "a"), ordered=True)
    await mq.subscribe("orders", functools.partial(note, "b"), ordered=True)
    await mq.publish_many("orders", payloads(10))
    await asyncio.wait_for(done.wait(), 10)
    assert seen == {"a": payloads(10), "b": payloads(10)}


async def test_closing_waits_for_running_handlers_and_releases_the_rest(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(10))
    started = asyncio.Event()
    release = asyncio.Event()

    async def handler(message: Message) -> None:
        started.set()
        await release.wait()

    pool = await mq.subscribe("orders", handler, group="billing", max_concurrency=2)
    await started.wait()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    release.set()
    await closing

    assert broker.channels["orders"].groups["billing"].settled_below == 2
    assert broker.channels["orders"].groups["billing"].leases == {}


async def test_closing_gives_up_handlers_that_do_not_end(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    started = asyncio.Event()

    async def handler(message: Message) -> None:
        started.set()
        await asyncio.Event().wait()

    pool = await mq.subscribe("orders", handler, group="billing")
    await started.wait()
    await pool.close(timeout=0.05)
    assert broker.channels["orders"].groups["billing"].settled_below == 0


async def test_a_subscription_that_the_broker_ends_says_so(
    mq: Client, broker: FakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Message) -> None: ...

    pool = await mq.subscribe("orders", handler)
    broker.refuse_open = lambda _: failure(grpc.StatusCode.NOT_FOUND, "CHANNEL_NOT_FOUND")
    broker.cut()
    with caplog.at_level(logging.ERROR, "ringpost.client"), pytest.raises(NotFound):
        await pool.wait()
    assert len(caplog.records) == 1

    with pytest.raises(NotFound):
        await mq.subscribe("orders", handler)


async def test_max_concurrency_is_checked(mq: Client) -> None:
    with pytest.raises(ValueError, match="max_concurrency"):
        await mq.subscribe("orders", print, max_concurrency=0)


async def test_nack_delay_is_checked(mq: Client, broker: FakeBroker) -> None:
    with pytest.raises(ValueError, match="nack_delay"):
        await mq.subscribe("orders", print, group="billing", nack_delay=-1)
    assert broker.opens == []


async def test_a_handler_that_lets_out_a_cancellation_is_a_handler_that_failed(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(5))

    async def handler(message: Message) -> None:
        if message.attempt == 1:
            raise asyncio.CancelledError

    async with await mq.subscribe("orders", handler, group="billing", max_concurrency=1):
        await settled(broker, 5)
    assert broker.settled_actions()["nack"] == 5


async def test_a_plain_function_that_raises_stop_iteration_failed(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(3))

    def handler(message: Message) -> None:
        if message.attempt == 1:
            next(iter(()))

    async with await mq.subscribe("orders", handler, group="billing", max_concurrency=1):
        await settled(broker, 3)
    assert broker.settled_actions() == {"nack": 3, "ack": 3}


async def test_a_worker_that_dies_ends_the_pool(
    mq: Client, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Message) -> None: ...

    pool = await mq.subscribe("orders", handler, group="billing")

    def bug(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pool, "_handled", bug)
    broker.put("orders", b"a")
    with pytest.raises(RingpostError, match="bug"):
        await asyncio.wait_for(pool.wait(), 10)
    await pool.close()
    assert pool.closed


async def test_prefetch_bytes_bounds_what_waits_for_handlers(mq: Client, broker: FakeBroker) -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    async def handler(message: Message) -> None:
        started.set()
        await release.wait()

    pool = await mq.subscribe(
        "orders", handler, group="billing", max_concurrency=1, prefetch=1_000, prefetch_bytes=2_500
    )
    for _ in range(20):
        broker.put("orders", b"x" * 990)
        await asyncio.sleep(0)
    await started.wait()
    await asyncio.sleep(0.05)
    assert broker._subscriptions[0].sent_messages == 3
    release.set()
    await settled(broker, 20)
    await pool.close()


async def test_reconnecting_does_not_widen_the_window(mq: Client, broker: FakeBroker) -> None:
    broker.put("orders", *payloads(500))
    release = asyncio.Event()
    seen: list[int] = []

    async def handler(message: Message) -> None:
        await release.wait()
        seen.append(message.offset)

    async with await mq.subscribe("orders", handler, start="earliest", ordered=True, prefetch=20) as pool:
        for streams in range(2, 6):
            await broker.until(lambda: broker._subscriptions)
            broker.cut()
            await broker.until(lambda streams=streams: len(broker.opens) == streams)
        assert sum(opened.credit.messages for opened in broker.opens[1:]) == 0
        assert len(pool._queue) + len(pool._busy) == 20
        release.set()
        while len(seen) < 500:
            await asyncio.sleep(0.01)
    assert seen == list(range(500))


async def test_a_handler_may_close_the_client(broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    mq = await connect(broker.address)
    closed = asyncio.Event()

    async def handler(message: Message) -> None:
        await message.ack()
        await mq.close()
        closed.set()

    pool = await mq.subscribe("orders", handler, group="billing")
    await asyncio.wait_for(closed.wait(), 5)
    await asyncio.wait_for(pool.wait(), 5)
    assert broker.channels["orders"].groups["billing"].settled_below == 1


async def test_a_cancelled_subscribe_leaves_nothing(mq: Client, broker: FakeBroker) -> None:
    broker.refuse_open = lambda _: failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY", 60_000)

    async def handler(message: Message) -> None: ...

    task = asyncio.create_task(mq.subscribe("orders", handler, group="billing"))
    await broker.until(lambda: broker.opens)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(one.closed for one in mq._subscriptions)


async def test_a_cancelled_close_goes_on(broker: FakeBroker) -> None:
    broker.put("orders", b"a")
    release = asyncio.Event()
    started = asyncio.Event()

    async def handler(message: Message) -> None:
        started.set()
        await release.wait()

    mq = await connect(broker.address)
    pool = await mq.subscribe("orders", handler, group="billing")
    await started.wait()
    closing = asyncio.create_task(mq.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not pool.closed
    again = asyncio.create_task(mq.close())
    release.set()
    await again
    assert pool.closed
    assert broker.channels["orders"].groups["billing"].settled_below == 1


async def test_one_deadline_for_all_of_close(broker: FakeBroker) -> None:
    broker.put("orders", *payloads(2))
    mq = await connect(broker.address, options=Options(close_timeout=1.0))
    await mq.publish("orders", "a")
    messages = mq.subscription("orders", group="other")
    (await anext(messages)).ack()
    pool = await mq.subscribe("orders", lambda message: None, group="billing")
    broker.answering.clear()  # a node that is frozen, as far as this client can tell
    waiting = asyncio.create_task(mq.publish("orders", "b"))
    await broker.until(lambda: len(broker.publishes) == 2)
    began = asyncio.get_running_loop().time()
    await mq.close()
    assert asyncio.get_running_loop().time() - began < 2.5
    with pytest.raises(RingpostError, match="before the answer"):
        await waiting
    assert pool.closed
