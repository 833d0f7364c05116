"""A small controller: elections with fences, replacement of lost copies, moves and transfers (P6, P11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ringpost.cluster.coordination import Proposal
from ringpost.cluster.view import Leader, Replica, Role, ShardRecord
from ringpost.node.replication.core import LogEnd
from tests.simulation.etcd import View
from tests.simulation.oracle import brief

if TYPE_CHECKING:
    from tests.simulation.process import Process

ANSWER_US = 300_000
PAUSE_US = 200_000
TRANSFER_US = 10_000_000


class Ballot:
    """An election under way."""

    def __init__(self, record: ShardRecord, asked: list[Replica], able: set[str], sessions: Mapping[str, int]) -> None:
        """`able` may win."""
        self.record = record
        self.asked = asked
        self.able = able
        self.sessions = sessions
        self.ends: dict[str, LogEnd] = {}
        self.closed = False


class Controller:
    """One term of it, on one node. It writes only as long as the term is the store's."""

    def __init__(self, process: Process, term: int) -> None:
        self.term = term
        self._process = process
        self._world = process.world
        self._busy_until: dict[int, int] = {}
        self._transfers: dict[int, tuple[int, int]] = {}  # shard -> (revision, since when)
        process.note("is controller in term {}", term)

    def tick(self) -> None:
        """Looks after every shard that nothing is under way for."""
        view, now = self._process.view, self._process.now
        assert view is not None
        for record in view.records:
            if self._busy_until.get(record.shard, 0) <= now:
                self._look(record, view)

    def _look(self, record: ShardRecord, view: View) -> None:
        leader = record.leader
        suspected = record.shard in self._world.suspected
        led = leader is not None and self._session(view, leader.node) == leader.session
        if led and not suspected and not self._cut_off(record, view):
            for step in (self._end_transfer, self._replace_lost, self._keep, self._move, self._hand_over):
                if step(record, view):
                    return
            return
        self._world.suspected.discard(record.shard)
        self._elect(record, view, led and not suspected)

    def _session(self, view: View, node: str) -> int:
        return 0 if node in self._process.refusing else view.sessions.get(node, 0)

    def _usable(self, view: View, replica: Replica) -> bool:
        return self._session(view, replica.node) > 0 and view.directories[replica.node] == replica.directory

    def _can_commit(self, record: ShardRecord, view: View, node: str) -> bool:
        near = {r.node for r in record.replicas if self._usable(view, r) and view.linked(r.node, node)}
        return len(near) >= record.min_isr

    def _cut_off(self, record: ShardRecord, view: View) -> bool:
        """Whether another copy that counts would reach enough to commit, and the leader does not."""
        leader = record.leader
        if leader is None or not any(view.unreachable.values()) or self._can_commit(record, view, leader.node):
            return False
        heirs = (r for r in record.replicas if r.replica_id in record.in_sync and r.node != leader.node)
        return any(self._usable(view, r) and self._can_commit(record, view, r.node) for r in heirs)

    # -- elections --------------------------------------------------------------------------------------------------

    def _elect(self, record: ShardRecord, view: View, cut_off: bool) -> None:
        """A leader that is cut off is not asked."""
        asked = [r for r in record.replicas if r.replica_id in record.in_sync and self._usable(view, r)]
        if cut_off and record.leader is not None:
            asked = [r for r in asked if r.replica_id != record.leader.replica_id]
        self._busy_until[record.shard] = self._process.now + ANSWER_US + PAUSE_US
        if not asked:
            return
        able = {r.replica_id for r in asked if not cut_off or self._can_commit(record, view, r.node)}
        ballot = Ballot(record, asked, able, {r.node: self._session(view, r.node) for r in asked})
        for replica in asked:
            self._world.kernel.after(self._world.net.delay(), self._ask, ballot, replica)
        self._process.post(ANSWER_US, self._count, ballot)

    def _ask(self, ballot: Ballot, replica: Replica) -> None:
        world, process = self._world, self._process
        target = world.process(replica.node)
        if target is None or not world.net.reaches(process.node, replica.node):
            return

        def reply(end: LogEnd) -> None:
            if world.net.reaches(process.node, replica.node):
                process.post(world.net.delay(), self._vote, ballot, replica.replica_id, end)

        target.run(target.fence, (ballot.record.shard, replica.replica_id, ballot.record.epoch + 1, reply))

    def _vote(self, ballot: Ballot, replica_id: str, end: LogEnd) -> None:
        ballot.ends[replica_id] = end
        if len(ballot.ends) == len(ballot.asked):
            self._count(ballot)

    def _count(self, ballot: Ballot) -> None:
        record = ballot.record
        first = record.epoch == 0
        if ballot.closed or not ballot.ends or (first and len(ballot.ends) < len(record.replicas)):
            return
        ballot.closed = True
        winner = record.replica(max((end, replica_id) for replica_id, end in ballot.ends.items())[1])
        assert winner is not None
        if winner.replica_id not in ballot.able:
            return
        silent = [replica_id for replica_id in record.in_sync if replica_id not in ballot.ends]
        silent.sort(key=lambda replica_id: replica_id in {r.replica_id for r in ballot.asked})
        out = set(silent[: len(record.in_sync) - record.min_isr])
        leader = Leader(winner.node, winner.replica_id, ballot.sessions[winner.node])
        in_sync = tuple(replica_id for replica_id in record.in_sync if replica_id not in out)
        elected = replace(
            record, epoch=record.epoch + 1, leader=leader, in_sync=in_sync, transfer_to="", handed_over=False
        )
        self._propose(elected, {leader.node: leader.session})

    # -- the rest ---------------------------------------------------------------------------------------------------

    def _end_transfer(self, record: ShardRecord, view: View) -> bool:
        if not record.transfer_to:
            return False
        now = self._process.now
        revision, since = self._transfers.get(record.shard, (0, now))
        if revision != record.revision:
            since = now
            self._transfers[record.shard] = (record.revision, now)
        target = record.replica(record.transfer_to)
        if target is not None and self._usable(view, target) and since + TRANSFER_US > now:
            return False
        return self._propose(replace(record, transfer_to=""), {})

    def _replace_lost(self, record: ShardRecord, view: View) -> bool:
        for lost in record.replicas:
            directory = view.directories.get(lost.node, lost.directory)
            if directory == lost.directory:
                continue
            counts = lost.replica_id in record.in_sync
            others = tuple(r for r in record.replicas if r is not lost)
            beside = any(r.node == lost.node for r in others)
            if counts and len(record.in_sync) == record.min_isr:
                if beside or self._session(view, lost.node) == 0:
                    continue
                copies = (*others, self._learner(lost.node, directory), replace(lost, role=Role.LEAVING))
                return self._propose(replace(record, replicas=copies), {lost.node: view.sessions[lost.node]})
            in_sync = tuple(i for i in record.in_sync if i != lost.replica_id)
            return self._propose(replace(record, in_sync=in_sync, replicas=others), {})
        return False

    def _keep(self, record: ShardRecord, view: View) -> bool:
        """A copy that was to leave since it was lost, and that is here again with its directory, stays."""
        for replica in record.replicas:
            back = replica.role is Role.LEAVING and view.directories.get(replica.node) == replica.directory
            alone = all(r is replica or r.node != replica.node for r in record.replicas)
            if back and alone and replica.node in self._world.wanted[record.shard]:
                stays = (replace(r, role=Role.MEMBER) if r is replica else r for r in record.replicas)
                return self._propose(replace(record, replicas=tuple(stays)), {})
        return False

    def _learner(self, node: str, directory: str) -> Replica:
        return Replica(node, self._world.new_id("r"), Role.LEARNER, directory)

    def _move(self, record: ShardRecord, view: View) -> bool:
        """Brings the copies to the nodes that are wanted: first the new ones, then away with the old."""
        wanted = self._world.wanted[record.shard]
        here = {r.node for r in record.replicas}
        for node in wanted:
            if node not in here and self._session(view, node):
                copies = (*record.replicas, self._learner(node, view.directories[node]))
                return self._propose(replace(record, replicas=copies), {node: view.sessions[node]})
        surplus = [r for r in record.replicas if r.node not in wanted]
        live = [r for r in record.replicas if r.replica_id in record.in_sync and self._usable(view, r)]
        staying = [r for r in live if r.node in wanted]
        assert record.leader is not None
        for replica in surplus:
            if replica.replica_id == record.leader.replica_id:
                if staying and not record.transfer_to:
                    return self._propose(replace(record, transfer_to=staying[0].replica_id), {})
            elif len(staying) >= max(record.min_isr, len(wanted)):
                copies = tuple(r for r in record.replicas if r is not replica)
                in_sync = tuple(i for i in record.in_sync if i != replica.replica_id)
                left = replace(record, replicas=copies, in_sync=in_sync)
                return self._propose(left, {}, frozenset({replica.replica_id}))
        return False

    def _hand_over(self, record: ShardRecord, view: View) -> bool:
        node = self._world.hand_over.pop(record.shard, "")
        target = record.replica_on(node)
        if target is None or record.transfer_to or target.replica_id not in record.in_sync:
            return False
        return self._propose(replace(record, transfer_to=target.replica_id), {})

    def _propose(self, record: ShardRecord, sessions: Mapping[str, int], tombs: frozenset[str] = frozenset()) -> bool:
        etcd = self._world.etcd
        self._busy_until[record.shard] = self._process.now + 2 * ANSWER_US
        self._process.note("as controller proposes {} if {}", brief(record), sessions)
        etcd.sent(record)
        apply = partial(etcd.propose, record, sessions, self.term, tombs)
        etcd.call(self._process, apply, partial(self._proposed, record.shard))
        return True

    def _proposed(self, shard: int, outcome: Proposal | None, view: View | None, *_: Any) -> None:
        if view is not None:
            self._process.on_view(view)
        self._busy_until[shard] = self._process.now + (0 if outcome is Proposal.ACCEPTED else PAUSE_US)
