"""Checks of a publisher: what it sends, and what it does when an answer is lost or says "not now"."""

import asyncio
from collections import Counter
from typing import Any

import grpc
from crc32c import crc32c

from ringpost.client.testing.conformance.bench import Bench
from ringpost.client.testing.conformance.contract import Broken, Printed, message, require, same, spans
from ringpost.client.testing.conformance.gate import Cut, Stream
from ringpost.client.testing.conformance.recorder import Recorder, SentBatch
from ringpost.client.testing.conformance.registry import check
from ringpost.v1 import common_pb2, publish_pb2

COUNT, BATCH = 200, 20
_RETRY_AFTER_MS = 400
_REFUSED_S = 1.5
_MOST_STREAMS = 40
_UNANSWERED_MAX = 64


async def run(bench: Bench, name: str, tap: Recorder, **options: Any) -> tuple[str, Printed]:
    """Publishes through the gate; the channel and what the program printed. It must succeed."""
    channel = await bench.channel(name)
    async with bench.gate(tap) as gate, bench.publishing(gate.addresses[:1], channel, **options) as program:
        return channel, await program.success()


async def exactly_once(bench: Bench, channel: str, printed: Printed, count: int = COUNT, producer: str = "p") -> None:
    """The channel holds each message once, in order, and the program was told so."""
    found = await bench.content(channel)
    wanted = [message(producer, number) for number in range(count)]
    ids = [one.message_id for one in found]
    twice = [name for name, times in Counter(ids).items() if times > 1]
    require(not twice, f"stored more than once: {', '.join(twice[:5])}")
    missing = sorted({one.message_id for one in wanted} - set(ids))
    require(not missing, f"not stored, though the program ended with 0: {', '.join(missing[:5])}")
    require(ids == [one.message_id for one in wanted], "stored in another order than that of their numbers")
    for offset, (got, expected) in enumerate(zip(found, wanted, strict=True)):
        same(f"offset {offset} holds", got, expected)
    told = sorted(printed.stored)
    require(told == list(range(count)), f"stored are offsets 0..{count - 1}; printed as acknowledged: {spans(told)}")


async def plain(bench: Bench) -> tuple[Recorder, str, Printed]:
    """A run that nothing disturbs."""
    tap = Recorder()
    return tap, *await run(bench, "publish", tap)


@check("publish.content")
async def content(bench: Bench) -> str:
    """Keys, data, headers and message ids arrive byte for byte, in order."""
    _, channel, printed = await bench.once(plain)
    await exactly_once(bench, channel, printed)
    return f"{COUNT} messages"


@check("publish.acknowledged")
async def acknowledged(bench: Bench) -> str:
    """Every message is acknowledged with its offset, once."""
    _, _, printed = await bench.once(plain)
    require(printed.stored == list(range(COUNT)), f"printed as acknowledged, in this order: {spans(printed.stored)}")
    require(printed.duplicates == 0, f"{printed.duplicates} of them as duplicates, though nothing was sent twice")
    return f"offsets {spans(printed.stored)}"


