"""What is to be done about a shard that is led, to make it what the placement says (rules P5 and P11). Pure.

A move is made of steps, each a record of its own: a learner is added; the leader, once it has everything, puts it in
sync; if it shall lead, the leader is asked to hand over; the replica that is not wanted any more is removed. Each step
is decided from the record and the placement alone, so a move goes on under another controller as if nothing happened.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ringpost.cluster.controller.decisions import Change, IdFor, Settings, verify
from ringpost.cluster.controller.roster import Roster
from ringpost.cluster.controller.transfers import Transfers
from ringpost.cluster.view import Leader, Replica, Role, ShardRecord


class Budget:
    """How many copies and transfers each node has under way; a copy counts for both its ends."""

    def __init__(self, records: Iterable[ShardRecord], roster: Roster, settings: Settings) -> None:
        self._settings = settings
        self._moves: Counter[str] = Counter()
        self._transfers: Counter[str] = Counter()
        for record in records:
            leader = record.leader
            if leader is None:
                continue
            if record.transfer_to:
                self._transfers[leader.node] += 1
            for replica in record.replicas:
                if under_way(record, replica, roster):
                    self._moves.update((replica.node, leader.node))

    def take_move(self, *nodes: str) -> bool:
        """Whether these nodes may have one more copy under way; it then counts."""
        if any(self._moves[node] >= self._settings.moves_per_node for node in nodes):
            return False
        self._moves.update(nodes)
        return True

    def take_transfer(self, node: str) -> bool:
        """Whether the node may hand over one more shard at the same time; it then counts."""
        if self._transfers[node] >= self._settings.transfers_per_node:
            return False
        self._transfers[node] += 1
        return True


@dataclass(frozen=True, slots=True)
class Stage:
    """What the decisions about all shards have in common.

    `leading` are the nodes that shall lead, `min_isr` is the cluster's.
    """

    roster: Roster
    transfers: Transfers
    settings: Settings
    budget: Budget
    leading: frozenset[str]
    min_isr: int
    id_for: IdFor


def catches_up(record: ShardRecord, replica: Replica) -> bool:
    """Whether a copy is being made that does not count yet."""
    return replica.role is Role.LEARNER and replica.replica_id not in record.in_sync


def under_way(record: ShardRecord, replica: Replica, roster: Roster) -> bool:
    """Whether its node is there to make it. One whose directory is gone is not: it must be made anew."""
    here = roster.alive(replica.node) and replica.directory == roster.directory(replica.node)
    return here and catches_up(record, replica)


def is_in_place(record: ShardRecord, wanted: Sequence[str], min_isr: int, roster: Roster) -> bool:
    """Whether a shard that is well led is all that it should be; a quick look, as nearly all are nearly always."""
    leader = record.leader
    return (
        leader is not None
        and leader.node == wanted[0]
        and len(record.in_sync) == len(record.replicas) == len(wanted)
        and record.min_isr >= min_isr
        and not record.transfer_to
        and all(
            replica.role is Role.MEMBER and replica.node in wanted and roster.usable(record, replica)
            for replica in record.replicas
        )
    )


class ShardPlan:
    """The next step of one shard. It is well led; `wanted` are the nodes of its placement, at least one."""

    def __init__(self, record: ShardRecord, wanted: Sequence[str], stage: Stage) -> None:
        assert record.leader is not None, "an election comes first"
        self._record = record
        self._leader: Leader = record.leader
        self._wanted = wanted
        self._stage = stage
        self._roster = stage.roster
        self._live = stage.roster.in_sync(record)

    def next_step(self) -> Change | None:
        """The first that is due. One at a time: the leader, too, changes this record."""
        steps: tuple[Callable[[], Change | None], ...]
        if self._record.transfer_to:
            steps = (self._end_transfer, self._replace_lost)
        else:
            steps = (
                self._replace_lost,
                self._raise_min_isr,
                self._drop_learner,
                self._hand_over,
                self._remove_surplus,
                self._add_learner,
                self._set_roles,
            )
        for step in steps:
            if (change := step()) is not None:
                return verify(self._record, change)
        return None

    def _change(
        self, record: ShardRecord, why: str, sessions: Mapping[str, int] | None = None, gone: Replica | None = None
    ) -> Change:
        """`gone` is a replica that left the record: it may be deleted, unless nobody is left who could do it."""
        directory = "" if gone is None else self._roster.directory(gone.node)
        tombs = (gone,) if gone is not None and directory and gone.directory in ("", directory) else ()
        replicas = tuple(replace(replica, role=self._role(record, replica)) for replica in record.replicas)
        return Change(replace(record, replicas=replicas), why, sessions or {}, tombs)

    def _role(self, record: ShardRecord, replica: Replica) -> Role:
        counts = replica.replica_id in record.in_sync
        if replica.replica_id == self._leader.replica_id:
            return Role.MEMBER
        if not self._roster.intact(record, replica):
            return replica.role
        if replica.role is Role.LEARNER and not counts:
            return Role.LEARNER
        return Role.MEMBER if replica.node in self._wanted else Role.LEAVING

    # Leadership

    def _end_transfer(self) -> Change | None:
        """Takes back what became impossible, or takes too long."""
        target = self._record.replica(self._record.transfer_to)
        able = target is not None and self._may_lead(target)
        own = self._record.transfer_to == self._leader.replica_id
        if able and not own and not self._stage.transfers.overdue(self._record):
            return None
        return self._change(replace(self._record, transfer_to=""), "transfer ended")

    def _hand_over(self) -> Change | None:
        target = self._successor()
        if target is None or not self._stage.transfers.may_ask(self._record, target.replica_id):
            return None
        if not self._stage.budget.take_transfer(self._leader.node):
            return None
        sessions = {target.node: self._roster.session(target.node)}
        return self._change(
            replace(self._record, transfer_to=target.replica_id), f"transfer to {target.node}", sessions
        )

    def _successor(self) -> Replica | None:
        """Who should lead instead: the preferred one; when the leader shall yield, the best that there is."""
        order = {node: place for place, node in enumerate(self._wanted)}
        able = [replica for replica in self._live if self._may_lead(replica)]
        linked = {replica.node for replica in able if self._roster.well_linked(self._record, replica)}
        best = min(able, key=lambda r: (r.node not in linked, order.get(r.node, len(order))), default=None)
        if best is None or best.replica_id == self._leader.replica_id:
            return None
        if self._roster.shall_yield(self._leader.node):
            return best
        settled = self._roster.alive_for(best.node, self._stage.settings.settle_s) and best.node in linked
        return best if settled and best.node == self._wanted[0] else None

    def _may_lead(self, replica: Replica) -> bool:
        """Whether the leader could hand over to it, and it could then commit."""
        near = self._roster.links.good(replica.node, self._leader.node)
        able = replica in self._live and replica.node in self._stage.leading
        return able and near and self._roster.can_commit(self._record, replica)

    # Copies that are lost

    def _replace_lost(self) -> Change | None:
        """They leave the in-sync set, and are made anew under other ids."""
        for replica in self._record.replicas:
            if self._roster.intact(self._record, replica):
                continue
            counts = replica.replica_id in self._record.in_sync
            if counts and len(self._record.in_sync) == self._record.min_isr:
                change = self._make_beside(replica) or self._write_off(replica, self._record)
            else:
                change = self._make_anew(replica)
            if change is not None:
                return change
        return None

    def _make_anew(self, lost: Replica) -> Change | None:
        record = self._record
        left = replace(record, in_sync=tuple(i for i in record.in_sync if i != lost.replica_id))
        elsewhere = lost.node not in self._wanted
        if elsewhere or any(r.node == lost.node for r in record.replicas if r != lost):
            rest = tuple(r for r in record.replicas if r != lost)
            return self._change(replace(left, replicas=rest), f"copy on {lost.node} is lost", gone=lost)
        # A damaged learner has been made anew already: the node still reports the copy before it.
        told = catches_up(record, lost) and lost.directory == self._roster.directory(lost.node)
        if told:
            return None
        if self._may_copy_to(lost.node):
            copies = tuple(self._learner(r.node) if r == lost else r for r in record.replicas)
            sessions = {lost.node: self._roster.session(lost.node)}
            why = f"copy on {lost.node} is made anew"
            return self._change(replace(left, replicas=copies), why, sessions, gone=lost)
        return self._write_off(lost, left)

    def _make_beside(self, lost: Replica) -> Change | None:
        """The in-sync set cannot do without the lost copy: the node gets another one, the leader then swaps them."""
        record = self._record
        others = tuple(r for r in record.replicas if r != lost)
        if lost.node not in self._wanted or any(r.node == lost.node for r in others):
            return None
        if not self._may_copy_to(lost.node):
            return None
        # The new one first: it is what the node finds when it looks for its copy.
        copies = (*others, self._learner(lost.node), replace(lost, role=Role.LEAVING, directory=""))
        sessions = {lost.node: self._roster.session(lost.node)}
        return self._change(replace(record, replicas=copies), f"copy on {lost.node} is made beside the lost", sessions)

    def _write_off(self, lost: Replica, left: ShardRecord) -> Change | None:
        """Remembers that a copy is lost, until another can be made: the node may forget that it said so."""
        damaged = lost.directory == self._roster.directory(lost.node)
        off = replace(lost, directory="") if damaged else lost
        record = replace(left, replicas=tuple(off if r == lost else r for r in left.replicas))
        return self._change(record, f"copy on {lost.node} is lost") if record != self._record else None

    # Copies that are too many or too few

    def _drop_learner(self) -> Change | None:
        """A copy that is not wanted any more is not finished."""
        for replica in self._record.replicas:
            if catches_up(self._record, replica) and replica.node not in self._wanted:
                return self._without(replica)
        return None

    def _remove_surplus(self) -> Change | None:
        """What is not wanted goes when the shard is whole without it; who is away goes first."""
        enough = max(len(self._wanted), self._record.min_isr)
        for replica in sorted(self._record.replicas, key=lambda r: r in self._live):
            if replica.node in self._wanted or replica.replica_id == self._leader.replica_id:
                continue
            if len(self._live) - (replica in self._live) >= enough:
                return self._without(replica)
        return None

    def _without(self, replica: Replica) -> Change:
        replicas = tuple(r for r in self._record.replicas if r != replica)
        in_sync = tuple(i for i in self._record.in_sync if i != replica.replica_id)
        left = replace(self._record, replicas=replicas, in_sync=in_sync)
        return self._change(left, f"copy on {replica.node} is removed", gone=replica)

    def _add_learner(self) -> Change | None:
        """One copy at a time, at most one too many, and none for balance alone while the shard cannot commit."""
        record, roster = self._record, self._roster
        if any(under_way(record, replica, roster) for replica in record.replicas):
            return None
        lasting = [r for r in record.replicas if roster.intact(record, r) and not roster.gone(r.node)]
        short = len(lasting) < len(self._wanted)
        if not short and (len(lasting) > len(self._wanted) or len(self._live) < record.min_isr):
            return None
        for node in self._wanted:
            if record.replica_on(node) is None and self._may_copy_to(node):
                copies = (*record.replicas, self._learner(node))
                return self._change(replace(record, replicas=copies), f"copy to {node}", {node: roster.session(node)})
        return None

    def _may_copy_to(self, node: str) -> bool:
        return self._roster.active(node) and self._stage.budget.take_move(node, self._leader.node)

    def _learner(self, node: str) -> Replica:
        directory = self._roster.directory(node)
        return Replica(
            node, self._stage.id_for(self._record.shard, self._record.revision, node), Role.LEARNER, directory
        )

    # The rest

    def _raise_min_isr(self) -> Change | None:
        if self._record.min_isr >= self._stage.min_isr or len(self._live) < self._stage.min_isr:
            return None
        return self._change(replace(self._record, min_isr=self._stage.min_isr), "min_isr raised")

    def _set_roles(self) -> Change | None:
        """Says that a copy counts, or is wanted again. That it shall leave is said with the next step only."""
        record = self._record
        others = (replica for replica in record.replicas if replica.role is not Role.MEMBER)
        if any(self._role(record, replica) is Role.MEMBER for replica in others):
            return self._change(record, "roles")
        return None
