"""The simulator is worth something: whatever guard of the core is taken out, some world shows it."""

import pytest

from tests.simulation.group_mutations import GROUP_MUTATIONS
from tests.simulation.group_plan import make_group_plan
from tests.simulation.mutation import Mutation, mutated
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import make_plan
from tests.simulation.shrink import fails, kind_of, shrink
from tests.simulation.world import World


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_guard_that_is_missing_is_missed(mutation: Mutation) -> None:
    with mutated(mutation):
        for seed in range(mutation.most):
            if World(make_plan(seed, mutation.style)).run().failure:
                return
    pytest.fail(f"{mutation.most} worlds, and nobody noticed")


@pytest.mark.long
@pytest.mark.parametrize("mutation", GROUP_MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_guard_of_groups_that_is_missing_is_missed(mutation: Mutation) -> None:
    with mutated(mutation):
        for seed in range(mutation.most):
            if World(make_group_plan(seed, mutation.style)).run().failure:
                return
    pytest.fail(f"{mutation.most} worlds, and nobody noticed")


def test_a_failure_is_made_small() -> None:
    mutation = next(m for m in MUTATIONS if m.name == "a restart cuts the log at what is committed")
    with mutated(mutation):
        plan, failure = next(
            (plan, failure)
            for plan in map(make_plan, range(mutation.most))
            if (failure := World(plan).run().failure) and len(plan.faults) > 3
        )
        small = shrink(plan, failure)
        assert fails(small, kind_of(failure))
    assert len(small.faults) < len(plan.faults)
    assert small.shards == 1
