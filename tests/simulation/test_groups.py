"""Groups keep their promise (V7) in worlds that fall apart. Longer: `python -m tests.simulation N --groups`."""

from collections import Counter

import pytest

from tests.simulation.group_plan import make_group_plan
from tests.simulation.shrink import shrink, story
from tests.simulation.world import World

CHUNK = 10
QUICK_CHUNKS = 2
CHUNKS = 8


@pytest.mark.parametrize(
    "first",
    [pytest.param(CHUNK * at, marks=[pytest.mark.long] if at >= QUICK_CHUNKS else []) for at in range(CHUNKS)],
)
def test_confirmed_acks_never_return_and_the_rest_does(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        plan = make_group_plan(seed)
        world = World(plan)
        failure = world.run().failure
        if failure:
            pytest.fail(f"seed {seed}: {failure}\n{story(shrink(plan, failure, most=100))}")
        seen.update(world.group_oracle.counts())
    for what in ("deliveries", "confirmed", "dead letters", "redriven", "seeks"):
        assert seen[what] > 0, f"no {what}"


@pytest.mark.parametrize("style", ["anything", "snapshots"])
def test_a_seed_with_groups_is_the_same_world_each_time(style: str) -> None:
    plan = make_group_plan(7, style)
    one, other = World(plan, tracing=True), World(plan, tracing=True)
    assert one.run() == other.run()
    assert one.trace == other.trace
