"""A load that checks itself: what the clients of a cluster were promised, and whether it was kept.

Producers number their messages; one reader per channel and one group per channel take them. All of it is the SDK's
work, so that a fault shows as users would meet it. Whatever contradicts a promise is said in `Load.problems`.
"""

import asyncio
import random
from array import array
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self

from ringpost.client.api import Client, connect
from ringpost.client.errors import LeaseLost, RingpostError, Unavailable
from ringpost.client.message import MessageBatch
from ringpost.client.options import Options
from ringpost.client.receipts import PendingPublish

GROUP = "g"
_UNANSWERED_MAX = 32
_PROBLEMS_MAX = 20
_POLL_S = 0.02


class Pause(NamedTuple):
    """The longest time in which no publish on a channel was acknowledged; `ended` is the loop's time, in seconds."""

    seconds: float
    channel: str
    ended: float


@dataclass
class Book:
    """What is known of one channel. `log[n]` is what the reader saw at offset n."""

    channel: str
    log: list[bytes] = field(default_factory=list)
    acknowledged: "array[float]" = field(default_factory=lambda: array("d"))
    end: int = 0
    # Offsets whose ack was confirmed, and those whose ack may have been taken although nobody said so.
    confirmed: set[int] = field(default_factory=set)
    perhaps: set[int] = field(default_factory=set)
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def longest_pause(self, since: float = 0.0, until: float = float("inf")) -> Pause:
        """Among acknowledgements between these times; the two times themselves count as such."""
        times = [time for time in self.acknowledged if since <= time <= until]
        times = [*([since] if since else []), *times, *([until] if until < float("inf") else [])]
        gaps = ((later - earlier, later) for earlier, later in pairwise(times))
        seconds, ended = max(gaps, default=(0.0, 0.0))
        return Pause(seconds, self.channel, ended)


@dataclass
class Lane:
    """One producer on one channel. `offsets[n]` is where message n was acknowledged to be, -1 while it was not."""

    name: int
    channel: str
    offsets: list[int] = field(default_factory=list)
    unanswered: int = 0

    def payload(self, number: int) -> bytes:
        return b"%d:%d" % (self.name, number)


