"""One shard as its leader sees it: takes publishes and changes, gives offsets and positions, appends frames.

Every method runs to completion in the loop's thread: that is the shard's inbox. Offsets and producer sequences are
given at append; what the API shows (end offsets, configuration, groups' progress) changes when the frame commits.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ringpost.internal.v1.record_pb2 import ChannelRecord, EpochStart, TrimRecord
from ringpost.node.errors import DataLoss, NotFound, NotLeader, OutOfRange, Precondition, RingpostError
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.channel_state import ChannelState
from ringpost.node.shard.committed import batch_committed, batch_replicated, ids_committed, repeat_committed, tell
from ringpost.node.shard.log import Log, frame_length
from ringpost.node.shard.producers import ProducerTable
from ringpost.node.shard.scheduling import SCHEDULED, Schedule, arm_all, drop_schedule, find_seen, schedule_batch
from ringpost.node.shard.seen_ids import SeenIds, ids_of
from ringpost.v1.common_pb2 import Durability

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group
    from ringpost.node.shard.replicated import ReplicatedLog


class Stored(NamedTuple):
    """A batch is stored as asked: the content of a PublishResponse. `scheduled_us`: it has no offset yet."""

    channel: str
    first_offset: int
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    durability: Durability.ValueType
    time_us: int
    epoch: int
    duplicate: bool
    replicas: tuple[str, ...] = ()
    scheduled_us: int = 0


class Publish(NamedTuple):
    """A checked batch. `producer` 0: not idempotent. `expected_offset` None: append it wherever it falls.

    `due_us`: when, `delay_us`: how long after the append; both 0, or a time that has passed: now. `ttl_ms` 0: it is
    given out for ever.
    """

    batch: bytes
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    crc: int
    durability: Durability.ValueType
    producer: int = 0
    producer_epoch: int = 0
    first_sequence: int = 0
    expected_offset: int | None = None
    due_us: int = 0
    delay_us: int = 0
    ttl_ms: int = 0


NOT_LEADER_RETRY_MS = 50
_NOTHING_SEEN = SeenIds()
AtDurable = Callable[[RingpostError | None], None]
PublishReply = Callable[[Stored | RingpostError], None]
Done = Callable[[RingpostError | None], None]


class Shard:
    """One shard. Invariant: committed <= position; frames have positions 1, 2, 3 … without a gap."""

    def __init__(self, number: int, log: Log, *, node: str, clustered: bool = False) -> None:
        """`clustered`: it is served only while `replicated` says so."""
        self.clustered = clustered
        self.number = number
        self.log = log
        self.node = node
        self.epoch = 0
        self.started_epoch = 0
        self.session = 0
        self.position = 0
        self.last_crc = 0
        self.committed = 0
        self.committed_crc = 0
        self.last_time_us = 0
        self.channels: dict[int, Channel] = {}
        self.group_count = 0
        self.grouped: dict[int, Channel] = {}  # those that have groups, by number
        self.boxes: dict[tuple[int, str], Channel] = {}  # for dead letters, by channel number and group
        self.schedules: dict[int, Schedule] = {}  # by channel number
        self.leaving_groups: set[Group] = set()  # deleted by a frame that is not committed
        self.quarantined = ""
        self.replicated: ReplicatedLog | None = None  # in a cluster, where this node has a copy

    def lead(self, epoch: int, session: int) -> None:
        """This node leads the shard in `epoch`; the EPOCH_START frame is written with the first change."""
        assert epoch > self.started_epoch, "epochs rise"
        self.epoch = epoch
        self.session = session
        arm_all(self)

    def check_writable(self) -> None:
        """Raises DataLoss when the shard is damaged."""
        if self.quarantined:
            raise DataLoss(
                f"shard {self.number} is quarantined: {self.quarantined}; restore the node's data from a backup, or go "
                "on without what is damaged: start it once with --accept-loss (`ringpost up -- --accept-loss`)",
                reason="SHARD_QUARANTINED",
                metadata={"shard": str(self.number)},
            )

    @property
    def serving(self) -> bool:
        """Whether this node serves the shard now: it leads it, and nobody is about to take over."""
        return not self.clustered if self.replicated is None else self.replicated.serving

    def check_serving(self) -> None:
        """Raises Unavailable (NOT_LEADER) when this node does not lead the shard now."""
        if not self.serving:
            message = f"shard {self.number} is not served by node {self.node!r} now; nothing was changed"
            raise NotLeader.of(message, shard=self.number, leader="", epoch=self.epoch)

    @property
    def holders(self) -> tuple[str, ...]:
        """The nodes that have fsynced what is committed."""
        return (self.node,) if self.replicated is None else self.replicated.holders

    def now_us(self) -> int:
        """The leader's stamp: the clock, but never falling."""
        self.last_time_us = max(self.last_time_us, self.log.clock())
        return self.last_time_us

    def ready(self) -> int:
        """To be called before each append: checks, starts the epoch if need be, returns the time."""
        self.check_writable()
        self.check_serving()
        now = self.now_us()
        if self.started_epoch != self.epoch:
            self.started_epoch = self.epoch
            body = EpochStart(leader=self.node, session=self.session).SerializeToString()
            self.log.append(self, FrameType.EPOCH_START, body, ignore, time_us=now)
        return now

    def ready_for(self, channel: Channel) -> int:
        """`ready` for who may have waited since it found the channel. Raises NotFound when that was deleted.

        No frame of a channel may follow the one that deletes it: recovery would take that for damage.
        """
        if channel.removed:
            raise NotFound(f"channel {channel.name!r} was deleted", reason="CHANNEL_NOT_FOUND")
        return self.ready()

    # -- messages ---------------------------------------------------------------------------------------------------

    def publish(self, channel: Channel, publish: Publish, reply: PublishReply) -> bool:
        """Appends a batch; False when it is stored already. `reply` is called once, when its durability is reached,
        perhaps before this returns.

        Raises the definite errors; then nothing was appended and `reply` is not called.
        """
        now = self.ready()
        if publish.producer:
            stored_at = self._find_repeat(channel, publish, now)
            if stored_at is not None:
                # Where ids count, the numbers may be those of a REPEAT frame, which is younger than the messages.
                self._answer_repeat(channel, publish, stored_at, reply, sure=channel.seen is None)
                return False
        ids: tuple[bytes, ...] = ()
        if window_ms := channel.next_limits.dedup_window_ms:
            ids = ids_of(publish.batch)
            since = now - window_ms * 1000
            seen_at = (channel.seen or _NOTHING_SEEN).find(ids, since)
            if seen_at is None:
                seen_at = find_seen(channel, ids, since)
            if seen_at is not None:
                self._answer_seen(channel, publish, seen_at, now, reply)
                return False
        if publish.expected_offset is not None:
            check_expected(publish.expected_offset, channel.next_offset)
        if publish.delay_us:
            publish = publish._replace(due_us=now + publish.delay_us)
        if publish.due_us > now:
            self.log.schedules.check_room()  # a repeat is answered whether there is room or not
            stored = Stored(channel.name, 0, publish.count, publish.durability, now, self.epoch, False)
            schedule_batch(self, channel, publish, stored._replace(scheduled_us=publish.due_us), reply, ids)
        else:
            self._append_batch(channel, publish, now, reply, ids)
        return True

    def _find_repeat(self, channel: Channel, publish: Publish, now: int) -> int | None:
        if channel.producers is None:
            channel.producers = ProducerTable()
        return channel.producers.check(
            publish.producer, publish.producer_epoch, publish.first_sequence, publish.count, now
        )

    def _answer_repeat(
        self, channel: Channel, publish: Publish, offset: int, reply: PublishReply, *, sure: bool = True
    ) -> None:
        """Answers when the messages are committed; not `sure`: when all that was appended is."""
        durability = publish.durability
        stored = self._stored_at(channel, publish, offset)
        if durability == Durability.DURABILITY_MEMORY or (sure and offset + publish.count <= channel.end_offset):
            reply(stored)
        elif self.replicated is None:
            self.log.commits.after_all(tell, reply, stored)
        else:
            self.replicated.after_tail(tell, reply, stored)

    def _stored_at(self, channel: Channel, publish: Publish, offset: int) -> Stored:
        """What a repeat is told; `offset` may stand for when it is due."""
        first, due = (0, offset - SCHEDULED) if offset >= SCHEDULED else (offset, 0)
        count, durability = publish.count, publish.durability
        return Stored(channel.name, first, count, durability, 0, self.epoch, True, self.holders, due)

    def _answer_seen(self, channel: Channel, publish: Publish, offset: int, now: int, reply: PublishReply) -> None:
        """The messages are stored by their ids. A producer goes on behind them, so its numbers must count."""
        if not publish.producer:
            self._answer_repeat(channel, publish, offset, reply)
            return
        stored = self._stored_at(channel, publish, offset)
        in_memory = publish.durability == Durability.DURABILITY_MEMORY
        self.log.append(
            self,
            FrameType.REPEAT,
            b"",
            repeat_committed,
            channel,
            publish,
            None if in_memory else reply,
            stored,
            offset,
            now,
            time_us=now,
            channel=channel.number,
            base_offset=offset,
            count=publish.count,
            producer=publish.producer,
            producer_epoch=publish.producer_epoch,
            base_sequence=publish.first_sequence,
        )
        self.note_numbers(channel, publish, offset, now)
        if in_memory:
            reply(stored)

    def _append_batch(
        self, channel: Channel, publish: Publish, now: int, reply: PublishReply, ids: tuple[bytes, ...] = ()
    ) -> None:
        batch, count, durability = publish.batch, publish.count, publish.durability
        first = channel.next_offset
        end = first + count
        stored = Stored(channel.name, first, count, durability, now, self.epoch, False)
        at_commit: PublishReply | None = reply
        at_durable: AtDurable | None = None
        if durability == Durability.DURABILITY_MEMORY:
            at_commit = None
        elif durability == Durability.DURABILITY_LEADER and self.replicated is not None:
            at_commit, at_durable = None, partial(tell, reply=reply, stored=stored._replace(replicas=(self.node,)))
        at_end = batch_committed if self.replicated is None else batch_replicated
        address = self.log.append(
            self,
            FrameType.DATA,
            batch,
            at_end if not ids else partial(ids_committed, at_end),
            channel,
            end,
            at_commit,
            stored,
            *(() if self.replicated is None else (publish,)),
            time_us=now,
            body_crc=publish.crc,
            channel=channel.number,
            base_offset=first,
            count=count,
            producer=publish.producer,
            producer_epoch=publish.producer_epoch,
            base_sequence=publish.first_sequence,
            ttl_ms=publish.ttl_ms,
            at_durable=at_durable,
        )
        frame = CachedFrame(
            first, count, now, publish.crc, batch, publish.producer, publish.first_sequence, publish.ttl_ms
        )
        self.note_frame(channel, address, frame)
        if publish.producer:
            self.note_numbers(channel, publish, first, now)
        if ids:
            channel.note_ids(now, first, ids)
        if durability == Durability.DURABILITY_MEMORY:
            reply(stored._replace(replicas=(self.node,)))

    def note_frame(self, channel: Channel, address: int, frame: CachedFrame) -> None:
        """A frame with messages is appended there."""
        length = frame_length(frame.body)
        channel.index.append(frame.base_offset, address, length)
        channel.next_offset = frame.base_offset + frame.count
        channel.stored_bytes += length
        self.log.ledger.add(address, length)
        self.log.cache.put(address, length, frame)

    def note_numbers(self, channel: Channel, publish: Publish, offset: int, now: int) -> None:
        """A producer's batch is appended; `offset` may stand for when it is due."""
        assert channel.producers is not None, "made by the check"
        note = channel.producers.stored if self.replicated is None else channel.producers.appended
        note(publish.producer, publish.producer_epoch, publish.first_sequence, publish.count, offset, now)

    # -- channels ---------------------------------------------------------------------------------------------------

    def add_channel(self, name: str, limits: ChannelLimits, done: Done) -> Channel:
        """Makes a channel, usable at once; `done` when it is committed."""
        now = self.ready()
        record = ChannelRecord(name=name, config=limits.message())
        number = self.position + 1
        self.log.append(self, FrameType.CONFIG, record.SerializeToString(), done, time_us=now)
        channel = self.channels[number] = Channel(self, number, name, ChannelState(limits, now))
        return channel

    def set_channel(self, channel: Channel, limits: ChannelLimits, done: Done) -> None:
        """Changes the configuration when committed; `next_limits` at once, so that changes add up."""
        now = self.ready_for(channel)
        record = ChannelRecord(channel=channel.number, name=channel.name, config=limits.message())
        self.log.append(
            self, FrameType.CONFIG, record.SerializeToString(), _limits_committed, channel, limits, done, time_us=now
        )
        channel.next_limits = limits

    def delete_channel(self, channel: Channel, done: Done) -> None:
        """Takes no more for the channel from now on; drops it when committed."""
        now = self.ready_for(channel)
        record = ChannelRecord(channel=channel.number, name=channel.name, deleted=True)
        self.log.append(
            self, FrameType.CONFIG, record.SerializeToString(), _delete_committed, channel, done, time_us=now
        )
        channel.removed = True

    def close_box(self, channel: Channel, group: str) -> None:
        """The frame that deletes the group is appended: its box, if any, takes no more letters."""
        box = self.boxes.get((channel.number, group))
        if box is not None:
            box.removed = True

    def trim(self, channel: Channel, first_offset: int, done: Done) -> None:
        """Drops everything below an offset, which must be committed, when committed itself."""
        if not 0 <= first_offset <= channel.end_offset:
            raise OutOfRange(
                f"before_offset: {first_offset} is beyond the end offset {channel.end_offset}",
                metadata={"end_offset": str(channel.end_offset), "first_offset": str(channel.first_offset)},
            )
        now = self.ready_for(channel)
        channel.trim_to = max(channel.trim_to, first_offset)
        body = TrimRecord(first_offset=first_offset).SerializeToString()
        self.log.append(
            self,
            FrameType.TRIM,
            body,
            _trim_committed,
            channel,
            first_offset,
            done,
            time_us=now,
            channel=channel.number,
        )


