"""The run behind `ringpost verify`: producers, a replaying reader, groups, and somebody who disturbs them."""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli.contexts import dial
from ringpost.client.cli.faults import Fault, Faults
from ringpost.client.cli.ledger import Ledger, decode, encode
from ringpost.client.options import Options

GROUP = "verify"
# A cluster has so long after a fault until every copy is in sync again.
HEAL_SECONDS = 30.0
_REST_S = (0.5, 2.0)
_PATIENCE_S = 30.0
_POLL_S = 0.1
_ASK_S = 2.0


@dataclass(frozen=True)
class Plan:
    """What to run. `rate`: messages a second of each producer; `burst`: messages on their way at once.

    `kills`: of a single node; on a cluster the greatest number of faults, 0: as many as there is time for.
    """

    addr: str
    seconds: float
    producers: int
    channels: int
    rate: float
    burst: int
    size: int
    kills: int
    durability: str = "quorum"
    groups: int = 1


@dataclass
class Run:
    """One run. `kill` ends a single node with SIGKILL and starts it again; it blocks until the node serves.

    `faults` are those of a local cluster, in place of `kill`.
    """

    plan: Plan
    kill: Callable[[], None] | None = None
    faults: Faults | None = None
    tick: Callable[["Run"], None] = lambda _: None
    run_id: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"))
    killed: int = 0
    unsettled: int = 0
    # On a cluster: what was done, the longest healing in seconds, and faults that were not healed in time.
    struck: list[Fault] = field(default_factory=list)
    longest_healing: float = 0.0
    unhealed: int = 0
    # Channels that could not be removed afterwards, and why.
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = [GROUP, *(f"{GROUP}-{n}" for n in range(2, self.plan.groups + 1))]
        self.ledger = Ledger(self.groups)
        self.channels = [f"verify.{self.run_id:016x}.{n}" for n in range(self.plan.channels)]

    async def execute(self) -> None:
        """Publishes, reads and kills for `seconds`, then waits until everything acknowledged was seen. Cleans up."""
        async with dial(self.plan.addr) as mq:
            for channel in self.channels:
                await mq.channels.add(channel)
            readers = [asyncio.create_task(self._replay(mq, channel)) for channel in self.channels]
            for group in self.groups:
                readers += [asyncio.create_task(self._share(mq, channel, group)) for channel in self.channels]
            try:
                await self._produce_and_disturb()
                await self._await_readers(mq, readers)
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)
                await self._clean_up(mq)

    async def _clean_up(self, mq: Client) -> None:
        """Removes the channels; those that a broken cluster does not let go stay, and the report is made."""
        for channel in self.channels:
            try:
                await mq.channels.delete(channel)
            except errors.RingpostError as error:
                self.left.append(f"{channel}: {error.message}")

    async def _produce_and_disturb(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for producer in range(self.plan.producers):
                tasks.create_task(self._produce(producer))
            if self.faults is not None:
                tasks.create_task(self._disturb(self.faults))
            elif self.plan.kills:
                tasks.create_task(self._kill())

    async def _produce(self, producer: int) -> None:
        """Bursts at the planned rate, to one channel after the other, over a connection of its own.

        A channel that has not answered the last burst is passed over, so that one that stands still holds up no other.
        """
        plan = self.plan
        begin = time.monotonic()
        turn = 0
        bursts: dict[str, asyncio.Task[None]] = {}
        async with dial(plan.addr) as mq, asyncio.TaskGroup() as tasks:
            while (now := time.monotonic()) < begin + plan.seconds:
                turn += 1
                free = [channel for channel in self._from(turn) if channel not in bursts or bursts[channel].done()]
                if free:
                    bursts[free[0]] = tasks.create_task(self._burst(mq, free[0], producer))
                    self.tick(self)
                await asyncio.sleep(max(0.0, now + plan.burst / plan.rate - time.monotonic()))

    def _from(self, turn: int) -> list[str]:
        first = turn % len(self.channels)
        return self.channels[first:] + self.channels[:first]

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

    async def _disturb(self, faults: Faults) -> None:
        """One fault after the other, with a short rest after each healing, until the time is over."""
        end = time.monotonic() + self.plan.seconds
        await asyncio.sleep(min(self.plan.seconds / 4, random.uniform(*_REST_S)))
        while time.monotonic() < end and (not self.plan.kills or len(self.struck) < self.plan.kills):
            self.struck.append(await faults.strike())
            self.tick(self)
            await self._await_whole()
            await asyncio.sleep(random.uniform(*_REST_S))

    async def _await_whole(self) -> None:
        """Until every shard has a leader and all its copies in sync, or HEAL_SECONDS are over."""
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < HEAL_SECONDS:
            if await self._is_whole():
                self.longest_healing = max(self.longest_healing, waited)
                return
            await asyncio.sleep(_POLL_S)
        self.unhealed += 1

    async def _is_whole(self) -> bool:
        """Whether every node says so: one that was cut off may not know yet what happened meanwhile."""
        try:
            for address in self.plan.addr.split(","):
                async with dial(address, Options(routing="any", connect_timeout=_ASK_S)) as mq:
                    status = await mq.cluster.status()
                    if status.offline_shards or status.under_replicated_shards:
                        return False
        except (errors.Unavailable, errors.Timeout):
            return False
        return True

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

    async def _share(self, mq: Client, channel: str, group: str) -> None:
        """A group's member: takes, notes, acknowledges, notes what was confirmed."""
        async with mq.subscription(channel, group=group, start="earliest") as subscription:
            async for batch in subscription.batches():
                found = [decode(self.run_id, data) for data in batch.payloads()]
                self.ledger.damaged += found.count(None)
                whole = [one for one in found if one is not None]
                for one in whole:
                    self.ledger.group_got(channel, *one, group)
                try:
                    await batch.ack()
                except errors.RingpostError:
                    continue  # Not confirmed: it comes again, or the ack had been stored already.
                for one in whole:
                    self.ledger.group_acked(channel, *one, group)

    async def _await_readers(self, mq: Client, readers: "list[asyncio.Task[None]]") -> None:
        """Until nothing acknowledged is missing or unsettled, or nothing changes. Raises a reader's error."""
        before: tuple[int, ...] = ()
        since = time.monotonic()
        while time.monotonic() - since < _PATIENCE_S:
            answered = False
            for reader in readers:
                if reader.done():
                    reader.result()
            with contextlib.suppress(errors.Unavailable, errors.Timeout):
                groups = [await mq.groups.get(channel, group) for channel in self.channels for group in self.groups]
                self.unsettled = sum(group.pending for group in groups)
                answered = True
            left = (*self.ledger.missing(), self.unsettled, not answered)
            if not any(left):
                return
            if left != before:
                before, since = left, time.monotonic()
            await asyncio.sleep(_POLL_S)
