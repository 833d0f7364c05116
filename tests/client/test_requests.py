"""Request and reply, on real nodes: one answer for each request, whatever breaks meanwhile."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ringpost.client import (
    Client,
    Closed,
    Denied,
    InvalidRequest,
    Message,
    NotFound,
    Options,
    OutMessage,
    RequestFailed,
    Timeout,
    connect,
    replies,
)
from ringpost.client.requests import CORRELATION, REPLY_TO, SLACK_US, TIMEOUT_MS, RequestFacts
from ringpost.node.access.tokens import token_hash
from tests.node.replicas.relay import Relay

ANY = Options(routing="any")


@pytest_asyncio.fixture(loop_scope="session")
async def asking(ringpost_session_broker: Any) -> AsyncIterator[Client]:
    async with connect(ringpost_session_broker.address) as mq:
        yield mq


@pytest_asyncio.fixture(loop_scope="session")
async def answering(ringpost_session_broker: Any) -> AsyncIterator[Client]:
    async with connect(ringpost_session_broker.address) as mq:
        yield mq


async def inboxes(mq: Client) -> list[str]:
    return [info.name async for info in mq.channels.list("_inbox.")]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_the_handler_returns_is_the_answer(asking: Client, answering: Client) -> None:
    async def double(message: Message) -> OutMessage:
        return OutMessage(message.data * 2, message.key, {"unit": message.headers["unit"]})

    pool = await answering.respond("req.double", double)
    answer = await asking.request("req.double", "ab", key="k", headers={"unit": "s"})
    assert (answer.data, answer.key, answer.headers["unit"]) == (b"abab", b"k", "s")
    assert answer.channel.startswith("_inbox.")
    await until(lambda: pool.answered == 1)


@pytest.mark.parametrize(
    ("result", "data", "key"),
    [(None, b"", b""), ("é", "é".encode(), b""), (b"\0", b"\0", b""), (("k", "v"), b"v", b"k")],
)
async def test_an_answer_has_any_of_these_shapes(
    asking: Client, answering: Client, result: Any, data: bytes, key: bytes
) -> None:
    pool = await answering.respond("req.shapes", lambda message: result)
    answer = await asking.request("req.shapes", "")
    assert (answer.data, answer.key) == (data, key)
    await pool.close()


async def test_many_responders_share_many_requests_and_one_inbox(
    ringpost_session_broker: Any, asking: Client, answering: Client
) -> None:
    worked: Counter[str] = Counter()
    threads = set()

    def handler(name: str) -> Any:
        def handle(message: Message) -> bytes:
            worked[name] += 1
            threads.add(threading.current_thread())
            return name.encode() + b":" + message.data

        return handle

    before = set(await inboxes(asking))
    async with connect(ringpost_session_broker.address) as third:
        for name, mq in (("a", answering), ("b", answering), ("c", third)):
            await mq.respond("req.many", handler(name), max_concurrency=4)
        answers = await asyncio.gather(*(asking.request("req.many", f"{n}", timeout=30) for n in range(300)))
        assert len(set(await inboxes(asking)) - before) == 1
    assert [answer.text().partition(":")[2] for answer in answers] == [str(n) for n in range(300)]
    assert set(worked) == {"a", "b", "c"}
    assert threading.main_thread() not in threads, "plain functions run in threads"


async def test_who_refuses_says_why_and_is_not_asked_again(asking: Client, answering: Client) -> None:
    calls = []

    async def refuse(message: Message) -> None:
        calls.append(message.attempt)
        raise RequestFailed("no such price é" + "x" * 2_000)

    pool = await answering.respond("req.refuse", refuse)
    with pytest.raises(RequestFailed, match="no such price é") as caught:
        await asking.request("req.refuse", "XAU")
    assert len(caught.value.message.encode()) == 1_024
    assert not caught.value.outcome_open
    await until(lambda: pool.failed == 1)
    assert calls == [1]


async def test_a_handler_that_breaks_is_tried_again(asking: Client, answering: Client) -> None:
    async def break_once(message: Message) -> bytes:
        if message.attempt == 1:
            raise RuntimeError("the database is away")
        return b"%d" % message.attempt

    await answering.respond("req.again", break_once, nack_delay=0)
    assert (await asking.request("req.again", "x", timeout=20)).data == b"2"


async def test_a_result_that_is_no_answer_is_the_handler_s_fault(asking: Client, answering: Client) -> None:
    async def wrong(message: Message) -> object:
        return 7 if message.attempt == 1 else "seven"

    await answering.respond("req.wrong", wrong, nack_delay=0)
    assert (await asking.request("req.wrong", "x", timeout=20)).data == b"seven"


async def test_nobody_answers(asking: Client) -> None:
    await asking._requests._ready()
    with pytest.raises(Timeout) as caught:
        await asking.request("req.nobody", "x", timeout=0.05)
    assert caught.value.outcome_open


async def test_what_is_late_is_not_worked_on(
    asking: Client, answering: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asking.publish("req.late", "late", headers={REPLY_TO: "_inbox.x", CORRELATION: "1", TIMEOUT_MS: "1"})
    now_us = replies._now_us
    monkeypatch.setattr(replies, "_now_us", lambda: now_us() + SLACK_US + 1_000_000)
    worked = []

    async def handle(message: Message) -> None:
        worked.append(message.data)

    pool = await answering.respond("req.late", handle)
    assert (await asking.request("req.late", "in time", timeout=20)).data == b""
    await pool.close()
    assert (worked, pool.late, pool.answered) == ([b"in time"], 1, 1)
    assert (await asking.groups.get("req.late", "responders")).settled_below == 2, "it is done with"


async def test_an_answer_that_comes_too_late_is_kept_back(
    asking: Client, answering: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_us = replies._now_us

    async def handle(message: Message) -> None:
        monkeypatch.setattr(replies, "_now_us", lambda: now_us() + 60_000_000)

    pool = await answering.respond("req.slow", handle)
    with pytest.raises(Timeout):
        await asking.request("req.slow", "x", timeout=0.5)
    await until(lambda: pool.late == 1)
    assert pool.answered == 0


async def test_a_plain_message_is_handled_and_answered_nowhere(answering: Client) -> None:
    worked = asyncio.Event()

    async def handle(message: Message) -> bytes:
        worked.set()
        return b"ignored"

    pool = await answering.respond("req.plain", handle)
    await answering.publish("req.plain", "x", headers={TIMEOUT_MS: "soon"})
    await asyncio.wait_for(worked.wait(), 20)
    await pool.close()
    assert (pool.answered, pool.gone) == (0, 0)


async def test_an_inbox_goes_with_its_client_and_does_not_come_back(
    ringpost_session_broker: Any, asking: Client, answering: Client
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> None:
        started.set()
        await go_on.wait()

    pool = await answering.respond("req.gone", handle)
    gone = await connect(ringpost_session_broker.address)
    waiting = asyncio.create_task(gone.request("req.gone", "x", timeout=60))
    await started.wait()
    assert gone._requests._inbox is not None
    inbox = gone._requests._inbox.name
    assert inbox in await inboxes(asking)
    await gone.close()
    with pytest.raises(Closed):
        await waiting
    go_on.set()
    await until(lambda: pool.gone == 1)
    assert inbox not in await inboxes(asking)
    with pytest.raises(NotFound):
        await asking.publish(inbox, "late")


async def test_an_inbox_that_was_removed_is_made_anew(asking: Client, answering: Client) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def handle(message: Message) -> bytes:
        if message.data == b"hold":
            held.set()
            await release.wait()
        return message.data

    await answering.respond("req.anew", handle)
    waiting = asyncio.create_task(asking.request("req.anew", "hold", timeout=60))
    await held.wait()
    assert asking._requests._inbox is not None
    await asking.channels.delete(asking._requests._inbox.name)
    with pytest.raises(NotFound) as caught:
        await waiting
    assert caught.value.outcome_open
    release.set()
    assert (await asking.request("req.anew", "again", timeout=20)).data == b"again"


async def test_answers_wait_while_the_stream_of_who_asks_is_broken(
    ringpost_session_broker: Any, answering: Client
) -> None:
    relay, release = Relay(), asyncio.Event()
    target = int(ringpost_session_broker.address.rpartition(":")[2])
    await relay.start(target)

    async def handle(message: Message) -> bytes:
        await release.wait()
        return message.data

    pool = await answering.respond("req.cut", handle, max_concurrency=20)
    async with connect(f"127.0.0.1:{relay.port}", options=ANY) as mq:
        waiting = [asyncio.create_task(mq.request("req.cut", f"{n}", timeout=60)) for n in range(20)]
        await until(lambda: pool.running == 20)
        await relay.stop()
        release.set()
        await until(lambda: pool.answered == 20)
        assert not any(one.done() for one in waiting)
        await relay.start(target)
        assert [(await one).data for one in waiting] == [b"%d" % n for n in range(20)]
    await relay.stop()


async def test_answers_outlive_a_killed_node(ringpost_broker: Any) -> None:
    begun = asyncio.Event()

    async def handle(message: Message) -> bytes:
        begun.set()
        if message.attempt == 1 and not restarted.is_set():
            await restarted.wait()
        return message.data

    restarted = asyncio.Event()
    async with connect(ringpost_broker.address) as asking, connect(ringpost_broker.address) as answering:
        await answering.respond("req.kill", handle)
        waiting = [asyncio.create_task(asking.request("req.kill", f"{n}", timeout=60)) for n in range(5)]
        await begun.wait()
        ringpost_broker.kill()
        ringpost_broker.restart()
        restarted.set()
        assert [(await one).data for one in waiting] == [b"%d" % n for n in range(5)]


async def test_handlers_that_run_while_their_client_closes_still_answer(
    ringpost_session_broker: Any, asking: Client
) -> None:
    begun = asyncio.Event()

    async def handle(message: Message) -> bytes:
        begun.set()
        await closing.wait()
        return b"the last"

    closing = asyncio.Event()
    answering = await connect(ringpost_session_broker.address)
    await answering.respond("req.close", handle)
    waiting = asyncio.create_task(asking.request("req.close", "x", timeout=30))
    await begun.wait()
    closer = asyncio.create_task(answering.close())
    await asyncio.sleep(0)
    closing.set()
    assert (await waiting).data == b"the last"
    await closer


ACCESS = """
[principals.shop]
tokens = ["sha256:{shop}"]
publish = ["prices"]
manage = ["_inbox.shop.>"]
consume = ["_inbox.shop.>"]

