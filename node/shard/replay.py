"""From the disk back to memory: a checkpoint, then every frame after it, checked and applied in order.

A frame whose shard, position, chain or content does not fit quarantines its shard: from there on the shard's frames are
not applied and it serves nothing. Nothing is ever skipped silently.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ringpost.internal.v1.record_pb2 import GroupSnapshot, ShardSnapshot
from ringpost.node.groups.ranges import RangeSet, pairs
from ringpost.node.groups.voids import Voids
from ringpost.node.journal.checkpoint import CheckpointDamaged
from ringpost.node.journal.frame import FLAG_REWRITTEN, FrameType, Header
from ringpost.node.journal.index import live_bytes
from ringpost.node.shard.apply import apply_frame
from ringpost.node.shard.boxes import add_box
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.channel_state import pack, state_of
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import new_core
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.schedule_rows import load_schedules
from ringpost.node.shard.settle_codec import retry_of
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store

_COOL_EVERY = 1_024  # frames


class Damaged(Protocol):
    """A stretch of the journal that cannot be read; `shard` None: nobody knows whose it was."""

    @property
    def address(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def shard(self) -> int | None: ...

    @property
    def what(self) -> str: ...


class Replay:
    """Fills an empty store. Call `load` at most once, then `visit` for each frame, then `finish`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last_address: dict[int, int] = {}
        self.frames = 0

    # -- checkpoint -------------------------------------------------------------------------------------------------

    def load(self, snapshots: Iterable[ShardSnapshot]) -> None:
        """Takes the state of a checkpoint."""
        for snapshot in snapshots:
            self._load_shard(self._store.shards[snapshot.shard], snapshot)

    def _load_shard(self, shard: Shard, snapshot: ShardSnapshot) -> None:
        shard.position = shard.committed = snapshot.position
        shard.last_crc = shard.committed_crc = snapshot.last_crc
        shard.epoch = shard.started_epoch = snapshot.epoch
        shard.last_time_us = snapshot.last_time_us
        load_channels(shard, snapshot)
        for channel in shard.channels.values():
            self._store.include(channel)

    # -- frames -----------------------------------------------------------------------------------------------------

    def visit(self, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        """One frame, in the order of the journal."""
        self._count()
        shard = self._shard_of(header, address)
        if header.flags & FLAG_REWRITTEN:
            self._moved(shard, header, address, body_ok)
            return
        if shard.quarantined:
            return
        if header.position <= shard.position:
            if header.position == shard.position and header.header_crc != shard.last_crc:
                self._quarantine(shard, address, f"there are two frames with position {header.position}")
            self._last_address[shard.number] = address
            return
        problem = self._chain_problem(shard, header, body_ok)
        if problem is None:
            problem = apply_frame(shard, header, address, body, self._store)
        if problem is not None and not self._step_over(shard, header, address, body if body_ok else None, problem):
            return
        shard.position = shard.committed = header.position
        shard.last_crc = shard.committed_crc = header.header_crc
        shard.started_epoch = shard.epoch = header.epoch
        shard.last_time_us = max(shard.last_time_us, header.time_us)
        self._last_address[shard.number] = address

    def _count(self) -> None:
        """Now and then packs channels, so that the memory of a start is no greater than later."""
        self.frames += 1
        if not self.frames % _COOL_EVERY:
            self._store.log.warm.cool(2 * _COOL_EVERY)

    def _shard_of(self, header: Header, address: int) -> Shard:
        if header.shard >= len(self._store.shards):
            raise CheckpointDamaged(
                f"the frame at journal address {address:#x} names shard {header.shard} of {len(self._store.shards)}"
            )
        return self._store.shards[header.shard]

    def _step_over(
        self,
        shard: Shard,
        header: Header,  # noqa: ARG002  # for who does go on
        address: int,
        body: bytes | memoryview | None,  # noqa: ARG002
        problem: str,
    ) -> bool:
        """Whether the shard goes on behind a frame that does not fit. `body` None: it is damaged."""
        self._quarantine(shard, address, problem)
        return False

    @staticmethod
    def _chain_problem(shard: Shard, header: Header, body_ok: bool) -> str | None:
        if header.position != shard.position + 1:
            return f"the frame with position {shard.position + 1} is missing; {header.position} follows"
        if header.previous_crc != shard.last_crc:
            return f"the frame with position {header.position} does not continue the one before it"
        if header.epoch < shard.started_epoch:
            return f"the epoch falls from {shard.started_epoch} to {header.epoch} at position {header.position}"
        if not body_ok:
            return f"the frame with position {header.position} is damaged"
        return None

    def _quarantine(self, shard: Shard, address: int, problem: str) -> None:
        shard.quarantined = f"{problem} (journal address {address:#x})"

    def _moved(self, shard: Shard, header: Header, address: int, body_ok: bool) -> None:
        channel = shard.channels.get(header.channel)
        if header.type == FrameType.SCHEDULE:
            self._entry_moved(shard, header, address, body_ok)
            return
        if channel is None or header.base_offset >= channel.next_offset:
            return
        try:
            old = channel.index.row(channel.index.find(header.base_offset))
        except LookupError:
            return
        if old.base != header.base_offset or old.lost:
            return
        if not body_ok:
            self._quarantine(shard, address, f"the rewritten frame with position {header.position} is damaged")
            return
        channel.index.move(old.base, address)
        self._store.log.ledger.move(old.address, address, old.length)

    def _entry_moved(self, shard: Shard, header: Header, address: int, body_ok: bool) -> None:
        schedule = shard.schedules.get(header.channel)
        entry = None if schedule is None else schedule.table.find(header.position)
        if schedule is None or entry is None:
            return
        if not body_ok:
            self._quarantine(shard, address, f"the rewritten frame with position {header.position} is damaged")
            return
        schedule.table.move(entry.number, address)
        self._store.log.ledger.move(entry.address, address, entry.length)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, damages: Sequence[Damaged]) -> list[Shard]:
        """Quarantines the shards that a damage may have hit; returns all that are quarantined."""
        for damage in damages:
            hit = self._store.shards if damage.shard is None else [self._store.shards[damage.shard]]
            for shard in hit:
                whole = damage.shard is None and self._last_address.get(shard.number, -1) > damage.address
                if not whole and not shard.quarantined:
                    self._quarantine(shard, damage.address, damage.what)
        return [shard for shard in self._store.shards if shard.quarantined]


