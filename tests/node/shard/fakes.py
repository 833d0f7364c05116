"""A store without a disk: a journal that keeps frames in a list, a clock that stands, timers that fire on command."""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

from crc32c import crc32c

from ringpost.internal.v1.record_pb2 import ShardSnapshot
from ringpost.node.errors import RingpostError
from ringpost.node.journal.cache import CachedFrame, TailCache
from ringpost.node.journal.frame import FRAME_OVERHEAD, FrameType, Header, decode_header
from ringpost.node.journal.pending import JournalFailed
from ringpost.node.journal.reclaim import SegmentLedger
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.dead_letters import Gravedigger
from ringpost.node.shard.deadlines import Deadlines
from ringpost.node.shard.log import Log
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.release import Releaser
from ringpost.node.shard.replay import Replay
from ringpost.node.shard.salvage import Loss, Salvage
from ringpost.node.shard.settlements import Settlements
from ringpost.node.shard.shard import Publish, Shard
from ringpost.node.shard.snapshot import pack, snapshot_shard, unpack
from ringpost.node.shard.store import Store, StoreLimits
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message

START_US = 1_700_000_000_000_000
FIRST_ADDRESS = 1 << 32 | 96


class Stored(NamedTuple):
    """A frame as the journal has it."""

    address: int
    header: bytes
    body: bytes

    @property
    def decoded(self) -> Header:
        return decode_header(self.header)

    @property
    def kind(self) -> FrameType:
        return FrameType(self.decoded.type)


class Damage(NamedTuple):
    """What recovery reports of bytes that it cannot read."""

    address: int
    shard: int | None
    what: str
    length: int = 0


class FakeJournal:
    """Keeps what is appended; `durable` is where the last commit ended."""

    def __init__(self) -> None:
        self.frames: list[Stored] = []
        self.end = FIRST_ADDRESS
        self.durable = FIRST_ADDRESS
        self.failed = False

    @property
    def pending_bytes(self) -> int:
        return self.end - self.durable

    def append(self, header: bytes, body: bytes) -> int:
        if self.failed:
            raise JournalFailed("the journal takes no more frames")
        address = self.end
        self.frames.append(Stored(address, header, body))
        self.end += FRAME_OVERHEAD + len(body)
        return address

    def kinds(self) -> list[FrameType]:
        return [frame.kind for frame in self.frames]


class Timer:
    """What `FakeTime.later` returns."""

    def __init__(self, due_us: int, call: Callable[[], None]) -> None:
        self.due_us = due_us
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTime:
    """The clock, `call_later` and `call_soon` of a loop that only moves when told."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []

    def clock(self) -> int:
        return self.now_us

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now_us + round(delay_s * 1e6), call)
        self.timers.append(timer)
        return timer

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        """Runs what was to be called soon."""
        while self.soon:
            self.soon.pop(0)()

    def pass_us(self, span_us: int) -> None:
        """Lets time pass and fires what falls due, in order."""
        end = self.now_us + span_us
        self.turn()
        while due := sorted((t for t in self.timers if t.due_us <= end), key=lambda timer: timer.due_us):
            timer = due[0]
            self.timers.remove(timer)
            self.now_us = max(self.now_us, timer.due_us)
            if not timer.cancelled:
                timer.call()
            self.turn()
        self.now_us = end


class Rig:
    """A store on a fake journal, led in `epoch`; nothing commits by itself."""

    def __init__(
        self,
        *,
        shards: int = 1,
        epoch: int = 1,
        cache_bytes: int = 1 << 20,
        linger_us: int = 0,
        journal: FakeJournal | None = None,
        **limits: Any,
    ) -> None:
        self.time = FakeTime()
        self.journal = journal or FakeJournal()
        time = self.time
        self.log = Log(
            self.journal,
            time.clock,
            cache=TailCache(cache_bytes),
            ledger=SegmentLedger(),
            deadlines=Deadlines(time.clock, time.later),
            settlements=Settlements(time.clock, time.later, time.call_soon, linger_us=linger_us),
        )
        self.store = Store(self.log, StoreLimits(**limits), shard_count=shards, node="n1")
        self.reads: list[list[tuple[int, int]]] = []
        self.damaged: list[str] = []
        self.losses: list[Loss] = []
        self.read_error: Exception | None = None
        self.reading = Reading(self.log.cache, self._fetch, lambda channel, what: self.damaged.append(what))
        self._spawned: list[Coroutine[Any, Any, None]] = []
        self.log.burials.write = Gravedigger(self.reading, self._spawn, self.store.check_disk).write
        self.log.schedules.release = Releaser(self.log, self.reading, self._spawn, self.store.check_disk).release
        if epoch:
            self.lead(epoch)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._spawned.append(coroutine)
        self.time.call_soon(lambda: _run(coroutine))

    def abandon(self) -> None:
        """The process is gone with all that it was about to do."""
        for coroutine in self._spawned:
            coroutine.close()

    def lead(self, epoch: int) -> None:
        for shard in self.store.shards:
            shard.lead(epoch, epoch)

    @property
    def shard(self) -> Shard:
        return self.store.shards[0]

    def commit(self, frames: int | None = None) -> None:
        """Makes the next `frames` frames durable, all of them by default."""
        ends = [f.address + FRAME_OVERHEAD + len(f.body) for f in self.journal.frames]
        waiting = [end for end in ends if end > self.journal.durable]
        if waiting and frames != 0:
            self.journal.durable = waiting[-1 if frames is None else min(frames, len(waiting)) - 1]
        self.log.commits.durable(self.journal.durable)

    def channel(self, name: str = "a") -> Channel:
        """A channel, made and committed if there is none."""
        channel = self.store.find_or_add(name)
        self.commit()
        return channel

    def publish(self, channel: Channel, *texts: str, commit: bool = True, **how: Any) -> list[Any]:
        """Publishes one batch; the answers so far."""
        answers: list[Any] = []
        channel.shard.publish(channel, publish_of(*texts, **how), answers.append)
        if commit:
            self.commit()
        return answers

    def snapshots(self) -> list[bytes]:
        """The visible state of every shard, to compare."""
        return [snapshot_shard(shard).SerializeToString(deterministic=True) for shard in self.store.shards]

    async def _fetch(self, channel: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
        self.reads.append(rows)
        if self.read_error is not None:
            raise self.read_error
        frames = {frame.address: frame for frame in self.journal.frames}
        return [cached(frames[address]) for address, _ in rows]


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs what waits for nothing but its next turn: reads are answered at once."""
    try:
        while coroutine.send(None) is None:
            pass
    except StopIteration:
        return
    raise AssertionError("it waits")


