"""A data directory: logs of shards, one journal's fsync for all of them, and what a crash leaves of it."""

import json
import random
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, NamedTuple, Protocol
from zlib import crc32

from ringpost.node.replication.epochs import EpochCache
from ringpost.node.replication.ports import Frames, LogDamaged
from tests.simulation.kernel import Violation

# epoch, position, producer (0: EPOCH_START), sequence, chain: a checksum of this frame and of all before it, so that
# two logs with the same chain at a position are the same up to it.
FRAME = Struct("<5I")
_LINK = Struct("<4I")


UNNUMBERED = (0, 0xFFFFFFFF)  # producers whose sequences are none: of EPOCH_START, and of what is about groups


class Frame(NamedTuple):
    """One record of a log."""

    epoch: int
    position: int
    producer: int
    sequence: int
    chain: int


def chained(before: int, epoch: int, position: int, producer: int, sequence: int) -> Frame:
    """The frame that follows one with the chain `before`."""
    chain = crc32(_LINK.pack(epoch, position, producer, sequence), before)
    return Frame(epoch, position, producer, sequence, chain)


class Mirror(Protocol):
    """Somebody who makes a state of what is in a log, as it comes, goes and commits."""

    def begin_epoch(self, epoch: int, session: int) -> None: ...

    def pushed(self, frame: Frame) -> None: ...

    def cut(self, end: int) -> None: ...

    def checkpoint(self) -> bytes: ...

    def installed(self, checkpoint: bytes) -> None: ...


