"""A client that knows one address and the .proto files: no SDK, no routes, nothing about which node owns what.

It does what the .proto says: sends again what may be sent again, opens again what was closed, resumes where it was.
"""

import asyncio
from typing import Any

import grpc

from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Credit, OpenSubscription, Outcome, Settle, SubscribeRequest
from tests.integration.broker import Client, told_by_status

BATCH = 5
_CALL_S = 5.0
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_MANY = 1 << 30


class PlainClient:
    """One producer, one reader and one group's only member on a channel. What it saw is in its attributes."""

    def __init__(self, client: Client, channel: str, group: str = "g") -> None:
        self.channel = channel
        self.acknowledged: dict[int, bytes] = {}
        self.read: list[bytes] = []
        self.confirmed: set[int] = set()
        self.perhaps: set[int] = set()  # settled without an answer: done, or delivered again
        self.problems: list[str] = []
        self.owners: set[str] = set()
        self.tries = 0
        self._client = client
        self._group = group

    async def publish(self, producer: int, stop: asyncio.Event) -> None:
        """Numbered messages, one batch after the other, each until it is answered."""
        number = 0
        while not stop.is_set():
            data = [b"%d" % n for n in range(number, number + BATCH)]
            request = PublishRequest(
                channel=self.channel,
                batch=Batch(messages=[Message(data=one) for one in data]),
                producer_id=producer,
                first_sequence=number,
            )
            answer = await self._until_answered(request)
            self.owners.add(answer.owner)
            for offset, one in enumerate(data, answer.first_offset):
                self.acknowledged[offset] = one
            number += BATCH
            await asyncio.sleep(0.005)

    async def _until_answered(self, request: PublishRequest) -> Any:
        while True:
            self.tries += 1
            try:
                return await self._client.publisher.Publish(request, timeout=_CALL_S)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise
                await asyncio.sleep(told_by_status(error).retry_after_ms / 1000 or 0.1)

    async def subscribe(self, *, settle: bool) -> None:
        """Reads from the beginning, or takes and settles the group's messages, for ever."""
        while True:
            call = self._client.subscriber.Subscribe()
            command = OpenSubscription(
                subscription_id=1, channel=self.channel, credit=Credit(messages=_MANY, bytes=_MANY << 10)
            )
            if settle:
                command.group = self._group
            else:
                command.start.CopyFrom(Start(offset=len(self.read)))
            try:
                await call.write(SubscribeRequest(open=command))
                await (self._settle(call) if settle else self._read(call))
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(0.05)

    async def _read(self, call: Any) -> None:
        async for event in call:
            if event.HasField("closed"):
                self._check_closed(event.closed)
                return
            for batch in event.deliver.batches:
                if batch.first_offset != len(self.read):
                    self.problems.append(f"read offset {batch.first_offset} where {len(self.read)} was to come")
                self.read += [message.data for message in batch.batch.messages]

    async def _settle(self, call: Any) -> None:
        asked: dict[int, range] = {}
        async for event in call:
            if event.HasField("closed"):
                self._check_closed(event.closed)
                return
            for batch in event.deliver.batches:
                offsets = range(batch.first_offset, batch.first_offset + batch.count)
                if again := self.confirmed.intersection(offsets):
                    self.problems.append(f"offsets {sorted(again)[:3]} came again after their ack was confirmed")
                asked[batch.first_offset] = offsets
                self.perhaps.update(offsets)
                both_ends = OffsetRange(first=offsets[0], last=offsets[-1])
                wish = Settle(subscription_id=1, correlation=batch.first_offset, ranges=[both_ends], ack=Ack())
                await call.write(SubscribeRequest(settle=wish))
            if event.HasField("settled"):
                offsets = asked.pop(event.settled.correlation)
                done = (Outcome.OUTCOME_DONE, Outcome.OUTCOME_ALREADY)
                if event.settled.results and all(result.outcome in done for result in event.settled.results):
                    self.confirmed.update(offsets)

    def _check_closed(self, closed: Any) -> None:
        if closed.failure.code != grpc.StatusCode.UNAVAILABLE.value[0]:
            self.problems.append(f"closed: {closed.failure}")

    def check(self) -> None:
        """Everything acknowledged is where it was said to be, in order, once."""
        numbers = [int(data) for data in self.read]
        assert not self.problems, self.problems
        assert {offset: self.read[offset] for offset in self.acknowledged} == self.acknowledged
        assert numbers == sorted(set(numbers)), "out of order, or twice"
        assert len(self.acknowledged) == len(self.read), "the only producer knows of all messages"
