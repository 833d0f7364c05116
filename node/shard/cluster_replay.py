"""Recovery in a cluster: like `Replay`, but what is in the journal need not be committed, and may have been cut.

A frame's header says what was committed when it was appended; what lies behind the greatest such mark waits in the tail
for a leader to say. Local records begin, restore, cut and end this directory's copies.
"""

from collections.abc import Iterable, Sequence

from ringpost.internal.v1.record_pb2 import ChannelTrim, ReplicaRecord, ShardSnapshot
from ringpost.node.journal.frame import (
    DATA_TYPES,
    FLAG_LOCAL,
    FLAG_RESTORED,
    FLAG_REWRITTEN,
    FRAME_OVERHEAD,
    HEADER_SIZE,
    FrameType,
    Header,
    encode_header,
)
from ringpost.node.replication.epochs import EpochCache
from ringpost.node.shard.positions import Positions
from ringpost.node.shard.replay import Damaged, Replay, load_channels
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.scheduling import clear_schedules, restore_entry
from ringpost.node.shard.shard import Shard, apply_trim
from ringpost.node.shard.store import Store


class Restoring:
    """A copy that is being made from a snapshot: a shard of its own until it is complete."""

    def __init__(self, shard: Shard, replica_id: str, snapshot: ShardSnapshot) -> None:
        self.shard = Shard(shard.number, shard.log, node=shard.node, clustered=True)
        self.replica_id = replica_id
        self.frames = 0
        self._jumps: dict[int, int] = {}  # channel → offset before which some were not sent
        load_shard(self.shard, snapshot, replica_id)
        for channel in self.shard.channels.values():
            channel.next_offset = channel.first_offset

    def add(self, header: Header, address: int) -> str | None:
        """A frame of it is in the journal."""
        channel = self.shard.channels.get(header.channel)
        if channel is not None and header.type == FrameType.SCHEDULE:
            restore_entry(channel, header, address)
            self.frames += 1
            return None
        if channel is None or header.type not in DATA_TYPES:
            return f"a restored frame is for channel {header.channel}, which the snapshot does not have"
        end = header.base_offset + header.count
        expected = channel.next_offset if len(channel.index) else channel.first_offset
        fits = header.base_offset >= expected if len(channel.index) else end > expected
        if not fits or end > channel.end_offset:
            return f"restored offset {header.base_offset} of channel {channel.name!r} does not fit"
        if header.base_offset > expected:
            self._jumps[channel.number] = header.base_offset
        length = FRAME_OVERHEAD + header.body_length
        channel.index.append(header.base_offset, address, length)
        channel.stored_bytes += length
        channel.next_offset = end
        self.shard.log.ledger.add(address, length)
        self.frames += 1
        return None

    def finish(self, frames: int, trims: Iterable[ChannelTrim]) -> str | None:
        """It is complete, with so many frames, but for what was trimmed meanwhile; what is wrong with it, or None."""
        if frames != self.frames:
            return f"a snapshot of {frames} frames came with {self.frames}"
        for trim in trims:
            trimmed = self.shard.channels.get(trim.channel)
            if trimmed is None or trim.first_offset > trimmed.end_offset:
                return f"the snapshot of channel {trim.channel} cannot begin at {trim.first_offset}"
            apply_trim(trimmed, trim.first_offset)
        for number, offset in self._jumps.items():
            channel = self.shard.channels[number]
            if channel.first_offset < offset:
                return f"the snapshot of channel {channel.name!r} lacks what is before {offset}"
        for channel in self.shard.channels.values():
            if channel.next_offset != channel.end_offset and channel.first_offset < channel.end_offset:
                return f"the snapshot of channel {channel.name!r} ends at {channel.next_offset}"
            channel.next_offset = channel.end_offset
        return None


def load_shard(shard: Shard, snapshot: ShardSnapshot, replica_id: str) -> None:
    """The state of a snapshot, in a cluster."""
    shard.position = shard.committed = snapshot.position
    shard.last_crc = shard.committed_crc = snapshot.last_crc
    shard.epoch = shard.started_epoch = snapshot.epoch
    shard.last_time_us = snapshot.last_time_us
    shard.replicated = replicated = ReplicatedLog(shard, replica_id)
    flat = snapshot.epochs
    replicated.epochs = EpochCache((flat[at], flat[at + 1]) for at in range(0, len(flat), 2))
    load_channels(shard, snapshot)


