"""Elections (rules P6 and P7): whom to ask about a shard without a leader, and who leads it by the answers. Pure.

A member of the in-sync set has everything that was ever committed, and who has answered commits nothing more in an
older epoch. So whoever wins has all of it.

A leader that lives, but is cut off from its followers, is not asked: it commits nothing that those do not acknowledge
who are. Nobody is elected in its place who would be cut off as well.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ringpost.cluster.controller.decisions import Change, End, Fence, verify
from ringpost.cluster.controller.roster import Roster
from ringpost.cluster.placement import Placement
from ringpost.cluster.view import Leader, Replica, Role, ShardRecord


@dataclass(frozen=True, slots=True)
class Ballot:
    """An election under way. `sessions` are those of the asked nodes: an answer of a later one does not count.

    `offline` are shards of which nobody can be asked.
    """

    records: tuple[ShardRecord, ...]
    asks: Mapping[str, tuple[Fence, ...]]
    sessions: Mapping[str, int]
    offline: tuple[int, ...]


class _Vote(NamedTuple):
    """Greatest wins."""

    last_epoch: int
    end: int
    can_commit: bool
    may_lead: bool
    preference: int
    replica_id: str


def call(records: Sequence[ShardRecord], roster: Roster) -> Ballot:
    """The election of all shards that need one."""
    asks: dict[str, list[Fence]] = defaultdict(list)
    voting, offline = [], []
    for record in records:
        if roster.well_led(record):
            continue
        stale = record.leader.replica_id if record.leader is not None and roster.led(record) else ""
        candidates = [r for r in roster.in_sync(record) if r.replica_id != stale]
        for replica in candidates:
            asks[replica.node].append(Fence(record.shard, replica.replica_id, record.epoch + 1))
        if candidates:
            voting.append(record)
        else:
            offline.append(record.shard)
    return Ballot(
        tuple(voting),
        {node: tuple(fences) for node, fences in asks.items()},
        {node: roster.session(node) for node in asks},
        tuple(offline),
    )


def count(ballot: Ballot, answers: Mapping[str, Sequence[End]], roster: Roster, placed: Placement) -> list[Change]:
    """The new records of the shards that have a winner. `answers` of a node that gave none may be left out."""
    ends = {(node, end.shard, end.replica_id): end for node, given in answers.items() for end in given}
    changes = []
    for record in ballot.records:
        heard = [r for r in record.replicas if r.replica_id in record.in_sync and _key(record, r) in ends]
        if not heard:
            continue
        vote = max(_vote(record, r, ends[_key(record, r)], roster, placed[record.shard]) for r in heard)
        winner = record.replica(vote.replica_id)
        assert winner is not None
        if roster.led(record) and not vote.can_commit:
            continue
        leader = Leader(winner.node, winner.replica_id, ballot.sessions[winner.node])
        change = _first(record, leader, heard, roster) if record.epoch == 0 else _next(record, leader, heard, roster)
        if change is not None:
            changes.append(verify(record, change))
    return changes


def _key(record: ShardRecord, replica: Replica) -> tuple[str, int, str]:
    return replica.node, record.shard, replica.replica_id


def _vote(record: ShardRecord, replica: Replica, end: End, roster: Roster, placed: Sequence[str]) -> _Vote:
    order = placed.index(replica.node) if replica.node in placed else len(placed)
    return _Vote(
        end.last_epoch,
        end.end,
        roster.can_commit(record, replica),
        not roster.shall_yield(replica.node),
        -order,
        replica.replica_id,
    )


def _first(record: ShardRecord, leader: Leader, heard: Sequence[Replica], roster: Roster) -> Change | None:
    """A shard that was never led: a copy exists where the node has answered, and only such a one may count.

    So everybody who is there must answer. Who is not makes its copy when it comes back, as a learner.
    """
    if len(heard) < max(record.min_isr, len(roster.in_sync(record))):
        return None
    replicas = tuple(
        replica if replica in heard else replace(replica, role=Role.LEARNER)
        for replica in record.replicas
        if roster.intact(record, replica)
    )
    in_sync = tuple(replica.replica_id for replica in heard)
    elected = replace(record, epoch=1, leader=leader, in_sync=in_sync, replicas=replicas, transfer_to="")
    return Change(elected, "first election", {leader.node: leader.session})


def _next(record: ShardRecord, leader: Leader, heard: Sequence[Replica], roster: Roster) -> Change:
    """Leaves out of the in-sync set whoever is away, did not answer, or cannot be reached by the new leader.

    The lost are first, and min_isr remain.
    """

    def near(replica: Replica) -> bool:
        return roster.links.good(replica.node, leader.node)

    counting = (r for r in record.replicas if r.replica_id in record.in_sync)
    useless = [r for r in counting if not (r in heard and near(r))]
    useless.sort(key=lambda r: (roster.intact(record, r), roster.alive(r.node), near(r), r in heard))
    out = {replica.replica_id for replica in useless[: len(record.in_sync) - record.min_isr]}
    in_sync = tuple(replica_id for replica_id in record.in_sync if replica_id not in out)
    elected = replace(record, epoch=record.epoch + 1, leader=leader, in_sync=in_sync, transfer_to="", handed_over=False)
    return Change(elected, "election", {leader.node: leader.session})