class SimLog:
    """`ReplicaLog` in memory. `base_chain` is the chain at `start - 1`."""

    def __init__(self, shard: int, replica_id: str, disk: "Disk") -> None:
        self.shard = shard
        self.replica_id = replica_id
        self.end = self.durable = self.committed = 0
        self.start = 1
        self.epochs = EpochCache()
        self.settled = True
        self.frames: list[Frame] = []
        self.base_chain = 0
        self.where: dict[tuple[int, int], int] = {}
        self.last: dict[int, int] = {}
        self.saved_committed = 0
        self.mark = 0  # what the fsync under way covers
        self.cut_during = False
        self.mirror: Mirror | None = None  # follows the log, in worlds with groups
        self.mirrored = False  # whether there is one whenever its process lives
        self.checkpoint = b""  # a state of the mirror at a position that is committed
        self.checkpoint_position = 0
        self.on_commit: Callable[[SimLog, int, int], None] = lambda log, old, new: None
        self.on_miss: Callable[[SimLog, str], None] = lambda log, node: None
        self._disk = disk

    def chain_at(self, position: int) -> int | None:
        """None where it is not known any more."""
        at = position - self.start
        return self.base_chain if at == -1 else self.frames[at].chain if 0 <= at < len(self.frames) else None

    # -- what the core does -----------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, session: int) -> None:
        if self.mirror is not None:
            self.mirror.begin_epoch(epoch, session)
        else:
            self.append(epoch, 0, session)

    def append(self, epoch: int, producer: int, sequence: int) -> int:
        """The leader's; the position."""
        before = self.frames[-1].chain if self.frames else self.base_chain
        self._push(chained(before, epoch, self.end + 1, producer, sequence))
        self._disk.wrote(self, "append", None)
        return self.end

    def _push(self, frame: Frame) -> None:
        self.epochs.note(frame.epoch, frame.position)
        self.frames.append(frame)
        self.end = frame.position
        if frame.producer not in UNNUMBERED:
            self.where[frame.producer, frame.sequence] = frame.position
            self.last[frame.producer] = frame.sequence

    def _pop(self) -> Frame:
        frame = self.frames.pop()
        self.end -= 1
        if frame.producer not in UNNUMBERED:
            del self.where[frame.producer, frame.sequence]
            if frame.sequence == 1:
                del self.last[frame.producer]
            else:
                self.last[frame.producer] = frame.sequence - 1
        return frame

    def commit(self, position: int) -> None:
        old = self.committed
        if not self.settled or not old < position <= self.durable:
            raise Violation(f"V10: commit of {position} with {old} committed and {self.durable} durable")
        self.committed = position
        self.on_commit(self, old, position)

    def accept(self, after: int, frames: bytes) -> None:
        if after != self.end:
            raise Violation(f"frames behind {after} for a log that ends at {self.end}")
        if self._disk.damages and self._disk.rng.random() < 0.3:
            raise LogDamaged("a frame is damaged")
        chain = self.frames[-1].chain if self.frames else self.base_chain
        for raw in FRAME.iter_unpack(frames):
            frame = Frame(*raw)
            if frame != chained(chain, *frame[:4]) or frame.position != self.end + 1:
                raise Violation(f"V2: {frame} does not continue the log of {self.replica_id}, which ends at {self.end}")
            chain = frame.chain
            self._push(frame)
            if self.mirror is not None:
                self.mirror.pushed(frame)
            self._disk.wrote(self, "append", None)

    def truncate(self, end: int) -> None:
        if end < self.committed:
            raise Violation(f"V10: {self.replica_id} is cut at {end}, below {self.committed}")
        if end >= self.end:
            raise Violation(f"{self.replica_id} is cut at {end} and ends at {self.end}")
        removed = [self._pop() for _ in range(self.end - end)]
        self.epochs.truncate(end)
        self.durable = min(self.durable, end)
        self.mark = min(self.mark, end)
        self.settled, self.cut_during = False, True
        if self.mirror is not None:
            self.mirror.cut(end)
        self._disk.wrote(self, "cut", removed[::-1])

    def read(self, node: str, after: int, bytes_max: int) -> Frames | None:
        if self._disk.rng.random() < self._disk.misses:
            self.on_miss(self, node)
            return None
        at = after + 1 - self.start
        if not 0 <= at < len(self.frames):
            raise Violation(f"read behind {after} of a log from {self.start} to {self.end}")
        some = self.frames[at : at + max(1, bytes_max // FRAME.size)]
        return Frames(b"".join([FRAME.pack(*frame) for frame in some]), some[-1].position)

    # -- snapshots --------------------------------------------------------------------------------------------------

    def trim(self, before: int) -> None:
        """Drops what is before a position that is committed: a snapshot has it."""
        if self.mirror is not None:
            self._save(self.mirror.checkpoint())
        if self.mirrored:
            before = min(before, self.checkpoint_position)
        count = min(before, self.committed) - self.start + 1
        if count > 0:
            self.base_chain = self.frames[count - 1].chain
            del self.frames[:count]
            self.start += count

    def _save(self, checkpoint: bytes) -> None:
        self.checkpoint, self.checkpoint_position = checkpoint, self.committed

    def snapshot(self) -> bytes:
        """The state at `committed`."""
        at = self.committed
        return json.dumps(
            {
                "position": at,
                "chain": self.chain_at(at),
                "epochs": [entry for entry in self.epochs if entry[1] <= at],
                "where": [(*key, position) for key, position in self.where.items() if position <= at],
                "mirror": self.mirror.checkpoint().hex() if self.mirror is not None else "",
            }
        ).encode()

    def install(self, data: bytes) -> None:
        """Becomes what a snapshot says."""
        new = json.loads(data)
        if new["position"] < self.committed:
            raise Violation(f"V10: {self.replica_id} has {self.committed} and gets a snapshot of {new['position']}")
        self._disk.wrote(self, "install", self._state())
        where = {(producer, sequence): position for producer, sequence, position in new["where"]}
        last: dict[int, int] = {}
        for producer, sequence in where:
            last[producer] = max(last.get(producer, 0), sequence)
        at = new["position"]
        self._restore(([], at, at + 1, EpochCache(map(tuple, new["epochs"])), new["chain"], where, last, at, b"", at))
        self.committed = at
        self._save(bytes.fromhex(new["mirror"]))
        if self.mirror is not None:
            self.mirror.installed(self.checkpoint)
        self.durable = self.mark = 0
        self.settled, self.cut_during = False, True
        self.on_commit(self, at, at)

    def _state(self) -> tuple[Any, ...]:
        return (
            self.frames, self.end, self.start, self.epochs, self.base_chain, self.where, self.last,
            max(self.saved_committed, self.start - 1), self.checkpoint, self.checkpoint_position,
        )  # fmt: skip

    def _restore(self, state: tuple[Any, ...]) -> None:
        (
            self.frames, self.end, self.start, self.epochs, self.base_chain, self.where, self.last,
            self.saved_committed, self.checkpoint, self.checkpoint_position,
        ) = state  # fmt: skip

    # -- crashes ----------------------------------------------------------------------------------------------------

    def undo(self, kind: str, what: Any) -> None:
        """Takes back the latest change."""
        if kind == "append":
            self._pop()
            self.epochs.truncate(self.end)
        elif kind == "cut":
            for frame in what:
                self._push(frame)
        else:
            self._restore(what)

    def reopen(self) -> None:
        """What there is after a crash is read, and fsynced again."""
        self.durable = self.end
        self.settled = True
        self.mirror = None
        self.committed = max(self.saved_committed, self.start - 1, self.checkpoint_position)


class Disk:
    """One directory. `ops` are the changes that no fsync covers yet, of all logs, in order."""

    def __init__(self, directory: str, rng: random.Random) -> None:
        self.directory = directory
        self.rng = rng
        self.logs: dict[str, SimLog] = {}
        self.misses = 0.05
        self.damages = False
        self.on_dirty: Callable[[], None] = lambda: None
        self.on_create: Callable[[str, SimLog], None] = lambda replica_id, log: None
        self._ops: list[tuple[SimLog, str, Any]] = []
        self._covered = 0

    def create(self, shard: int, replica_id: str) -> SimLog:
        """An empty replica, fsynced."""
        log = self.logs[replica_id] = SimLog(shard, replica_id, self)
        self.on_create(replica_id, log)
        return log

    def wrote(self, log: SimLog, kind: str, what: Any) -> None:
        """A log has changed."""
        self._ops.append((log, kind, what))
        self.on_dirty()

    @property
    def dirty(self) -> bool:
        return bool(self._ops)

    def fsync_begins(self) -> None:
        """What is written by now will be durable when it ends."""
        self._covered = len(self._ops)
        for log in self.logs.values():
            log.mark, log.cut_during = log.end, False

    def fsync_ends(self) -> Iterable[SimLog]:
        """Logs of which more is durable."""
        covered, self._ops = self._ops[: self._covered], self._ops[self._covered :]
        done = list(dict.fromkeys(log for log, _, _ in covered))
        for log in done:
            log.durable = max(log.durable, min(log.mark, log.end))
            log.settled = log.settled or not log.cut_during
            log.saved_committed = max(log.saved_committed, min(log.committed, log.durable))
        return done

    def crash(self, keep: str) -> None:
        """Loses what was not fsynced: "none" of it stays, "all", or the beginning of it ("some")."""
        kept = {"none": 0, "all": len(self._ops)}.get(keep, self.rng.randint(0, len(self._ops)))
        while len(self._ops) > kept:
            log, kind, what = self._ops.pop()
            log.undo(kind, what)
        self._ops.clear()
        self._covered = 0
        for log in self.logs.values():
            log.reopen()
