"""What all shards of a node share: the journal, the clock, the tail cache, the queue of commits."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from crc32c import crc32c

from ringpost.node.errors import RingpostError, Unavailable
from ringpost.node.journal.cache import TailCache
from ringpost.node.journal.frame import FRAME_OVERHEAD, FrameType, encode_header, header_crc_of
from ringpost.node.journal.pending import JournalFailed
from ringpost.node.journal.reclaim import SegmentLedger
from ringpost.node.shard.burial import Burials
from ringpost.node.shard.commits import Action, Commits, Waiting
from ringpost.node.shard.deadlines import Deadlines
from ringpost.node.shard.scheduling import Schedules
from ringpost.node.shard.settlements import Settlements
from ringpost.node.shard.warm import Warm

if TYPE_CHECKING:
    from ringpost.node.shard.shard import Shard

Clock = Callable[[], int]  # microseconds since the epoch; the system's, so it may fall


class JournalWriter(Protocol):
    """The part of `node.journal.Journal` that shards use."""

    @property
    def pending_bytes(self) -> int:
        """Appended and not yet durable."""

    @property
    def end(self) -> int:
        """Address at which the next group may begin."""

    def append(self, header: bytes, body: bytes) -> int:
        """Queues a frame and returns its address."""


class Log:
    """Appends frames for shards. `replica` is this directory's local replica number."""

    def __init__(
        self,
        journal: JournalWriter,
        clock: Clock,
        *,
        cache: TailCache,
        ledger: SegmentLedger,
        deadlines: Deadlines,
        settlements: Settlements,
        replica: int = 1,
    ) -> None:
        self.journal = journal
        self.clock = clock
        self.cache = cache
        self.ledger = ledger
        self.replica = replica
        self.commits = Commits()
        self.deadlines = deadlines
        self.settlements = settlements
        self.warm = Warm()
        self.burials = Burials()
        self.schedules = Schedules(deadlines, clock)

    def append(
        self,
        shard: "Shard",
        kind: FrameType,
        body: bytes,
        action: Action,
        *args: Any,
        time_us: int,
        body_crc: int | None = None,
        channel: int = 0,
        base_offset: int = 0,
        count: int = 0,
        producer: int = 0,
        producer_epoch: int = 0,
        base_sequence: int = 0,
        ttl_ms: int = 0,
        at_durable: Callable[[RingpostError | None], None] | None = None,
    ) -> int:
        """Gives the frame the shard's next position, queues `action` for its commit, and returns its address.

        `at_durable`: called when it is fsynced here, only where that is earlier than the commit (in a cluster).
        """
        position = shard.position + 1
        header = encode_header(
            type=kind,
            flags=0,
            body_length=len(body),
            body_crc=crc32c(body) if body_crc is None else body_crc,
            shard=shard.number,
            replica=self.replica,
            epoch=shard.epoch,
            position=position,
            committed=shard.committed,
            time_us=time_us,
            channel=channel,
            base_offset=base_offset,
            count=count,
            producer=producer,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
            previous_crc=shard.last_crc,
            ttl_ms=ttl_ms,
        )
        try:
            address = self.journal.append(header, body)
        except JournalFailed as error:
            raise Unavailable(f"the disk failed, nothing was appended: {error}", reason="NOT_APPENDED") from error
        crc = header_crc_of(header)
        shard.position = position
        shard.last_crc = crc
        if shard.replicated is None:
            self.commits.add(Waiting(address, shard, position, crc, action, args))
        else:
            shard.replicated.appended(address, header, body, action, args, at_durable)
        return address


def frame_length(body: bytes) -> int:
    """Bytes that a frame with this body takes in the journal."""
    return FRAME_OVERHEAD + len(body)
