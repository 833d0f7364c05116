"""A replica that follows: asks the leader for what it lacks, and says what it has. Pure. Rule P3 of the protocol."""

from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused
from ringpost.node.replication.ports import Limits, Link, LogDamaged, ReplicaLog


class Following:
    """Following one leader in one epoch.

    A fetch is sent only while everything here is fsynced, so it says the whole truth. `fetch_id` rises over all
    epochs of this process; an answer to an older fetch is not looked at. `flowing`: the leader has answered the latest
    one, and pushes what comes.
    """

    def __init__(
        self, shard: int, log: ReplicaLog, link: Link, limits: Limits, *, replica_id: str, epoch: int, leader: str
    ) -> None:
        self.shard = shard
        self.epoch = epoch
        self.leader = leader
        self.flowing = False
        self.stopped = False
        self.snapshotting = False
        self._log = log
        self._link = link
        self._limits = limits
        self._replica_id = replica_id
        self._fetch_id = 0
        self._next_try_us = 0
        self._committed = 0
        self._asked_us = 0

    def tick(self, now_us: int, next_fetch_id: int) -> int:
        """Fetches if it is time; the id that the next fetch may take."""
        if self.stopped or self.flowing or self.snapshotting or now_us < self._next_try_us or not self._all_durable:
            return next_fetch_id
        self._fetch_id = next_fetch_id
        self._next_try_us = now_us + self._limits.retry_us
        self._link.fetch(
            self.leader,
            Fetch(
                shard=self.shard,
                epoch=self.epoch,
                replica_id=self._replica_id,
                fetch_id=next_fetch_id,
                end=self._log.end,
                last_epoch=self._log.epochs.last,
                window_bytes=self._limits.window_bytes,
            ),
        )
        return next_fetch_id + 1

    @property
    def _all_durable(self) -> bool:
        return self._log.settled and self._log.durable == self._log.end

    def again(self, now_us: int) -> None:
        """What flowed is lost, and what still comes of it is not wanted; fetch anew, soon."""
        self.flowing = self.snapshotting = False
        self._fetch_id = 0
        self._next_try_us = now_us

    def takes(self, fetch_id: int) -> bool:
        """Whether an answer to that fetch is still of interest."""
        return fetch_id == self._fetch_id and not self.stopped

    # -- what the leader says ---------------------------------------------------------------------------------------

    def data(self, message: Data, now_us: int) -> None:
        """Frames, the committed mark, or a question whether this replica follows."""
        if not self.takes(message.fetch_id):
            return
        log = self._log
        if message.after != log.end:
            self.again(now_us)
            return
        self.flowing = True
        if message.frames:
            try:
                log.accept(message.after, message.frames)
            except LogDamaged:
                self.again(now_us + self._limits.retry_us)
                return
        self._committed = max(self._committed, message.committed)
        if message.asked_us > self._asked_us:
            self._asked_us = message.asked_us
            if not message.frames:
                self._acknowledge()
        self.advance()

    def diverged(self, message: Diverged, now_us: int) -> None:
        """The end of this log is not the leader's: cut it back to what may be."""
        if not self.takes(message.fetch_id) or self.flowing:
            return
        log = self._log
        own = log.epochs.end_of(message.log_epoch, log.end)
        end = min(own[1] if own is not None else log.start - 1, message.log_end)
        if end < log.committed:
            self.stopped = True
            self._link.alarm(f"the leader's log ends at {end}, and {log.committed} is committed here")
            return
        if end < log.end:
            log.truncate(end)
        self.again(now_us)

    def refused(self, message: Refused, now_us: int) -> None:
        """The leader does not serve it now."""
        if self.takes(message.fetch_id):
            self.again(now_us + self._limits.retry_us)

    # -- the log ----------------------------------------------------------------------------------------------------

    def durable(self) -> None:
        """More is fsynced here: says so."""
        self._acknowledge()
        self.advance()

    def _acknowledge(self) -> None:
        if self.flowing and self._log.settled:
            ack = FollowerAck(
                shard=self.shard,
                epoch=self.epoch,
                fetch_id=self._fetch_id,
                end=self._log.durable,
                asked_us=self._asked_us,
            )
            self._link.ack(self.leader, ack)

    def advance(self) -> None:
        """Commits what the leader has committed, as far as it is fsynced here."""
        log = self._log
        position = min(self._committed, log.durable)
        if position > log.committed and self.flowing and log.settled:
            log.commit(position)
