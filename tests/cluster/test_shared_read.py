"""Reads are shared, and nobody gets one that began before it asked."""

import asyncio

import pytest

from ringpost.cluster.shared_read import SharedRead


class Store:
    def __init__(self) -> None:
        self.reads = 0
        self.gate = asyncio.Event()
        self.fails = False
        self.shared = SharedRead(self.read)

    async def read(self) -> None:
        self.reads += 1
        await self.gate.wait()
        if self.fails:
            raise ValueError("broken")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_asks_during_a_read_waits_for_the_next_one() -> None:
    store = Store()
    first = asyncio.create_task(store.shared())
    await turns()
    later = [asyncio.create_task(store.shared()) for _ in range(10)]
    await turns()
    assert store.reads == 1
    store.gate.set()
    await asyncio.gather(first, *later)
    assert store.reads == 2


async def test_a_failure_reaches_all_who_share_it_and_nobody_else() -> None:
    store = Store()
    store.gate.set()
    store.fails = True
    asked = await asyncio.gather(store.shared(), store.shared(), return_exceptions=True)
    assert [type(error) for error in asked] == [ValueError, ValueError]
    store.fails = False
    await store.shared()
    assert store.reads == 2


async def test_one_who_gives_up_spoils_nothing() -> None:
    store = Store()
    given_up, patient = asyncio.create_task(store.shared()), asyncio.create_task(store.shared())
    await turns()
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    store.gate.set()
    await patient
    await store.shared.settle()
    assert store.reads == 1
