"""The node's housekeeping: checkpoints, retention, reclaiming, scrubbing, the disk, lags. Each is a loop of its own.

A pass that fails is logged and tried again at the next turn; nothing here may stop the node.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ringpost.node import log
from ringpost.node.config import Config
from ringpost.node.errors import RingpostError
from ringpost.node.health import Health
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.frame import FLAG_RESTORED, FLAG_REWRITTEN, FrameDamaged, Header, decode_frame, encode_header
from ringpost.node.journal.index import Row
from ringpost.node.journal.scrub import ScrubStep, scrub_segment
from ringpost.node.journal.segment import address_of, offset_of, segment_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.commits import Waiting
from ringpost.node.shard.consumers import IdleConsumers, is_cursor
from ringpost.node.shard.group_frames import delete_group
from ringpost.node.shard.lag import learn_ages, served_groups
from ringpost.node.shard.retention import AgeRetention, IdleInboxes, keep_from_by_size
from ringpost.node.shard.scheduling import Schedule
from ringpost.node.shard.shard import ignore
from ringpost.node.shard.snapshot import pack_shard
from ringpost.node.storage import Storage

_CHANNELS_PER_TURN = 500
_REWRITE_BYTES = 1 << 20
_DISK_INTERVAL_S = 2.0
_LAG_INTERVAL_S = 10.0
_CONSUMERS_INTERVAL_S = 30.0
_CHECKPOINT_RETRY_S = 10.0
# A frame takes about 20 µs at the next start, so small ones count by their number; there are fewer checkpoints where
# those are large.
_FRAMES_MAX = 200_000
_CHECKPOINT_BYTES_A_FRAME = 400

_Owner = Channel | Schedule  # of a stored frame


class Maintenance:
    """Runs beside the services from `start` to `stop`."""

    def __init__(self, storage: Storage, config: Config, health: Health) -> None:
        self._storage = storage
        self._store = storage.store
        self.config = config
        self._health = health
        self._age = AgeRetention(storage.reading)
        self._inboxes = IdleInboxes()
        self._consumers = IdleConsumers()
        self._checkpointed_bytes = self._checkpointed_frames = 0
        self._frames_max = _FRAMES_MAX
        self._checkpoint_now = asyncio.Lock()
        self._checkpoint_not_before = 0.0
        self._unreadable: set[int] = set()  # segments that cannot be rewritten as a whole
        self._tasks: list[asyncio.Task[None]] = []
        self.checkpoints_written = 0
        self.disk_used = 0.0

    def start(self) -> None:
        """Begins all loops."""
        every = self.config.reclaim_interval_s
        loops: list[Coroutine[Any, Any, None]] = [
            self._repeat("checkpoint", 1.0, self._checkpoint_if_due),
            self._repeat("retention", min(1.0, every), self.retain),
            self._repeat("reclaim", every, self.reclaim),
            self._repeat("disk", _DISK_INTERVAL_S, self.watch_disk),
            self._repeat("scrub", 1.0, self._scrub),
            self._repeat("cool", 1.0, self.cool),
            self._repeat("lag", _LAG_INTERVAL_S, self.learn_lags),
            self._repeat("consumers", _CONSUMERS_INTERVAL_S, self.expire_consumers),
        ]
        self._last_checkpoint = time.monotonic()
        self._tasks = [asyncio.get_running_loop().create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ends all loops."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, name: str, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except RingpostError as error:
                log.warning("maintenance.failed", work=name, error=error.message)
            except Exception as error:
                log.error("maintenance.failed", exception=error, work=name)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    async def _checkpoint_if_due(self) -> None:
        counters = self._storage.journal.counters
        written = counters.bytes_written - self._checkpointed_bytes
        many = counters.frames - self._checkpointed_frames >= self._frames_max
        now = time.monotonic()
        due = now - self._last_checkpoint >= self.config.checkpoint_interval_s
        if now >= self._checkpoint_not_before and (
            (due and (written or self._holds_back())) or many or written >= self.config.checkpoint_bytes
        ):
            self._checkpoint_not_before = now + _CHECKPOINT_RETRY_S
            await self.checkpoint()
            self._checkpoint_not_before = 0.0

    def _holds_back(self) -> bool:
        """Whether dead segments wait for newer checkpoints only, which nothing that is written would bring."""
        durable = self._storage.journal.durable
        dead = self._store.log.ledger.dead(durable, segment_of(durable))
        return bool(dead) and dead[-1] >= segment_of(self._storage.checkpoints.oldest_scan_from())

    async def checkpoint(self) -> None:
        """Writes a checkpoint of everything that is committed now.

        None while a shard is damaged: its frames behind the damage are in no snapshot, so recovery must meet them
        again, perhaps repaired.
        """
        if any(shard.quarantined for shard in self._store.shards):
            return
        async with self._checkpoint_now:
            journal = self._storage.journal
            written, frames, scan_from = journal.counters.bytes_written, journal.counters.frames, self._scan_from()
            parts = []
            for shard in self._store.shards:
                if shard.position or shard.replicated is not None:
                    parts.append(pack_shard(shard))
                    await asyncio.sleep(0)
            await self._all_committed()
            await asyncio.to_thread(self._write_checkpoint, parts, scan_from)
            self._forget_positions()
            self._checkpointed_bytes, self._checkpointed_frames = written, frames
            self._frames_max = max(_FRAMES_MAX, sum(map(len, parts)) // _CHECKPOINT_BYTES_A_FRAME)
            self._last_checkpoint = time.monotonic()
            self.checkpoints_written += 1

    def _scan_from(self) -> int:
        """The address from which on recovery must read what the snapshots that are made from now on do not know.

        In a cluster frames may be durable for long before they are committed.
        """
        needed = [shard.replicated.first_needed for shard in self._store.shards if shard.replicated is not None]
        addresses = (address for address in needed if address is not None)
        return min([self._storage.journal.durable, *self._store.restoring.values(), *addresses])

    def _write_checkpoint(self, parts: list[bytes], scan_from: int) -> None:
        """On a full disk the reserve makes room: a checkpoint is what frees segments."""
        body = b"".join(parts)
        try:
            self._storage.checkpoints.write(body, scan_from)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._storage.reserve.release():
                raise
            self._storage.checkpoints.write(body, scan_from)

    def _forget_positions(self) -> None:
        """A replica that is behind the older checkpoint gets a snapshot; so the places of frames take little memory."""
        floor = self._storage.checkpoints.oldest_scan_from()
        for shard in self._store.shards:
            if shard.replicated is not None:
                shard.replicated.positions.drop_below(floor)

    async def _all_committed(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def committed(error: RingpostError | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self._store.log.commits.after_all(committed)
        await done

    # -- memory -----------------------------------------------------------------------------------------------------

    async def cool(self) -> None:
        """Packs channels that were only looked at; those that were written to are packed as frames become durable."""
        while self._store.log.warm.cool():
            await asyncio.sleep(0)

    # -- retention --------------------------------------------------------------------------------------------------

    async def retain(self) -> None:
        """Trims what configurations let go."""
        for number, channel in enumerate([*self._store.retaining, *self._store.boxes()]):
            if number % _CHANNELS_PER_TURN == 0:
                await asyncio.sleep(0)
            if channel.removed or channel.shard.quarantined:
                continue
            first = max(keep_from_by_size(channel), await self._keep_from_by_age(channel))
            if first > max(channel.first_offset, channel.trim_to) and not channel.removed:
                channel.shard.trim(channel, first, _ignore)
                await asyncio.sleep(0)
            if not channel.removed and self._inboxes.is_over(channel, self._store.log.clock()):
                self._store.delete(channel, _ignore)
        self._age.forget_removed()
        self._inboxes.forget_removed()

    async def expire_consumers(self) -> None:
        """Removes consumers of broadcast groups that nobody has used for long, with their places."""
        cursors = [group for group in self._store.groups() if is_cursor(group)]
        for number, cursor in enumerate(cursors, 1):
            serving = cursor.channel.shard.serving and not cursor.removed
            if serving and self._consumers.is_over(cursor, self._store.log.clock()):
                log.info("group.consumer_expired", channel=cursor.channel.name, group=cursor.name)
                delete_group(cursor, ignore)
            if number % _CHANNELS_PER_TURN == 0:
                await asyncio.sleep(0)
        self._consumers.forget_removed()

    async def learn_lags(self) -> None:
        """Reads how old the oldest messages of the groups are that the metrics name, where that is not known."""
        await learn_ages(served_groups(self._store), self._storage.reading, self._store.log.clock())

    async def _keep_from_by_age(self, channel: Channel) -> int:
        """0 where it cannot be told: a channel that cannot be read must not hold up the others."""
        if not channel.limits.retention_age_ms:
            return 0
        try:
            return await self._age.keep_from(channel, self._store.log.clock())
        except (RingpostError, LookupError, OSError) as error:  # damaged, or trimmed meanwhile
            log.warning("retention.failed", channel=channel.name, error=str(error))
            return 0

    # -- reclaiming -------------------------------------------------------------------------------------------------

    async def reclaim(self) -> None:
        """Deletes segments without live frames, and rewrites one that is less than half live.

        Nothing while a shard is damaged: frames behind the damage are in no index, and all that can still be saved.
        """
        if any(shard.quarantined for shard in self._store.shards):
            return
        journal, ledger = self._storage.journal, self._store.log.ledger
        active = segment_of(journal.end)
        sizes = {segment.number: segment.size_bytes for segment in journal.segments()}
        for number in sizes:
            ledger.begin(number)
        floor = self._storage.checkpoints.oldest_scan_from()
        for number in ledger.dead(floor, active):
            # A checkpoint may have had rows in a segment that was deleted before the last start.
            if sizes.pop(number, None) is not None:
                self._forget_segment(number)
                await asyncio.to_thread(journal.drop_segment, number)
                log.info("segment.deleted", segment=number)
            ledger.forget(number)
        for number in self._unreadable:
            sizes.pop(number, None)
        candidate = ledger.worth_rewriting(sizes, min(active, segment_of(floor)))
        if candidate is not None and self._room() >= 2 * ledger.live(candidate) + self.config.max_batch_bytes:
            await self._rewrite(candidate)

    def _forget_segment(self, number: int) -> None:
        """Logs of replicas begin behind a segment that is deleted."""
        for shard in self._store.shards:
            if shard.replicated is not None:
                shard.replicated.positions.drop_below(address_of(number + 1, 0))

    def _room(self) -> int:
        """Bytes up to the end of the last segment that there is surely space for."""
        end = self._storage.journal.end
        return (self._store.segment_max - segment_of(end) + 1) * self.config.segment_bytes - offset_of(end)

    async def _rewrite(self, segment: int) -> None:
        live = await self._live_rows(segment)
        log.info("segment.rewriting", segment=segment, frames=len(live), bytes=self._store.log.ledger.live(segment))
        batch: list[tuple[_Owner, Row]] = []
        size = 0
        for owner, row in live:
            batch.append((owner, row))
            size += row.length
            if size >= _REWRITE_BYTES:
                await self._rewrite_batch(batch)
                batch, size = [], 0
        await self._rewrite_batch(batch)

    async def _live_rows(self, segment: int) -> list[tuple[_Owner, Row]]:
        found: list[tuple[_Owner, Row]] = []
        owners: list[_Owner] = list(self._store.all_channels())
        owners += [schedule for shard in self._store.shards for schedule in shard.schedules.values()]
        for number, owner in enumerate(owners):
            if number % _CHANNELS_PER_TURN == 0:
                await asyncio.sleep(0)
            for rows in owner.rows_in_segment(segment):
                found += [(owner, row) for row in rows]
                await asyncio.sleep(0)
        return sorted(found, key=lambda pair: pair[1].address)

    async def _rewrite_batch(self, batch: list[tuple[_Owner, Row]]) -> None:
        """Appends copies; index rows follow when those are durable. One batch at a time, so that it is no burst."""
        frames = await asyncio.to_thread(self._read_raw, [row for _, row in batch])
        log_ = self._store.log
        for (owner, row), frame in zip(batch, frames, strict=True):
            if frame is None:
                self._unreadable.add(segment_of(row.address))
                continue
            if not owner.keeps(row):
                continue
            header, body = frame
            flags, committed = (header.flags | FLAG_REWRITTEN) & ~FLAG_RESTORED, owner.shard.committed
            fields = header._asdict() | {"flags": flags, "committed": committed}
            del fields["header_crc"]
            address = log_.journal.append(encode_header(**fields), body)
            log_.commits.add(Waiting(address, None, 0, 0, self._moved, (owner, row, address)))
        await self._all_committed()

    def _read_raw(self, rows: list[Row]) -> list[tuple[Header, bytes] | None]:
        frames: list[tuple[Header, bytes] | None] = []
        for row in rows:
            try:
                frames.append(decode_frame(self._storage.journal.read(row.address, row.length)))
            except FrameDamaged as error:
                log.error("frame.damaged", address=hex(row.address), what=str(error))
                frames.append(None)  # stays where it is; readers are told
        return frames

    def _moved(self, error: RingpostError | None, owner: _Owner, row: Row, address: int) -> None:
        if error is None and owner.move_row(row, address):
            self._store.log.ledger.move(row.address, address, row.length)

    # -- scrubbing --------------------------------------------------------------------------------------------------

    async def _scrub(self) -> None:
        """Reads every segment once, slowly, as long as there is a rate for it."""
        journal = self._storage.journal
        active = segment_of(journal.end)
        for segment in journal.segments():
            if segment.number >= active or not self.config.scrub_bytes_per_s:
                continue
            steps = scrub_segment(
                journal.read, segment.number, segment.size_bytes, directory_id=self._storage.identity.directory_id
            )
            try:
                while (step := await asyncio.to_thread(next, steps, None)) is not None:
                    self._report(step)
                    if not (rate := self.config.scrub_bytes_per_s):
                        break
                    await asyncio.sleep(step.bytes_read / rate)
            except FileNotFoundError:
                continue  # reclaimed meanwhile

    def _report(self, step: ScrubStep) -> None:
        for damage in step.damages:
            log.error("scrub.damaged", address=hex(damage.address), bytes=damage.length, what=damage.reason)
            self._health.set_part("frames", False, f"stored bytes are damaged: {damage.reason}")

    # -- disk -------------------------------------------------------------------------------------------------------

    async def watch_disk(self) -> None:
        """Judges how full the disk is, and how many segments it has room for; takes the reserve back when there is.

        The room is what bounds publishes: a fast producer fills a small disk between two looks at it.
        """
        storage = self._storage
        # Looked at before the free space: a segment made in between then counts as no room, not twice as some.
        last = max((segment.number for segment in storage.journal.segments()), default=0)
        usage = await asyncio.to_thread(storage.files.usage, storage.directory)
        self.disk_used = 1 - usage.free / usage.total if usage.total else 1.0
        spare = max(0, usage.free - self.config.reserve_bytes)
        self._store.segment_max = last + spare // self.config.segment_bytes
        before = self._store.disk_state
        state = storage.disk_policy.judge(self.disk_used, before)
        if not storage.reserve.held and not await asyncio.to_thread(storage.reserve.restore):
            state = max(state, DiskState.REFUSE)
        if segment_of(storage.journal.end) >= self._store.segment_max:
            state = max(state, DiskState.REFUSE)
        if state != before:
            self._store.disk_state = state
            tell = log.info if state == DiskState.OK else log.warning
            tell("disk.state", state=state.name, used=round(self.disk_used, 4))
        why = f"the disk is {self.disk_used:.1%} full"
        self._health.set_part("disk", state < DiskState.FAIL, why)


def _ignore(error: RingpostError | None) -> None:
    """A trim that did not commit is tried again at the next start."""
