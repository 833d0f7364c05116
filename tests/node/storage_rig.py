"""A node without gRPC on a disk in memory, a seeded workload, and the check of what a reopened directory must hold.

Everything that was asked and answered is an event in one list. Whoever looks at the disk at some moment remembers how
long the list was: what was answered by then must be there, what was only asked may be.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c

from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.view import NodeRef
from ringpost.node.config import Config
from ringpost.node.errors import DataLoss, RingpostError
from ringpost.node.groups.changes import Ack, Nack, Outcome, Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.health import Health
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.index import Row
from ringpost.node.maintenance import Maintenance
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.scheduling import Schedule
from ringpost.node.shard.shard import Stored
from ringpost.node.storage import Opener, Storage, now_us
from tests.node.journal.faulty_files import FaultyFiles
from tests.node.shard.fakes import publish_of, texts_of

DIRECTORY = Path("/data")
UNTRIMMED = "f"  # neither trimmed nor deleted
CHANNELS = ("a", "b", "c", "d", "e", UNTRIMMED)
GROUPED = ("a", "b")
SHARDS = 8
HOUR_US = 3_600_000_000


def config_of(**settings: Any) -> Config:
    """Small segments, so that there are many; they are below what an operator may choose."""
    config = Config(data_dir=DIRECTORY, node="n1", shard_count=SHARDS, reserve_bytes=4096, **settings)
    object.__setattr__(config, "segment_bytes", 8192)
    return config


class Listener:
    """A member that asks when it likes."""

    consumer = "m"
    has_credit = True

    def advanced(self) -> None:
        """It looks by itself."""

    def removed(self, reason: str, message: str) -> None:
        """Its group is gone."""


class Node:
    """An open storage, led, with its maintenance."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.storage: Storage
        self.maintenance: Maintenance
        self.failures: list[Exception] = []
        self.damages: list[str] = []

    @classmethod
    async def open(cls, files: FaultyFiles, config: Config | None = None) -> "Node":
        """Raises what a start raises."""
        node = cls(config or config_of())
        opener = Opener(
            node.config, files, durable=lambda: None, failed=node.failures.append, damaged=node.damages.append
        )
        node.storage = await opener.open()
        identity = node.storage.identity
        coordination = EmbeddedCoordination(
            cluster_id=identity.cluster_id, replica_id=identity.replica_id, shard_count=SHARDS, boot=identity.boot
        )
        node.storage.store.lead(await coordination.start(NodeRef("n1", "127.0.0.1:1")), "n1")
        node.maintenance = Maintenance(node.storage, node.config, Health())
        return node

    async def close(self) -> None:
        await asyncio.to_thread(self.storage.close)
        await asyncio.sleep(0)

    async def committed(self) -> None:
        """Returns when all that was appended is durable, or the journal failed."""
        done = asyncio.Event()
        self.storage.store.log.commits.after_all(lambda error: done.set())
        await done.wait()

    async def frames(self, channel: Channel) -> list[CachedFrame | None]:
        """All kept frames in order; None for one whose bytes are damaged."""
        found: list[CachedFrame | None] = []
        for row in channel.index.rows(0, len(channel.index)):
            try:
                found.append(await self.storage.reading.frame(channel, row))
            except DataLoss:
                found.append(None)
        return found


class Event(NamedTuple):
    """`kind` of request to the channel's `life` (it may be made again), answered or not."""

    kind: str
    answered: bool
    name: str
    life: int
    facts: tuple[Any, ...] = ()