def cached(frame: Stored) -> CachedFrame:
    """A stored frame with a batch as a read gives it."""
    h = frame.decoded
    sequence = h.base_sequence if h.producer else 0
    return CachedFrame(h.base_offset, h.count, h.time_us, h.body_crc, frame.body, h.producer, sequence, h.ttl_ms)


def batch_of(*texts: str, key: bytes = b"") -> bytes:
    """An encoded batch, all with one key."""
    return Batch(messages=[Message(key=key, data=text.encode()) for text in texts]).SerializeToString()


def publish_of(
    *texts: str, key: bytes = b"", durability: Durability.ValueType = Durability.DURABILITY_QUORUM, **how: Any
) -> Publish:
    """A checked batch."""
    batch = batch_of(*texts, key=key)
    return Publish(batch, len(texts), crc32c(batch), durability, **how)


def texts_of(batch: bytes) -> list[str]:
    """The inverse of `batch_of`."""
    return [message.data.decode() for message in Batch.FromString(batch).messages]


def checkpoint_of(store: Store) -> list[ShardSnapshot]:
    """A checkpoint taken now, through bytes."""
    return list(unpack(b"".join(pack(snapshot_shard(shard)) for shard in store.shards if shard.position)))


def replayed(
    frames: Iterable[Stored],
    *,
    shards: int = 1,
    checkpoint: list[ShardSnapshot] | None = None,
    damages: Iterable[Damage] = (),
    broken: frozenset[int] = frozenset(),
    accept_loss: bool = False,
) -> tuple[Rig, list[int]]:
    """A new store from a checkpoint and frames, and which shards are quarantined.

    The bodies of frames at addresses in `broken` are said to be damaged. With `accept_loss` none is quarantined, and
    `Rig.losses` says what is gone.
    """
    rig = Rig(shards=shards, epoch=0)
    replay = Salvage(rig.store) if accept_loss else Replay(rig.store)
    if checkpoint is not None:
        replay.load(checkpoint)
    for frame in frames:
        replay.visit(frame.decoded, frame.address, frame.body, frame.address not in broken)
    quarantined = replay.finish(tuple(damages))
    if isinstance(replay, Salvage):
        rig.losses = replay.losses
    return rig, [shard.number for shard in quarantined]


class Outcomes(list[RingpostError | None]):
    """A `done` that remembers what it was called with."""

    def __call__(self, error: RingpostError | None) -> None:
        self.append(error)
