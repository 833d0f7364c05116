"""A fake broker and a client that talks to it, for each test."""

from collections.abc import AsyncIterator

import pytest_asyncio

from ringpost.client import Client, connect
from tests.client.fake_broker import FakeBroker


@pytest_asyncio.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    broker = FakeBroker()
    await broker.start()
    yield broker
    broker.answering.set()
    await broker.stop()


@pytest_asyncio.fixture
async def mq(broker: FakeBroker) -> AsyncIterator[Client]:
    async with connect(broker.address) as client:
        yield client
