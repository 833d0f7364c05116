"""Delayed publishing: what is scheduled for the channels of a shard, and the frames that change it.

A delayed batch is stored at once by a SCHEDULE frame, which gives it no offset. When it is due the shard's leader
appends a RELEASE frame, which is DATA and names the scheduled entry: so the entry goes and its messages get their
offsets by one frame, on every copy and in every replay. What is here changes when frames commit; an entry whose RELEASE
frame is on its way is *taken*, and is in snapshots until that has committed.
"""

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from ringpost.node.errors import Exhausted, RingpostError
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FRAME_OVERHEAD, FrameType, Header
from ringpost.node.journal.index import Row
from ringpost.node.journal.segment import segment_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.committed import numbers_committed, tell
from ringpost.node.shard.deadlines import Deadlines
from ringpost.node.shard.scheduled_ids import ScheduledIds
from ringpost.node.shard.seen_ids import ids_of
from ringpost.node.shard.timetable import Entry, Timetable
from ringpost.v1.common_pb2 import Durability

if TYPE_CHECKING:
    from ringpost.node.shard.log import Clock
    from ringpost.node.shard.shard import Publish, PublishReply, Shard, Stored

SCHEDULED = 1 << 63
"""Added to when a batch is due it stands for the offset that a producer's batch, or a repeat of it, has not got yet."""
DELAY_MS_MAX = 366 * 24 * 3600 * 1000
_CACHED_US_MAX = 10_000_000  # what is due sooner stays in memory
_NAP_US = 10_000_000  # the clock may jump, so nobody sleeps longer in one piece
WAKE_MAX = 1_000  # channels in one turn of the loop: 1 to 2 ms
_SPARE = 64
_LIMIT_RETRY_MS = 5_000


class Schedule:
    """What is scheduled for one channel. `pending` are entries whose SCHEDULE frame is not committed."""

    __slots__ = ("armed_us", "channel", "ids", "pending", "table")

    def __init__(self, channel: Channel, table: Timetable, ids: ScheduledIds | None = None) -> None:
        self.channel = channel
        self.table = table
        self.ids = ids
        self.pending: dict[int, Entry] = {}
        self.armed_us = 0  # belongs to `Schedules`

    @property
    def shard(self) -> "Shard":
        """Of the channel."""
        return self.channel.shard

    @property
    def current(self) -> bool:
        """Whether it is what the channel has now, and may grow and shrink: the shard may have been left meanwhile."""
        return not self.channel.removed and self.shard.schedules.get(self.channel.number) is self

    def add(self, entry: Entry) -> None:
        """The entry is committed."""
        log = self.shard.log
        self.table.add(entry)
        log.ledger.add(entry.address, entry.length)
        log.schedules.entries += 1

    def drop(self, number: int) -> Entry | None:
        """The entry is done; unknown is fine: a copy made from a snapshot may never have had it."""
        entry = self.table.drop(number)
        if entry is not None:
            log = self.shard.log
            log.ledger.drop(entry.address, entry.length)
            log.schedules.entries -= 1
        return entry

    def close(self) -> None:
        """Everything that is scheduled is gone."""
        log = self.shard.log
        for segment, length in self.table.bytes_by_segment().items():
            log.ledger.drop_bytes(segment, length)
        log.schedules.entries -= len(self.table)
        log.schedules.disarm(self)
        self.table = Timetable()

    def forget_ids(self) -> None:
        """The channel deduplicates by ids no longer."""
        self.ids = None
        _forget_empty(self)

    # -- where frames lie -------------------------------------------------------------------------------------------

    def keeps(self, row: Row) -> bool:
        """Whether the entry with that number lies there."""
        entry = self.table.find(row.base)
        return entry is not None and entry.address == row.address

    def move_row(self, row: Row, address: int) -> bool:
        """The entry's frame was copied; False when it is not kept any more."""
        return self.table.move(row.base, address) is not None

    def rows_in_segment(self, segment: int) -> Iterator[list[Row]]:
        """The entries that lie in a segment, by number."""
        for entries in self.table.entries():
            yield [Row(e.number, e.address, e.length) for e in entries if segment_of(e.address) == segment]


