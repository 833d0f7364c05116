"""A shard's log in a cluster: what is not committed yet, what is durable, what a replica is sent.

`ReplicatedLog` is the `ReplicaLog` of the replication core over a real shard and the node's journal. Frames stand in
the journals of all replicas byte for byte as the leader made them; what is about one copy only (that it begins, that it
was cut) is a local record beside them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crc32c import crc32c

from ringpost.internal.v1.record_pb2 import EpochStart
from ringpost.node import log
from ringpost.node.errors import RingpostError
from ringpost.node.journal.frame import (
    FLAG_LOCAL,
    FRAME_OVERHEAD,
    HEADER_SIZE,
    TRAILER,
    FrameDamaged,
    FrameType,
    Header,
    decode_frame,
    decode_header,
    encode_header,
    header_crc_of,
)
from ringpost.node.replication.epochs import EpochCache
from ringpost.node.replication.ports import Frames, LogDamaged
from ringpost.node.shard.apply import NoCatalog, apply_frame
from ringpost.node.shard.commits import Action, Waiting
from ringpost.node.shard.positions import Positions

if TYPE_CHECKING:
    from ringpost.node.shard.shard import Shard


AtDurable = Callable[[RingpostError | None], None]
Touched = Callable[["ReplicatedLog"], None]
# Reads these rows (address, length) for a node; then calls `readable`.
ReadFor = Callable[["ReplicatedLog", str, int, Sequence[tuple[int, int]]], None]


class TailFrame(NamedTuple):
    """A frame that is not committed. `action` None: it came from a leader, or from recovery, and is applied."""

    address: int
    header: bytes
    body: bytes | memoryview
    action: Action | None
    args: tuple[Any, ...]
    at_durable: AtDurable | None = None


class ReplicatedLog:
    """Invariants: committed <= durable <= end; the tail has exactly the frames behind `committed`.

    `touched` hears that more is durable (or settled), `appended` that there is more to send. `holders` are the nodes
    that have what is committed.
    """

    def __init__(self, shard: "Shard", replica_id: str) -> None:
        self.shard = shard
        self.replica_id = replica_id
        self.epochs = EpochCache()
        self.positions = Positions(shard.position + 1)
        self.tail: dict[int, TailFrame] = {}
        self.durable = shard.position
        self.serving = False
        self.leading = False
        self.holders: tuple[str, ...] = ()
        self.touched: Touched = _nobody
        self.appended_here: Touched = _nobody
        self.read_for: ReadFor = _no_reader
        self._unsettled = 0
        self._reads: dict[str, tuple[int, Frames]] = {}

    # -- ReplicaLog -------------------------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        return self.shard.position

    @property
    def committed(self) -> int:
        return self.shard.committed

    @property
    def start(self) -> int:
        return self.positions.start

    @property
    def settled(self) -> bool:
        return not self._unsettled

    def begin_epoch(self, epoch: int, session: int) -> None:
        shard = self.shard
        self.leading = True
        shard.epoch = shard.started_epoch = epoch
        shard.session = session
        body = EpochStart(leader=shard.node, session=session).SerializeToString()
        shard.log.append(shard, FrameType.EPOCH_START, body, _committed, time_us=shard.now_us())

    def commit(self, position: int) -> None:
        shard, tail = self.shard, self.tail
        assert position <= self.durable
        while shard.committed < position:
            number = shard.committed + 1
            frame = tail.pop(number)
            shard.committed = number
            shard.committed_crc = header_crc_of(frame.header)
            try:
                if frame.action is not None:
                    frame.action(None, *frame.args)
                else:
                    self._apply(decode_header(frame.header), frame)
            except Exception as error:  # a fault of ours must not hold up what others wait for
                log.error("commit.incident", exception=error, shard=shard.number, position=number)
                self._quarantine(f"the frame at position {number} could not be applied; the log says why")

    def _apply(self, header: Header, frame: TailFrame) -> None:
        problem = apply_frame(self.shard, header, frame.address, frame.body, _NOBODY_LOOKS)
        if problem is not None:
            self._quarantine(problem)

    def _quarantine(self, problem: str) -> None:
        """What this copy makes of its log is not what others do."""
        if not self.shard.quarantined:
            self.shard.quarantined = problem
            log.error("shard.quarantined", shard=self.shard.number, what=problem)

    def accept(self, after: int, frames: bytes) -> None:
        for raw, header, body in self._checked(after, frames):
            address = self.shard.log.journal.append(raw, body)
            self.put(address, raw, header, body)
            self.shard.log.commits.add(Waiting(address, None, 0, 0, self._durable_to, (header.position, address)))

    def _checked(self, after: int, frames: bytes) -> list[tuple[bytes, Header, bytes]]:
        shard = self.shard
        position, crc, epoch, at = after, shard.last_crc, self.epochs.last, 0
        found = []
        while at < len(frames):
            try:
                header, body = decode_frame(frames, at)
            except FrameDamaged as error:
                raise LogDamaged(f"shard {shard.number}, behind position {position}: {error}") from error
            position += 1
            if (header.shard, header.position, header.previous_crc, header.flags) != (shard.number, position, crc, 0):
                raise LogDamaged(f"shard {shard.number}: frame {header.position} does not continue {position - 1}")
            if header.epoch < epoch:
                raise LogDamaged(f"shard {shard.number}: the epoch falls at {position}")
            crc, epoch = header.header_crc, header.epoch
            found.append((frames[at : at + HEADER_SIZE], header, body))
            at += HEADER_SIZE + len(body) + len(TRAILER)
        return found

    def put(self, address: int, raw: bytes, header: Header, body: bytes | memoryview) -> None:
        """A frame of the chain is in the journal: recovered, or appended as a follower."""
        shard = self.shard
        shard.position = header.position
        shard.last_crc = header.header_crc
        shard.last_time_us = max(shard.last_time_us, header.time_us)
        shard.epoch = shard.started_epoch = header.epoch
        self.epochs.note(header.epoch, header.position)
        self.positions.append(address, FRAME_OVERHEAD + header.body_length)
        self.tail[header.position] = TailFrame(address, raw, body, None, ())

    def own_bytes(self) -> None:
        """Recovery is over: keeps no view into what it read."""
        for position, frame in self.tail.items():
            self.tail[position] = frame._replace(body=bytes(frame.body))

    def truncate(self, end: int) -> None:
        shard = self.shard
        assert end >= shard.committed, "what is committed stays"
        self.cut(end)
        self._append_local(FrameType.TRUNCATE, b"", end)

    def cut(self, end: int) -> None:
        """Forgets what follows `end`, in memory."""
        shard = self.shard
        for position in range(shard.position, end, -1):
            self.tail.pop(position, None)
        shard.position = end
        shard.last_crc = header_crc_of(self.tail[end].header) if end in self.tail else shard.committed_crc
        self.durable = min(self.durable, end)
        self.positions.truncate(end)
        self.epochs.truncate(end)
        self._reads.clear()

    def read(self, node: str, after: int, bytes_max: int) -> Frames | None:
        if after < self.shard.committed:
            return self._read_from_disk(node, after, bytes_max)
        parts: list[bytes | memoryview] = []
        size, position = 0, after
        while (frame := self.tail.get(position + 1)) is not None:
            length = FRAME_OVERHEAD + len(frame.body)
            if parts and size + length > bytes_max:
                break
            parts += (frame.header, frame.body, TRAILER)
            size += length
            position += 1
        return Frames(b"".join(parts), position)

    def _read_from_disk(self, node: str, after: int, bytes_max: int) -> Frames | None:
        place, frames = self._reads.pop(node, (-1, None))
        if place == after and frames is not None:
            return frames
        # Only what is committed, which is durable and no truncation takes it back meanwhile.
        rows = self.positions.rows(after, bytes_max)[: self.shard.committed - after]
        self.read_for(self, node, after, rows)
        return None

    def have_read(self, node: str, after: int, frames: Frames) -> None:
        """What `read_for` was asked for."""
        self._reads[node] = (after, frames)

    # -- the leader's appends ---------------------------------------------------------------------------------------

    def appended(
        self,
        address: int,
        header: bytes,
        body: bytes,
        action: Action,
        args: tuple[Any, ...],
        at_durable: AtDurable | None,
    ) -> None:
        """`Log.append` has put a frame of this node's into the journal, at the shard's new position."""
        position = self.shard.position
        self.epochs.note(self.shard.epoch, position)
        self.positions.append(address, FRAME_OVERHEAD + len(body))
        self.tail[position] = TailFrame(address, header, body, action, args, at_durable)
        self.shard.log.commits.add(Waiting(address, None, 0, 0, self._durable_to, (position, address)))
        self.appended_here(self)

    def _durable_to(self, error: RingpostError | None, position: int, address: int) -> None:
        frame = self.tail.get(position)
        if error is not None or frame is None or frame.address != address:
            return  # cut off meanwhile, or the disk failed and the node ends
        self.durable = position
        if frame.at_durable is not None:
            frame.at_durable(None)
        self.touched(self)

    def after_tail(self, action: Action, *args: Any) -> None:
        """Calls the action when everything that is appended now has committed; at once when it has."""
        frame = self.tail.get(self.shard.position)
        if frame is None:
            action(None, *args)
            return
        assert frame.action is not None, "only a leader is asked to wait"
        both = (frame.action, frame.args, action, args)
        self.tail[self.shard.position] = frame._replace(action=_one_after_the_other, args=both)

    # -- local records ----------------------------------------------------------------------------------------------

    def append_record(self, body: bytes) -> int:
        """A REPLICA record; until it is fsynced the log is not settled. Its address."""
        return self._append_local(FrameType.REPLICA, body, self.shard.position)

    def _append_local(self, kind: FrameType, body: bytes, position: int) -> int:
        shard = self.shard
        header = encode_header(
            type=kind,
            flags=FLAG_LOCAL,
            body_length=len(body),
            body_crc=crc32c(body),
            shard=shard.number,
            replica=shard.log.replica,
            epoch=self.epochs.last,
            position=position,
            committed=shard.committed,
            time_us=shard.last_time_us,
            channel=0,
            base_offset=0,
            count=0,
            producer=0,
            producer_epoch=0,
            base_sequence=0,
            previous_crc=0,
        )
        address = shard.log.journal.append(header, body)
        self._unsettled += 1
        shard.log.commits.add(Waiting(address, None, 0, 0, self._record_durable, ()))
        return address

    def _record_durable(self, error: RingpostError | None) -> None:
        if error is None:
            self._unsettled -= 1
            self.touched(self)

    # -- the end of a leadership ------------------------------------------------------------------------------------

    def fail_tail(self, error: RingpostError) -> None:
        """This node leads no more: whoever waits for a frame is told that its outcome is open. The frames stay."""
        self.leading = False
        for position, frame in list(self.tail.items()):
            if frame.action is None:
                continue
            self.tail[position] = frame._replace(action=None, args=(), at_durable=None)
            try:
                if frame.at_durable is not None and position > self.durable:
                    frame.at_durable(error)
                frame.action(error, *frame.args)
            except Exception as fault:
                log.error("commit.incident", exception=fault, shard=self.shard.number, position=position)

    @property
    def first_needed(self) -> int | None:
        """Address of the oldest frame that no snapshot has; None when there is none."""
        frame = self.tail.get(self.shard.committed + 1)
        return None if frame is None else frame.address


_NOBODY_LOOKS = NoCatalog()


def _committed(error: RingpostError | None) -> None:
    """For frames nobody waits for."""


def _one_after_the_other(
    error: RingpostError | None, first: Action, first_args: Any, second: Action, second_args: Any
) -> None:
    try:
        first(error, *first_args)
    finally:
        second(error, *second_args)


def _nobody(_: ReplicatedLog) -> None:
    """Until somebody listens."""


def _no_reader(*_: object) -> None:
    raise AssertionError("nobody reads for replicas yet")
