"""Consumers of a key-ordered group that come, go and crash, and an account of what they saw.

Message n of key k is `k:n`. Everything runs on one event loop, so the account has the order in which things happened.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import grpc

from ringpost.v1.common_pb2 import GroupMode, OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupConfig, GroupInfo
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.subscribe_pb2 import (
    Ack,
    CloseSubscription,
    Credit,
    GrantCredit,
    Nack,
    Outcome,
    Settle,
    SubscribeRequest,
)
from tests.integration.broker import Client, open_subscription

CHANNEL, GROUP = "keys", "g"
NACKED = 0.05
BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, EOFError)
"""What a stream ends with when its node or its consumer is killed."""


def chance_of(key: int, number: int) -> random.Random:
    """The same for a message whenever it comes, whoever gets it."""
    return random.Random(key << 20 | number)


def nack_some(key: int, number: int, attempt: int) -> int:
    """5 % of messages fail once, for up to half a second."""
    chance = chance_of(key, number)
    return chance.randrange(1, 500) if attempt == 1 and chance.random() < NACKED else 0


async def make_group(client: Client) -> None:
    config = GroupConfig(mode=GroupMode.GROUP_MODE_KEY_ORDERED)
    await client.groups.AddGroup(AddGroupRequest(channel=CHANNEL, name=GROUP, config=config), timeout=60)


class Account:
    """What became of each key; whatever contradicts the order goes to `problems`, in words.

    For each key: the highest message that an ack was sent for, that one was confirmed for, and that was delivered last.
    """

    def __init__(self, keys: int, messages: int) -> None:
        self.messages = messages
        self.sent = [-1] * keys
        self.confirmed = [-1] * keys
        self.delivered = [-1] * keys
        self.total = keys * messages
        self.deliveries = 0
        self.nacks = 0
        self.acked: set[tuple[int, int]] = set()
        self.done_once: set[tuple[int, int]] = set()
        self.latencies: dict[int, list[float]] = {}
        self.problems: list[str] = []

    def deliver(self, key: int, number: int, published: float) -> None:
        self.deliveries += 1
        if number <= self.confirmed[key]:
            self.problems.append(f"{key}:{number} came after its ack was confirmed")
        if number < self.delivered[key]:
            self.problems.append(f"{key}:{number} came after {key}:{self.delivered[key]}")
        if number > self.sent[key] + 1:
            self.problems.append(f"{key}:{number} came before {key}:{self.sent[key] + 1} was acked")
        if number > self.delivered[key]:
            self.latencies.setdefault(key, []).append(time.monotonic() - published)
        self.delivered[key] = max(self.delivered[key], number)

    def ack(self, key: int, number: int) -> None:
        self.sent[key] = max(self.sent[key], number)
        self.acked.add((key, number))

    def confirm(self, key: int, number: int) -> None:
        """The broker has stored an ack. Two connections may tell it in another order than it happened."""
        if (key, number) in self.done_once:
            self.problems.append(f"{key}:{number} was acked twice")
        self.done_once.add((key, number))
        self.confirmed[key] = max(self.confirmed[key], number)

    @property
    def done(self) -> bool:
        return len(self.acked) == self.total


class Publisher:
    """Publishes `k:n` in random order of keys, again after a crash. `published` has the times of what is stored."""

    def __init__(self, keys: int, messages: int, seed: int, *, batch: int) -> None:
        chance = random.Random(seed)
        left = [key for key in range(keys) for _ in range(messages)]
        chance.shuffle(left)
        self._next = [0] * keys
        self._order = left
        self._batch = batch
        self.at = 0
        self.published: dict[tuple[int, int], float] = {}

    async def publish(self, client: Client, count: int, *, per_second: float = 0) -> None:
        """The next `count` messages; `per_second` 0: as fast as it goes. Can be called again when it failed."""
        end, begun, first = self.at + count, time.monotonic(), self.at
        while self.at < end:
            pairs = self._pairs(min(self._batch, end - self.at))
            if per_second:
                await asyncio.sleep(max(0.0, begun + (self.at - first) / per_second - time.monotonic()))
            now = time.monotonic()
            self.published |= dict.fromkeys(pairs, now)
            messages = [Message(key=b"%d" % key, data=b"%d:%d" % (key, number)) for key, number in pairs]
            request = PublishRequest(
                channel=CHANNEL, batch=Batch(messages=messages), producer_id=7, producer_epoch=1, first_sequence=self.at
            )
            await client.publisher.Publish(request, timeout=60)
            for key, number in pairs:
                self._next[key] = number + 1
            self.at += len(pairs)

    def _pairs(self, count: int) -> list[tuple[int, int]]:
        upcoming = list(self._next)
        pairs = []
        for key in self._order[self.at : self.at + count]:
            pairs.append((key, upcoming[key]))
            upcoming[key] += 1
        return pairs


class Worker:
    """A consumer on a connection of its own; acks each delivery at once, or nacks it."""

    def __init__(
        self, address: str, account: Account, published: dict[tuple[int, int], float], nack: Callable[..., int]
    ) -> None:
        """`nack(key, number, attempt)`: the delay in ms, 0 for an ack."""
        self._account = account
        self._published = published
        self._nack = nack
        self._client = Client(address)
        self._call: Any = self._client.subscribe(600)
        self._sent: dict[int, list[tuple[int, int]]] = {}  # acks by correlation
        self._by_offset: dict[int, tuple[int, int]] = {}
        self._confirmed: dict[int, int] = {}  # the latest of each key
        self._correlation = 0
        self._taken = 0
        self._leaving = False
        self._writing = asyncio.Lock()
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            mode = GroupMode.GROUP_MODE_KEY_ORDERED
            await self._write(open_subscription(CHANNEL, credit=200, group=GROUP, mode=mode))
            while (event := await self._call.read()) is not grpc.aio.EOF:
                kind = event.WhichOneof("event")
                if kind == "deliver" and not self._leaving:  # else it was given back before it came
                    await self._deliver(event.deliver)
                elif kind == "settled":
                    self._settled(event.settled)
                elif kind == "closed":
                    break
        except BROKEN:
            pass
        finally:
            self._call.cancel()
            await self._client.wire.close()

    async def _deliver(self, deliver: Any) -> None:
        acks: list[int] = []
        nacks: list[tuple[int, int]] = []
        for batch in deliver.batches:
            for offset, message in enumerate(batch.batch.messages, batch.first_offset):
                key, number = map(int, message.data.split(b":"))
                self._account.deliver(key, number, self._published[key, number])
                self._by_offset[offset] = key, number
                delay_ms = self._nack(key, number, batch.attempt)
                if delay_ms:
                    nacks.append((offset, delay_ms))
                else:
                    self._account.ack(key, number)
                    acks.append(offset)
            self._taken += batch.count
        for at in range(0, len(acks), 1_000):
            await self._settle(acks[at : at + 1_000], ack=Ack())
        for offset, delay_ms in nacks:
            self._account.nacks += 1
            await self._settle([offset], nack=Nack(delay_ms=delay_ms))
        credit = Credit(messages=self._taken + 200, bytes=1 << 40)
        await self._write(SubscribeRequest(credit=GrantCredit(subscription_id=1, credit=credit)))

    async def _settle(self, offsets: list[int], **action: Any) -> None:
        self._correlation += 1
        if "ack" in action:
            self._sent[self._correlation] = [self._by_offset[offset] for offset in offsets]
        ranges = [OffsetRange(first=offset, last=offset) for offset in offsets]
        settle = Settle(subscription_id=1, correlation=self._correlation, ranges=ranges, **action)
        await self._write(SubscribeRequest(settle=settle))

    def _settled(self, settled: Any) -> None:
        assert not settled.HasField("failure"), settled.failure
        if self._sent.pop(settled.correlation, None) is None:
            return
        for result in settled.results:
            if result.outcome == Outcome.OUTCOME_DONE:
                for offset in range(result.range.first, result.range.last + 1):
                    key, number = self._by_offset[offset]
                    if number <= self._confirmed.get(key, -1):
                        self._account.problems.append(f"{key}:{number} was confirmed after {self._confirmed[key]}")
                    self._confirmed[key] = number
                    self._account.confirm(key, number)

    async def _write(self, request: SubscribeRequest) -> None:
        async with self._writing:  # gRPC takes one at a time
            await self._call.write(request)

    async def leave(self) -> None:
        """Closes its subscription; what it has is given back."""
        self._leaving = True
        with contextlib.suppress(*BROKEN):
            await self._write(SubscribeRequest(close=CloseSubscription(subscription_id=1)))
        await self.task

    async def crash(self) -> None:
        """Its stream is cut in the middle of whatever it does."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Upheaval:
    """Workers that join, leave and crash at random, three to eight at a time, each at `address()`."""

    def __init__(self, address: Callable[[], str], account: Account, publisher: Publisher) -> None:
        self.counts = {"join": 0, "leave": 0, "crash": 0}
        self.workers: list[Worker] = []
        self._address, self._account, self._publisher = address, account, publisher
        self._random = random.Random(7)

    async def step(self) -> None:
        self.workers = [worker for worker in self.workers if not worker.task.done()]
        what = self._random.choice(("join", "leave", "crash"))
        if len(self.workers) < 3 or (what == "join" and len(self.workers) < 8):
            self.counts["join"] += 1
            self.workers.append(Worker(self._address(), self._account, self._publisher.published, nack_some))
        elif what != "join":
            self.counts[what] += 1
            worker = self.workers.pop(self._random.randrange(len(self.workers)))
            await (worker.leave() if what == "leave" else worker.crash())

    async def all_cut(self) -> None:
        """Nobody reads any more what came until now."""
        await asyncio.gather(*(worker.crash() for worker in self.workers))
        self.workers = []

    async def settled(self, client: Client, seconds: float = 30) -> GroupInfo:
        """Goes on until everything is settled: acks that died with a node come again."""
        end = time.monotonic() + seconds
        while True:
            await self.step()
            request = GetGroupRequest(channel=CHANNEL, name=GROUP)
            info = (await client.groups.GetGroup(request, timeout=60)).group
            if not info.pending:
                return info
            assert time.monotonic() < end, f"{info.pending} are pending"
            await asyncio.sleep(0.15)
