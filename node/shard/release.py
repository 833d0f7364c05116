"""Releasing scheduled batches when they are due: reads what lies on the disk, and appends it to its channel."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ringpost.node import log
from ringpost.node.errors import DataLoss, RingpostError
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.index import Row
from ringpost.node.shard.log import Log
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.scheduling import Schedule, release_batch
from ringpost.node.shard.timetable import Entry

ENTRIES_MAX = 128  # of one channel in one turn of the loop: 3 to 4 ms
BYTES_MAX = 1 << 20
_WORKERS = 4  # channels whose batches are read at the same time
_AGAIN_US = 100_000  # after the shard or the journal took nothing
_AGAIN_DISK_US = 1_000_000
_PENDING_BYTES_MAX = 64 << 20

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class Releaser:
    """One a node. `check_room` raises when the disk takes no more messages; `spawn` runs a coroutine on the loop.

    A channel is with one worker at a time, so its batches leave in the order of their times. A batch that cannot be
    read stays scheduled, and is tried again when the shard is next taken up; others do not wait for it.
    """

    def __init__(self, log_: Log, reading: Reading, spawn: Spawn, check_room: Callable[[], None]) -> None:
        self._log = log_
        self._reading = reading
        self._spawn = spawn
        self._check_room = check_room
        self._queue: deque[Schedule] = deque()
        self._queued: set[Schedule] = set()  # those with a worker, too
        self._workers = 0

    def release(self, schedule: Schedule) -> None:
        """Something of it is due."""
        if schedule in self._queued:
            return
        self._enqueue(schedule)
        if self._workers < _WORKERS:
            self._workers += 1
            self._spawn(self._work())

    def _enqueue(self, schedule: Schedule) -> None:
        self._queued.add(schedule)
        self._queue.append(schedule)

    async def _work(self) -> None:
        try:
            while self._queue and not self._log.deadlines.closed:
                schedule = self._queue.popleft()
                wait_us = await self._release_some(schedule)
                self._queued.discard(schedule)
                self._go_on(schedule, wait_us)
        finally:
            self._workers -= 1

    def _go_on(self, schedule: Schedule, wait_us: int) -> None:
        if not schedule.current or not _led(schedule):
            return  # damaged, or left: who takes the shard up begins anew
        if wait_us:
            self._log.schedules.arm_at(schedule, self._log.clock() + wait_us)
            return
        due = schedule.table.next_due_us
        if due is not None and due <= self._log.clock():
            self._enqueue(schedule)  # behind others that wait for a worker
        else:
            self._log.schedules.arm(schedule)

    async def _release_some(self, schedule: Schedule) -> int:
        """Returns for how many µs to let it be."""
        try:
            return await self._release(schedule)
        except RingpostError as error:
            self._say(log.warning, "release.failed", schedule, error=error.message)
        except Exception as error:  # a fault of ours must not hold up what else is due
            self._say(log.error, "release.incident", schedule, exception=error)
        return _AGAIN_DISK_US

    def _say(self, how: Callable[..., None], event: str, schedule: Schedule, **facts: object) -> None:
        if not self._log.deadlines.closed:  # or else the files are, too, and nobody waits for it
            how(event, channel=schedule.channel.name, **facts)

    async def _release(self, schedule: Schedule) -> int:
        if self._log.journal.pending_bytes >= _PENDING_BYTES_MAX:
            return _AGAIN_US
        if not _may_append(schedule):
            return _AGAIN_US
        self._check_room()
        taken = schedule.table.take(self._log.clock(), ENTRIES_MAX, BYTES_MAX)
        rest = deque(taken)
        try:
            frames = await self._frames(schedule, taken)
            while rest:
                if not _may_append(schedule):
                    return _AGAIN_US
                entry = rest[0]
                if self._log.clock() < entry.due_us:
                    break  # the clock was set back while this read
                if (frame := frames.get(entry.number)) is not None:
                    release_batch(schedule, entry, frame)
                rest.popleft()
        finally:
            if rest and schedule.current:
                schedule.table.give_back(rest)
        return 0

    async def _frames(self, schedule: Schedule, entries: Sequence[Entry]) -> dict[int, CachedFrame]:
        """What they are, by number; those that cannot be read are left out."""
        frames = {}
        cold = []
        for entry in entries:
            frame = self._reading.cached(entry.address)
            if frame is None:
                cold.append(entry)
            else:
                frames[entry.number] = frame
        cold.sort(key=lambda entry: entry.address)
        if cold:
            frames |= await self._read(schedule, cold)
        else:
            await asyncio.sleep(0)
        return frames

    async def _read(self, schedule: Schedule, entries: Sequence[Entry]) -> dict[int, CachedFrame]:
        rows = [Row(entry.number, entry.address, entry.length) for entry in entries]
        try:
            frames = await self._reading.fetch(schedule.channel, rows)
            return {entry.number: frame for entry, frame in zip(entries, frames, strict=True)}
        except FileNotFoundError as error:
            return await self._read_moved(schedule, entries, error)
        except (DataLoss, OSError) as error:
            if len(entries) > 1:
                return await self._read_each(schedule, entries)
            (entry,) = entries
            log.error(
                "release.unreadable",
                channel=schedule.channel.name,
                due_us=entry.due_us,
                messages=entry.count,
                error=str(error),
            )
            return {}

    async def _read_each(self, schedule: Schedule, entries: Sequence[Entry]) -> dict[int, CachedFrame]:
        frames: dict[int, CachedFrame] = {}
        for entry in entries:
            frames |= await self._read(schedule, [entry])
        return frames

    async def _read_moved(
        self, schedule: Schedule, entries: Sequence[Entry], error: FileNotFoundError
    ) -> dict[int, CachedFrame]:
        """The segment is gone: its frames lie elsewhere now, or the whole schedule is not there any more."""
        known = [found for entry in entries if (found := schedule.table.find(entry.number)) is not None]
        known.sort(key=lambda entry: entry.address)
        if known == list(entries):
            raise self._reading.unreadable(schedule.channel, Row(known[0].number, 0, 0), error) from error
        return await self._read(schedule, known) if known else {}


def _may_append(schedule: Schedule) -> bool:
    return schedule.current and schedule.shard.serving and not schedule.shard.quarantined


def _led(schedule: Schedule) -> bool:
    shard = schedule.shard
    return not shard.quarantined and (shard.replicated is None or shard.replicated.leading)
