"""What an operator does to a group, each by the very function that a call to the node ends in."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ringpost.internal.v1.record_pb2 import LetterChange
from ringpost.node.errors import RingpostError
from ringpost.node.groups.changes import Ack, Reject
from ringpost.node.shard.configure import pause_group, set_group
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group, Results
from ringpost.node.shard.group_frames import delete_group, seek_group
from ringpost.node.shard.shard import ignore
from ringpost.v1.group_pb2 import GroupConfig
from tests.simulation.group_oracle import Claim

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.world import World


class Deeds:
    """All of them, chosen by chance; while the world closes only what lets a group go on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng: random.Random = world.group_rng

    def do(self, machine: Machine, group: Group) -> None:
        """One of them. Raises what the node refuses."""
        if self._world.closing:
            if group.paused:
                pause_group(group, False, ignore)
            return
        deeds: list[tuple[int, Callable[[Machine, Group], None]]] = [
            (5, self._redrive),
            (4, self._settle),
            (2, self._pause),
            (2, self._seek),
            (1, self._drop),
            (1, self._configure),
            (1, self._delete),
            (1, self._trim),
        ]
        weights, calls = zip(*deeds, strict=True)
        call = self._rng.choices(calls, weights)[0]
        machine.process.note("{}: {}", group.name, call.__name__)
        call(machine, group)

    def _redrive(self, machine: Machine, group: Group) -> None:
        letters = machine.letters(group)
        some = sorted(self._rng.sample(letters, self._rng.randint(0, len(letters))), key=lambda pair: pair[1])
        if some:
            flat = [number for pair in some for number in pair]
            change(group, LetterChange(redriven=flat), lambda outcome: None)
            if self._rng.random() < 0.2:  # a client that has no answer does it again
                change(group, LetterChange(redriven=flat), lambda outcome: None)

    def _drop(self, machine: Machine, group: Group) -> None:
        letters = machine.letters(group)
        if letters:
            number = self._rng.choice(letters)[0]
            change(group, LetterChange(dropped=[number, number]), lambda outcome: None)

    def _settle(self, machine: Machine, group: Group) -> None:
        end = group.channel.end_offset
        if end == 0:
            return
        first = self._rng.randrange(end)
        last = min(end - 1, first + self._rng.randrange(3))
        action = self._rng.choice((Ack(), Reject("by hand")))
        claim = Claim(machine, group, 0, first, last, 0)
        asked = self._world.group_oracle.truths[machine.log.shard].position
        group.settle_any(action, [(first, last)], partial(self._settled, claim, action, asked))

    def _settled(self, claim: Claim, action: Ack | Reject, asked: int, outcome: Results | RingpostError) -> None:
        if not isinstance(outcome, RingpostError):
            self._world.group_oracle.answer(claim, action, outcome, asked)

    def _pause(self, machine: Machine, group: Group) -> None:
        pause_group(group, not group.paused, ignore)

    def _seek(self, machine: Machine, group: Group) -> None:
        seek_group(group, self._rng.randint(0, group.channel.end_offset), ignore)

    def _configure(self, machine: Machine, group: Group) -> None:
        config = GroupConfig(ack_deadline_ms=self._rng.choice((1_000, 3_000)), max_in_flight=self._rng.choice((2, 50)))
        set_group(group, config, ignore)

    def _delete(self, machine: Machine, group: Group) -> None:
        delete_group(group, ignore)

    def _trim(self, machine: Machine, group: Group) -> None:
        """What retention does, of what is there no later than now."""
        channel = group.channel
        machine.shard.trim(channel, self._rng.randint(channel.first_offset, channel.end_offset), ignore)
