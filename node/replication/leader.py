"""A shard's leadership in one epoch: who has what, what is committed, who is in sync, the hand-over. Pure.

Rules P2 to P5 and P11 of the protocol (ARCHITECTURE.md). An object lives as long as its epoch.
"""

from collections.abc import Mapping
from dataclasses import replace

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import Leader, Role, ShardRecord
from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused
from ringpost.node.replication.ports import Limits, Link, ReplicaLog
from ringpost.node.replication.progress import Progress


class Leading:
    """This node's leadership.

    `serving`: the EPOCH_START frame is committed, so everything before it is. `fenced`: somebody may be elected in
    place of it, so nothing is committed and nothing taken. `frozen`: nothing is taken because of a hand-over.
    `pending`: a record that was proposed and whose outcome is not known; until it is, both sets must have a frame.
    `alone_from_us`: from then on no leader before can still give groups messages.
    """

    # Frames that a copy may lack for commits to wait until it has them.
    LET_IN_FRAMES_MAX = 1_000

    def __init__(
        self, shard: int, log: ReplicaLog, link: Link, limits: Limits, record: ShardRecord, now_us: int
    ) -> None:
        assert record.leader is not None
        self.shard = shard
        self.record = record
        self.epoch = record.epoch
        self.me = record.leader
        self.serving = False
        self.fenced = False
        self.frozen = False
        self.alone_from_us = now_us + limits.alone_us
        self.pending: ShardRecord | None = None
        self.followers: dict[str, Progress] = {}
        self._log = log
        self._link = link
        self._limits = limits
        self._begun_us = now_us
        self._appended_us, self._asked_us = now_us, 0
        self._sessions: Mapping[str, int] = {}
        self._lost_nodes: set[str] = set()
        self._pending_sessions: Mapping[str, int] = {}
        self._proposed_us = 0
        self._called_us = now_us
        self._conflict_token = 0
        self._transfer_until_us = 0
        self._transfer_not_before_us = 0
        self._guest = ""  # a replica that nothing is committed without, so that it comes to have everything
        self._guest_until_us = self._guest_not_before_us = 0
        log.begin_epoch(record.epoch, self.me.session)
        self.start_position = log.end

    # -- the record -------------------------------------------------------------------------------------------------

    def see(self, record: ShardRecord, sessions: Mapping[str, int], now_us: int) -> None:
        """A record of this epoch, as new as the last or newer, and everybody's sessions."""
        self._sessions = sessions
        for progress in list(self.followers.values()):
            if sessions.get(progress.node, 0) != progress.session or record.replica(progress.replica_id) is None:
                del self.followers[progress.replica_id]
        if record.revision > self.record.revision:
            if self.pending is not None and record.revision > self.pending.revision:
                self.pending = None
            self.record = record
        self.advance()
        self.tick(now_us)

    def node_lost(self, node: str, now_us: int) -> None:
        """The node's process is surely not running: its connection broke and a new one is refused."""
        self._lost_nodes.add(node)
        for progress in list(self.followers.values()):
            if progress.node == node:
                progress.stop()
        self.tick(now_us)

    # -- what followers say -----------------------------------------------------------------------------------------

    def fetch(self, node: str, session: int, message: Fetch, now_us: int) -> None:
        """A replica tells where its log ends. The caller has compared the epoch."""
        replica = self.record.replica(message.replica_id)
        if replica is None or replica.node != node or self._sessions.get(node, 0) != session or self.fenced:
            self._link.refuse(node, _refused(message, self.epoch))
            return
        self._lost_nodes.discard(node)
        progress = self.followers.get(message.replica_id)
        if progress is None or progress.session != session:
            progress = Progress(node, message.replica_id, session, self._caught_up_at_birth(message.replica_id, now_us))
            self.followers[message.replica_id] = progress
        elif message.fetch_id <= progress.fetch_id:
            return  # late, or twice
        at = self._log.epochs.end_of(message.last_epoch, self._log.end)
        if at is None or message.end < self._log.start - 1:
            progress.answer(message.fetch_id)
            progress.snapshotting = True
            self._link.snapshot(node, message)
            return
        epoch, end = at
        if epoch != message.last_epoch or end < message.end:
            progress.answer(message.fetch_id)
            self._link.diverged(
                node,
                Diverged(shard=self.shard, epoch=self.epoch, fetch_id=message.fetch_id, log_epoch=epoch, log_end=end),
            )
            return
        progress.begin(message.fetch_id, message.end, message.window_bytes)
        progress.look(self._log.end, now_us)
        self._link.ready(node)
        self.advance()
        self.tick(now_us)

    def _caught_up_at_birth(self, replica_id: str, now_us: int) -> int:
        return self._begun_us if replica_id in self.record.in_sync else now_us

    def ack(self, node: str, session: int, message: FollowerAck, now_us: int) -> None:
        """A follower has fsynced more."""
        progress = self._flow(node, message.fetch_id)
        if progress is None or progress.session != session or message.end > progress.sent:
            return
        progress.word_us = max(progress.word_us, message.asked_us)
        progress.note_acked(message.end, self._log.end, now_us)
        self.advance()
        if progress.sent < self._log.end:
            self._link.ready(node)
        if self._wants_in(progress) or self._transfer_until_us:
            self.tick(now_us)

    def _flow(self, node: str, fetch_id: int) -> Progress | None:
        for progress in self.followers.values():
            if progress.node == node and progress.fetch_id == fetch_id and progress.flowing:
                return progress
        return None

    def snapshot_sent(self, node: str, fetch_id: int) -> None:
        """The follower has a whole copy; it will fetch from there on."""
        for progress in self.followers.values():
            if progress.node == node and progress.fetch_id == fetch_id:
                progress.snapshotting = False

    def wants_snapshot(self, node: str, fetch_id: int) -> bool:
        """Whether a follower still waits for the snapshot that this fetch led to."""
        return any(p.node == node and p.fetch_id == fetch_id and p.snapshotting for p in self.followers.values())

    # -- what is sent -----------------------------------------------------------------------------------------------

    def appended(self, now_us: int) -> None:
        """Frames were appended here, or there is something else to tell."""
        self._appended_us = now_us
        for progress in self.followers.values():
            if progress.flowing:
                self._link.ready(progress.node)

    def readable(self, node: str) -> None:
        """What `ReplicaLog.read` began to read is in memory."""
        for progress in self.followers.values():
            if progress.node == node:
                progress.reading = False
                self._link.ready(node)

    def next_data(self, node: str) -> Data | None:
        """What to send to a follower now; None when there is nothing, or no room."""
        for progress in self.followers.values():
            if progress.node == node and progress.flowing:
                return self._data_for(progress)
        return None

    def _data_for(self, progress: Progress) -> Data | None:
        log = self._log
        committed = log.committed
        frames = None
        if progress.sent < log.end and progress.room > 0 and not progress.reading:
            if progress.sent < log.start - 1:
                progress.stop()  # trimmed meanwhile; it will be told to ask again, and get a snapshot
                return None
            frames = log.read(progress.node, progress.sent, self._limits.data_bytes)
            progress.reading = frames is None
        if frames is None and committed <= progress.committed_sent and self._asked_us <= progress.asked_us:
            return None
        progress.asked_us = max(self._asked_us, self._appended_us)
        progress.committed_sent = committed
        data = Data(
            shard=self.shard,
            epoch=self.epoch,
            fetch_id=progress.fetch_id,
            after=progress.sent,
            committed=committed,
            asked_us=progress.asked_us,
        )
        if frames is not None:
            data.frames = frames.data
            progress.note_sent(frames.end, len(frames.data))
        return data

    # -- committing -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Commits what every in-sync replica has fsynced."""
        log, record = self._log, self.record
        if self.fenced or len(record.in_sync) < record.min_isr:
            return
        position = log.durable
        for replica_id in self._must_have():
            if replica_id != self.me.replica_id:
                progress = self.followers.get(replica_id)
                position = min(position, progress.acked if progress is not None else 0)
        if self._guest:
            progress = self.followers.get(self._guest)
            position = min(position, progress.acked if progress is not None else 0)
        if position <= log.committed or position < self.start_position:
            # What earlier epochs left behind is committed by a frame of this epoch only.
            return
        log.commit(position)
        self._link.committed()
        if not self.serving:
            self.serving = True
            self._link.changed()

    def _must_have(self) -> set[str]:
        """Replicas of the recorded set, and of the one that may be recorded by now."""
        wanted = set(self.record.in_sync)
        if self.pending is not None:
            wanted.update(self.pending.in_sync)
        return wanted

    def may_deliver(self, now_us: int) -> bool:
        """Whether surely nobody else gives anybody this shard's messages now (P7).

        Who is elected was a copy that counts, and says nothing to a leader before from its fence on. So while all of
        them have said lately that they follow, nobody else is elected; and after as long a time a new leader is alone.
        They are asked when their word gets old, and by each frame.
        """
        word_us = self._limits.word_us
        yields = self.pending is not None and self.pending.leader != self.me
        if not self.serving or self.fenced or self.frozen or yields or now_us < self.alone_from_us:
            return False
        others = [self.followers.get(replica_id) for replica_id in self._must_have() - {self.me.replica_id}]
        oldest_us = min((0 if other is None else other.word_us for other in others), default=now_us)
        if oldest_us + word_us // 3 < now_us and self._asked_us + word_us // 10 < now_us:
            self._asked_us = now_us
            for progress in self.followers.values():
                if progress.flowing:
                    self._link.ready(progress.node)
        return now_us < oldest_us + word_us

    # -- who is in sync ---------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        """Time has passed, or something changed: looks after the in-sync set and the hand-over."""
        self._call_back(now_us)
        if self.pending is not None:
            if self._proposed_us + self._limits.retry_us <= now_us:
                self._send_pending(now_us)
            if self._transfer_until_us and now_us >= self._transfer_until_us:
                # Whether the target leads is not known. What is taken now commits only if it does not.
                self._end_transfer(now_us)
            return
        if self.fenced:
            return
        for progress in self.followers.values():
            progress.look(self._log.end, now_us)
        if self._transfer(now_us):
            return
        self._let_in(now_us)
        wanted = self._wanted_in_sync(now_us)
        if wanted != self.record.in_sync:
            roles = dict.fromkeys(wanted, Role.MEMBER)
            replicas = tuple(
                replace(r, role=roles.get(r.replica_id, r.role)) if r.role is Role.LEARNER else r
                for r in self.record.replicas
            )
            self._propose(replace(self.record, in_sync=wanted, replicas=replicas), now_us)

    def _call_back(self, now_us: int) -> None:
        """Who does not know that its flow has ended would wait for ever."""
        if self._called_us + self._limits.retry_us > now_us:
            return
        self._called_us = now_us
        for progress in self.followers.values():
            if progress.deserted:
                refused = Refused(shard=self.shard, fetch_id=progress.fetch_id, epoch=self.epoch)
                self._link.refuse(progress.node, refused)

    def _wanted_in_sync(self, now_us: int) -> tuple[str, ...]:
        """The set as it should be: who is lost or late goes if enough remain, who has everything comes."""
        record = self.record
        joining = [p.replica_id for p in self.followers.values() if self._wants_in(p)]
        leaving = [replica_id for replica_id in record.in_sync if self._is_late(replica_id, now_us)]
        room = len(record.in_sync) + len(joining) - record.min_isr
        gone = set(leaving[: max(room, 0)])
        return tuple(r for r in (*record.in_sync, *joining) if r not in gone)

    def _let_in(self, now_us: int) -> None:
        """Nothing is committed for a moment without a copy that lacks only what has just come.

        Under a steady load, and with a follower that is a little slower than the others, there would never be a moment
        at which it has all that is committed.
        """
        guest, late = self.followers.get(self._guest), now_us >= self._guest_until_us
        if guest is None or not self._may_come_in(guest) or late:
            if self._guest:
                self._guest = ""
                self._guest_not_before_us = now_us + self._limits.let_in_pause_us * late
                self.advance()
            if now_us < self._guest_not_before_us:
                return
            near = (p for p in self.followers.values() if self._may_come_in(p) and self._is_near(p, now_us))
            self._guest = next((p.replica_id for p in near), "")
            self._guest_until_us = now_us + self._limits.let_in_us

    def _is_near(self, progress: Progress, now_us: int) -> bool:
        lacks = self._log.end - progress.acked
        return lacks <= self.LET_IN_FRAMES_MAX and progress.caught_up_us + self._limits.let_in_us >= now_us

    def _may_come_in(self, progress: Progress) -> bool:
        if progress.replica_id in self.record.in_sync or not progress.flowing or progress.node in self._lost_nodes:
            return False
        replica = self.record.replica(progress.replica_id)
        return replica is not None and replica.role is not Role.LEAVING

    def _wants_in(self, progress: Progress) -> bool:
        return self._may_come_in(progress) and progress.acked >= max(self._log.committed, self.start_position)

    def _is_late(self, replica_id: str, now_us: int) -> bool:
        if replica_id == self.me.replica_id:
            return False
        replica = self.record.replica(replica_id)
        if replica is None or self._sessions.get(replica.node, 0) == 0 or replica.node in self._lost_nodes:
            return True
        progress = self.followers.get(replica_id)
        caught_up_us = self._begun_us if progress is None else progress.caught_up_us
        return caught_up_us + self._limits.lag_us_max < now_us

    def _propose(self, record: ShardRecord, now_us: int) -> None:
        """`pending` is set before anything is sent: from now on the new record may be the true one."""
        assert record.leader is not None
        # The session with which the member's log was heard of; another one may have lost it.
        known = {p.node: p.session for p in self.followers.values()} | {self.me.node: self.me.session}
        joining = [record.replica(replica_id) for replica_id in {*record.in_sync} - {*self.record.in_sync}]
        nodes = {self.me.node, record.leader.node, *(replica.node for replica in joining if replica is not None)}
        self.pending = record
        self._pending_sessions = {node: known[node] for node in nodes}
        self._conflict_token = 0
        self._send_pending(now_us)

    def _send_pending(self, now_us: int) -> None:
        """The very same each time: of several on their way at most one comes true, and one refusal is for all."""
        assert self.pending is not None
        self._proposed_us = now_us
        self._link.propose(self.pending, self._pending_sessions)

    def proposed(self, record: ShardRecord, outcome: Proposal, token: int) -> None:
        """What became of `record`. `pending` stays until a record tells, but for one that surely never comes.

        `token` names a read that has not begun yet.
        """
        if outcome is Proposal.UNKNOWN or self.pending != record:
            return  # `tick` proposes the very same again: only one of them can ever come true
        if outcome is Proposal.CONFLICT:
            self._conflict_token = token
        self._link.refresh(token)

    def confirmed(self, record: ShardRecord, token: int, now_us: int) -> None:
        """A linearizable read. When it began after a refusal, and the record is the old one still, then it never
        changes to the proposed one: what was compared besides the revision never comes true again."""
        refused = token == self._conflict_token > 0
        if self.pending is not None and refused and record.revision == self.pending.revision:
            self.pending = None
            if self._transfer_until_us:
                self._end_transfer(now_us)

    # -- handing over -----------------------------------------------------------------------------------------------

    def _transfer(self, now_us: int) -> bool:
        """Follows `transfer_to`; True while the rest must wait."""
        target = self.record.replica(self.record.transfer_to)
        progress = self.followers.get(self.record.transfer_to)
        if self._transfer_until_us and (target is None or now_us >= self._transfer_until_us):
            self._end_transfer(now_us)
        if (
            target is None
            or progress is None
            or not progress.flowing
            or target.replica_id not in self.record.in_sync
            or not self.serving
            or now_us < self._transfer_not_before_us
        ):
            return False
        if not self._transfer_until_us:
            if self._log.end - progress.acked > 1_000:
                return False  # too far behind to be worth holding anybody up
            self._transfer_until_us = now_us + self._limits.transfer_us
            self.frozen = True
            self._link.changed()
        if progress.acked >= self._log.end and self._log.committed >= self._log.end:
            leader = Leader(target.node, target.replica_id, progress.session)
            record = replace(self.record, epoch=self.epoch + 1, leader=leader, transfer_to="", handed_over=True)
            self._propose(record, now_us)
        return True

    def _end_transfer(self, now_us: int) -> None:
        self._transfer_until_us = 0
        self._transfer_not_before_us = now_us + self._limits.transfer_pause_us
        self.frozen = False
        self._link.changed()


def _refused(message: Fetch, epoch: int) -> Refused:
    return Refused(shard=message.shard, fetch_id=message.fetch_id, epoch=epoch)
