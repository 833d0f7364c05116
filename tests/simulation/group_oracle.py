"""Checks of groups where something is promised or done (V7): deliveries, answers, and the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Outcome, Reject
from ringpost.node.shard.group import Group, Results
from tests.simulation.group_truth import GroupModel, GroupTruth
from tests.simulation.kernel import Violation

if TYPE_CHECKING:
    from tests.simulation.machine import Machine


class Claim(NamedTuple):
    """Messages that a member was given, or by number 0 somebody speaks of."""

    machine: Machine
    group: Group
    member: int
    first: int
    last: int
    attempt: int

    def each(self) -> Iterator[Claim]:
        """The messages one by one."""
        return (self._replace(first=offset, last=offset) for offset in range(self.first, self.last + 1))


class Holder(NamedTuple):
    """Who was given a message, and until when nobody else may have it."""

    member: int
    until_us: int


class GroupOracle:
    """Of all shards. What a leader believes is held against what is committed."""

    def __init__(self, shards: int) -> None:
        self.truths = [GroupTruth(shard) for shard in range(shards)]

    def _model(self, machine: Machine, group: Group) -> GroupModel | None:
        """None where another group has its name by now, or none."""
        model = self.truths[machine.log.shard].groups.get(group.name)
        return model if model is not None and model.created_us == group.created_time_us else None

    # -- deliveries -------------------------------------------------------------------------------------------------

    def delivery(self, claim: Claim, until_us: int, *, fresh: bool) -> None:
        """A leader sends messages to a member; the lease ends then at the latest. `fresh`: it has just been taken."""
        machine, group = claim.machine, claim.group
        truth, model = self.truths[machine.log.shard], self._model(machine, group)
        newest = machine.shard.committed == truth.position
        held = machine.held.setdefault(group, {})
        if model is None:
            if newest:
                raise Violation(f"V7: {group.name} delivers, and is deleted")
            return
        if newest and model.paused and fresh:
            raise Violation(f"V7: {group.name} delivers, and is paused")
        truth.counts["deliveries"] += claim.last - claim.first + 1
        for offset in range(claim.first, claim.last + 1):
            self._check(claim, offset, truth, model, newest=newest)
            holder = held.get(offset)
            if holder is not None and holder.member != claim.member and machine.process.now < holder.until_us:
                raise Violation(f"V7: message {offset} of {group.name} has two holders: {holder} and {claim.member}")
            held[offset] = Holder(claim.member, until_us)

    def _check(self, claim: Claim, offset: int, truth: GroupTruth, model: GroupModel, *, newest: bool) -> None:
        name = claim.group.name
        if offset in model.confirmed:
            raise Violation(f"V7: {name} delivers {offset} again, which is confirmed to be settled")
        if not newest:
            return
        if offset in model.settled or offset >= truth.end:
            raise Violation(f"V7: {name} delivers {offset}, which is settled, or not there")
        failed = model.failed.get(offset)
        stored = failed.attempt if failed is not None else 0
        if claim.attempt != stored + 1:
            raise Violation(f"V7: {name} delivers {offset} as attempt {claim.attempt}, and {stored} are stored")
        if failed is not None and failed.not_before_us > claim.machine.process.now:
            raise Violation(f"V7: {name} delivers {offset} before its time")
        if 0 < model.config.max_attempts < claim.attempt:
            raise Violation(f"V7: {name} delivers {offset} as attempt {claim.attempt} of {model.config.max_attempts}")
        if claim.group.core.keeps_order and truth.keys[offset]:
            self._check_order(claim, offset, truth, model)

    def _check_order(self, claim: Claim, offset: int, truth: GroupTruth, model: GroupModel) -> None:
        """Nothing older of the key may be unsettled, but for what came back while this one was out."""
        key = truth.keys[offset]
        for before in range(offset):
            if truth.keys[before] == key and before not in model.settled and before not in model.back:
                raise Violation(f"V7: {claim.group.name} delivers {offset} before {before}, of the same key")

    def left(self, machine: Machine, group: Group, member: int) -> None:
        """A member's leases are over."""
        held = machine.held.get(group, {})
        for offset in [offset for offset, holder in held.items() if holder.member == member]:
            del held[offset]

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer(self, claim: Claim, action: Action, results: Results, asked: int) -> None:
        """A leader says what became of a settlement that began when so much was committed."""
        held = claim.machine.held.get(claim.group, {})
        model = self._model(claim.machine, claim.group)
        for first, last, outcome in results:
            if outcome is Outcome.ALREADY and model is not None:
                self._known(model, first, last)
            if outcome is not Outcome.DONE:
                continue
            for offset in range(first, min(last, first + 10_000) + 1):
                if isinstance(action, Extend):
                    held[offset] = Holder(claim.member, claim.machine.process.now + action.deadline_us)
                    continue
                held.pop(offset, None)
                if model is not None:
                    self._confirm(claim, action, offset, model, asked)

    def _known(self, model: GroupModel, first: int, last: int) -> None:
        for offset in range(first, last + 1):
            if offset not in model.settled_at:
                raise Violation(f"V7: {model.name} says that {offset} is settled already, and it never was")

    def _confirm(self, claim: Claim, action: Action, offset: int, model: GroupModel, asked: int) -> None:
        truth = self.truths[claim.machine.log.shard]
        if isinstance(action, Nack):
            return  # what is stored of it is compared as it commits
        assert isinstance(action, Ack | Reject)
        truth.counts["confirmed"] += 1
        if offset in model.settled:
            model.confirmed.add(offset)
        elif model.settled_at.get(offset, 0) <= asked:
            raise Violation(f"V7: {model.name} confirms that {offset} is settled, which is not committed")

    def counts(self) -> Counter[str]:
        """What has happened, for people."""
        counts = Counter({"with groups": 1})
        for truth in self.truths:
            counts.update(truth.counts)
        return counts

    # -- the end ----------------------------------------------------------------------------------------------------

    def unsettled(self, shard: int) -> str:
        """What is still to be done; "" when every message is settled."""
        truth = self.truths[shard]
        if not truth.groups:
            return f"shard {shard} has no groups"
        for model in truth.groups.values():
            pending = [offset for offset in range(truth.end) if offset not in model.settled]
            if pending:
                return f"shard {shard}: {model.name} has not settled {pending[:5]}"
            living = [offset for number, offset in model.letters.items() if number not in model.void]
            if len(set(living)) < len(living):
                raise Violation(f"V7: a message of {model.name} is a dead letter twice: {sorted(living)}")
        return ""