@dataclass
class Workload:
    """Does seeded things to a node. `events` only grows, so any thread may take its length."""

    node: Node
    rng: random.Random
    events: list[Event] = field(default_factory=list)
    lives: dict[str, int] = field(default_factory=dict)
    sequences: dict[tuple[str, int, int], int] = field(default_factory=dict)
    written: int = 0
    waiting: int = 0

    async def run(self, rounds: int) -> None:
        """Ends early when the journal fails."""
        actions: list[tuple[int, Callable[[], Any]]] = [
            (8, self.publish),
            (6, self.produce),
            (6, self.delay),
            (6, self.settle),
            (2, self.trim),
            (1, self.configure),
            (1, self.delete),
            (3, self.node.committed),
            (2, self.checkpoint),
            (2, self.node.maintenance.reclaim),
        ]
        weights, calls = zip(*actions, strict=True)
        for name in CHANNELS:
            self.lives[name] = 0
            self.node.storage.store.find_or_add(name)
            if name in GROUPED:
                self.add_group(name)
        for _ in range(rounds):
            try:
                outcome = self.rng.choices(calls, weights)[0]()
                if outcome is not None:
                    await outcome
            except (RingpostError, OSError):
                if not self.node.failures:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        await self.node.committed()

    async def checkpoint(self) -> None:
        await self.node.maintenance.checkpoint()

    def asked(self, kind: str, name: str, *facts: Any) -> Callable[[Any], None]:
        """Notes a request; call what it returns with the answer. An error leaves the outcome open."""
        life = self.lives[name]
        self.events.append(Event(kind, False, name, life, facts))

        def answer(outcome: Any) -> None:
            if not isinstance(outcome, Exception):
                place = (outcome.first_offset,) if isinstance(outcome, Stored) else ()
                self.events.append(Event(kind, True, name, life, facts + place))

        return answer

    def texts(self) -> tuple[str, ...]:
        """Messages that are written only once."""
        count = self.rng.randint(1, 4)
        self.written += count
        return tuple(f"{self.written - n}:" + "x" * self.rng.choice((0, 30, 300, 900)) * (n == 0) for n in range(count))

    def publish(self, name: str = "") -> None:
        name = name or self.rng.choice(CHANNELS)
        channel, texts = self.node.storage.store.find(name), self.texts()
        channel.shard.publish(channel, publish_of(*texts), self.asked("publish", name, texts, 0, 0))

    def produce(self) -> None:
        name, producer = self.rng.choice(CHANNELS), self.rng.randint(1, 2)
        channel, texts = self.node.storage.store.find(name), self.texts()
        key = (name, self.lives[name], producer)
        first = self.sequences.get(key, 0)
        publish = publish_of(*texts, producer=producer, producer_epoch=1, first_sequence=first)
        assert channel.shard.publish(channel, publish, self.asked("publish", name, texts, producer, first))
        self.sequences[key] = first + len(texts)

    def delay(self) -> None:
        """A batch that is due at once, soon, or not while this goes on."""
        name = self.rng.choice((*CHANNELS, UNTRIMMED, UNTRIMMED))
        channel, texts = self.node.storage.store.find(name), self.texts()
        due_us = now_us() + self.rng.choice((1, 5_000, 50_000, HOUR_US))
        channel.shard.publish(channel, publish_of(*texts, due_us=due_us), self.asked("delay", name, texts))

    def add_group(self, name: str) -> None:
        channel = self.node.storage.store.find(name)
        settings = GroupSettings(policy=RetryPolicy(dead_letters=True))
        group = add_group(channel, "g", settings, 0, self.asked("group", name))
        group.join(1, Listener())

    def settle(self) -> None:
        """Takes something and settles a part of it; what is left stays leased."""
        name = self.rng.choice(GROUPED)
        group = (self.node.storage.store.find(name).groups or {}).get("g")
        if group is None:
            return
        for first, last, _ in group.take(1, self.rng.randint(1, 6), now_us()):
            action = self.rng.choice((Ack(), Ack(), Ack(), Reject("bad"), Nack(0)))
            kind = "nack" if isinstance(action, Nack) else "settle"
            answer = self.asked(kind, name, first, last)
            group.settle(1, action, [(first, last)], False, lambda results, answer=answer: answer(_whole(results)))

    def trim(self) -> None:
        name = self.rng.choice(CHANNELS[:-1])
        channel = self.node.storage.store.find(name)
        first = self.rng.randint(channel.first_offset, channel.end_offset)
        answer = self.asked("trim", name, first)
        channel.shard.trim(channel, first, lambda error: answer(error or True))

    def configure(self) -> None:
        name = self.rng.choice(CHANNELS)
        channel, messages = self.node.storage.store.find(name), self.rng.randint(1_000, 2_000)
        answer = self.asked("configure", name, messages)
        limits = ChannelLimits(retention_messages=messages)
        channel.shard.set_channel(channel, limits, lambda error: answer(error or True))

    def delete(self) -> None:
        name = self.rng.choice(CHANNELS[2:-1])
        answer = self.asked("delete", name)
        store = self.node.storage.store
        store.delete(store.find(name), lambda error: answer(error or True))
        self.lives[name] += 1
        store.find_or_add(name)


