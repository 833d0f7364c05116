"""Consumers of groups: members that attach where the leader is, take, answer or do not, vanish and come again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ringpost.node.delivery.sources import Membership
from ringpost.node.errors import RingpostError
from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Reject
from ringpost.node.shard.group import Group, Results
from tests.simulation.group_oracle import Claim

if TYPE_CHECKING:
    from tests.simulation.group_plan import GroupPlan
    from tests.simulation.machine import Machine
    from tests.simulation.process import Process
    from tests.simulation.world import World

SECOND = 1_000_000
FOR_EVER = 1_000_000 * SECOND
HELD_BACK_US = 20_000  # until a leader looks again whether it may deliver


def machine_of(process: Process, shard: int) -> Machine | None:
    """What groups are in, of a replica that is open there."""
    hosted = process.hosted.get(shard)
    return None if hosted is None else hosted.machine


class Seat:
    """One membership, at the node: what a subscription is there. Its consumer may be gone without a word."""

    def __init__(self, machine: Machine, group: Group, owner: Consumer) -> None:
        self.consumer = owner.name
        self.machine = machine
        self.group = group
        self.owner = owner
        self.number = machine.world.new_number()
        self.open = True
        self.credit = owner.credit
        group.read_by(machine.reading, machine.spawn)
        self._membership = Membership(group, self.number)
        self._soon = False
        group.join(self.number, self)
        machine.seats.append(self)
        self.advanced()

    # -- GroupMember ------------------------------------------------------------------------------------------------

    @property
    def has_credit(self) -> bool:
        return self.credit > 0

    def advanced(self) -> None:
        self._look(0)

    def moved(self, message: str) -> None:
        self.leave()

    def failed(self, error: RingpostError) -> None:
        self.leave()

    def removed(self, reason: str, message: str) -> None:
        self.leave()

    # -- sending ----------------------------------------------------------------------------------------------------

    def _look(self, delay_us: int) -> None:
        if self.open and not self._soon:
            self._soon = True
            self.machine.process.post(delay_us + int(self.machine.rng.random() * 300), self._collect)

    def _collect(self) -> None:
        self._soon = False
        machine, now = self.machine, self.machine.process.now
        if not self.open or self.credit <= 0:
            return
        if not self.may_deliver(now):
            self._look(HELD_BACK_US)
            return
        fresh = not self._membership.unsent
        wanted = self._membership.next(self.credit, now)
        if wanted is None:
            return
        self._membership.sent(wanted.last)
        self.credit -= wanted.last - wanted.first + 1
        claim = Claim(self.machine, self.group, self.number, wanted.first, wanted.last, wanted.attempt)
        machine.hosted.delivers()
        machine.world.group_oracle.delivery(claim, now + wanted.lease_ms * 1000, fresh=fresh)
        machine.process.note("{} gives {}", self.group.name, wanted)
        machine.world.kernel.after(100 + int(machine.rng.random() * 2_000), self.owner.receive, self, claim)
        self._look(0)

    def may_deliver(self, now_us: int) -> bool:
        """Whether surely no other node gives this group messages."""
        return self.machine.hosted.core.may_deliver(now_us)

    # -- from the consumer ------------------------------------------------------------------------------------------

    def settle(self, claim: Claim, action: Action, cumulative: bool, asked: int) -> None:
        """On the stream."""
        if not self.open or self.group.removed:
            return  # whoever waits for the answer sees that the stream has ended
        self.credit += claim.last - claim.first + 1
        self.group.settle(
            self.number,
            action,
            [(claim.first, claim.last)],
            cumulative,
            partial(self._answered, claim, action, asked),
            self._membership.unsent if cumulative else (),
        )
        self._look(0)

    def _answered(self, claim: Claim, action: Action, asked: int, outcome: Results | RingpostError) -> None:
        if not isinstance(outcome, RingpostError):
            self.machine.world.group_oracle.answer(claim, action, outcome, asked)

    def leave(self) -> None:
        """The stream is closed, or its end has been noticed."""
        if self.open:
            self.end()
            self._membership.close()
            self.machine.world.group_oracle.left(self.machine, self.group, self.number)

    def end(self) -> None:
        """The group is elsewhere from now on."""
        self.open = False
        if self in self.machine.seats:
            self.machine.seats.remove(self)


class Consumer:
    """Somebody who works for a group, on and on."""

    def __init__(self, world: World, shard: int, plan: GroupPlan) -> None:
        self.world = world
        self.shard = shard
        self.plan = plan
        self.rng = world.group_rng
        self.name = world.new_id("c")
        self.credit = 1 if plan.hasty else self.rng.choice((2, 5, 20))
        self._seat: Seat | None = None
        self._until_us = 0
        self._later(300_000, self._look)

    def _later(self, most_us: int, call: object, *args: object) -> None:
        self.world.kernel.after(int(self.rng.random() * most_us), call, *args)

    def _look(self) -> None:
        """Sees to it that there is a seat; from time to time gives it up."""
        self._later(400_000, self._look)
        seat, world = self._seat, self.world
        if seat is not None and (not seat.open or not seat.machine.process.alive):
            self._seat = None
        if self._seat is None:
            self._attach()
        elif world.kernel.now > self._until_us:
            self._give_up(self._seat)
        elif world.closing and self._until_us < FOR_EVER:
            self._until_us = world.kernel.now  # what it has not answered is nobody's from then on

    def _attach(self) -> None:
        record = self.world.etcd.records[self.shard]
        if record.leader is None:
            return
        node = record.leader.node if self.rng.random() < 0.8 else self.rng.choice(self.world.nodes)
        process = self.world.process(node)
        if process is not None:
            process.run(self._at_node, (process,))

    def _at_node(self, process: Process) -> None:
        machine = machine_of(process, self.shard)
        if machine is None or not machine.serving or self._seat is not None:
            return
        try:
            machine.open()
            group = machine.group(self.plan.name)
            if group is not None and group.made_at <= machine.shard.committed:
                self._seat = Seat(machine, group, self)
        except RingpostError:
            return  # occupied, or not served any more
        span_us = FOR_EVER if self.world.closing else int(self.rng.choice((0.5, 3, 20)) * SECOND)
        self._until_us = self.world.kernel.now + span_us

    def _give_up(self, seat: Seat) -> None:
        """Leaves; or is just gone, which is noticed later."""
        self._seat = None
        noticed = 0 if self.rng.random() < 0.5 else int(self.rng.random() * 3 * SECOND)
        seat.machine.process.post(noticed, seat.leave)

    # -- what it does with messages ---------------------------------------------------------------------------------

    def receive(self, seat: Seat, claim: Claim) -> None:
        """A delivery."""
        if seat is not self._seat:
            return
        think = 200 + int(self.rng.random() * (5_000 if self.plan.hasty else 200_000))
        if self.world.closing:
            self._answer(seat, claim, Ack(), think)
            return
        choice = self.rng.random()
        if choice < 0.55:
            self._answer(seat, claim, Ack(), think)
        elif choice < 0.70:
            for part in claim.each():
                self._answer(seat, part, self._some_action(), think)
        elif choice < 0.80:
            delay_us = self.rng.choice((0, 0, 200_000, SECOND))
            self._answer(seat, claim, Nack(delay_us, f"nack {think}", 50_000), think)
        elif choice < 0.84:
            self._answer(seat, claim, Reject(f"bad {think}"), think)
        elif choice < 0.89:
            self._answer(seat, claim, Extend(2 * SECOND), think)
            self._answer(seat, claim, Ack(), SECOND + think)
        elif choice < 0.94:
            self._answer(seat, claim, self._some_action(), think + int(self.rng.random() * 3 * SECOND))
        elif choice < 0.97:
            self._answer(seat, claim, Ack(), think)
            self._answer(seat, claim, Ack(), think + 1_000)

    def _some_action(self) -> Action:
        return self.rng.choice((Ack(), Ack(), Nack(0, "again", 0), Nack(100_000, "later"), Reject("no")))

    def _answer(self, seat: Seat, claim: Claim, action: Action, delay_us: int) -> None:
        cumulative = isinstance(action, Ack) and self.rng.random() < 0.1
        self.world.kernel.after(delay_us, self._send, seat, claim, action, cumulative)

    def _send(self, seat: Seat, claim: Claim, action: Action, cumulative: bool) -> None:
        asked = self.world.group_oracle.truths[self.shard].position
        seat.machine.process.run(seat.settle, (claim, action, cumulative, asked))


class Operator:
    """Pauses, moves, configures and deletes groups, settles by unary calls, brings dead letters back."""

    def __init__(self, world: World, shard: int) -> None:
        self.world = world
        self.shard = shard
        self.rng = world.group_rng
        assert world.plan.groups is not None
        self.plan = world.plan.groups
        self._think()

    def _think(self) -> None:
        self.world.kernel.after(int(self.rng.random() * self.plan.operate_us), self._act)

    def _act(self) -> None:
        self._think()
        leader = self.world.etcd.records[self.shard].leader
        process = self.world.process(leader.node) if leader is not None else None
        if process is not None:
            process.run(self._at_node, (process,))

    def _at_node(self, process: Process) -> None:
        machine = machine_of(process, self.shard)
        group = machine.group(self.rng.choice(self.plan.groups).name) if machine is not None else None
        if machine is None or group is None or not machine.serving or group.made_at > machine.shard.committed:
            return
        try:
            self.world.deeds.do(machine, group)
        except RingpostError:
            return  # a definite error: nothing is changed
