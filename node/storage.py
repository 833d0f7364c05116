"""Opening and closing what a node keeps: identity, checkpoint, journal, and the store they fill."""

import asyncio
import errno
import gc
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ringpost.node import log
from ringpost.node.config import Config
from ringpost.node.errors import Unavailable
from ringpost.node.journal.cache import CachedFrame, TailCache
from ringpost.node.journal.checkpoint import CheckpointDamaged, CheckpointStore
from ringpost.node.journal.disk import DiskPolicy, Reserve
from ringpost.node.journal.files import Files
from ringpost.node.journal.identity import Identity, IdentityError, close_identity, open_identity
from ringpost.node.journal.journal import Journal, JournalOptions
from ringpost.node.journal.reader import ColdReader
from ringpost.node.journal.reclaim import SegmentLedger
from ringpost.node.journal.recovery import RecoveryReport, recover
from ringpost.node.journal.segment import UnknownFormat
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.cluster_replay import ClusterReplay
from ringpost.node.shard.dead_letters import Gravedigger
from ringpost.node.shard.deadlines import Deadlines
from ringpost.node.shard.log import Log
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.release import Releaser
from ringpost.node.shard.replay import Replay
from ringpost.node.shard.salvage import Loss, Salvage
from ringpost.node.shard.settlements import Settlements
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.snapshot import unpack
from ringpost.node.shard.store import Store, StoreLimits

UNREADABLE = (IdentityError, CheckpointDamaged, UnknownFormat)
"""Why a data directory may be refused; the message is for the operator."""

# More lines of one kind at once than the log lets through would not be seen.
_LOSSES_A_LINE, _LOSSES_LOGGED_MAX = 100, 1_500


def now_us() -> int:
    """The system's clock."""
    return time.time_ns() // 1000


@dataclass
class Storage:
    """An open data directory. `quarantined` are the shards that recovery found damaged.

    `losses` are what `accept_loss` went on without: once; a checkpoint then leads around the damage.
    """

    directory: Path
    files: Files
    identity: Identity
    store: Store
    journal: Journal
    reading: Reading
    reader: ColdReader
    checkpoints: CheckpointStore
    reserve: Reserve
    disk_policy: DiskPolicy
    report: RecoveryReport
    quarantined: list[Shard]
    missing_segments: list[int]
    losses: list[Loss]

    def close(self) -> None:
        """Writes what waits and gives the directory free. Blocks."""
        self.store.log.deadlines.close()
        self.journal.close()
        self.reader.close()
        close_identity(self.files, self.identity)


