"""One replica of one shard: which role it has, and what it does about what happens. Pure: no clock, no I/O.

Everything comes in by a method and goes out through the `ReplicaLog` and the `Link` that it was given; time is an
argument. The rules (P1 to P12) and what they are for stand in ARCHITECTURE.md; the simulator drives this very code.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import ShardRecord
from ringpost.internal.v1.peer_pb2 import Data, Diverged, Fetch, FollowerAck, Refused
from ringpost.node.replication.follower import Following
from ringpost.node.replication.leader import Leading
from ringpost.node.replication.ports import Limits, Link, ReplicaLog


class Role(Enum):
    """What a replica does now."""

    IDLE = "idle"  # no leader, or nobody has told yet
    LEADER = "leader"
    FOLLOWER = "follower"


class LogEnd(NamedTuple):
    """What a replica has fsynced: what an election compares."""

    last_epoch: int
    end: int


class _Before(NamedTuple):
    """The newest known record of an epoch before, and since when no leader before that one was followed."""

    record: ShardRecord
    since_us: int


class ReplicaCore:
    """One replica. Invariant: a process leads an epoch at most once."""

    def __init__(
        self,
        shard: int,
        log: ReplicaLog,
        link: Link,
        limits: Limits,
        *,
        node: str,
        replica_id: str,
        fetch_id: int = 1,
    ) -> None:
        """`fetch_id`: above all that an earlier core of this replica used in this process."""
        self.shard = shard
        self.replica_id = replica_id
        self.record: ShardRecord | None = None
        self.leading: Leading | None = None
        self.following: Following | None = None
        self._log = log
        self._link = link
        self._limits = limits
        self._node = node
        self.next_fetch_id = fetch_id
        self._sessions: Mapping[str, int] = {}
        self._token = 0
        self._alarmed = False
        self._lead_token = 0  # the read that is to confirm that this replica leads
        self._lead_confirmed = False
        self._lead_asked_us = 0
        self._fence_token = 0  # the read that is to tell whether the fence is still needed
        self._fenced_epoch = 0
        self._fenced_until_us = 0
        self._led_epoch = log.epochs.last
        self._since_us = 0  # since when the record's epoch is known, and no leader before it is followed
        self._before: _Before | None = None
        self._dead: dict[str, int] = {}  # by node: the session whose process surely does not run
        self._early: dict[str, tuple[int, Fetch]] = {}  # by node, with its session: for an epoch that is not led yet

    # -- what others ask --------------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        if self.leading is not None:
            return Role.LEADER
        return Role.FOLLOWER if self.following is not None else Role.IDLE

    @property
    def serving(self) -> bool:
        """Whether this replica may serve clients: it leads, knows what is committed, and nobody else is asked for."""
        leading = self.leading
        return leading is not None and leading.serving and not leading.fenced and not leading.frozen

    def may_deliver(self, now_us: int) -> bool:
        """Whether this replica leads and surely is the only one, so that it may give groups their messages.

        When the followers must be asked first, it is so as soon as they have answered: ask again soon.
        """
        return self.leading is not None and self.leading.may_deliver(now_us)

    @property
    def restless(self) -> bool:
        """Whether `tick` may have something to do: a quiet shard needs none."""
        if self._fenced_until_us or self._lead_token:
            return True
        if self.leading is None:
            return self.following is not None and not self.following.flowing
        leading = self.leading
        if leading.pending is not None or leading.frozen or not leading.serving or leading.record.transfer_to:
            return True
        acked = {p.replica_id for p in leading.followers.values() if p.flowing and p.acked >= self._log.end}
        quiet = acked.intersection(leading.record.in_sync)
        return any(r.replica_id not in quiet and r.node != self._node for r in leading.record.replicas)

    # -- the record -------------------------------------------------------------------------------------------------

    def see(self, record: ShardRecord, sessions: Mapping[str, int], now_us: int, *, token: int = 0) -> None:
        """The shard's record by the newest view. `sessions`: those of all nodes that live. `token`: see `Link.refresh`.

        An older record than before is passed over.
        """
        if self.record is not None and record.revision < self.record.revision:
            return
        if self.record is None or record.epoch > self.record.epoch:
            self._before = None if self.record is None else _Before(self.record, self._since_us)
            self._since_us = now_us
        self.record, self._sessions = record, sessions
        if self.leading is not None and self.leading.epoch != record.epoch:
            self._step_down()
        if record.epoch >= self._fenced_epoch or (token and token == self._fence_token):
            self._unfence(record.epoch)
        leader = record.leader
        mine = (
            leader is not None
            and leader.replica_id == self.replica_id
            and leader.session == sessions.get(self._node, 0) > 0
            and record.epoch > self._led_epoch
        )
        if mine and record.epoch <= self._log.epochs.last:
            self._alarm_behind(record.epoch)
            mine = False
        if self.leading is not None:
            self.leading.see(record, sessions, now_us)
            self.leading.confirmed(record, token, now_us)
        elif mine:
            self._prepare_to_lead(token, now_us)
        else:
            self._lead_token = 0
            self._follow(record, sessions, now_us)
        self._take_early(now_us)

    def _alarm_behind(self, epoch: int) -> None:
        """Only a store that has lost something gives an epoch for the second time."""
        if not self._alarmed:
            self._alarmed = True
            self._link.alarm(f"epoch {epoch} was given to another leadership before: was the store restored?")

    def _prepare_to_lead(self, token: int, now_us: int) -> None:
        """Leads when a linearizable read that began after the record came says the same."""
        self.following = None
        if not self._lead_token:
            self._lead_confirmed = False
            self._lead_token = self._new_token()
            self._ask_to_lead(now_us)
        elif token == self._lead_token:
            self._lead_confirmed = True
        self._lead_if_ready(now_us)

    def _ask_to_lead(self, now_us: int) -> None:
        self._lead_asked_us = now_us
        self._link.refresh(self._lead_token)

    def _lead_if_ready(self, now_us: int) -> None:
        if not self._lead_token or not self._lead_confirmed or not self._log.settled:
            return
        assert self.record is not None
        self._lead_token = 0
        self._led_epoch = self.record.epoch
        self.leading = Leading(self.shard, self._log, self._link, self._limits, self.record, now_us)
        self.leading.fenced = self._is_fenced
        self._look_who_is_gone()
        self._link.changed()
        self.leading.see(self.record, self._sessions, now_us)
        self._take_early(now_us)
        self.leading.appended(now_us)

    def _look_who_is_gone(self) -> None:
        """Who leads need not wait for the leader before when that surely serves nobody: it has handed over, or was this
        very process, or its process is dead. Leaders before that one have had no word from here since it led.
        """
        leading, record, before = self.leading, self.record, self._before
        if leading is None or record is None or before is None or before.record.epoch != record.epoch - 1:
            return
        last = before.record.leader
        if last is None:
            leading.alone_from_us = 0
            return
        gone = self._dead.get(last.node) == last.session
        mine = last.node == self._node and last.session == self._sessions.get(self._node)
        if gone or mine or record.handed_over:
            leading.alone_from_us = min(leading.alone_from_us, before.since_us + self._limits.alone_us)

    def _new_token(self) -> int:
        self._token += 1
        return self._token

    def _step_down(self) -> None:
        self.leading = None
        self._link.changed()

    def _follow(self, record: ShardRecord, sessions: Mapping[str, int], now_us: int) -> None:
        leader = record.leader
        lives = leader is not None and sessions.get(leader.node, 0) == leader.session and leader.node != self._node
        if not lives or record.replica(self.replica_id) is None:
            self.following = None
            return
        assert leader is not None
        following = self.following
        if following is None or (following.epoch, following.leader) != (record.epoch, leader.node):
            self.following = Following(
                self.shard,
                self._log,
                self._link,
                self._limits,
                replica_id=self.replica_id,
                epoch=record.epoch,
                leader=leader.node,
            )
        self.tick(now_us)

    def tick(self, now_us: int) -> None:
        """Time has passed."""
        if self._fenced_until_us and now_us >= self._fenced_until_us:
            # The election did not come about as far as this node knows: a read tells for sure.
            self._fenced_until_us = now_us + self._limits.fence_us
            self._fence_token = self._new_token()
            self._link.refresh(self._fence_token)
        if self.leading is not None:
            self.leading.tick(now_us)
        elif self._lead_token:
            if not self._lead_confirmed and self._lead_asked_us + self._limits.retry_us <= now_us:
                self._ask_to_lead(now_us)  # the read may have failed; whichever answers began late enough
            self._lead_if_ready(now_us)
        elif self.following is not None and not self._is_fenced:
            self.next_fetch_id = self.following.tick(now_us, self.next_fetch_id)

    # -- fencing ----------------------------------------------------------------------------------------------------

    @property
    def _is_fenced(self) -> bool:
        return self.record is not None and self._fenced_epoch > self.record.epoch

    def fence(self, new_epoch: int, now_us: int) -> LogEnd | None:
        """Takes part in no epoch below `new_epoch` any more; tells what is fsynced here. None: too late for it.

        Ends when the epoch shows, or when a read some time later says that it does not.
        """
        if (self.record is not None and new_epoch <= self.record.epoch) or not self._log.settled:
            return None
        if new_epoch <= self._log.epochs.last:
            self._alarm_behind(new_epoch)
            return None
        self._fenced_epoch = max(self._fenced_epoch, new_epoch)
        self._fenced_until_us = now_us + self._limits.fence_us
        self._fence_token = 0  # a read that was asked for before says nothing about this one
        if self.leading is not None and not self.leading.fenced:
            self.leading.fenced = True
            self._link.changed()
        if self.following is not None:
            self.following.again(now_us)
        durable = self._log.durable
        return LogEnd(self._epoch_at(durable), durable)

    def _epoch_at(self, position: int) -> int:
        """The epoch of the frame at a position."""
        found = 0
        for epoch, start in self._log.epochs:
            if start > position:
                break
            found = epoch
        return found

    def _unfence(self, epoch: int) -> None:
        """The epoch has come, or surely does not come now; if it comes late, the new leader refuses what is older."""
        self._fenced_until_us = self._fence_token = 0
        self._fenced_epoch = min(self._fenced_epoch, epoch)
        if self.leading is not None and self.leading.fenced:
            self.leading.fenced = False
            self._link.changed()

    # -- what peers say ---------------------------------------------------------------------------------------------

    def on_fetch(self, node: str, session: int, message: Fetch, now_us: int) -> None:
        """From a follower, which may know of this replica's leadership before the replica itself does."""
        leading, epoch = self.leading, self.record.epoch if self.record is not None else 0
        if leading is not None and leading.epoch == message.epoch:
            leading.fetch(node, session, message, now_us)
        elif message.epoch > epoch or (message.epoch == epoch and self._lead_token):
            self._early[node] = session, message
        else:
            self._link.refuse(node, Refused(shard=self.shard, fetch_id=message.fetch_id, epoch=epoch))

    def _take_early(self, now_us: int) -> None:
        """Looks again at fetches that came too early; those that still are wait on."""
        early, self._early = self._early, {}
        for node, (session, message) in early.items():
            self.on_fetch(node, session, message, now_us)

    def on_ack(self, node: str, session: int, message: FollowerAck, now_us: int) -> None:
        """From a follower."""
        if self.leading is not None and self.leading.epoch == message.epoch:
            self.leading.ack(node, session, message, now_us)

    def on_data(self, node: str, message: Data, now_us: int) -> None:
        """From the leader."""
        following = self._following(node, message.epoch)
        if following is not None:
            following.data(message, now_us)

    def on_diverged(self, node: str, message: Diverged, now_us: int) -> None:
        """From the leader."""
        following = self._following(node, message.epoch)
        if following is not None:
            following.diverged(message, now_us)

    def on_snapshot(self, node: str, epoch: int, fetch_id: int) -> bool:
        """A part of a snapshot came from the leader; False: it answers nothing that was asked, throw it away."""
        following = self._following(node, epoch)
        if following is None or not following.takes(fetch_id):
            return False
        following.snapshotting = True
        return True

    def snapshot_installed(self, now_us: int) -> None:
        """The log is another one now: ask for the rest."""
        if self.following is not None:
            self.following.again(now_us)
            self.tick(now_us)

    def on_refused(self, node: str, message: Refused, now_us: int) -> None:
        """From who was taken for the leader."""
        following = self.following
        if following is not None and following.leader == node:
            following.refused(message, now_us)

    def _following(self, node: str, epoch: int) -> Following | None:
        following = self.following
        if following is None or following.leader != node or following.epoch != epoch or self._is_fenced:
            return None
        return following

    def leader_link_lost(self, node: str, now_us: int) -> None:
        """The stream that this node opened to a leader broke; what was on its way may be lost."""
        if self.following is not None and self.following.leader == node:
            self.following.again(now_us + self._limits.retry_us // 10)

    def follower_link_lost(self, node: str) -> None:
        """The stream that a follower opened broke, or a newer one has taken its place.

        Not to be called for a stream that was replaced before: the flow is on the newer one by then.
        """
        self._early.pop(node, None)
        if self.leading is not None:
            for progress in self.leading.followers.values():
                if progress.node == node:
                    progress.stop()

    def node_lost(self, node: str, session: int, now_us: int) -> None:
        """The process in which a node had that session is surely not running."""
        self._dead[node] = session
        if self.leading is not None:
            self._look_who_is_gone()
            self.leading.node_lost(node, now_us)

    # -- the shell's answers ----------------------------------------------------------------------------------------

    def durable(self, now_us: int) -> None:
        """More of the log is fsynced, or a record about it."""
        if self.leading is not None:
            self.leading.advance()
            if self.leading.frozen:
                self.leading.tick(now_us)
        elif self._lead_token:
            self._lead_if_ready(now_us)
        elif self.following is not None and not self._is_fenced:
            self.following.durable()
            if not self.following.flowing:
                self.tick(now_us)

    def appended(self, now_us: int) -> None:
        """The shell has appended as the leader, or followers shall hear what is committed."""
        if self.leading is not None:
            self.leading.appended(now_us)

    def readable(self, node: str) -> None:
        """A read that `ReplicaLog.read` began is done."""
        if self.leading is not None:
            self.leading.readable(node)

    def next_data(self, node: str) -> Data | None:
        """What to send to a follower; see `Link.ready`."""
        return self.leading.next_data(node) if self.leading is not None and not self.leading.fenced else None

    def proposed(self, record: ShardRecord, outcome: Proposal) -> None:
        """The answer to `Link.propose` of that record, perhaps of an epoch ago."""
        if self.leading is not None:
            self.leading.proposed(record, outcome, self._new_token())

    def wants_snapshot(self, node: str, fetch_id: int) -> bool:
        """Whether a snapshot that was asked for by `Link.snapshot` is still of use."""
        return self.leading is not None and self.leading.wants_snapshot(node, fetch_id)

    def snapshot_sent(self, node: str, fetch_id: int) -> None:
        """The answer to `Link.snapshot`."""
        if self.leading is not None:
            self.leading.snapshot_sent(node, fetch_id)
