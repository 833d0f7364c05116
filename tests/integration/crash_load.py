"""Clients that outlive a node which is killed again and again, and their own account of what they were promised.

Everything runs on one event loop. Whatever contradicts a promise goes to `World.problems`, in words.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from crc32c import crc32c

from ringpost.v1.channel_pb2 import (
    AddChannelRequest,
    ChannelConfig,
    DeleteChannelRequest,
    GetChannelRequest,
    PurgeChannelRequest,
    SetChannelRequest,
)
from ringpost.v1.common_pb2 import Durability, OffsetRange
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Outcome, Settle, SubscribeRequest
from tests.integration.broker import Client, batch_of, open_subscription, publish

BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError)
"""What a call ends with when its node is killed."""
_OF_THE_CLIENT = "Internal error from Core"  # what grpcio says of a write on a call that has just ended
UNANSWERED_MAX = 16


class World:
    """The node's address while it serves, and the count of what was promised so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.promises = 0
        self.stopping = False
        self._address = ""
        self._up = asyncio.Event()
        self._kill_at = 0
        self._kill: Callable[[], None] = lambda: None

    def serve(self, address: str) -> None:
        """The node serves there; clients come back."""
        self._address = address
        self._up.set()

    def kill_after(self, promises: int, kill: Callable[[], None]) -> None:
        """Calls `kill` in the very moment in which so many more answers have come."""
        self._kill_at = self.promises + promises
        self._kill = kill

    def promised(self) -> None:
        """A client got an answer that it may rely on."""
        self.promises += 1
        if self.promises == self._kill_at:
            self._up.clear()
            self._kill()

    def check(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection to the node once it serves."""
        await self._up.wait()
        async with Client(self._address) as client:
            yield client

    async def again_and_again(self, work: Callable[[Client], Awaitable[None]]) -> None:
        """Repeats `work` with a new connection whenever the node was killed under it, until it returns."""
        while True:
            async with self.client() as client:
                try:
                    return await work(client)
                except BROKEN as error:
                    if isinstance(error, grpc.aio.AioRpcError) and error.details() != _OF_THE_CLIENT:
                        expected = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                        self.check(error.code() in expected, f"a call ended with {error.code()}: {error.details()}")


class Sent(NamedTuple):
    """A batch of a producer; `first` is the sequence number of its first message."""

    first: int
    data: tuple[bytes, ...]


class Producer:
    """Publishes with sequence numbers; what was not answered is sent again after a crash, and so is the last answered.

    `answered` has each batch with its offset.
    """

    def __init__(self, world: World, number: int, channel: str, durability: Durability.ValueType) -> None:
        self.channel = channel
        self.id = number
        self.answered: list[tuple[int, Sent]] = []
        self.resent = 0
        self._world = world
        self._durability = durability
        self._random = random.Random(number)
        self._next = 0
        self._unanswered: deque[Sent] = deque()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Until the world stops and everything is answered."""
        await self._world.again_and_again(self._publish)

    def _new_batch(self) -> Sent:
        count = self._random.choice((1, 1, 3, 20))
        data = tuple(b"%d:%d:" % (self.id, self._next + n) + self._payload() for n in range(count))
        sent = Sent(self._next, data)
        self._next += count
        return sent

    def _payload(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 10, 100, 3_000)))

    async def _publish(self, client: Client) -> None:
        stream = client.publish_stream(120)
        reading = asyncio.ensure_future(self._read(stream))
        try:
            again = [sent for _, sent in self.answered[-1:]] + list(self._unanswered)
            self.resent += len(again)
            for sent in again:
                await self._write(stream, sent)
            while not self._world.stopping:
                while len(self._unanswered) >= UNANSWERED_MAX and not reading.done():
                    self._room.clear()
                    await self._room.wait()
                self._unanswered.append(self._new_batch())
                await self._write(stream, self._unanswered[-1])
            await stream.done_writing()
        finally:
            await reading

    async def _write(self, stream: Any, sent: Sent) -> None:
        fields = {"producer_id": self.id, "first_sequence": sent.first, "durability": self._durability}
        await stream.write(publish(self.channel, *sent.data, correlation=sent.first, **fields))

    async def _read(self, stream: Any) -> None:
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                for result in response.results:
                    self._result(result)
        finally:
            self._room.set()

    def _result(self, result: Any) -> None:
        check, stored = self._world.check, result.stored
        name = f"producer {self.id} of {self.channel}: the batch at sequence {result.correlation}"
        if result.HasField("failure"):
            check(False, f"{name} failed: {result.failure}")
        elif self.answered and result.correlation <= self.answered[-1][1].first:
            offset, sent = self.answered[-1]
            check(stored.duplicate, f"{name} was stored twice")
            check((offset, sent.first) == (stored.first_offset, result.correlation), f"{name}: another answer {stored}")
        else:
            sent = self._unanswered.popleft()
            check(sent.first == result.correlation, f"{name} was answered out of order")
            check(stored.count == len(sent.data), f"{name} has another count: {stored}")
            check(stored.durability >= self._durability, f"{name}: {stored}")
            self.answered.append((stored.first_offset, sent))
            self._room.set()
        self._world.promised()