class Schedules:
    """All schedules of a node: wakes those in which something is due, by one timer. `release` is told of them.

    Invariant: each armed schedule is in the heap with its `armed_us`; other rows of the heap are passed over.
    """

    def __init__(self, deadlines: Deadlines, clock: "Clock") -> None:
        self._deadlines = deadlines
        self._clock = clock
        self._heap: list[tuple[int, int, Schedule]] = []
        self._serial = count()
        self._armed = 0
        self.wake_at_us = 0  # belongs to `Deadlines`
        self.release: Callable[[Schedule], None] = _nobody
        self.entries = 0  # batches scheduled in all shards of which there is a copy here
        self.entries_max = 1 << 62
        self.released = 0  # messages that were given their offsets here since the start
        self.late_us = 0  # all their delays beyond the time, batch by batch, and the greatest
        self.late_us_max = 0
        self.releases = 0

    def check_room(self) -> None:
        """Raises Exhausted when the node holds all the delayed batches that it may."""
        if self.entries >= self.entries_max:
            raise Exhausted(
                f"delay_ms: this node holds its {self.entries_max} delayed batches "
                "(max_scheduled_batches); publish more messages of one time in a batch, or wait until some were due",
                reason="SCHEDULE_LIMIT",
                retry_after_ms=_LIMIT_RETRY_MS,
            )

    def arm(self, schedule: Schedule) -> None:
        """Its shard is led here: it is told when something is due."""
        due = schedule.table.next_due_us
        if due is None or (schedule.armed_us and schedule.armed_us <= due):
            return
        self.arm_at(schedule, due)

    def arm_at(self, schedule: Schedule, due_us: int) -> None:
        """The same at a time."""
        if not schedule.armed_us:
            self._armed += 1
        schedule.armed_us = due_us
        heapq.heappush(self._heap, (due_us, next(self._serial), schedule))
        if len(self._heap) > 2 * self._armed + _SPARE:
            self._heap = [row for row in self._heap if row[2].armed_us == row[0]]
            heapq.heapify(self._heap)
        self._sleep()

    def disarm(self, schedule: Schedule) -> None:
        """Nobody waits for it."""
        if schedule.armed_us:
            self._armed -= 1
            schedule.armed_us = 0

    def wake(self, now_us: int) -> None:
        """Something may be due; where that is so in very many channels, the rest comes in the next turns."""
        left = WAKE_MAX
        while left and self._heap and self._heap[0][0] <= now_us:
            left -= 1
            due, _, schedule = heapq.heappop(self._heap)
            if schedule.armed_us == due:
                self.disarm(schedule)
                self.release(schedule)
        self._sleep(now_us + 1)

    def _sleep(self, earliest_us: int = 0) -> None:
        if self._heap:
            self._deadlines.set(self, max(min(self._heap[0][0], self._clock() + _NAP_US), earliest_us))

    def note_release(self, entry: Entry, now_us: int) -> None:
        """An entry's messages are there for everybody."""
        late = max(now_us - entry.due_us, 0)
        self.releases += 1
        self.released += entry.count
        self.late_us += late
        self.late_us_max = max(self.late_us_max, late)


# -- the leader's frames ----------------------------------------------------------------------------------------------


def find_seen(channel: Channel, ids: tuple[bytes, ...], since_us: int) -> int | None:
    """Where a scheduled batch with these ids stands in place of an offset; None, or raises, as `SeenIds.find`."""
    schedule = channel.shard.schedules.get(channel.number)
    if schedule is None or schedule.ids is None:
        return None
    due = schedule.ids.find(ids, since_us)
    return None if due is None else SCHEDULED + due


def schedule_batch(
    shard: "Shard",
    channel: Channel,
    publish: "Publish",
    stored: "Stored",
    reply: "PublishReply",
    ids: tuple[bytes, ...],
) -> None:
    """Appends a batch that is due later; `stored` is its answer."""
    batch, durability, now = publish.batch, publish.durability, stored.time_us
    at_commit: PublishReply | None = reply
    at_durable = None
    if durability == Durability.DURABILITY_MEMORY:
        at_commit = None
    elif durability == Durability.DURABILITY_LEADER and shard.replicated is not None:
        at_commit, at_durable = None, partial(tell, reply=reply, stored=stored._replace(replicas=(shard.node,)))
    schedule = _schedule_of(channel)
    number = shard.position + 1
    address = shard.log.append(
        shard,
        FrameType.SCHEDULE,
        batch,
        _scheduled,
        schedule,
        number,
        publish,
        at_commit,
        stored,
        len(ids),
        time_us=now,
        body_crc=publish.crc,
        channel=channel.number,
        base_offset=publish.due_us,
        count=publish.count,
        producer=publish.producer,
        producer_epoch=publish.producer_epoch,
        base_sequence=publish.first_sequence,
        ttl_ms=publish.ttl_ms,
        at_durable=at_durable,
    )
    length = FRAME_OVERHEAD + len(batch)
    schedule.pending[number] = Entry(number, publish.due_us, address, length, publish.count)
    if publish.due_us - now <= _CACHED_US_MAX:
        frame = CachedFrame(publish.due_us, publish.count, now, publish.crc, batch, 0, 0, publish.ttl_ms)
        shard.log.cache.put(address, length, frame)
    if publish.producer:
        shard.note_numbers(channel, publish, SCHEDULED + publish.due_us, now)
    if ids:
        schedule.ids = schedule.ids or ScheduledIds()
        schedule.ids.note(now, publish.due_us, ids)
    if at_commit is None and at_durable is None:
        reply(stored._replace(replicas=(shard.node,)))


