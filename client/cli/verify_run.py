"""The run behind `ringpost verify`: producers, a replaying reader, a group, and somebody who kills the node."""

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ringpost.client import errors
from ringpost.client.api import Client, connect
from ringpost.client.cli.ledger import Ledger, decode, encode

GROUP = "verify"
_PATIENCE_S = 30.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Plan:
    """What to run. `rate`: messages a second of each producer; `burst`: messages on their way at once."""

    addr: str
    seconds: float
    producers: int
    channels: int
    rate: float
    burst: int
    size: int
    kills: int
    durability: str = "quorum"


@dataclass
class Run:
    """One run. `kill` ends the node with SIGKILL and starts it again; it blocks until the node serves."""

    plan: Plan
    kill: Callable[[], None] | None = None
    tick: Callable[["Run"], None] = lambda _: None
    ledger: Ledger = field(default_factory=Ledger)
    run_id: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"))
    killed: int = 0
    unsettled: int = 0

    def __post_init__(self) -> None:
        self.channels = [f"verify.{self.run_id:016x}.{n}" for n in range(self.plan.channels)]

    async def execute(self) -> None:
        """Publishes, reads and kills for `seconds`, then waits until everything acknowledged was seen. Cleans up."""
        async with connect(self.plan.addr) as mq:
            for channel in self.channels:
                await mq.channels.add(channel)
            readers = [asyncio.create_task(self._replay(mq, channel)) for channel in self.channels]
            readers += [asyncio.create_task(self._share(mq, channel)) for channel in self.channels]
            try:
                await self._produce_and_kill()
                await self._await_readers(mq, readers)
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)
                for channel in self.channels:
                    await mq.channels.delete(channel)

    async def _produce_and_kill(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for producer in range(self.plan.producers):
                tasks.create_task(self._produce(producer))
            if self.plan.kills:
                tasks.create_task(self._kill())

    async def _produce(self, producer: int) -> None:
        """Bursts at the planned rate, to one channel after the other, over a connection of its own."""
        plan = self.plan
        begin = time.monotonic()
        turn = 0
        async with connect(plan.addr) as mq:
            while (now := time.monotonic()) < begin + plan.seconds:
                await self._burst(mq, self.channels[turn % len(self.channels)], producer)
                turn += 1
                self.tick(self)
                await asyncio.sleep(max(0.0, now + plan.burst / plan.rate - time.monotonic()))

    async def _burst(self, mq: Client, channel: str, producer: int) -> None:
        numbers = [self.ledger.try_next(channel, producer) for _ in range(self.plan.burst)]
        pending = [
            mq.publish_nowait(
                channel, encode(self.run_id, producer, number, self.plan.size), durability=self.plan.durability
            )
            for number in numbers
        ]
        for number, one in zip(numbers, pending, strict=True):
            try:
                receipt = await one
            except errors.RingpostError as error:
                if not error.outcome_open:
                    self.ledger.refused(channel, producer, number)
            else:
                self.ledger.acked(channel, producer, number, receipt.offset, time.monotonic())

    async def _kill(self) -> None:
        """Spread over the run, each at a random moment of its share."""
        assert self.kill is not None
        share = self.plan.seconds / self.plan.kills
        begin = time.monotonic()
        for turn in range(self.plan.kills):
            moment = begin + share * (turn + random.uniform(0.2, 0.8))
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            await asyncio.to_thread(self.kill)
            self.killed += 1
            self.tick(self)

    async def _replay(self, mq: Client, channel: str) -> None:
        """The ephemeral reader: everything, once."""
        async with mq.subscription(channel, start="earliest") as subscription:
            async for batch in subscription.batches():
                now = time.monotonic()
                for offset, data in enumerate(batch.payloads(), batch.first_offset):
                    if (found := decode(self.run_id, data)) is None:
                        self.ledger.damaged += 1
                    else:
                        self.ledger.replayed(channel, *found, offset, now)

    async def _share(self, mq: Client, channel: str) -> None:
        """The group's member: takes, notes, acknowledges, notes what was confirmed."""
        async with mq.subscription(channel, group=GROUP, start="earliest") as subscription:
            async for batch in subscription.batches():
                found = [decode(self.run_id, data) for data in batch.payloads()]
                self.ledger.damaged += found.count(None)
                whole = [one for one in found if one is not None]
                for one in whole:
                    self.ledger.group_got(channel, *one)
                try:
                    await batch.ack()
                except errors.RingpostError:
                    continue  # Not confirmed: it comes again, or the ack had been stored already.
                for one in whole:
                    self.ledger.group_acked(channel, *one)

    async def _await_readers(self, mq: Client, readers: "list[asyncio.Task[None]]") -> None:
        """Until nothing acknowledged is missing or unsettled, or nothing changes. Raises a reader's error."""
        before: tuple[int, ...] = ()
        since = time.monotonic()
        while time.monotonic() - since < _PATIENCE_S:
            for reader in readers:
                if reader.done():
                    reader.result()
            groups = [await mq.groups.get(channel, GROUP) for channel in self.channels]
            self.unsettled = sum(group.pending for group in groups)
            left = (*self.ledger.missing(), self.unsettled)
            if not any(left):
                return
            if left != before:
                before, since = left, time.monotonic()
            await asyncio.sleep(_POLL_S)