def clear_shard(shard: Shard) -> None:
    """The shard as if it had never been here; its frames are dead."""
    ledger = shard.log.ledger
    for channel in shard.channels.values():
        channel.removed = True
        for segment, length in channel.peek_index().bytes_by_segment().items():
            ledger.drop_bytes(segment, length)
    clear_schedules(shard)
    shard.channels = {}
    shard.leaving_groups = set()
    shard.group_count = 0
    shard.grouped = {}
    shard.boxes = {}
    shard.epoch = shard.started_epoch = shard.session = 0
    shard.position = shard.committed = 0
    shard.last_crc = shard.committed_crc = 0
    shard.replicated = None
    shard.quarantined = ""


def adopt(shard: Shard, other: Shard) -> None:
    """Takes the state of a shard that was made beside it; `shard` must be clear."""
    for name in ("epoch", "started_epoch", "position", "last_crc", "committed", "committed_crc", "last_time_us"):
        setattr(shard, name, getattr(other, name))
    shard.channels = other.channels
    shard.group_count = other.group_count
    shard.grouped = other.grouped
    shard.boxes = other.boxes
    shard.schedules = other.schedules
    for channel in shard.channels.values():
        channel.shard = shard
    shard.replicated = other.replicated
    if shard.replicated is not None:
        shard.replicated.shard = shard