def _scheduled(
    error: RingpostError | None,
    schedule: Schedule,
    number: int,
    publish: "Publish",
    reply: "PublishReply | None",
    stored: "Stored",
    ids: int,
) -> None:
    entry = schedule.pending.pop(number, None)
    channel = schedule.channel
    if error is None and entry is not None:
        shard = channel.shard
        schedule.add(entry)
        if shard.replicated is not None:
            if publish.producer:
                numbers_committed(channel, publish, SCHEDULED + publish.due_us, stored.time_us)
            stored = stored._replace(replicas=shard.holders)
        if ids and schedule.ids is not None:
            schedule.ids.commit(ids, stored.time_us - channel.limits.dedup_window_ms * 1000)
        shard.log.schedules.arm(schedule)
    if reply is not None:
        reply(stored if error is None else error)


def release_batch(schedule: Schedule, entry: Entry, frame: CachedFrame) -> None:
    """Appends the batch of a taken entry to its channel. Raises what keeps the shard from appending."""
    channel, shard = schedule.channel, schedule.shard
    now = shard.ready_for(channel)
    first = channel.next_offset
    address = shard.log.append(
        shard,
        FrameType.RELEASE,
        frame.body,
        _released,
        schedule,
        entry,
        first + frame.count,
        time_us=now,
        body_crc=frame.body_crc,
        channel=channel.number,
        base_offset=first,
        count=frame.count,
        base_sequence=entry.number,
        ttl_ms=frame.ttl_ms,
    )
    shard.note_frame(
        channel, address, CachedFrame(first, frame.count, now, frame.body_crc, frame.body, 0, 0, frame.ttl_ms)
    )


def _released(error: RingpostError | None, schedule: Schedule, entry: Entry, end: int) -> None:
    if error is not None:
        return
    channel = schedule.channel
    schedule.drop(entry.number)
    log = channel.shard.log
    log.schedules.note_release(entry, log.clock())
    _forget_empty(schedule)
    channel.end_offset = end
    for watcher in channel.watchers or ():
        watcher.advanced()


# -- what committed frames say, for followers and replay --------------------------------------------------------------


def apply_schedule(channel: Channel, header: Header, address: int, body: bytes | memoryview) -> None:
    """A SCHEDULE frame, but for its producer's numbers."""
    schedule = _schedule_of(channel)
    schedule.add(entry_of(header, address))
    if window_ms := channel.limits.dedup_window_ms:
        ids = ids_of(bytes(body))
        schedule.ids = schedule.ids or ScheduledIds()
        schedule.ids.note(header.time_us, header.base_offset, ids)
        schedule.ids.commit(len(ids), header.time_us - window_ms * 1000)


def entry_of(header: Header, address: int) -> Entry:
    """What a SCHEDULE frame makes."""
    return Entry(header.position, header.base_offset, address, FRAME_OVERHEAD + header.body_length, header.count)


def apply_release(channel: Channel, number: int) -> None:
    """A RELEASE frame, but for its messages: the entry is done."""
    schedule = channel.shard.schedules.get(channel.number)
    if schedule is not None:
        schedule.drop(number)
        _forget_empty(schedule)


def restore_entry(channel: Channel, header: Header, address: int) -> None:
    """A SCHEDULE frame came with a snapshot, which has said the rest."""
    _schedule_of(channel).add(entry_of(header, address))


def drop_schedule(channel: Channel) -> None:
    """The channel is deleted, and with it what is scheduled."""
    schedule = channel.shard.schedules.get(channel.number)
    if schedule is not None:
        schedule.close()
        del channel.shard.schedules[channel.number]


def _schedule_of(channel: Channel) -> Schedule:
    schedules = channel.shard.schedules
    schedule = schedules.get(channel.number)
    if schedule is None:
        schedule = schedules[channel.number] = Schedule(channel, Timetable())
    return schedule


def _forget_empty(schedule: Schedule) -> None:
    if not schedule.table and not schedule.pending and schedule.ids is None and schedule.current:
        schedule.shard.log.schedules.disarm(schedule)
        del schedule.shard.schedules[schedule.channel.number]


# -- whole shards ----------------------------------------------------------------------------------------------------


def arm_all(shard: "Shard") -> None:
    """The shard is led here from now on."""
    for schedule in shard.schedules.values():
        shard.log.schedules.arm(schedule)


def clear_schedules(shard: "Shard") -> None:
    """What the shard had is gone, or is about to be made anew."""
    for schedule in shard.schedules.values():
        schedule.close()
    shard.schedules = {}


def _nobody(schedule: Schedule) -> None:
    raise AssertionError(f"nobody releases what is scheduled for {schedule.channel.name!r}")