def _whole(results: Any) -> Any:
    if isinstance(results, Exception):
        return results
    return True if all(outcome == Outcome.DONE for _, _, outcome in results) else DataLoss("not all of it is done")


# -- the check --------------------------------------------------------------------------------------------------------


class Knowledge:
    """The events up to some moment, sorted."""

    def __init__(self, events: list[Event]) -> None:
        self.asked = [event for event in events if not event.answered]
        self.answered = [event for event in events if event.answered]
        self.texts = {text for event in self.asked if event.kind in ("publish", "delay") for text in event.facts[0]}

    def of(self, kind: str, name: str, life: int, *, answered: bool) -> list[Event]:
        events = self.answered if answered else self.asked
        return [event for event in events if event[:1] + event[2:4] == (kind, name, life)]

    def possible_lives(self, name: str) -> tuple[int, int]:
        """The oldest and the newest life of the channel that may be there."""
        deletes = [e for e in self.asked if e.kind == "delete" and e.name == name]
        certain = [e for e in self.answered if e.kind == "delete" and e.name == name]
        return len(certain), len(deletes)


async def check(node: Node, events: list[Event], *, damaged: bool = False) -> None:
    """All that was answered is there. With `damaged` a definite DATA_LOSS may stand in its place."""
    knowledge = Knowledge(events)
    node.storage.store.log.schedules.release = _not_now  # what is due stays where it is while this looks at it
    if not damaged:
        assert node.storage.quarantined == []
        assert node.storage.report.damages == []
        assert node.storage.checkpoints.damaged == []
    for name in CHANNELS:
        try:
            channel = node.storage.store.find(name)
        except DataLoss:
            assert damaged
            continue
        except RingpostError:
            lived = [event for event in knowledge.answered if event.name == name and event.kind == "publish"]
            _, newest = knowledge.possible_lives(name)
            assert newest > 0 or not lived
            assert all(event.life < newest for event in lived)
            continue
        await check_channel(node, channel, knowledge, damaged=damaged)


async def check_channel(node: Node, channel: Channel, knowledge: Knowledge, *, damaged: bool) -> None:
    frames = await node.frames(channel)
    kept = kept_messages(channel, frames, damaged=damaged)
    assert set(kept.values()) <= knowledge.texts
    assert len(set(kept.values())) == len(kept), "nothing twice"
    oldest, newest = knowledge.possible_lives(channel.name)
    fits = [life for life in range(oldest, newest + 1) if life_fits(channel, kept, knowledge, life, damaged=damaged)]
    assert fits, f"channel {channel.name}: an answered message is not there"
    check_repeats(channel, knowledge, fits)
    await check_delayed(node, channel, kept, knowledge, damaged=damaged)
    group = (channel.groups or {}).get("g")
    if channel.name in GROUPED:
        if knowledge.of("group", channel.name, 0, answered=True):
            assert group is not None
        if group is not None:
            check_group(group, knowledge)


def kept_messages(channel: Channel, frames: list[CachedFrame | None], *, damaged: bool) -> dict[int, str]:
    """Texts by offset; frames follow each other without a gap and are whole."""
    kept: dict[int, str] = {}
    end = None
    for row, frame in zip(channel.index.rows(0, len(channel.index)), frames, strict=True):
        assert end is None or row.base == end, "offsets have no gaps"
        if frame is None:
            assert damaged
            end = None
            continue
        assert crc32c(frame.body) == frame.body_crc
        assert frame.base_offset == row.base
        texts = texts_of(frame.body)
        assert len(texts) == frame.count
        end = row.base + frame.count
        kept |= {row.base + number: text for number, text in enumerate(texts)}
    assert end is None or end == channel.end_offset
    return {offset: text for offset, text in kept.items() if offset >= channel.first_offset}