@check("publish.batches")
async def batches(bench: Bench) -> str:
    """Messages travel in batches on one PublishStream."""
    tap, _, _ = await bench.once(plain)
    require(len(tap.batches) > 0, "nothing was published on PublishStream")
    counts = [len(publish_pb2.Batch.FromString(sent.batch).messages) for sent in tap.batches]
    require(max(counts) <= BATCH, f"a batch of {max(counts)} messages, asked for {BATCH}")
    require(len(counts) <= 2 * COUNT // BATCH, f"{len(counts)} batches for {COUNT} messages, asked for {BATCH} in each")
    streams = {sent.stream for sent in tap.batches}
    require(len(streams) == 1, f"{len(streams)} streams though none was disturbed")
    return f"{len(counts)} batches on one stream"


@check("publish.checksum")
async def checksum(bench: Bench) -> str:
    """Each batch carries the CRC-32C of its bytes and its number of messages."""
    tap, _, _ = await bench.once(plain)
    require(len(tap.batches) > 0, "nothing was published on PublishStream")
    for sent in tap.batches:
        require(sent.publish.HasField("crc32c"), "a batch without crc32c")
        require(sent.publish.crc32c == crc32c(sent.batch), "a crc32c that is not that of the encoded batch")
        number = len(publish_pb2.Batch.FromString(sent.batch).messages)
        require(sent.publish.count == number, f"count {sent.publish.count} for {number} messages")
    return f"{len(tap.batches)} batches"


@check("publish.numbers")
async def numbers(bench: Bench) -> str:
    """One producer id, not 0; messages are numbered from 0 without a gap."""
    tap, _, _ = await bench.once(plain)
    require(len(tap.batches) > 0, "nothing was published on PublishStream")
    who = {(sent.publish.producer_id, sent.publish.producer_epoch) for sent in tap.batches}
    require(len(who) == 1, f"several producers: {sorted(who)[:5]}")
    require(0 not in {producer for producer, _ in who}, "no producer id: nothing can be sent again")
    expected = 0
    for sent in tap.batches:
        require(sent.publish.first_sequence == expected, f"number {sent.publish.first_sequence}, expected {expected}")
        expected += sent.publish.count
    return f"producer {next(iter(who))[0]:016x}, numbers 0..{expected - 1}"


class _HeldAnswers(Recorder):
    """The first answer is held back for a second, and with it all behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._held = False

    async def answer(self, stream: Stream, response: publish_pb2.PublishStreamResponse) -> bool:
        if response.results and not self._held:
            self._held = True
            await asyncio.sleep(1.0)
        return await super().answer(stream, response)


@check("publish.window")
async def window(bench: Bench) -> str:
    """While answers are slow, at most 64 batches are without one."""
    tap = _HeldAnswers()
    channel, printed = await run(bench, "window", tap, count=300, batch=2)
    await exactly_once(bench, channel, printed, 300)
    require(tap.unanswered_max <= _UNANSWERED_MAX, f"{tap.unanswered_max} batches on their way")
    return f"at most {tap.unanswered_max} of 150"


class _LostAnswer(Recorder):
    """What the node has stored is not told: the connection breaks instead. Twice."""

    def __init__(self) -> None:
        super().__init__()
        self._answers = 0

    async def answer(self, stream: Stream, response: publish_pb2.PublishStreamResponse) -> bool:
        for _ in response.results:
            self._answers += 1
            if self._answers in (3, 6):
                raise Cut
        return await super().answer(stream, response)


@check("publish.lost-answer")
async def lost_answer(bench: Bench) -> str:
    """When the stream breaks before an answer, the batch is sent again under its numbers, and stored once."""
    tap = _LostAnswer()
    channel, printed = await run(bench, "lost-answer", tap, pause_ms=5)
    await exactly_once(bench, channel, printed)
    producers = {sent.publish.producer_id for sent in tap.batches}
    require(len(producers) == 1, "another producer id after the break: then nobody can tell what is stored already")
    require(printed.duplicates > 0, "no answer was printed as a duplicate, though stored batches were sent again")
    return f"{len({sent.stream for sent in tap.batches})} streams, {printed.duplicates} messages answered as duplicates"


class _NotNow(Recorder):
    """The third batch is refused for now, once; what follows it the node then refuses for the gap."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: SentBatch | None = None
        self.refused_at = 0.0

    async def publish(self, stream: Stream, request: publish_pb2.PublishStreamRequest) -> bool:
        await super().publish(stream, request)
        if len(self.batches) != 3 or self.refused is not None:
            return True
        self.refused = self.batches[-1]
        while self.unanswered[stream.number] > 1:  # answers come in the order of the batches
            await asyncio.sleep(0.005)
        self.unanswered[stream.number] = 0
        self.refused_at = asyncio.get_running_loop().time()
        failure = common_pb2.Failure(
            code=grpc.StatusCode.UNAVAILABLE.value[0],
            reason="NOT_APPENDED",
            message="Not now; nothing was appended.",
            retry_after_ms=_RETRY_AFTER_MS,
        )
        result = publish_pb2.PublishResult(correlation=self.refused.correlation, failure=failure)
        await stream.send(publish_pb2.PublishStreamResponse(results=[result]))
        return False


@check("publish.not-now")
async def not_now(bench: Bench) -> str:
    """A batch that is refused with UNAVAILABLE is sent again after retry_after_ms, and order is kept."""
    tap = _NotNow()
    channel, printed = await run(bench, "not-now", tap)
    await exactly_once(bench, channel, printed)
    refused = tap.refused
    if refused is None:
        raise Broken("fewer than three batches were published")
    number = refused.publish.first_sequence
    again = [sent.at for sent in tap.batches if sent.publish.first_sequence == number and sent is not refused]
    if not again:
        raise Broken("the refused batch was not sent again under its numbers")
    waited = again[0] - tap.refused_at
    require(waited >= 0.9 * _RETRY_AFTER_MS / 1000, f"sent again after {waited:.3f} s, asked for {_RETRY_AFTER_MS} ms")
    return f"sent again after {waited:.2f} s"


class _Refusing(Recorder):
    """No stream is taken for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._begin: float | None = None

    async def opened(self, stream: Stream) -> None:
        await super().opened(stream)
        now = asyncio.get_running_loop().time()
        self._begin = self._begin or now
        if now < self._begin + _REFUSED_S:
            raise Cut(text="The node is starting.")


@check("publish.backoff")
async def backoff(bench: Bench) -> str:
    """While every stream ends with UNAVAILABLE, the next is tried after a pause that grows."""
    tap = _Refusing()
    channel, printed = await run(bench, "backoff", tap)
    await exactly_once(bench, channel, printed)
    tried = len(tap.streams) - 1
    require(tried <= _MOST_STREAMS, f"{tried} streams in {_REFUSED_S:g} s")
    return f"{tried} streams refused in {_REFUSED_S:g} s"


class _Full(Recorder):
    """The first stream is refused for a limit of the node, with the time to come back after."""

    async def opened(self, stream: Stream) -> None:
        await super().opened(stream)
        if stream.number == 0:
            text = "The node has all its open streams."
            raise Cut(grpc.StatusCode.RESOURCE_EXHAUSTED, text, retry_after_ms=_RETRY_AFTER_MS)


@check("publish.busy")
async def busy(bench: Bench) -> str:
    """RESOURCE_EXHAUSTED with a RetryInfo (or retry_after_ms) means: later, not never."""
    tap = _Full()
    channel, printed = await run(bench, "busy", tap)
    await exactly_once(bench, channel, printed)
    require(len(tap.streams) <= 10, f"{len(tap.streams)} streams, asked to come back after {_RETRY_AFTER_MS} ms")
    return f"took the {len(tap.streams)}. stream"


class _DrainNotice(Recorder):
    """The first stream is told to leave with its second answer, and cut off when it has not left in time."""

    def __init__(self) -> None:
        super().__init__()
        self._answers = 0

    async def answer(self, stream: Stream, response: publish_pb2.PublishStreamResponse) -> bool:
        if stream.number == 0 and response.results:
            self._answers += 1
            if self._answers == 2:
                response.drain.message = "The node is about to stop."
                response.drain.grace_ms = 200
            elif self._answers == 7:
                raise Cut(text="The node is stopping.")
        return await super().answer(stream, response)


@check("publish.drain")
async def drain(bench: Bench) -> str:
    """After a drain notice the stream's end costs nothing."""
    tap = _DrainNotice()
    channel, printed = await run(bench, "drain", tap, pause_ms=40)
    await exactly_once(bench, channel, printed)
    require(len(tap.streams) > 1, "no second stream")
    return f"{len(tap.streams)} streams"
