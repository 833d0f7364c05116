"""The cases of the suite, and what is judged by arithmetic alone."""

import pytest

from tests.benchmarks import catalogue, loads
from tests.benchmarks.job import Found, Job
from tests.benchmarks.latency import sustained
from tests.benchmarks.plan import FULL, QUICK, SMOKE, Plan
from tests.benchmarks.simulated import capacity, shard_loads, shards_of
from tests.benchmarks.soak import slope
from tests.benchmarks.suite import Group, Suite

NOBODY = dict.fromkeys(("nats", "redis", "rabbitmq"), False)


def suite(plan: Plan = QUICK, there: bool = True) -> Suite:
    return Suite(plan, dict.fromkeys(NOBODY, there), has_lean=there)


def groups(made: Suite) -> list[Group]:
    return [group for load in (loads.b1, loads.b3, loads.b4, loads.unbatched, loads.replicated) for group in load(made)]


@pytest.mark.parametrize("plan", [QUICK, FULL, SMOKE])
def test_no_case_is_measured_twice(plan: Plan) -> None:
    for load in (loads.b1, loads.b3, loads.b4):
        cases = [
            (group.tier, group.system, column, tuple(job.parameters().items()))
            for group in load(suite(plan))
            for column, jobs in group.columns
            for job in jobs
        ]
        assert len(set(cases)) == len(cases)


def test_without_peers_ringpost_and_the_ceiling_are_left() -> None:
    assert {group.system for group in groups(suite(there=False))} == {"grpc", "ringpost"}


def test_what_is_slow_runs_when_it_is_asked_for() -> None:
    slow = [bench for bench in catalogue.BENCHES if bench.only_full]
    assert slow
    assert all(bench.skipped(suite(), False) and not bench.skipped(suite(), True) for bench in slow)
    assert not any(bench.skipped(suite(FULL), False) for bench in catalogue.BENCHES)
    assert [bench.name for bench in catalogue.BENCHES if bench.needs_lean] == ["B3", "unbatched"]


def test_a_rate_is_sustained_when_deliveries_keep_up() -> None:
    job = Job(system="x", load="latency", seconds=1, warm_up=0)
    kept = Found(messages=1, seconds=1.05, broker_cpu_s=0, client_cpu_s=0, wait_ms=[1, 20, 30, 40])
    assert sustained(kept, job)
    kept.seconds = 1.3
    assert not sustained(kept, job)
    kept.seconds, kept.wait_ms = 1.0, [1, 60, 70, 80]
    assert not sustained(kept, job)


def test_the_slope_of_memory() -> None:
    assert slope([(0, 5), (1, 7), (2, 9)]) == 2
    assert slope([(3, 5)]) == 0


def test_simulated_nodes_carry_more_when_there_are_more_of_them() -> None:
    loads = shard_loads(shards_of(20_000), 0)
    assert sum(loads) == pytest.approx(1)
    three, thirty = (capacity(nodes, loads, 1.0, 0.5) for nodes in (3, 30))
    assert three == pytest.approx(3e6 / 2, rel=0.1)  # every node leads a third and follows two
    assert thirty / three == pytest.approx(10, rel=0.1)
