"""A pattern's channel at its leader, which another node lends credit."""

import asyncio
from typing import Any

from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import Session
from ringpost.node.shard import sieve
from ringpost.v1.subscribe_pb2 import SubscribeResponse
from tests.node.delivery.fakes import Stream, hub_of, turns
from tests.node.delivery.test_filtered import Ticking, put
from tests.node.shard.fakes import Rig

WANTED = 'key == "x"'


class _Forwarded(Session):
    forwarded = True


class Lender(Stream):
    """Another node's stream: lends when it is asked, a while later, as its network takes time."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.session = _Forwarded(hub)
        self.asked = self.unused = 0
        self.texts_found: list[int] = []

    async def turn(self, away: int) -> None:
        """Reads what has been said, and answers."""
        await turns(1)
        while self.session.queued_bytes:
            message = await self.session.next_message()
            assert message is not None
            response = SubscribeResponse.FromString(message)
            if response.WhichOneof("event") != "deliver":
                continue
            batches = response.deliver.batches
            if not batches:
                self.asked += 1
                await turns(away)
                self.credit(messages=len(self.texts_found) + 1_000)
            elif not batches[0].count:
                self.unused += 1
            self.texts_found += [int(message.data) for batch in batches for message in batch.batch.messages]


def place(stream: Stream) -> int:
    flow: Any = stream.session.subscriptions[1]
    return 0 if flow.source is None else int(flow.source.offset)


async def test_with_a_filter_it_looks_before_it_asks_and_has_its_turn_among_others_who_look() -> None:
    rig = Rig(cache_bytes=64 << 20)
    rig.reading.sieve._clock_ns = Ticking(sieve.SLICE_NS // 3)
    put(rig, "o" * 4_000, name="b")
    put(rig, "o" * 60 + "x" + "o" * 30)
    hub = hub_of(rig)
    busy = [Stream(hub) for _ in range(3)]
    for number, stream in enumerate(busy):
        stream.open(channel="b", filter=f'key == "{number}"')
    lender = Lender(hub)
    lender.open(pattern=">", filter=WANTED, messages=0)
    async with asyncio.timeout(60):
        while not lender.texts_found:
            await lender.turn(away=10)
            assert any(place(stream) < 4_000 for stream in busy), "it waits until they are done"
        assert (lender.texts_found, lender.asked, lender.unused) == ([60], 1, 0)
        while place(lender) < 91:
            await lender.turn(away=10)
    assert (lender.asked, lender.unused) == (1, 0), "what is filtered out asks for nothing"
