"""The work of `ringpost demo`: publish the library, read it back twice, kill a node in the middle, keep the books."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import groupby

from ringpost.client.api import Client, connect
from ringpost.client.batch import OutMessage
from ringpost.client.cli.corpus import Source
from ringpost.client.cli.ledger import Pauses
from ringpost.client.cli.proof import Comparison, Replayed, Shared, compare
from ringpost.client.cli.stats import Samples

GROUP = "readers"
CHUNK = 1_000
_CRASH_AT = 0.4
_AT_A_TIME = 8
_PATIENCE_S = 60.0
_POLL_S = 0.05


@dataclass
class Demo:
    """One run. `crash` ends the owner of a channel with SIGKILL and starts it again; it says who that was.

    Invariant: published[c] messages of channel c are acknowledged, in the order of the channel's files.
    """

    addr: str
    sources: list[Source]
    workers: int
    crash: Callable[[Client, str], Awaitable[str]]
    tick: Callable[["Demo"], None] = lambda _: None
    published: Counter[str] = field(default_factory=Counter)
    ack_times: Samples = field(default_factory=Samples)
    durability: set[tuple[str, int]] = field(default_factory=set)
    crash_seconds: float = 0.0
    victim: str = ""
    # Between two acknowledgements: of all channels together, and of the channel whose owner was killed.
    pauses: Pauses = field(default_factory=Pauses)
    victim_pauses: Pauses = field(default_factory=Pauses)
    publish_seconds: float = 0.0
    read_seconds: float = 0.0
    unsettled: int = 0

    def __post_init__(self) -> None:
        self.lines = sum(len(source.lines()) for source in self.sources)
        self.channels = sorted({source.channel for source in self.sources})
        self.replays = {channel: Replayed() for channel in self.channels}
        self.groups = {channel: Shared() for channel in self.channels}
        self._crash: asyncio.Task[None] | None = None
        self._struck_channel = ""

    async def execute(self) -> None:
        """Everything at once; returns when all was read, or nothing more comes. Raises what the SDK raises."""
        begin = time.perf_counter()
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(connect(self.addr))
            clients = [await stack.enter_async_context(connect(self.addr)) for _ in range(self.workers + 1)]
            for channel in self.channels:
                await control.channels.add(channel)
            readers = [asyncio.create_task(self._replay(clients[0], channel)) for channel in self.channels]
            readers += [
                asyncio.create_task(self._work(client, channel, number))
                for number, client in enumerate(clients[1:], start=1)
                for channel in self.channels
            ]
            try:
                await self._publish_all(control)
                self.publish_seconds = time.perf_counter() - begin
                await self._await_readers(control, readers)
                self.read_seconds = time.perf_counter() - begin
            finally:
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)

    # -- publishing -----------------------------------------------------------------------------------------------

    async def _publish_all(self, mq: Client) -> None:
        """A few channels at a time, each file by file; the crash comes in the middle of it."""
        free = asyncio.Semaphore(_AT_A_TIME)
        async with asyncio.TaskGroup() as tasks:
            for channel, sources in groupby(sorted(self.sources, key=_place), key=lambda source: source.channel):
                tasks.create_task(self._publish_channel(mq, free, tasks, channel, list(sources)))

    async def _publish_channel(
        self, mq: Client, free: asyncio.Semaphore, tasks: asyncio.TaskGroup, channel: str, sources: list[Source]
    ) -> None:
        async with free:
            for chunk in chunks(sources):
                begin = time.perf_counter()
                receipts = await mq.publish_many(channel, chunk)
                now = time.perf_counter()
                self.ack_times.add(now - begin)
                self.durability.update((receipt.durability, len(receipt.replicas)) for receipt in receipts)
                self.published[channel] += sum(receipt.count for receipt in receipts)
                self.pauses.event(now)
                if channel == self._struck_channel:
                    self.victim_pauses.event(now)
                self.tick(self)
                if self._crash is None and self.published.total() >= self.lines * _CRASH_AT:
                    self._struck_channel = channel
                    self.victim_pauses.event(now)
                    self._crash = tasks.create_task(self._crash_now(mq, channel))

    async def _crash_now(self, mq: Client, channel: str) -> None:
        begin = time.perf_counter()
        self.victim = await self.crash(mq, channel)
        self.crash_seconds = time.perf_counter() - begin

    # -- reading --------------------------------------------------------------------------------------------------

    async def _replay(self, mq: Client, channel: str) -> None:
        replayed = self.replays[channel]
        async with mq.subscription(channel, start="earliest") as subscription:
            async for batch in subscription.batches():
                for message in batch.messages:
                    replayed.take(message.offset, message.key, message.data)

    async def _work(self, mq: Client, channel: str, number: int) -> None:
        shared = self.groups[channel]
        async with mq.subscription(channel, group=GROUP, start="earliest", consumer=f"worker-{number}") as subscription:
            async for batch in subscription.batches():
                for message in batch.messages:
                    shared.take(message.offset, message.key, message.data)
                # Its outcome is in the group's books, which are looked at in the end.
                batch.ack()

    async def _await_readers(self, mq: Client, readers: "list[asyncio.Task[None]]") -> None:
        """Until everything published was read and settled, or nothing has changed for a while."""
        before: tuple[int, ...] = ()
        since = time.perf_counter()
        while time.perf_counter() - since < _PATIENCE_S:
            for reader in readers:
                if reader.done():
                    reader.result()
            left: tuple[int, ...] = self._unread()
            if not any(left):
                self.unsettled = sum([(await mq.groups.get(channel, GROUP)).pending for channel in self.channels])
                left = (*left, self.unsettled)
            if not any(left):
                return
            if left != before:
                before, since = left, time.perf_counter()
            self.tick(self)
            await asyncio.sleep(_POLL_S)

    def _unread(self) -> tuple[int, int]:
        total = self.published.total()
        return total - self.replayed, total - self.shared

    @property
    def crashed(self) -> bool:
        """Whether the node was killed by now."""
        return self._crash is not None

    @property
    def replayed(self) -> int:
        """Offsets that the replaying subscriber is through with."""
        return sum(replay.next_offset for replay in self.replays.values())

    @property
    def shared(self) -> int:
        """Different messages that the groups' workers have had."""
        return sum(len(group) for group in self.groups.values())

    def verdict(self) -> "Verdict":
        """Holds what was read against the files."""
        originals = {source.path: source.digest for source in self.sources if source.content}
        replays, groups = self.replays.values(), self.groups.values()
        return Verdict(
            replay=compare(originals, (replay.digests() for replay in replays)),
            group=compare(originals, (group.digests() for group in groups)),
            repeated=sum(replay.repeated for replay in replays),
            skipped=sum(replay.skipped for replay in replays),
            surplus=max(0, self.replayed - self.lines),
            missing=max(0, self.lines - self.replayed),
            redelivered=sum(group.redelivered for group in groups),
            changed=sum(group.changed for group in groups),
            unsettled=self.unsettled,
        )


@dataclass(frozen=True)
class Verdict:
    """The proof. Counts of messages; `surplus`, `missing`: the log's length against the number of lines."""

    replay: Comparison
    group: Comparison
    repeated: int
    skipped: int
    surplus: int
    missing: int
    redelivered: int
    changed: int
    unsettled: int

    @property
    def ok(self) -> bool:
        """Redeliveries are allowed: a group is at least once."""
        faults = self.repeated + self.skipped + self.surplus + self.missing + self.changed + self.unsettled
        return self.replay.ok and self.group.ok and faults == 0


def chunks(sources: list[Source]) -> Iterator[list[OutMessage]]:
    """The lines of all files, keyed by their path, in chunks of CHUNK that may span files."""
    chunk: list[OutMessage] = []
    for source in sources:
        key = source.path.encode()
        for line in source.lines():
            chunk.append(OutMessage(line, key))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _place(source: Source) -> tuple[str, str]:
    return source.channel, source.path