def check_expected(expected: int, next_offset: int) -> None:
    """Raises Precondition (OFFSET_MISMATCH) unless the next message gets the offset that the publisher expects."""
    if expected != next_offset:
        raise Precondition(
            f"expected_offset: is {expected}, but the channel's next message gets {next_offset}; read what is new and "
            "decide again",
            reason="OFFSET_MISMATCH",
            metadata={"next_offset": str(next_offset)},
        )


# -- what happens at commit; shared with recovery where the state changes ----------------------------------------------


def apply_trim(channel: Channel, first_offset: int) -> None:
    """Drops the rows below; groups take what is gone as settled."""
    if first_offset <= channel.first_offset:
        return
    channel.first_offset = first_offset
    ledger = channel.shard.log.ledger
    for segment, length in channel.index.drop_below(first_offset, channel.next_offset).items():
        ledger.drop_bytes(segment, length)
        channel.stored_bytes -= length
    leaving = [group for group in channel.shard.leaving_groups if group.channel is channel]  # they may yet stay
    for group in (*(channel.groups or {}).values(), *leaving):
        group.core.trim(first_offset)


def apply_delete(channel: Channel) -> None:
    """Drops the channel and everything in it."""
    channel.removed = True
    drop_schedule(channel)
    for name in tuple(channel.groups or ()):
        channel.drop_group(name)
    boxes = channel.shard.boxes
    for key in [key for key in boxes if key[0] == channel.number]:
        apply_delete(boxes[key])
    ledger = channel.shard.log.ledger
    for segment, length in channel.index.drop_below(channel.next_offset, channel.next_offset).items():
        ledger.drop_bytes(segment, length)
    channel.stored_bytes = 0
    channel.shard.channels.pop(channel.number, None)
    if channel.box_of:
        for key in [key for key, box in boxes.items() if box is channel]:
            del boxes[key]


def ignore(error: RingpostError | None) -> None:
    """For frames nobody waits for."""


def _limits_committed(error: RingpostError | None, channel: Channel, limits: ChannelLimits, done: Done) -> None:
    if error is None:
        channel.apply_limits(limits)
    done(error)


def _delete_committed(error: RingpostError | None, channel: Channel, done: Done) -> None:
    if error is None:
        watchers = tuple(channel.watchers or ())
        apply_delete(channel)
        for watcher in watchers:
            watcher.removed("CHANNEL_DELETED", f"channel {channel.name!r} was deleted")
    done(error)


def _trim_committed(error: RingpostError | None, channel: Channel, first_offset: int, done: Done) -> None:
    if error is None:
        apply_trim(channel, first_offset)
    done(error)
