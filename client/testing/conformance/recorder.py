"""A tap that remembers, and what can be read off it."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import cast

from ringpost.client.testing.conformance.gate import Cut, Stream, Tap
from ringpost.v1 import publish_pb2, subscribe_pb2


@dataclass(frozen=True)
class SentBatch:
    """One PublishRequest; `batch` as it was encoded."""

    at: float
    stream: int
    correlation: int
    publish: publish_pb2.PublishRequest
    batch: bytes


@dataclass(frozen=True)
class Grant:
    """Credit in messages as a running total, and how many had been sent on that stream by then."""

    stream: int
    total: int
    delivered: int

    @property
    def window(self) -> int:
        """What may be on its way."""
        return self.total - self.delivered


class Recorder(Tap):
    """Remembers what a client asked for and what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.streams: list[Stream] = []
        self.batches: list[SentBatch] = []
        self.opens: list[tuple[int, subscribe_pb2.OpenSubscription]] = []
        self.grants: list[Grant] = []
        self.settles: list[subscribe_pb2.Settle] = []
        # Messages delivered, by stream.
        self.delivered: Counter[int] = Counter()
        # Batches without an answer, by stream, and the most there were on any.
        self.unanswered: Counter[int] = Counter()
        self.unanswered_max = 0
        # What the broker said of errors.
        self.sentences: list[str] = []

    def call(self, path: str, metadata: dict[str, str]) -> None:
        self.calls.append((path, metadata))

    async def opened(self, stream: Stream) -> None:
        self.streams.append(stream)

    async def publish(self, stream: Stream, request: publish_pb2.PublishStreamRequest) -> bool:
        batch = cast(bytes, request.publish.batch)
        now = asyncio.get_running_loop().time()
        self.batches.append(SentBatch(now, stream.number, request.correlation, request.publish, batch))
        self.unanswered[stream.number] += 1
        self.unanswered_max = max(self.unanswered_max, self.unanswered[stream.number])
        return True

    async def answer(self, stream: Stream, response: publish_pb2.PublishStreamResponse) -> bool:
        self.unanswered[stream.number] -= len(response.results)
        self.sentences += [one.failure.message for one in response.results if one.HasField("failure")]
        return True

    async def command(self, stream: Stream, request: subscribe_pb2.SubscribeRequest) -> bool:
        number = stream.number
        if request.HasField("open"):
            self.opens.append((number, request.open))
            self.grants.append(Grant(number, request.open.credit.messages, self.delivered[number]))
        elif request.HasField("credit"):
            self.grants.append(Grant(number, request.credit.credit.messages, self.delivered[number]))
        elif request.HasField("settle"):
            self.settles.append(request.settle)
        return True

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if response.HasField("deliver"):
            self.delivered[stream.number] += sum(batch.count for batch in response.deliver.batches)
        elif response.HasField("closed") and response.closed.HasField("failure"):
            self.sentences.append(response.closed.failure.message)
        return True


class Breaking(Recorder):
    """The first `streams` streams break, each when `after` messages were delivered on it."""

    def __init__(self, *, streams: int, after: int) -> None:
        super().__init__()
        self._streams = streams
        self._after = after

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if stream.number < self._streams and self.delivered[stream.number] >= self._after:
            raise Cut
        return await super().event(stream, response)
