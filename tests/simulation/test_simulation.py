"""Replication holds what it promises, in thousands of worlds that fall apart. Longer: `python -m tests.simulation`."""

from itertools import pairwise

import pytest

from tests.simulation.plan import SECOND, STYLE_NAMES, Fault, make_plan
from tests.simulation.shrink import shrink, story
from tests.simulation.world import World

CHUNK = 100
CHUNKS = 20


@pytest.mark.parametrize(
    "first",
    [pytest.param(CHUNK * at, marks=[pytest.mark.long] if at > 4 else []) for at in range(CHUNKS)],
)
def test_every_promise_is_kept_whatever_happens(first: int) -> None:
    for seed in range(first, first + CHUNK):
        plan = make_plan(seed)
        result = World(plan).run()
        if result.failure:
            pytest.fail(f"seed {seed}: {result.failure}\n{story(shrink(plan, result.failure))}")
        assert result.commits > 0, f"nothing happened in seed {seed}"


@pytest.mark.parametrize("style", STYLE_NAMES)
def test_a_seed_is_the_same_world_each_time(style: str) -> None:
    plan = make_plan(7, style)
    one, other = World(plan, tracing=True), World(plan, tracing=True)
    assert one.run() == other.run()
    assert one.trace == other.trace


@pytest.mark.parametrize("how", ["in", "out", "both"])
def test_publishing_goes_on_where_a_leader_is_cut_off_from_all_but_the_store(how: str) -> None:
    """Each node in turn, so that it is also the controller's."""
    faults = [Fault((4 + 12 * turn) * SECOND, "isolate", (f"n{turn}", how, 11 * SECOND)) for turn in range(3)]
    plan = make_plan(1)._replace(
        nodes=3, copies=3, min_isr=2, shards=3, faults=tuple(faults), heal_us=41 * SECOND, think_us=SECOND
    )
    world = World(plan)
    taken: list[set[int]] = []
    commits: dict[int, int] = {}

    def look() -> None:
        now = {shard: truth.end for shard, truth in enumerate(world.oracle.shards)}
        taken.append({shard for shard, position in now.items() if position > commits.get(shard, 0)})
        commits.update(now)

    for turn in range(3):
        world.kernel.at((4 + 12 * turn + 6) * SECOND, look)
        world.kernel.at((4 + 12 * turn + 11) * SECOND, look)
    assert world.run().failure == ""
    assert taken[1::2] == [{0, 1, 2}] * 3, "while the links are cut"


def test_publishing_goes_on_without_the_store() -> None:
    faults = [Fault(3 * SECOND, "etcd_down", (20 * SECOND,))]
    faults += [Fault(8 * SECOND, "reset", (one, other, 10_000)) for one, other in (("n0", "n1"), ("n1", "n2"))]
    plan = make_plan(1)._replace(
        nodes=3, copies=3, min_isr=2, faults=tuple(faults), heal_us=20 * SECOND, think_us=SECOND
    )
    world = World(plan)
    counts = []
    for second in range(4, 20, 3):
        world.kernel.at(second * SECOND, lambda: counts.append(world.oracle.commits))
    assert world.run().failure == ""
    assert all(later > earlier for earlier, later in pairwise(counts)), counts
