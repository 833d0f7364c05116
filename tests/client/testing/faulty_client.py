"""A client on the bare stubs for the conformance script, right but for the fault that RINGPOST_TEST_FAULT names."""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

import grpc
from crc32c import crc32c
from google.protobuf import json_format

from ringpost.client import wire
from ringpost.client.testing.conformance.contract import message
from ringpost.v1 import common_pb2, group_pb2, group_pb2_grpc, publish_pb2, subscribe_pb2

FAULT = os.environ.get("RINGPOST_TEST_FAULT", "")
DEFINITE = {"INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "UNAUTHENTICATED"}
PLENTY = 1 << 40
GOOD = (subscribe_pb2.OUTCOME_DONE, subscribe_pb2.OUTCOME_ALREADY)


class Lost(Exception):  # noqa: N818
    """Try again, after so many seconds."""

    def __init__(self, retry_after: float = 0.0) -> None:
        self.retry_after = retry_after


def tell(**facts) -> None:
    print(json.dumps(facts), flush=True)


def end(sentence: str) -> None:
    sys.exit(1 if FAULT == "says nothing" else sentence)


def judge(code: str, sentence: str, retry_after_ms: int = 0) -> Lost:
    """What to raise; ends the program for what is definite."""
    if FAULT == "gives up" or (code in DEFINITE and not retry_after_ms and FAULT != "stubborn"):
        end(sentence)
    return Lost(retry_after_ms / 1000)


def judge_failure(failure: common_pb2.Failure) -> Lost:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    return judge(codes[failure.code], f"{failure.reason}: {failure.message}", failure.retry_after_ms)


def metadata() -> list[tuple[str, str]]:
    token = os.environ.get("RINGPOST_TOKEN")
    return [("authorization", f"Bearer {token}")] if token and FAULT != "no token" else []


def dial(address: str) -> grpc.aio.Channel:
    ca = os.environ.get("RINGPOST_CA")
    bound = 1 << 20 if FAULT == "small" else 64 << 20
    options = [("grpc.max_receive_message_length", bound), ("grpc.use_local_subchannel_pool", 1)]
    if ca:
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(Path(ca).read_bytes()), options)
    return grpc.aio.insecure_channel(address, options)


async def run(addresses: str, work) -> None:
    """Sessions, one after the other, until one comes to its end."""
    pause = 0.05
    for address in itertools.cycle(addresses.split(",")):
        async with dial(address) as channel:
            while (retry_after := await session(channel, work)) is not None and FAULT == "hot loop":
                pass
        if retry_after is None:
            break
        await asyncio.sleep(0.001 if FAULT == "impatient" else max(pause, retry_after))
        pause = min(1.0, pause * 2)


async def session(channel: grpc.aio.Channel, work) -> float | None:
    """None when all is done; otherwise the seconds that the broker asked to wait."""
    try:
        await work(channel)
    except grpc.aio.AioRpcError as error:
        return judge(error.code().name, error.details() or "").retry_after
    except Lost as lost:
        return lost.retry_after
    except (TimeoutError, asyncio.InvalidStateError):  # silence; something was to be written, and the stream is over
        return 0.0
    return None


class Publisher:
    def __init__(self, given: dict[str, str]) -> None:
        self.channel, self.pause = given["channel"], int(given.get("pause-ms", 0)) / 1000
        self.producer_id = int.from_bytes(os.urandom(8), "big") | 1
        count, size = int(given["count"]), 1 if FAULT == "one by one" else int(given["batch"])
        self.batches = []
        for first in range(0, count, size):
            made = [message(given["producer"], n) for n in range(first, min(count, first + size))]
            made = made[::-1] if FAULT == "disorder" and first == 0 else made
            self.batches.append((first, len(made), publish_pb2.Batch(messages=made).SerializeToString()))
        self.window = 1_000 if FAULT == "no window" else 64
        self.answered = 0

    async def work(self, channel: grpc.aio.Channel) -> None:
        if FAULT == "new producer":
            self.producer_id += 1
        call = channel.stream_stream(wire.PUBLISH_PATH)(metadata=metadata())
        self.room, self.base = asyncio.Semaphore(self.window), self.answered
        sending = asyncio.create_task(self.send(call))
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                for result in publish_pb2.PublishStreamResponse.FromString(data).results:
                    self.take(result)
                if self.answered == len(self.batches):
                    return
            raise judge("UNAVAILABLE", "the stream ended")
        finally:
            sending.cancel()
            call.cancel()

    def take(self, result: publish_pb2.PublishResult) -> None:
        if result.HasField("failure"):
            raise judge_failure(result.failure)
        stored = result.stored
        tell(first_offset=stored.first_offset, count=stored.count, duplicate=stored.duplicate)
        self.answered += 1
        self.room.release()

    async def send(self, call) -> None:
        shift = self.batches[self.base][0] if FAULT == "new producer" else 0
        for first, count, batch in self.batches[self.base :]:
            await self.room.acquire()
            request = wire.encode_publish(
                correlation=1,
                channel=self.channel,
                batch=batch,
                count=count,
                crc32c=crc32c(batch),
                durability=0,
                producer_id=0 if FAULT == "no producer" else self.producer_id,
                producer_epoch=0,
                first_sequence=0 if FAULT == "no producer" else first - shift,
            )
            if FAULT == "no checksum":
                plain = wire.parse_publish(request)
                plain.publish.ClearField("crc32c")
                request = plain.SerializeToString()
            await call.write(request)
            await asyncio.sleep(self.pause)