class Load:
    """Three clients: two that each know one entry node first and go through it, one that goes direct.

    Each is a producer on every channel, the second reads them, the first and the third are the group's members.
    """

    def __init__(self, addresses: list[str], channels: list[str], *, pause_s: float = 0.05, seed: int = 1) -> None:
        self.books = {channel: Book(channel) for channel in channels}
        self.lanes: list[Lane] = []
        self.problems: list[str] = []
        self.errors: list[RingpostError] = []
        self.acks_unconfirmed = self.duplicates_answered = self.deliveries = 0
        self._addresses = addresses
        self._pause_s = pause_s
        self._random = random.Random(seed)
        self._clients: list[Client] = []
        self._stack = AsyncExitStack()
        self._producers: list[asyncio.Task[None]] = []
        self._consumers: list[asyncio.Task[None]] = []
        self._confirming: set[asyncio.Task[None]] = set()
        self._stopping = False

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for turn, routing in enumerate(("any", "any", "direct")):
            turned = self._addresses[turn:] + self._addresses[:turn]
            options = Options(publish_timeout=90.0, close_timeout=3.0, connect_timeout=20.0, routing=routing)
            self._clients.append(await self._stack.enter_async_context(_quiet(turned, options)))
        for channel in self.books:
            await self._clients[0].groups.add(channel, GROUP, start="earliest")
            self._consumers.append(asyncio.create_task(self._read(channel)))
            self._consumers += [asyncio.create_task(self._share(channel, self._clients[n])) for n in (0, 2)]
        for client in self._clients:
            for channel in self.books:
                self.lanes.append(Lane(len(self.lanes), channel))
                self._producers.append(asyncio.create_task(self._produce(client, self.lanes[-1])))
        await self.progress(5)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        tasks = [*self._producers, *self._consumers, *self._confirming]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def progress(self, count: int = 3, seconds: float = 30.0) -> float:
        """Until so many publishes more were acknowledged on every channel; how long that took."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        marks = {channel: len(book.acknowledged) + count for channel, book in self.books.items()}
        while waiting := [c for c, mark in marks.items() if len(self.books[c].acknowledged) < mark]:
            assert loop.time() - begin < seconds, f"no progress in {seconds:g} s on {waiting}; {self.told()}"
            await asyncio.sleep(_POLL_S)
        return loop.time() - begin

    async def read_up(self, seconds: float) -> None:
        """Until the readers have what is acknowledged by now."""
        ends = {channel: book.end for channel, book in self.books.items()}
        try:
            async with asyncio.timeout(seconds):
                while any(len(self.books[channel].log) < end for channel, end in ends.items()):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            behind = {channel: end - len(self.books[channel].log) for channel, end in ends.items()}
            raise AssertionError(f"readers are behind by {behind} messages; {self.told()}") from None

    async def settle_up(self, seconds: float) -> None:
        """Until what is acknowledged by now was delivered to the groups and their acks are confirmed."""
        ends = {channel: book.end for channel, book in self.books.items()}
        try:
            async with asyncio.timeout(seconds):
                while any(len(book.confirmed | book.perhaps) < ends[channel] for channel, book in self.books.items()):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            left = {channel: ends[channel] - len(book.confirmed) for channel, book in self.books.items()}
            raise AssertionError(f"acks of groups are not confirmed: {left}; {self.told()}") from None

    async def finish(self, seconds: float = 60.0) -> None:
        """Stops publishing, waits until everybody has everything, looks at it all. Raises AssertionError."""
        self._stopping = True
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._producers)
            while any(lane.unanswered for lane in self.lanes):
                await asyncio.sleep(_POLL_S)
        await asyncio.gather(*(self._taken(book, seconds) for book in self.books.values()))
        for task in self._consumers:
            if task.done():
                self._say(f"a consumer ended: {task.exception()!r}")
        self._check_log()
        await self._check_again()
        assert not self.problems, "\n".join([*self.problems, self.told()])
        assert not self.errors, "\n".join([*map(str, self.errors[:5]), self.told()])

    async def _taken(self, book: Book, seconds: float) -> None:
        """Until the reader has everything that was acknowledged and the group has settled it."""
        group = None
        try:
            async with asyncio.timeout(seconds):
                while len(book.log) < book.end or len(book.confirmed | book.perhaps) < len(book.log):
                    book.grown.clear()
                    await book.grown.wait()
                while group is None or group.pending or group.end_offset != len(book.log):
                    await asyncio.sleep(_POLL_S)
                    group = await self._clients[1].groups.get(book.channel, GROUP)
        except TimeoutError:
            missing = sorted(set(range(book.end)) - book.confirmed)
            self._say(
                f"{book.channel}: after {seconds:g} s: end {book.end}, read {len(book.log)}, without a confirmed ack "
                f"{len(missing)} from {missing[:3]} to {missing[-3:]}; the group: {group}"
            )

    # -- publishing ---------------------------------------------------------------------------------------------------

    async def _produce(self, client: Client, lane: Lane) -> None:
        while not self._stopping:
            for _ in range(self._random.choice((1, 1, 3))):
                pending = client.publish_nowait(lane.channel, lane.payload(len(lane.offsets)))
                number = len(lane.offsets)
                lane.offsets.append(-1)
                lane.unanswered += 1
                pending.add_done_callback(lambda done, number=number: self._answered(lane, number, done))
            await asyncio.sleep(self._pause_s * self._random.uniform(0.5, 1.5))
            while lane.unanswered >= _UNANSWERED_MAX and not self._stopping:
                await asyncio.sleep(_POLL_S)

    def _answered(self, lane: Lane, number: int, pending: PendingPublish) -> None:
        lane.unanswered -= 1
        try:
            receipt = pending.result()
        except RingpostError as error:
            self.errors.append(error)
            return
        book = self.books[lane.channel]
        lane.offsets[number] = receipt.offset
        book.end = max(book.end, receipt.offset + 1)
        book.acknowledged.append(asyncio.get_running_loop().time())
        self.duplicates_answered += receipt.duplicate

    # -- consuming ----------------------------------------------------------------------------------------------------

    async def _read(self, channel: str) -> None:
        book = self.books[channel]

        def gap(first: int, last: int) -> None:
            self._say(f"{channel}: the reader was told that offsets {first} to {last} are gone")

        async for message in self._clients[1].subscription(channel, start="earliest", on_gap=gap):
            if message.offset != len(book.log):
                self._say(f"{channel}: the reader got offset {message.offset} where {len(book.log)} was to come")
            book.log.append(message.data)
            book.grown.set()

    async def _share(self, channel: str, client: Client) -> None:
        book = self.books[channel]
        async for batch in client.subscription(channel, group=GROUP, prefetch=50).batches():
            self.deliveries += batch.count
            again = book.confirmed.intersection(range(batch.first_offset, batch.last_offset + 1))
            if again:
                self._say(f"{channel}: offsets {sorted(again)[:5]} were delivered after their ack was confirmed")
            task = asyncio.create_task(self._confirm(book, batch))
            self._confirming.add(task)
            task.add_done_callback(self._confirming.discard)

    async def _confirm(self, book: Book, batch: MessageBatch) -> None:
        try:
            await batch.ack()
        except RingpostError as error:
            if not isinstance(error, LeaseLost | Unavailable):
                self._say(f"{book.channel}: an ack ended with {error!r}")
            self.acks_unconfirmed += 1
            if error.outcome_open or isinstance(error, LeaseLost):  # of a batch that was settled in part, too
                book.perhaps.update(range(batch.first_offset, batch.last_offset + 1))
                book.grown.set()
        else:
            book.confirmed.update(range(batch.first_offset, batch.last_offset + 1))
            book.grown.set()

    # -- checking -----------------------------------------------------------------------------------------------------

    def _say(self, problem: str) -> None:
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)

    def _check_log(self) -> None:
        """Each acknowledged message at its offset, none twice, each producer's in the order of their numbers."""
        for lane in self.lanes:
            log = self.books[lane.channel].log
            for number, offset in enumerate(lane.offsets):
                if offset >= 0 and (offset >= len(log) or log[offset] != lane.payload(number)):
                    found = log[offset] if offset < len(log) else None
                    self._say(f"{lane.channel}: {lane.payload(number)!r} acknowledged at {offset}, found {found!r}")
        for book in self.books.values():
            twice = [message for message, times in Counter(book.log).items() if times > 1]
            if twice:
                self._say(f"{book.channel}: {len(twice)} messages twice, such as {twice[:3]}")
            last: dict[bytes, int] = {}
            for message in book.log:
                name, _, number = message.partition(b":")
                if int(number) <= last.get(name, -1):
                    self._say(f"{book.channel}: producer {name!r}: {number!r} behind {last[name]}")
                last[name] = int(number)

    async def _check_again(self) -> None:
        """A second look at everything, from the beginning and through another node, sees the same."""
        for book in self.books.values():
            async with (
                asyncio.timeout(30),
                self._clients[0].subscription(book.channel, start="earliest") as again,
            ):
                for offset, message in enumerate(book.log):
                    seen = await anext(again)
                    if (seen.offset, seen.data) != (offset, message):
                        self._say(f"{book.channel}: at {offset} {message!r}, later {seen}")
                        break

    def longest_pause(self, since: float = 0.0, until: float = float("inf")) -> Pause:
        """The longest over all channels."""
        return max(book.longest_pause(since, until) for book in self.books.values())

    def told(self) -> str:
        """A summary in one line."""
        acknowledged = sum(len(book.acknowledged) for book in self.books.values())
        pause = self.longest_pause()
        return (
            f"{acknowledged} acknowledged ({self.duplicates_answered} after a repeat), {len(self.errors)} errors, "
            f"{self.deliveries} deliveries to groups ({self.acks_unconfirmed} acks unconfirmed), "
            f"longest pause {pause.seconds:.2f} s on {pause.channel}"
        )


class _quiet:  # noqa: N801 - it is used like a function
    """A client whose end does not raise: what it gave up is in the books."""

    def __init__(self, addresses: list[str], options: Options) -> None:
        self._client = connect(addresses, options=options)

    async def __aenter__(self) -> Client:
        return await self._client

    async def __aexit__(self, *_: object) -> None:
        with suppress(RingpostError):
            await self._client.close()


async def every_shard_accepts(addresses: list[str], names: list[str], seconds: float = 30.0) -> None:
    """Publishes once on each channel; all must be acknowledged within the time."""
    async with _quiet(addresses, Options(publish_timeout=seconds, close_timeout=1.0)) as client:
        answers = [client.publish_nowait(name, b"hello") for name in names]
        refused = [name for name, pending in zip(names, answers, strict=True) if await _failed(pending)]
    assert not refused, f"{len(refused)} shards accepted no publish in {seconds:g} s, such as {refused[:5]}"


async def _failed(pending: PendingPublish) -> bool:
    try:
        await pending
    except RingpostError:
        return True
    return False
