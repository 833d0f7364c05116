"""What groups a world has, and who works with them: made from the seed, beside the plan of everything else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from ringpost.node.groups.policy import Backoff, RetryPolicy
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import GroupMode
from tests.simulation.plan import Plan, make_plan

SECOND = 1_000_000


class GroupPlan(NamedTuple):
    """One group of each shard's channel."""

    name: str
    settings: GroupSettings
    consumers: int
    hasty: bool  # consumers take messages one by one and answer at once, or else some at a time and slowly


class GroupsPlan(NamedTuple):
    """`keys`: how many there are in a channel; `cache_bytes` 0: every message is read from the disk."""

    groups: tuple[GroupPlan, ...]
    keys: int
    cache_bytes: int
    linger_us: int
    operate_us: int  # between two deeds of the operator, at most

    def smaller(self) -> Iterator[GroupsPlan]:
        """With less going on."""
        if len(self.groups) > 1:
            yield from (self._replace(groups=(group,)) for group in self.groups)
        if any(group.consumers > 1 for group in self.groups):
            yield self._replace(groups=tuple(group._replace(consumers=1) for group in self.groups))
        if self.operate_us < 10 * SECOND:
            yield self._replace(operate_us=2 * self.operate_us)


def with_groups(plan: Plan) -> Plan:
    """The same world, with groups."""
    rng = random.Random(plan.seed ^ 0x67726F7570)
    modes = [GroupMode.GROUP_MODE_SHARED, GroupMode.GROUP_MODE_KEY_ORDERED]
    rng.shuffle(modes)
    if rng.random() < 0.2:
        modes[1] = rng.choice((GroupMode.GROUP_MODE_EXCLUSIVE, GroupMode.GROUP_MODE_FAILOVER))
    groups = tuple(_group(rng, f"g{number}", mode) for number, mode in enumerate(modes))
    return plan._replace(
        groups=GroupsPlan(
            groups,
            keys=rng.choice((1, 2, 5)),
            cache_bytes=rng.choice((0, 1 << 20)),
            linger_us=rng.choice((0, 5_000)),
            operate_us=rng.choice((300_000, 1_000_000, 3_000_000)),
        )
    )


def make_group_plan(seed: int, style: str = "") -> Plan:
    """The plan of a seed, with groups."""
    return with_groups(make_plan(seed, style))


def make_any_plan(seed: int, style: str = "", *, groups: bool = False) -> Plan:
    """The plan of a seed: each fourth has groups, or all have."""
    return make_group_plan(seed, style) if groups or seed % 4 == 3 else make_plan(seed, style)


def _group(rng: random.Random, name: str, mode: GroupMode.ValueType) -> GroupPlan:
    policy = RetryPolicy(
        backoff=rng.choice((Backoff.NONE, Backoff.CONSTANT, Backoff.EXPONENTIAL)),
        delay_us=rng.choice((10_000, 300_000)),
        max_delay_us=SECOND,
        jitter=rng.choice((0.0, 0.5)),
        max_attempts=rng.choice((0, 2, 3)),
        dead_letters=rng.random() < 0.85,
    )
    settings = GroupSettings(
        ack_deadline_ms=rng.choice((1_000, 2_000)),
        max_in_flight=rng.choice((1, 3, 100, 100)),
        policy=policy,
        mode=mode,
    )
    return GroupPlan(name, settings, rng.choice((1, 2, 3)), rng.random() < 0.5)
