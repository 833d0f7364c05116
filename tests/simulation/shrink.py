"""Makes a failing plan small: fewer faults, clients, shards, less time, while it still fails in the same way."""

from collections.abc import Iterator

from tests.simulation.plan import SECOND, Plan
from tests.simulation.world import World


def kind_of(failure: str) -> str:
    """What a failure is about: the invariant, or the first words."""
    return failure.split(":")[0]


def fails(plan: Plan, kind: str) -> bool:
    """Whether the plan shows that failure."""
    return kind_of(World(plan).run().failure) == kind


def shrink(plan: Plan, failure: str, most: int = 400) -> Plan:
    """The smallest plan found within so many runs."""
    kind = kind_of(failure)
    left, better = most, True
    while better:
        better = False
        for smaller in _smaller(plan):
            if left == 0:
                return plan
            left -= 1
            if fails(smaller, kind):
                plan, better = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    count = len(plan.faults)
    size = count
    while size:
        for at in range(0, count, size):
            yield _with(plan, plan.faults[:at] + plan.faults[at + size :])
        size //= 2
    if plan.shards > 1:
        yield plan._replace(shards=1)
    if plan.publishers > 1:
        yield plan._replace(publishers=1)
    if plan.window > 1:
        yield plan._replace(window=1)
    if plan.think_us < 2 * SECOND:
        yield plan._replace(think_us=plan.think_us * 2)
    if plan.groups is not None:
        yield from (plan._replace(groups=smaller) for smaller in plan.groups.smaller())


def _with(plan: Plan, faults: tuple) -> Plan:
    heal_us = max([SECOND, *(fault.at_us + SECOND for fault in faults)])
    return plan._replace(faults=faults, heal_us=min(plan.heal_us, heal_us))


def story(plan: Plan) -> str:
    """A plan and its trace, to be read."""
    world = World(plan, tracing=True)
    result = world.run()
    assert world.trace is not None
    head = [
        f"seed {plan.seed}, style {plan.style}: {plan.nodes} nodes, {plan.shards} shards, {plan.copies} copies, "
        f"min_isr {plan.min_isr}, lease {plan.ttl_us / SECOND:g} s, lag {plan.limits.lag_us_max / SECOND:g} s",
        *(str(fault) for fault in plan.faults),
        "",
    ]
    return "\n".join([*head, *world.trace, "", result.failure or "nothing wrong"])