def life_fits(channel: Channel, kept: dict[int, str], knowledge: Knowledge, life: int, *, damaged: bool) -> bool:
    """Whether the channel can be this life of it: all answered publishes and trims are there, no trim unasked."""
    trims = [event.facts[0] for event in knowledge.of("trim", channel.name, life, answered=False)]
    done = [event.facts[0] for event in knowledge.of("trim", channel.name, life, answered=True)]
    if not max(done, default=0) <= channel.first_offset <= max(trims, default=0):
        return False
    for event in knowledge.of("publish", channel.name, life, answered=True):
        texts, _, _, first = event.facts
        for offset, text in enumerate(texts, first):
            if offset >= channel.first_offset and kept.get(offset, damaged and text) != text:
                return False
            if offset >= channel.end_offset:
                return False
    return True


def _not_now(schedule: Schedule) -> None:
    """Nothing is released."""


async def check_delayed(
    node: Node, channel: Channel, kept: dict[int, str], knowledge: Knowledge, *, damaged: bool
) -> None:
    """What is scheduled was asked for, and is not in the channel; what was answered is in one of the two."""
    schedule = channel.shard.schedules.get(channel.number)
    waiting: list[str] = []
    for entries in schedule.table.entries() if schedule is not None else ():
        for entry in entries:
            try:
                (frame,) = await node.storage.reading.fetch(channel, [Row(entry.number, entry.address, entry.length)])
            except DataLoss:
                assert damaged
                continue
            assert (frame.base_offset, frame.count) == (entry.due_us, entry.count)
            waiting += texts_of(frame.body)
    found = [*kept.values(), *waiting]
    assert len(set(found)) == len(found), "nothing twice"
    assert set(waiting) <= knowledge.texts
    if channel.name == UNTRIMMED and not damaged:
        answered = knowledge.of("delay", UNTRIMMED, 0, answered=True)
        assert {text for event in answered for text in event.facts[0]} <= set(found), "none is lost"


def check_repeats(channel: Channel, knowledge: Knowledge, lives: list[int]) -> None:
    """A producer that sends its latest answered batches again is told their first offsets."""
    for event in knowledge.of("publish", channel.name, lives[-1], answered=True)[-10:]:
        texts, producer, sequence, first = event.facts
        if producer and len(lives) == 1:
            answers: list[Any] = []
            publish = publish_of(*texts, producer=producer, producer_epoch=1, first_sequence=sequence)
            assert not channel.shard.publish(channel, publish, answers.append)
            assert (answers[0].first_offset, answers[0].duplicate) == (first, True)


def check_group(group: Group, knowledge: Knowledge) -> None:
    """What was settled is not delivered again; all else is, unless somebody asked to settle it."""
    name = group.channel.name
    group.join(99, Listener())
    leases = group.take(99, 1 << 30, now_us() + HOUR_US)
    offered = {offset for lease in leases for offset in range(lease.first, lease.last + 1)}
    settled = offsets_of(knowledge.of("settle", name, 0, answered=True))
    assert not offered & settled
    maybe = offsets_of(knowledge.of("settle", name, 0, answered=False))
    assert offered >= set(range(group.channel.first_offset, group.channel.end_offset)) - maybe
    failed = offsets_of(knowledge.of("nack", name, 0, answered=True)) - maybe
    again = {o for lease in leases if lease.attempt > 1 for o in range(lease.first, lease.last + 1)}
    assert again >= {offset for offset in failed if offset >= group.channel.first_offset}
    group.leave(99)


def offsets_of(events: list[Event]) -> set[int]:
    return {offset for event in events for offset in range(event.facts[0], event.facts[1] + 1)}


async def check_goes_on(node: Node) -> None:
    """The node takes more, and a checkpoint."""
    store = node.storage.store
    assert store.disk_state == DiskState.OK
    stored: list[Any] = []
    for number, name in enumerate(CHANNELS):
        try:
            channel = store.find_or_add(name)
        except DataLoss:
            continue
        channel.shard.publish(channel, publish_of(f"later {number}"), stored.append)
    await node.committed()
    assert all(isinstance(answer, Stored) for answer in stored)
    await node.maintenance.checkpoint()
    await node.maintenance.reclaim()
