"""A downstream that is broken for a while: dead letters fill, the node dies, `dlq redrive` brings all back in order."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringpost.client import Client, Message, Reject, connect
from ringpost.v1.group_pb2 import BACKOFF_CONSTANT, GroupConfig, RetryPolicy
from tests.client.cli.conftest import Ran, run_cli

KEYS, EACH = 12, 10
RATE = 50.0

pytestmark = pytest.mark.slow


class Downstream:
    """Refuses everything while it is broken; notes what it took."""

    def __init__(self) -> None:
        self.broken = True
        self.taken: dict[bytes, list[int]] = defaultdict(list)
        self.refused: Counter[int] = Counter()
        self.times: list[float] = []

    async def __call__(self, message: Message) -> None:
        if self.broken:
            self.refused[message.offset] += 1
            raise ConnectionError(f"no answer for {message.key.decode()}")
        self.taken[message.key].append(message.offset)
        self.times.append(time.monotonic())


async def until(mq: Client, condition: Callable[[Any], bool], what: str) -> None:
    async with asyncio.timeout(30):
        while not condition(await mq.groups.get("work", "g")):
            await asyncio.sleep(0.02)
    assert what


async def test_dead_letters_fill_and_are_brought_back(ringpost_broker: Any, tmp_path: Path) -> None:
    def cli(*arguments: str) -> Ran:
        return run_cli(*arguments, addr=ringpost_broker.address, home=tmp_path)

    downstream = Downstream()
    async with connect(ringpost_broker.address) as mq:
        retry = RetryPolicy(backoff=BACKOFF_CONSTANT, delay_ms=20, jitter_percent=50)
        await mq.groups.add("work", "g", config=GroupConfig(retry=retry, max_attempts=3))
        await mq.groups.add("work", "other")
        for number in range(KEYS * EACH):
            await mq.publish("work", f"{number}", key=f"k{number % KEYS}", headers={"kind": f"{number % 2}"})
        async with await mq.subscribe("work", downstream, group="g", ordered=True):
            await until(mq, lambda info: info.dead_letters == KEYS * EACH, "everything is dead")
        assert downstream.refused == dict.fromkeys(range(KEYS * EACH), 3)

        await asyncio.to_thread(ringpost_broker.kill)
        await asyncio.to_thread(ringpost_broker.restart)
        info = await mq.groups.get("work", "g")
        assert (info.pending, info.dead_letters, info.rejected) == (0, KEYS * EACH, KEYS * EACH)

        letter = (await asyncio.to_thread(cli, "dlq", "show", "work", "g", "5")).json
        assert letter["reason"] == f"ConnectionError: no answer for {letter['key']}"
        assert [one["attempt"] for one in letter["failures"]] == [1, 2, 3]
        odd = await asyncio.to_thread(
            cli, "dlq", "redrive", "work", "g", "--filter", "header.kind=1", "--dry-run", "-o", "json"
        )
        assert odd.json == {"redriven": KEYS * EACH // 2, "not_kept": 0}

        downstream.broken = False
        async with await mq.subscribe("work", downstream, group="g", ordered=True):
            done = await asyncio.to_thread(cli, "dlq", "redrive", "work", "g", "--rate", f"{RATE:g}", "-o", "json")
            assert done.json == {"redriven": KEYS * EACH, "not_kept": 0}
            await until(mq, lambda info: info.pending == 0, "everything is done")
        info = await mq.groups.get("work", "g")
        assert (info.pending, info.dead_letters, info.end_offset) == (0, 0, KEYS * EACH)
        assert (await mq.groups.get("work", "other")).pending == KEYS * EACH
    assert {len(offsets) for offsets in downstream.taken.values()} == {EACH}
    assert all(offsets == sorted(set(offsets)) for offsets in downstream.taken.values())
    # The first second's worth may come at once.
    assert downstream.times[-1] - downstream.times[0] >= (KEYS * EACH / RATE - 1.0) * 0.8


async def test_what_the_channel_does_not_keep_is_published_anew(ringpost_broker: Any, tmp_path: Path) -> None:
    def cli(*arguments: str) -> Ran:
        return run_cli(*arguments, addr=ringpost_broker.address, home=tmp_path)

    async def refuse(message: Message) -> None:
        raise Reject("not wanted")

    async with connect(ringpost_broker.address) as mq:
        await mq.publish("work", "old", key="k", headers={"a": "b"})
        async with await mq.subscribe("work", refuse, group="g", start="earliest"):
            await until(mq, lambda info: info.dead_letters == 1, "it is dead")
        await mq.channels.purge("work")
        ran = await asyncio.to_thread(cli, "dlq", "redrive", "work", "g", "-o", "json")
        assert (ran.json, "--as-new" in ran.err) == ({"redriven": 0, "not_kept": 1}, True)
        ran = await asyncio.to_thread(cli, "dlq", "redrive", "work", "g", "--as-new", "-o", "json")
        assert ran.json == {"redriven": 1, "not_kept": 0}
        (stored,) = await mq.messages.get("work", 1)
        assert (stored.message.data, stored.message.key) == (b"old", b"k")
        assert dict(stored.message.headers) == {"a": "b", "ringpost-redriven-from": "work/0"}
        assert (await mq.groups.get("work", "g")).dead_letters == 0


async def test_whatever_died_first_comes_back_by_its_offset(ringpost_broker: Any) -> None:
    downstream = Downstream()
    downstream.broken = False
    async with connect(ringpost_broker.address) as mq:
        await mq.groups.add("work", "g")
        for number in range(8):
            await mq.publish("work", f"{number}", key="k")
        for offset in reversed(range(8)):
            await mq.groups.settle("work", "g", (offset, offset), reject="not now")
        async with await mq.subscribe("work", downstream, group="g", ordered=True):
            assert await mq.dead_letters.redrive("work", "g", rate=20.0) == (8, 0)
            await until(mq, lambda info: info.pending == 0, "everything is done")
    assert downstream.taken[b"k"] == list(range(8))
