"""One subscribe stream without gRPC, over a store on the fake journal."""

import asyncio
from typing import Any

import grpc
from crc32c import crc32c

from ringpost.node.delivery.hub import DeliveryLimits, Hub
from ringpost.node.delivery.session import Session
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.subscribe_pb2 import (
    CloseSubscription,
    Credit,
    DeliveredBatch,
    GrantCredit,
    OpenSubscription,
    Settle,
    SubscribeRequest,
    SubscribeResponse,
)
from tests.node.shard.fakes import Outcomes, Rig

MANY = 1 << 40


async def turns(count: int = 8) -> None:
    """Lets the loop do what it was asked to do soon."""
    for _ in range(count):
        await asyncio.sleep(0)


class Stream:
    """A client's end of a session: says commands, reads what comes back, checks every batch."""

    def __init__(self, hub: Hub) -> None:
        self.session = Session(hub)
        self.raw: list[bytes] = []

    def open(self, number: int = 1, channel: str = "a", **fields: Any) -> None:
        """Opens a subscription, by default from the beginning without any bound."""
        start = fields.pop("start", None if fields.get("group") else Start(earliest=True))
        credit = Credit(messages=fields.pop("messages", MANY), bytes=fields.pop("bytes", MANY))
        command = OpenSubscription(subscription_id=number, channel=channel, start=start, credit=credit, **fields)
        self.session.handle(SubscribeRequest(open=command))

    def credit(self, messages: int = MANY, size: int = MANY, number: int = 1) -> None:
        credit = Credit(messages=messages, bytes=size)
        self.session.handle(SubscribeRequest(credit=GrantCredit(subscription_id=number, credit=credit)))

    def settle(self, number: int = 1, **fields: Any) -> None:
        self.session.handle(SubscribeRequest(settle=Settle(subscription_id=number, **fields)))

    def close(self, number: int = 1) -> None:
        self.session.handle(SubscribeRequest(close=CloseSubscription(subscription_id=number)))

    async def said(self) -> list[SubscribeResponse]:
        """Everything that the node has to say now."""
        found: list[SubscribeResponse] = []
        await turns()
        while self.session.queued_bytes:
            message = await self.session.next_message()
            assert message is not None
            self.raw.append(message)
            found.append(SubscribeResponse.FromString(message))
            await turns()
        for response in found:
            for batch in response.deliver.batches:
                check_batch(batch)
        return found

    async def batches(self) -> list[DeliveredBatch]:
        """The batches among it; nothing but deliveries and `opened` is expected."""
        said = await self.said()
        assert {response.WhichOneof("event") for response in said} <= {"deliver", "opened"}
        return batches_of(said)

    async def texts(self) -> list[str]:
        """The messages among it."""
        return [message.data.decode() for batch in await self.batches() for message in batch.batch.messages]


def batches_of(said: list[SubscribeResponse]) -> list[DeliveredBatch]:
    return [batch for response in said for batch in response.deliver.batches]


def check_batch(batch: DeliveredBatch) -> None:
    """Count and checksum are those of the bytes that were sent."""
    assert batch.count == len(batch.batch.messages) > 0
    assert batch.crc32c == crc32c(batch.batch.SerializeToString())


def events(said: list[SubscribeResponse]) -> list[str]:
    """Which kinds of events."""
    return [str(response.WhichOneof("event")) for response in said]


def hub_of(rig: Rig, **limits: int) -> Hub:
    return Hub(rig.store, rig.reading, DeliveryLimits(**limits), node="n1")


def numbered(rig: Rig, *sizes: int, name: str = "a") -> Channel:
    """Batches of so many messages "m0", "m1" …"""
    channel = rig.channel(name)
    for size in sizes:
        end = channel.end_offset
        rig.publish(channel, *(f"m{end + n}" for n in range(size)))
    return channel


def with_group(rig: Rig, *sizes: int, **settings: int) -> Group:
    group = add_group(numbered(rig, *sizes), "g", GroupSettings(**settings), 0, Outcomes())
    rig.commit()
    return group


def ranges(*pairs: tuple[int, int]) -> list[OffsetRange]:
    return [OffsetRange(first=first, last=last) for first, last in pairs]


def spans(said: list[SubscribeResponse]) -> list[tuple[int, int, int]]:
    """First offset, last offset, attempt of each batch."""
    return [(b.first_offset, b.first_offset + b.count - 1, b.attempt) for b in batches_of(said)]


def stored(rig: Rig) -> None:
    """What was settled reaches the disk."""
    rig.time.turn()
    rig.commit()


def reason_of(response: SubscribeResponse) -> tuple[int, str]:
    failure = getattr(response, response.WhichOneof("event")).failure
    return failure.code, failure.reason


def code(status: grpc.StatusCode) -> int:
    return int(status.value[0])
