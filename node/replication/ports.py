"""What the replication core is given: a log to work on, and a way to be heard. Both are the simulator's in tests."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ringpost.cluster.view import ShardRecord
from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused
from ringpost.node.replication.epochs import EpochCache


class LogDamaged(Exception):  # noqa: N818
    """Frames that came do not fit or are damaged; nothing was appended."""


class Frames(NamedTuple):
    """Whole frames, one behind another, up to and including position `end`."""

    data: bytes
    end: int


class ReplicaLog(Protocol):
    """One shard's log in this directory. Positions count from 1; 0 stands for "nothing".

    Invariant: committed <= durable <= end, and start <= end + 1. `settled` is False while a record about the log itself
    (a cut, a fresh beginning) is not fsynced yet: until then `durable` promises nothing.
    """

    durable: int
    epochs: EpochCache

    @property
    def end(self) -> int:
        """Position of the last frame."""

    @property
    def committed(self) -> int:
        """Position of the last frame that is committed, as far as this replica knows."""

    @property
    def start(self) -> int:
        """The first position that can be read; what lies before is in snapshots."""

    @property
    def settled(self) -> bool:
        """Whether `durable` may be told to others."""

    def begin_epoch(self, epoch: int, session: int) -> None:
        """Leader: appends EPOCH_START."""

    def commit(self, position: int) -> None:
        """Everything up to `position`, at most `durable`, is committed: applies it."""

    def accept(self, after: int, frames: bytes) -> None:
        """Follower: appends whole frames behind `end`, which is `after`. Raises LogDamaged."""

    def truncate(self, end: int) -> None:
        """Follower: drops what follows `end`, which is not below `committed`."""

    def read(self, node: str, after: int, bytes_max: int) -> Frames | None:
        """Frames behind `after`, at least one, in memory. None: they are being read for `node`, who is told later."""


class Link(Protocol):
    """The way out. Nothing here waits, and anything may get lost with its connection."""

    def fetch(self, node: str, message: Fetch) -> None:
        """To the leader."""

    def ack(self, node: str, message: FollowerAck) -> None:
        """To the leader."""

    def diverged(self, node: str, message: Diverged) -> None:
        """To a follower."""

    def refuse(self, node: str, message: Refused) -> None:
        """To a follower, or to who takes himself for one."""

    def ready(self, node: str) -> None:
        """There is data for a follower: take it with `ReplicaCore.next_data`, as long as it gives some."""

    def snapshot(self, node: str, fetch: Fetch) -> None:
        """A follower needs the whole shard; `ReplicaCore.snapshot_sent` when it has all of it."""

    def committed(self) -> None:
        """More is committed: call `ReplicaCore.appended` soon, so that followers hear of it in any case."""

    def propose(self, record: ShardRecord, sessions: Mapping[str, int]) -> None:
        """Replace the shard's record; answered by `ReplicaCore.proposed` with the same record."""

    def refresh(self, token: int) -> None:
        """Read the record, linearizably, from now on; answered by `ReplicaCore.see` with the token.

        A read that fails needs no answer: who still wants to know asks again.
        """

    def changed(self) -> None:
        """`role`, `serving` or `frozen` is another one."""

    def alarm(self, what: str) -> None:
        """The replica met what the protocol rules out, and leads or follows no more: a person must look."""


class Limits(NamedTuple):
    """Times in microseconds, sizes in bytes."""

    lag_us_max: int = 5_000_000  # behind for longer: out of the in-sync set
    retry_us: int = 500_000  # between two tries of something that was not answered
    fence_us: int = 2_000_000  # a fence whose epoch does not show ends after it
    transfer_us: int = 1_000_000  # how long a leader holds publishes for a hand-over
    transfer_pause_us: int = 5_000_000  # after a hand-over that did not work out
    let_in_us: int = 1_000_000  # how long commits wait for a copy that is about to count
    let_in_pause_us: int = 5_000_000  # after it did not come
    word_us: int = 1_500_000  # how long it counts that a follower said that it follows
    alone_us: int = 1_900_000  # `word_us`, and what two clocks may differ in it
    window_bytes: int = 8 << 20  # sent to one follower and not acknowledged
    data_bytes: int = 1 << 20  # in one Data message


__all__ = [
    "Data",
    "Diverged",
    "Fetch",
    "FollowerAck",
    "Frames",
    "Limits",
    "Link",
    "LogDamaged",
    "Refused",
    "ReplicaLog",
]