def load_channels(shard: Shard, snapshot: ShardSnapshot) -> None:
    """The channels of a snapshot, packed as far as nobody needs them; counts their frames as live."""
    live, lossy = live_bytes(b"".join([row.index for row in snapshot.channels]))
    for segment, length in live.items():
        shard.log.ledger.add_bytes(segment, length)
    for row in snapshot.channels:
        plain = not (lossy or row.groups or row.box_of or row.HasField("config"))
        channel = Channel(shard, row.channel, row.name, pack(row) if plain else state_of(row))
        shard.channels[channel.number] = channel
        if row.box_of:
            add_box(channel)
        for group in row.groups:
            channel.add_group(load_group(channel, group))
    load_schedules(shard, snapshot.schedules)


def load_group(channel: Channel, row: GroupSnapshot) -> Group:
    """A group from its snapshot."""
    settings = GroupSettings.of(row.config)
    core = new_core(
        settings,
        row.settled_below,
        settled=pairs(row.settled),
        retries=[retry_of(retry) for retry in row.retries],
        rejected=row.rejected,
        filtered=row.filtered,
    )
    group = Group(channel, row.name, settings, core, row.created_time_us)
    group.letters_gone = RangeSet(pairs(row.letters_gone))
    group.voids = Voids(zip(row.seeks[::2], row.seeks[1::2], strict=True))
    group.paused = row.paused
    group.era = row.era
    return group
