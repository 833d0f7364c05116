"""From the disk back to memory: a checkpoint, then every frame after it, checked and applied in order.

A frame whose shard, position, chain or content does not fit quarantines its shard: from there on the shard's frames are
not applied and it serves nothing. Nothing is ever skipped silently.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ringpost.internal.v1.record_pb2 import ChannelSnapshot, GroupSnapshot, ShardSnapshot
from ringpost.node.groups.changes import Retry
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.ranges import pairs
from ringpost.node.journal.checkpoint import CheckpointDamaged
from ringpost.node.journal.frame import FLAG_REWRITTEN, Header
from ringpost.node.journal.index import FrameIndex
from ringpost.node.shard.apply import apply_frame
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.group import Group, GroupSettings
from ringpost.node.shard.producers import Producer, ProducerTable, Run
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store


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
        for row in snapshot.channels:
            channel = load_channel(shard, row)
            shard.channels[channel.number] = channel
            self._store.include(channel)

    # -- frames -----------------------------------------------------------------------------------------------------

    def visit(self, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        """One frame, in the order of the journal."""
        self.frames += 1
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


def load_channel(shard: Shard, row: ChannelSnapshot) -> Channel:
    """A channel from its snapshot; counts its frames as live."""
    channel = Channel(shard, row.channel, row.name, ChannelLimits().changed(row.config), row.created_time_us)
    channel.first_offset = channel.trim_to = row.first_offset
    channel.next_offset = channel.end_offset = row.end_offset
    if row.index:
        channel.index = FrameIndex.from_bytes(row.index)
        for segment, length in channel.index.bytes_by_segment().items():
            channel.stored_bytes += length
            shard.log.ledger.add_bytes(segment, length)
        channel.lossy = any(True for _ in channel.index.lost_rows())
    for group in row.groups:
        channel.add_group(load_group(channel, group))
    if row.producers:
        channel.producers = ProducerTable()
        for producer in row.producers:
            runs = (Run(*producer.runs[at : at + 3]) for at in range(0, len(producer.runs), 3))
            state = Producer(producer.epoch, producer.next_sequence, producer.last_time_us, runs)
            channel.producers.restore(producer.producer, state)
    return channel


def load_group(channel: Channel, row: GroupSnapshot) -> Group:
    """A group from its snapshot."""
    settings = GroupSettings.of(row.config)
    core = GroupCore(
        settled_below=row.settled_below,
        ack_deadline_us=settings.ack_deadline_ms * 1000,
        max_in_flight=settings.max_in_flight,
        settled=pairs(row.settled),
        retries=[Retry(r.first, r.last, r.attempt, r.not_before_us) for r in row.retries],
        rejected=row.rejected,
    )
    return Group(channel, row.name, settings, core, row.created_time_us)