class Subscriber:
    def __init__(self, given: dict[str, str]) -> None:
        self.channel, self.group = given["channel"], given.get("group", "")
        self.left, self.credit = int(given["count"]), int(given["credit"]) * (2 if FAULT == "greedy" else 1)
        self.start = self.next = int(given.get("from", 0))
        self.nack = int(given["nack"]) if "nack" in given else None
        self.asked: dict[int, list[common_pb2.OffsetRange]] = {}
        self.correlation = 0
        self.silence = None if FAULT == "deaf" else 3.0

    async def work(self, channel: grpc.aio.Channel) -> None:
        await self.confirm(channel)
        if self.left <= 0:
            return
        self.call = channel.stream_stream(wire.SUBSCRIBE_PATH)(metadata=metadata())
        self.delivered = 0
        await self.open()
        try:
            while self.left > 0:
                async with asyncio.timeout(self.silence):
                    data = await self.call.read()
                if data is grpc.aio.EOF:
                    raise judge("UNAVAILABLE", "the stream ended")
                await self.take(wire.parse_event(data))
            if self.group:
                await self.call.done_writing()
                while await self.call.read() is not grpc.aio.EOF:
                    pass
        finally:
            self.call.cancel()

    async def open(self) -> None:
        request = subscribe_pb2.SubscribeRequest()
        opening = request.open
        opening.subscription_id, opening.channel, opening.group = 1, self.channel, self.group
        opening.credit.messages, opening.credit.bytes = self.credit, PLENTY
        opening.heartbeat_interval_ms = 1_000
        if not self.group:
            opening.start.offset = self.start if FAULT == "from the start" else self.next
        await self.call.write(request.SerializeToString())

    async def take(self, event: subscribe_pb2.SubscribeResponse) -> None:
        match event.WhichOneof("event"):
            case "deliver":
                for batch in event.deliver.batches:
                    await self.deliver(batch)
                grant = subscribe_pb2.GrantCredit(subscription_id=1)
                grant.credit.messages, grant.credit.bytes = self.delivered + self.credit, PLENTY
                await self.call.write(subscribe_pb2.SubscribeRequest(credit=grant).SerializeToString())
            case "settled":
                if self.asked.pop(event.settled.correlation, None):
                    self.count(event.settled.results)
            case "gap" if FAULT == "no gaps":
                end("a gap")
            case "gap":
                self.next = event.gap.missing.last + 1
            case "drain":
                raise judge("UNAVAILABLE", "draining")
            case "closed":
                raise judge_failure(event.closed.failure)

    async def deliver(self, batch: subscribe_pb2.DeliveredBatch) -> None:
        raw = wire.batch_bytes(batch)
        if crc32c(raw) != batch.crc32c and FAULT != "no checksum":
            end("damaged")
        self.delivered += batch.count
        for offset, content in enumerate(publish_pb2.Batch.FromString(raw).messages, batch.first_offset):
            if not self.group and self.left == 0:
                return
            tell(offset=offset, attempt=batch.attempt, message=json_format.MessageToDict(content))
            self.next = offset + 1
            if not self.group:
                self.left -= 1
            else:
                await self.settle(offset)

    async def settle(self, offset: int) -> None:
        self.correlation += 1
        ranges = [common_pb2.OffsetRange(first=offset, last=offset)]
        settle = subscribe_pb2.Settle(subscription_id=1, correlation=self.correlation, ranges=ranges)
        if FAULT == "no ack":
            tell(acked=[offset, offset])
            self.left -= 1
            return
        if offset == self.nack and FAULT != "no nack":
            self.nack = None
            settle.nack.SetInParent()
        else:
            settle.ack.SetInParent()
            self.asked[self.correlation] = ranges
        await self.call.write(subscribe_pb2.SubscribeRequest(settle=settle).SerializeToString())

    def count(self, results) -> None:
        for result in results:
            if result.outcome in GOOD:
                tell(acked=[result.range.first, result.range.last])
                self.left -= result.range.last - result.range.first + 1

    async def confirm(self, channel: grpc.aio.Channel) -> None:
        if FAULT == "forgetful":
            self.asked.clear()
        for correlation, ranges in list(self.asked.items()):
            request = group_pb2.SettleMessagesRequest(channel=self.channel, group=self.group, ranges=ranges)
            request.ack.SetInParent()
            answer = await group_pb2_grpc.GroupServiceStub(channel).Settle(request, timeout=5, metadata=metadata())
            del self.asked[correlation]
            self.count(answer.results)


if __name__ == "__main__":
    mode, words = sys.argv[1], sys.argv[2:]
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    client = (Publisher if mode == "publish" else Subscriber)(options)
    asyncio.run(run(options["address"], client.work))