class Account:
    """What the members of one group on one channel were sent and told; shared by them."""

    def __init__(self, world: World, channel: str) -> None:
        self.channel = channel
        self.seen: dict[int, bytes] = {}
        self.confirmed: set[int] = set()
        self.redelivered = 0
        self._world = world

    def delivered(self, first: int, data: list[bytes]) -> None:
        for offset, one in enumerate(data, first):
            where = f"offset {offset} of {self.channel}"
            self._world.check(offset not in self.confirmed, f"{where} came again after its ack was confirmed")
            self._world.check(self.seen.setdefault(offset, one) == one, f"{where} has other bytes than before")

    def settled(self, results: Any) -> None:
        for result in results:
            if result.outcome in (Outcome.OUTCOME_DONE, Outcome.OUTCOME_ALREADY):
                self.confirmed.update(range(result.range.first, result.range.last + 1))


class Member:
    """A consumer that acks every batch that it gets."""

    def __init__(self, world: World, account: Account) -> None:
        self._world = world
        self._account = account

    async def run(self) -> None:
        """For ever; cancel it."""
        await self._world.again_and_again(self._consume)

    async def _consume(self, client: Client) -> None:
        stream = client.subscribe(120)
        await stream.write(open_subscription(self._account.channel, group="g"))
        while (event := await stream.read()) is not grpc.aio.EOF:
            for batch in event.deliver.batches:
                intact = crc32c(batch.batch.SerializeToString()) == batch.crc32c
                self._world.check(intact, f"a batch of {self._account.channel} has a wrong checksum")
                self._account.delivered(batch.first_offset, [message.data for message in batch.batch.messages])
                ranges = [OffsetRange(first=batch.first_offset, last=batch.first_offset + batch.count - 1)]
                await stream.write(SubscribeRequest(settle=Settle(subscription_id=1, ranges=ranges, ack=Ack())))
            if event.WhichOneof("event") == "settled":
                self._account.settled(event.settled.results)
                self._world.promised()
            self._world.check(event.WhichOneof("event") != "closed", f"closed: {event}")


class Promise:
    """A number that was set: what was answered, and what was asked since and may have come to pass."""

    def __init__(self) -> None:
        self.kept = 0
        self._asked: list[int] = []

    def __str__(self) -> str:
        return f"promised {self.kept}, asked since {self._asked}"

    def ask(self, number: int) -> int:
        self._asked.append(number)
        return number

    def keep(self) -> None:
        """The last number asked for was answered."""
        self.kept = self._asked[-1]
        self._asked.clear()

    def allows(self, number: int) -> bool:
        """Each of the numbers asked for since may be the last that came to pass: a node may die twice in a row."""
        return number == self.kept or number in self._asked


class Admin:
    """Configures, purges, makes and deletes channels; remembers what was promised and what was only asked."""

    CHANNEL = "admin"

    def __init__(self, world: World) -> None:
        self.operations = 0
        self._world = world
        self._config = Promise()
        self._first = Promise()
        self._there: dict[str, bool | None] = {}  # None: it was asked, and not answered

    async def run(self) -> None:
        """Until the world stops."""
        await self._world.again_and_again(self._work)

    async def _work(self, client: Client) -> None:
        await self.check(client)
        while not self._world.stopping:
            self.operations += 1
            await self._publish_and_purge(client)
            number = self._config.ask(self.operations)
            config = ChannelConfig(retention_bytes=(1 << 40) + number)
            await client.channels.SetChannel(SetChannelRequest(name=self.CHANNEL, config=config))
            self._config.keep()
            await self._toggle(client, f"temporary.{self.operations % 7}")
            self._world.promised()

    async def _publish_and_purge(self, client: Client) -> None:
        request = PublishRequest(channel=self.CHANNEL, batch=batch_of(b"1", b"2", b"3"))
        stored = await client.publisher.Publish(request)
        first = self._first.ask(stored.first_offset + 1)
        await client.channels.PurgeChannel(PurgeChannelRequest(name=self.CHANNEL, before_offset=first))
        self._first.keep()

    async def _toggle(self, client: Client, name: str) -> None:
        there, self._there[name] = self._there.get(name, False), None
        try:
            if there:
                await client.channels.DeleteChannel(DeleteChannelRequest(name=name))
            else:
                await client.channels.AddChannel(AddChannelRequest(name=name))
        except grpc.aio.AioRpcError as error:
            undecided = there is None and error.code() == grpc.StatusCode.ALREADY_EXISTS
            if not undecided:
                raise
        self._there[name] = not there

    async def check(self, client: Client) -> None:
        """After a restart: everything promised is there, and nothing that was never asked for."""
        if not self.operations:
            return
        channels = {channel.name: channel for channel in await client.all_channels()}
        for name, there in self._there.items():
            self._world.check(there is None or there == (name in channels), f"channel {name}: promised {there}")
        if self._first.kept == 0:
            return
        info = (await client.channels.GetChannel(GetChannelRequest(name=self.CHANNEL))).channel
        number = max(0, info.config.retention_bytes - (1 << 40))
        self._world.check(self._config.allows(number), f"configuration {number}, {self._config}")
        self._world.check(self._first.allows(info.first_offset), f"purged to {info.first_offset}, {self._first}")
