"""A bell wakes who waits for it, and remembers nothing."""

import asyncio

import pytest

from ringpost.node.bell import Bell


async def test_who_waits_is_woken() -> None:
    bell = Bell()
    waiting = asyncio.ensure_future(bell.heard())
    assert not waiting.done()
    bell.ring()
    await waiting


async def test_a_ring_that_nobody_hears_is_forgotten() -> None:
    bell = Bell()
    bell.ring()
    waiting = bell.heard()
    await asyncio.sleep(0)
    assert not waiting.done()
    bell.ring()
    bell.ring()
    await waiting


async def test_one_waits_at_a_time() -> None:
    bell = Bell()
    first = bell.heard()
    with pytest.raises(AssertionError, match="one waits already"):
        bell.heard()
    first.cancel()
    bell.ring()
    waiting = bell.heard()
    bell.ring()
    await waiting
