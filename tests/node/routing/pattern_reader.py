"""A stream with one subscription to a pattern, on a node of the test's."""

import asyncio
from typing import Any

import grpc
from crc32c import crc32c

from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import (
    Ack,
    Credit,
    GrantCredit,
    OpenSubscription,
    Settle,
    SubscribeRequest,
    SubscribeResponse,
)
from tests.integration.broker import Client, batch_of
from tests.node.routing.access_rig import bearer
from tests.node.routing.cluster import Nodes

EARLIEST = Start(earliest=True)
MANY = 1 << 40


class PatternReader:
    """`got` has the texts of each channel in the order in which they came; `order` the channel of each message."""

    def __init__(self, client: Client, pattern: str, *, credit: int = MANY, token: str = "", **fields: Any) -> None:
        self.stream = client.subscriber.Subscribe(timeout=120, metadata=bearer(token) if token else None)
        self.got: dict[str, list[int]] = {}
        self.attempts: dict[str, list[int]] = {}
        self.places: dict[str, int] = {}
        self.gone: list[str] = []
        self.gaps: list[tuple[str, int, int]] = []
        self.order: list[str] = []
        self.settled: list[Any] = []
        self.closed: Any = None
        self._open = OpenSubscription(
            subscription_id=1, pattern=pattern, credit=Credit(messages=credit, bytes=MANY), **fields
        )

    async def open(self) -> Any:
        await self.stream.write(SubscribeRequest(open=self._open))
        async with asyncio.timeout(20):
            while True:
                event = await self._next()
                if event.WhichOneof("event") in ("opened", "closed"):
                    return event

    async def also(self, number: int, pattern: str) -> Any:
        """Opens another pattern on the same stream; whether that stands, or how it was closed."""
        command = OpenSubscription(subscription_id=number, pattern=pattern)
        await self.stream.write(SubscribeRequest(open=command))
        async with asyncio.timeout(20):
            while True:
                event = await self.stream.read()
                for said in (event.opened, event.closed):
                    if said.subscription_id == number:
                        return event

    async def until(self, done: Any) -> None:
        """Reads until `done(self)` holds."""
        async with asyncio.timeout(30):
            while not done(self):
                await self._next()

    async def take(self, count: int) -> None:
        """Reads until so many more messages have come."""
        goal = len(self.order) + count
        await self.until(lambda _: len(self.order) >= goal)

    async def nothing_more(self, seconds: float = 0.3) -> None:
        """Nothing but heartbeats comes for a while."""
        before = len(self.order)
        await asyncio.sleep(seconds)
        await self.stream.write(SubscribeRequest(settle=Settle(subscription_id=99, correlation=99)))
        await self.until(lambda _: self.settled and self.settled[-1].correlation == 99)
        assert len(self.order) == before

    async def grant(self, messages: int) -> None:
        credit = GrantCredit(subscription_id=1, credit=Credit(messages=messages, bytes=MANY))
        await self.stream.write(SubscribeRequest(credit=credit))

    async def settle(self, channel: str, *ranges: tuple[int, int], **fields: Any) -> Any:
        pairs = [OffsetRange(first=first, last=last) for first, last in ranges]
        fields = fields or {"ack": Ack()}
        settle = Settle(subscription_id=1, correlation=5, ranges=pairs, channel=channel, **fields)
        count = len(self.settled)
        await self.stream.write(SubscribeRequest(settle=settle))
        await self.until(lambda _: len(self.settled) > count)
        answer = self.settled[-1]
        assert (answer.correlation, answer.channel) == (5, channel)
        return [(one.range.first, one.range.last, one.outcome) for one in answer.results] or answer.failure

    async def _next(self) -> SubscribeResponse:
        response: Any = await self.stream.read()
        assert response is not grpc.aio.EOF
        event = response.WhichOneof("event")
        if event == "deliver":
            for batch in response.deliver.batches:
                self._note(batch)
        elif event == "gap":
            gap = response.gap
            if gap.missing.last == (1 << 64) - 1:
                self.gone.append(gap.channel)
            else:
                self.gaps.append((gap.channel, gap.missing.first, gap.missing.last))
        elif event == "settled":
            self.settled.append(response.settled)
        elif event == "closed":
            self.closed = response.closed
        return response  # type: ignore[no-any-return]

    def _note(self, batch: Any) -> None:
        assert batch.channel
        if batch.count == 0:
            self.places[batch.channel] = batch.first_offset
            return
        assert batch.count == len(batch.batch.messages)
        assert batch.crc32c == crc32c(batch.batch.SerializeToString())
        self.got.setdefault(batch.channel, []).extend(int(one.data.split(b" ")[0]) for one in batch.batch.messages)
        self.attempts.setdefault(batch.channel, []).extend([batch.attempt] * batch.count)
        self.order += [batch.channel] * batch.count


async def fill(client: Client, channel: str, first: int, end: int, size: int = 0, step: int = 10) -> None:
    """Messages that begin with their numbers, in batches of up to `step`."""
    for at in range(first, end, step):
        batch = batch_of(*(b"%d " % n + bytes(size) for n in range(at, min(at + step, end))))
        await client.publisher.Publish(PublishRequest(channel=channel, batch=batch))


def owners(nodes: Nodes, channels: list[str]) -> set[str]:
    """Who leads them."""
    leaders = (nodes.world.leaders[nodes.shard(channel)] for channel in channels)
    return {led[0] for led in leaders if led is not None}