class Opener:
    """Opens a data directory for a running event loop; its two callbacks come from the journal."""

    def __init__(
        self,
        config: Config,
        files: Files,
        *,
        durable: Callable[[], None],
        failed: Callable[[Exception], None],
        damaged: Callable[[str], None],
        clustered: bool = False,
    ) -> None:
        """`clustered`: shards are copies that may hold what is not committed; another node may know better."""
        self._clustered = clustered
        self._config = config
        self._files = files
        self._durable = durable
        self._failed = failed
        self._damaged = damaged
        self._loop = asyncio.get_running_loop()
        self._identity: Identity | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself forgets those that nobody holds

    def hold(self) -> None:
        """Takes the directory, so that no other node has it. Raises one of UNREADABLE, or OSError."""
        self._identity = self._open_identity()

    def release(self) -> None:
        """Gives it back unopened."""
        if self._identity is not None:
            close_identity(self._files, self._identity)
            self._identity = None

    async def open(self) -> Storage:
        """Raises one of UNREADABLE, or OSError; then nothing is held. Recovery runs in a thread."""
        if self._identity is None:
            self.hold()
        assert self._identity is not None, "held"
        try:
            return await asyncio.to_thread(self._open, self._identity)
        except BaseException:
            self.release()
            raise

    def _open_identity(self) -> Identity:
        """On a full disk the reserve makes room for the identity's new boot counter."""
        config = self._config
        opened = partial(
            open_identity,
            config.data_dir,
            self._files,
            node=config.node,
            shard_count=config.shard_count,
            now_us=now_us(),
            entropy=os.urandom,
        )
        try:
            return opened()
        except OSError as error:
            reserve = Reserve(config.data_dir, self._files, config.reserve_bytes)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not reserve.exists:
                raise
            reserve.restore()
            reserve.release()
            return opened()

    def _open(self, identity: Identity) -> Storage:
        config, directory = self._config, self._config.data_dir
        reserve = Reserve(directory, self._files, config.reserve_bytes)
        reserve.restore()
        journal = self._journal(identity, reserve)
        store = Store(
            self._log(journal),
            store_limits(config),
            shard_count=identity.shard_count,
            node=config.node,
            clustered=self._clustered,
        )
        checkpoints = CheckpointStore(directory, self._files)
        replay = self._replay(store)
        with _without_collector():
            report, quarantined = self._recover(replay, store, checkpoints, identity.directory_id)
        journal.start(report.end)
        for segment in journal.segments():
            store.log.ledger.begin(segment.number)
        reader = ColdReader(journal.read, config.cold_read_threads)
        reading = Reading(store.log.cache, partial(_fetch, reader), self._channel_damaged)
        policy = DiskPolicy(config.disk_warn_fraction, config.disk_refuse_fraction, config.disk_fail_fraction)
        store.log.burials.write = Gravedigger(reading, self._spawn, store.check_disk).write
        store.log.schedules.release = Releaser(store.log, reading, self._spawn, store.check_disk).release
        missing = self._missing_segments(store, journal)
        return Storage(
            directory=directory,
            files=self._files,
            identity=identity,
            store=store,
            journal=journal,
            reading=reading,
            reader=reader,
            checkpoints=checkpoints,
            reserve=reserve,
            disk_policy=policy,
            report=report,
            quarantined=quarantined,
            missing_segments=missing,
            losses=self._accepted(replay, missing),
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _journal(self, identity: Identity, reserve: Reserve) -> Journal:
        config = self._config
        options = JournalOptions(
            segment_bytes=config.segment_bytes,
            linger_us=config.journal_linger_us,
            busy_linger_us=config.journal_busy_linger_us,
            on_no_space=reserve.release,
        )
        return Journal(
            config.data_dir,
            self._files,
            options,
            directory_id=identity.directory_id,
            post=self._loop.call_soon_threadsafe,
            on_durable=self._on_durable,
            on_failure=self._on_failure,
        )

    def _log(self, journal: Journal) -> Log:
        config, loop = self._config, self._loop
        self._commits_log = Log(
            journal,
            now_us,
            cache=TailCache(config.tail_cache_bytes),
            ledger=SegmentLedger(),
            deadlines=Deadlines(now_us, loop.call_later),
            settlements=Settlements(now_us, loop.call_later, loop.call_soon, linger_us=config.settle_linger_ms * 1000),
        )
        return self._commits_log

    def _replay(self, store: Store) -> Replay:
        if self._clustered:
            return ClusterReplay(store)  # other nodes have copies of what is damaged here
        return Salvage(store) if self._config.accept_loss else Replay(store)

    def _recover(
        self, replay: Replay, store: Store, checkpoints: CheckpointStore, directory_id: bytes
    ) -> tuple[RecoveryReport, list[Shard]]:
        started = time.monotonic()
        loaded = checkpoints.load()
        for problem in checkpoints.damaged:
            log.error("checkpoint.damaged", problem=problem)
        scan_from = 0
        if loaded is not None:
            scan_from = loaded.scan_from
            replay.load(unpack(loaded.body))
        report = recover(self._config.data_dir, self._files, scan_from, replay.visit)
        if report.directory_id not in (None, directory_id):
            raise IdentityError(
                f"the journal in {self._config.data_dir} was written by another data directory than its identity says; "
                "put the files back that belong together"
            )
        quarantined = replay.finish(report.damages)
        for damage in (*report.damages, *report.harmless):
            log.error("journal.damaged", address=hex(damage.address), bytes=damage.length, what=damage.what)
        log.info(
            "journal.recovered",
            seconds=round(time.monotonic() - started, 3),
            frames=replay.frames,
            channels=len(store),
            torn_bytes_cut=report.cut_bytes,
            quarantined_shards=[shard.number for shard in quarantined],
        )
        return report, quarantined

    @staticmethod
    def _accepted(replay: Replay, missing: list[int]) -> list[Loss]:
        """Says what the node goes on without."""
        if not isinstance(replay, Salvage):
            return []
        replay.lose_segments(missing)
        told = [str(loss) for loss in replay.losses]
        for start in range(0, min(len(told), _LOSSES_LOGGED_MAX), _LOSSES_A_LINE):
            log.error("loss.accepted", losses=told[start : start + _LOSSES_A_LINE], of=len(told))
        return replay.losses

    @staticmethod
    def _missing_segments(store: Store, journal: Journal) -> list[int]:
        """Segments that index rows point into and whose files are gone; reads of those rows answer DATA_LOSS."""
        there = {segment.number for segment in journal.segments()}
        missing = [number for number in store.log.ledger.segments() if number not in there]
        for number in missing:
            log.error("segment.missing", segment=number, live_bytes=store.log.ledger.live(number))
        return missing

    def _on_durable(self, address: int) -> None:
        self._commits_log.commits.durable(address)
        self._commits_log.warm.cool()
        self._durable()

    def _on_failure(self, error: Exception) -> None:
        self._commits_log.commits.fail(
            Unavailable(f"the node's disk failed, the outcome is open: {error}", reason="DISK_FAILED")
        )
        self._failed(error)

    def _channel_damaged(self, channel: Channel, what: str) -> None:
        log.error("frame.damaged", channel=channel.name, shard=channel.shard.number, what=what)
        self._damaged(f"a stored frame of channel {channel.name!r} is damaged: {what}")


@contextmanager
def _without_collector() -> Iterator[None]:
    """What recovery makes stays: the collector would look at all of it again and again, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


async def _fetch(reader: ColdReader, channel: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
    return await reader.read(rows, owner=(channel.shard.number, channel.number))


def store_limits(config: Config) -> StoreLimits:
    """The store's part of the configuration."""
    return StoreLimits(
        max_channels=config.max_channels,
        max_groups=config.max_groups,
        max_scheduled_batches=config.max_scheduled_batches,
        max_message_bytes=config.max_message_bytes,
        max_batch_bytes=config.max_batch_bytes,
        max_batch_messages=config.max_batch_messages,
        auto_create_channels=config.auto_create_channels,
        new_channel=ChannelLimits(config.retention_age_ms, config.retention_bytes, config.retention_messages),
    )