[principals.pricing]
tokens = ["sha256:{pricing}"]
consume = ["prices"]
publish = ["_inbox.>"]
"""


async def test_each_side_needs_no_more_than_its_part(ringpost_broker_factory: Any, tmp_path: Path) -> None:
    access = tmp_path / "access.toml"
    access.write_text(ACCESS.format(shop=token_hash("shop-token"), pricing=token_hash("pricing-token")))
    broker = ringpost_broker_factory(arguments=("--access-file", str(access)))
    options = Options(inbox_prefix="_inbox.shop")
    async with (
        connect(broker.address, token="shop-token", options=options) as shop,
        connect(broker.address, token="pricing-token") as pricing,
    ):
        await pricing.respond("prices", lambda message: b"42")
        assert (await shop.request("prices", "XAU", timeout=20)).data == b"42"
        with pytest.raises(Denied):
            await pricing.request("prices", "XAU", timeout=20)
    broker.stop()


@pytest.mark.parametrize("timeout", [0, -1, 86_401.0])
async def test_a_timeout_has_bounds(asking: Client, timeout: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await asking.request("req.bounds", "x", timeout=timeout)
    assert [violation.field for violation in caught.value.violations] == ["timeout"]


def test_inboxes_are_below_their_prefix() -> None:
    assert Options(inbox_prefix="_inbox.shop").inbox_prefix == "_inbox.shop"
    for wrong in ("inbox", "_inbox2", ""):
        with pytest.raises(ValueError, match="inbox_prefix"):
            Options(inbox_prefix=wrong)


class Sent:
    """A message with these headers, stored at second 1."""

    append_time_us = 1_000_000

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


def test_headers_say_where_and_until_when() -> None:
    facts = RequestFacts.of(Sent(ringpost_reply_to="i", ringpost_correlation="7", ringpost_timeout_ms="500"))  # type: ignore[arg-type]
    assert tuple(facts) == ("i", "7", 1_500_000)
    assert not facts.is_late(1_500_000 + SLACK_US)
    assert facts.is_late(1_500_001 + SLACK_US)
    assert {REPLY_TO, CORRELATION, TIMEOUT_MS} == {"ringpost-reply-to", "ringpost-correlation", "ringpost-timeout-ms"}


@pytest.mark.parametrize("text", ["", "-1", "soon", "1e3", "٣", "9" * 16])
def test_a_timeout_that_makes_no_sense_is_none(text: str) -> None:
    facts = RequestFacts.of(Sent(ringpost_timeout_ms=text))  # type: ignore[arg-type]
    assert facts.until_us is None
    assert not facts.is_late(1 << 62)
