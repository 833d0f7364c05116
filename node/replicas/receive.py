"""Receiving a whole shard: it is made beside what is here, and takes its place when all of it is fsynced."""

from collections.abc import Callable

from ringpost.internal.v1.peer_pb2 import SnapshotPart
from ringpost.internal.v1.record_pb2 import ReplicaRecord, ShardSnapshot
from ringpost.node.errors import RingpostError
from ringpost.node.journal.frame import (
    FLAG_RESTORED,
    FRAME_OVERHEAD,
    FrameDamaged,
    decode_frame,
    encode_header,
)
from ringpost.node.shard.cluster_replay import Restoring, adopt, clear_shard
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store


class Receiving:
    """One snapshot on its way into the journal. Parts come in order, one snapshot a `fetch_id`."""

    def __init__(self, store: Store, shard: Shard, replica_id: str, fetch_id: int) -> None:
        self.shard = shard
        self.fetch_id = fetch_id
        self._store = store
        self._replica_id = replica_id
        self._restoring: Restoring | None = None
        self.ended = False  # all of it has come, and is about to be fsynced
        self._next_part = 0
        self._begun = 0  # address of its first record

    def take(self, part: SnapshotPart, complete: "Callable[[Receiving], None]") -> str | None:
        """The next part; what is wrong with it, or None. `complete` is called when everything is fsynced."""
        if part.number != self._next_part:
            return f"part {part.number} follows {self._next_part - 1}"
        self._next_part += 1
        kind = part.WhichOneof("part")
        if kind == "begin":
            return self._begin(part.begin)
        if self._restoring is None:
            return "it has no beginning"
        if kind == "frames":
            return self._frames(self._restoring, part.frames)
        return self._end(self._restoring, part, complete)

    def _begin(self, encoded: bytes) -> str | None:
        snapshot = ShardSnapshot.FromString(encoded)
        self._restoring = Restoring(self.shard, self._replica_id, snapshot)
        snapshot.replica_id = self._replica_id
        record = ReplicaRecord(replica_id=self._replica_id, snapshot=snapshot)
        assert self.shard.replicated is not None
        self._begun = self.shard.replicated.append_record(record.SerializeToString())
        self._store.restoring[self.shard.number] = self._begun
        return None

    def _frames(self, restoring: Restoring, frames: bytes) -> str | None:
        journal = self.shard.log.journal
        at = 0
        while at < len(frames):
            try:
                header, body = decode_frame(frames, at)
            except FrameDamaged as error:
                return str(error)
            fields = header._asdict() | {"flags": FLAG_RESTORED, "committed": 0}
            del fields["header_crc"]
            problem = restoring.add(header, journal.append(encode_header(**fields), body))
            if problem is not None:
                return problem
            at += FRAME_OVERHEAD + len(body)
        return None

    def _end(self, restoring: Restoring, part: SnapshotPart, complete: "Callable[[Receiving], None]") -> str | None:
        frames = part.end_frame_count
        problem = restoring.finish(frames, part.trims)
        if problem is not None:
            return problem
        self.ended = True
        assert self.shard.replicated is not None
        record = ReplicaRecord(replica_id=self._replica_id, restored=frames, trims=part.trims)
        self.shard.replicated.append_record(record.SerializeToString())

        def done(error: RingpostError | None) -> None:
            if error is None:
                complete(self)

        self.shard.log.commits.after_all(done)
        return None

    def install(self) -> None:
        """It is complete and fsynced."""
        assert self._restoring is not None
        self._end_restoring()
        clear_shard(self.shard)
        adopt(self.shard, self._restoring.shard)

    def abandon(self) -> None:
        """It comes to nothing; its frames are dead."""
        self._end_restoring()
        if self._restoring is not None:
            clear_shard(self._restoring.shard)
            self._restoring = None

    def _end_restoring(self) -> None:
        """Checkpoints need not keep its beginning any more; that of a later one they must."""
        if self._store.restoring.get(self.shard.number) == self._begun:
            del self._store.restoring[self.shard.number]
