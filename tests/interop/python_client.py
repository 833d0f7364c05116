"""A client of Ringpost in Python, as the conformance script runs it; see the README beside it.

Here the package `ringpost.client` does the work: batches, numbers, credit, reconnecting. The programs in other
languages show what is behind that.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from ringpost.client import Client, LeaseLost, Message, Options, PendingPublish, RingpostError, connect
from ringpost.v1 import publish_pb2


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def tell_message(message: Message) -> None:
    content = publish_pb2.Message(
        key=message.key,
        data=message.data,
        headers=message.headers,
        message_id=message.message_id,
        producer_time_us=message.producer_time_us,
    )
    tell(offset=message.offset, attempt=message.attempt, message=json_format.MessageToDict(content))


async def publish(mq: Client, given: argparse.Namespace) -> None:
    """Publishes without waiting; the answers are printed as they come."""
    pending = asyncio.Queue[PendingPublish | None]()
    printing = asyncio.create_task(tell_receipts(pending))
    name = given.producer
    for number in range(given.count):
        pending.put_nowait(
            mq.publish_nowait(
                given.channel,
                f"{name} {number}".encode() + bytes((0, 255, number % 256)),
                key=f"{name}-{number % 7}",
                headers={"number": str(number), "note": 'he said "grüezi"'},
                message_id=f"{name}/{number}",
            )
        )
        if given.pause_ms and (number + 1) % given.batch == 0:
            await asyncio.sleep(given.pause_ms / 1000)
    pending.put_nowait(None)
    await printing


async def tell_receipts(pending: "asyncio.Queue[PendingPublish | None]") -> None:
    while (one := await pending.get()) is not None:
        receipt = await one
        tell(first_offset=receipt.offset, count=1, duplicate=receipt.duplicate)


async def subscribe(mq: Client, given: argparse.Namespace) -> None:
    left = given.count
    subscription = mq.subscription(given.channel, start=given.start, prefetch=given.credit, heartbeat_interval=1.0)
    async with subscription:
        async for message in subscription:
            tell_message(message)
            left -= 1
            if left == 0:
                return


async def work(mq: Client, given: argparse.Namespace) -> None:
    """Acks each message when its work is done, and counts what is confirmed."""
    settled = 0
    nack = given.nack
    # Confirmed on another way, while the client may have been given the message once more already.
    elsewhere = set[int]()
    subscription = mq.subscription(given.channel, group=given.group, prefetch=given.credit, heartbeat_interval=1.0)
    async with subscription:
        async for message in subscription:
            if message.offset in elsewhere:
                elsewhere.discard(message.offset)
                continue
            tell_message(message)
            if message.offset == nack:
                nack = None
                await message.nack()
                continue
            try:
                await message.ack()
            except LeaseLost:
                # The stream broke. The work is done all the same: say so through any node.
                await mq.groups.settle(given.channel, given.group, (message.offset, message.offset))
                elsewhere.add(message.offset)
            tell(acked=[message.offset, message.offset])
            settled += 1
            if settled == given.count:
                return


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["publish", "subscribe", "work"])
    for name in ("address", "channel", "producer", "group"):
        parser.add_argument(f"--{name}")
    for name in ("count", "batch", "pause-ms", "credit", "nack"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--from", type=int, dest="start")
    return parser.parse_args()


def credentials() -> grpc.ChannelCredentials | None:
    ca = os.environ.get("RINGPOST_CA")
    return grpc.ssl_channel_credentials(Path(ca).read_bytes()) if ca else None


async def main() -> None:
    given = arguments()
    async with connect(
        given.address,
        credentials=credentials(),
        token=os.environ.get("RINGPOST_TOKEN"),
        options=Options(max_batch_messages=given.batch or 1, linger_ms=5),
    ) as mq:
        await {"publish": publish, "subscribe": subscribe, "work": work}[given.mode](mq, given)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except RingpostError as error:
        sys.exit(str(error))
