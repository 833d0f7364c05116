"""The controller's decisions in one place: a picture of the cluster in, new shard records out. Pure.

It remembers only since when it knows what it knows (`roster`, `transfers`) and which replica ids it has given out for
which record: asked again about the same view at the same time, it answers the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ringpost.cluster import tombs
from ringpost.cluster.controller import bootstrap, election
from ringpost.cluster.controller.decisions import Change, End, NewId, Reach, Settings
from ringpost.cluster.controller.election import Ballot
from ringpost.cluster.controller.moves import Budget, ShardPlan, Stage, is_in_place
from ringpost.cluster.controller.roster import Roster
from ringpost.cluster.controller.transfers import Transfers
from ringpost.cluster.placement import Placement, place
from ringpost.cluster.view import ShardRecord, Tombstone, View


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written and removed now; and when, by time alone, there may be more (infinity: never)."""

    changes: tuple[Change, ...]
    wake_at: float
    stale_tombs: list[Tombstone]


class Core:
    """One controller. First `observe`, then ask; answers are about what was observed last."""

    def __init__(self, settings: Settings, new_id: NewId) -> None:
        self._settings = settings
        self._new_id = new_id
        self._roster = Roster(settings)
        self._transfers = Transfers(settings)
        self._view: View | None = None
        # By shard: the revision of the record that is replaced, and the ids for new copies by node and directory.
        self._ids: dict[int, tuple[int, dict[tuple[str, str], str]]] = {}

    def observe(self, view: View, reach: Mapping[str, Reach], now: float) -> None:
        """Takes the newest picture. `now` is a monotonic clock's, in seconds; nodes not in `reach` are unknown."""
        self._view = view
        self._roster.observe(view, reach, now)
        self._transfers.observe(view.shards, now)

    def call_election(self) -> Ballot:
        """Whom to ask about the shards that need a leader."""
        return election.call(self._seen().shards, self._roster)

    def count_votes(self, ballot: Ballot, answers: Mapping[str, Sequence[End]]) -> list[Change]:
        """The outcome: records of the shards that have a winner. The ballot is of the picture observed last."""
        return election.count(ballot, answers, self._roster, self._placement())

    def plan(self) -> Plan:
        """Everything but elections: at most one step for each shard that is led."""
        view = self._seen()
        if not view.shards:
            changes = bootstrap.make_shards(view, self._roster, self._settings, self._id_for)
        else:
            changes = self._steps(view)
        deadlines = (*self._roster.deadlines(), *self._transfers.deadlines())
        return Plan(tuple(changes), min(deadlines, default=math.inf), tombs.stale(view))

    def _steps(self, view: View) -> list[Change]:
        roster, placed = self._roster, self._placement()
        budget = Budget(view.shards, roster, self._settings)
        leading = roster.leading(roster.sites(view.replication_factor))
        stage = Stage(roster, self._transfers, self._settings, budget, leading, view.min_isr, self._id_for)
        changes = []
        for record in self._by_need(view, placed):
            wanted = placed[record.shard]
            if roster.well_led(record):
                change = ShardPlan(record, wanted, stage).next_step()
            else:
                change = bootstrap.make_again(record, wanted, roster, self._id_for)
            if change is not None:
                changes.append(change)
        return changes

    def _by_need(self, view: View, placed: Placement) -> list[ShardRecord]:
        """The shards about which there may be something to do. Who has fewest good copies is first: room is scarce."""
        roster = self._roster
        changing = [
            record
            for record, wanted in zip(view.shards, placed, strict=True)
            if wanted and not (is_in_place(record, wanted, view.min_isr, roster) and roster.well_led(record))
        ]
        return sorted(changing, key=lambda record: len(roster.in_sync(record)))

    def _id_for(self, shard: int, revision: int, node: str) -> str:
        of, ids = self._ids.get(shard, (-1, {}))
        if of != revision:
            ids = {}
            self._ids[shard] = (revision, ids)
        key = (node, self._roster.directory(node))
        if key not in ids:
            ids[key] = self._new_id()
        return ids[key]

    def _placement(self) -> Placement:
        view = self._seen()
        sites = self._roster.sites(view.replication_factor)
        return place(sites, self._roster.leading(sites), view.shard_count, view.replication_factor)

    def _seen(self) -> View:
        assert self._view is not None, "nothing was observed"
        return self._view