class ClusterReplay(Replay):
    """Fills an empty store of a node in a cluster."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.restoring: dict[int, Restoring] = {}
        self._suspects: dict[int, tuple[int, int]] = {}  # shard → (position, address) of a frame that should be cut
        self._known: dict[int, int] = {}  # position of the shard's snapshot
        self._begun: dict[int, int] = {}  # address at which the shard's copy began, where that was met

    def load(self, snapshots: Iterable[ShardSnapshot]) -> None:
        for snapshot in snapshots:
            shard = self._store.shards[snapshot.shard]
            if not snapshot.replica_id:
                shard.quarantined = "it was written outside a cluster"
                continue
            load_shard(shard, snapshot, snapshot.replica_id)
            self._known[shard.number] = snapshot.position

    def visit(self, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        self._count()
        shard = self._shard_of(header, address)
        if header.flags & FLAG_REWRITTEN:
            self._commit(shard, header.committed)
            self._moved(shard, header, address, body_ok)
        elif header.type == FrameType.REPLICA:
            self._about_replica(shard, address, body, body_ok)
        elif shard.quarantined:
            return
        elif header.flags & FLAG_LOCAL:
            self._cut(shard, header, address, body, body_ok)
        elif header.flags & FLAG_RESTORED:
            self._restored(shard, header, address, body_ok)
        elif shard.replicated is None:
            return  # of a copy that is gone, or that only began in what was scanned
        elif header.position <= self._known.get(shard.number, 0) and header.position <= shard.position:
            self._contained(shard, header, address)
        else:
            self._chained(shard, header, address, body, body_ok)

    # -- frames of the chain ----------------------------------------------------------------------------------------

    def _contained(self, shard: Shard, header: Header, address: int) -> None:
        """A frame that the snapshot knows: only where it lies is news."""
        assert shard.replicated is not None
        if header.position == self._known[shard.number]:
            if header.header_crc == shard.committed_crc:
                self._suspects.pop(shard.number, None)
            else:
                self._suspects[shard.number] = (header.position, address)
        positions = shard.replicated.positions
        if positions.end >= self._known[shard.number]:
            positions.truncate(max(header.position - 1, positions.start - 1))
        if positions.end + 1 != header.position:
            positions = shard.replicated.positions = Positions(header.position)
        positions.append(address, FRAME_OVERHEAD + header.body_length)
        self._last_address[shard.number] = address

    def _chained(self, shard: Shard, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        replicated = shard.replicated
        assert replicated is not None
        problem = self._chain_problem(shard, header, body_ok)
        if problem is not None:
            self._quarantine(shard, address, problem)
            return
        if replicated.positions.end != shard.position:
            replicated.positions = Positions(header.position)
        replicated.put(address, _encoded(header), header, body)
        replicated.durable = header.position
        self._commit(shard, header.committed)
        self._last_address[shard.number] = address

    def _commit(self, shard: Shard, committed: int) -> None:
        """Applies what surely was committed when a frame was appended."""
        if shard.replicated is not None and shard.committed < committed <= shard.position:
            shard.replicated.commit(committed)

    # -- local records ----------------------------------------------------------------------------------------------

    def _cut(self, shard: Shard, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        if not body_ok or header.type != FrameType.TRUNCATE or len(body):
            self._quarantine(shard, address, "a record about this copy is damaged")
        else:
            self._truncate(shard, header)

    def _about_replica(self, shard: Shard, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        if not body_ok:
            self._quarantine(shard, address, "a record about this copy is damaged")
            return
        record = ReplicaRecord.FromString(bytes(body))
        step = record.WhichOneof("step")
        if step == "fresh":
            if not self._is_known(shard, record.replica_id):
                self._begin(shard, record.replica_id, address)
        elif step == "snapshot":
            contained = self._is_known(shard, record.replica_id) and shard.committed >= record.snapshot.position
            if not contained:
                self.restoring[shard.number] = Restoring(shard, record.replica_id, record.snapshot)
        elif step == "restored":
            restoring = self.restoring.pop(shard.number, None)
            if restoring is not None:
                problem = restoring.finish(record.restored, record.trims)
                if problem is not None:
                    self._quarantine(shard, address, problem)
                    return
                clear_shard(shard)
                adopt(shard, restoring.shard)
                self._known[shard.number] = shard.position
                self._begun[shard.number] = self._last_address[shard.number] = address
        elif step == "removed" and shard.replicated is not None and shard.replicated.replica_id == record.replica_id:
            clear_shard(shard)
            self._known.pop(shard.number, None)
            self._begun[shard.number] = self._last_address[shard.number] = address

    def _is_known(self, shard: Shard, replica_id: str) -> bool:
        """Whether a snapshot in the checkpoint is of this copy already."""
        known = shard.replicated
        return known is not None and known.replica_id == replica_id and shard.number in self._known

    def _begin(self, shard: Shard, replica_id: str, address: int) -> None:
        clear_shard(shard)
        self._begun[shard.number] = self._last_address[shard.number] = address
        self._known.pop(shard.number, None)
        shard.replicated = ReplicatedLog(shard, replica_id)

    def _truncate(self, shard: Shard, header: Header) -> None:
        replicated = shard.replicated
        if replicated is None:
            return
        suspect = self._suspects.get(shard.number)
        if suspect is not None and suspect[0] > header.position:
            del self._suspects[shard.number]
        if header.position < shard.committed:
            # Older than the checkpoint's snapshot; only the frames that it cut, and that were met, are no more.
            if replicated.positions.start <= header.position < replicated.positions.end:
                replicated.positions.truncate(header.position)
            return
        replicated.cut(header.position)

    def _restored(self, shard: Shard, header: Header, address: int, body_ok: bool) -> None:
        restoring = self.restoring.get(shard.number)
        if restoring is None:
            return
        problem = restoring.add(header, address) if body_ok else "a frame of a snapshot is damaged"
        if problem is not None:
            self._quarantine(shard, address, problem)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, damages: Sequence[Damaged]) -> list[Shard]:
        for restoring in self.restoring.values():
            clear_shard(restoring.shard)  # it never became complete; what was before still counts
        self.restoring.clear()
        for number, (position, address) in self._suspects.items():
            self._quarantine(self._store.shards[number], address, f"there are two frames with position {position}")
        for shard in self._store.shards:
            if shard.replicated is not None:
                shard.replicated.own_bytes()
        begun = self._begun
        return super().finish([d for d in damages if d.shard is None or begun.get(d.shard, -1) < d.address])


def _encoded(header: Header) -> bytes:
    fields = header._asdict()
    del fields["header_crc"]
    encoded = encode_header(**fields)
    assert len(encoded) == HEADER_SIZE
    return encoded
