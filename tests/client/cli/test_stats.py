import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.cli.stats import Samples, per, percentile


def test_percentiles_are_values_that_were_measured() -> None:
    latency = Samples(n / 1000 for n in range(1000, 0, -1)).summary()
    assert latency == (0.5, 0.99, 0.999, 1.0)
    assert latency.as_ms() == {"p50": 500.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}


def test_one_slow_value_in_a_hundred_is_the_max_and_not_the_p99() -> None:
    latency = Samples([0.001] * 99 + [5.0]).summary()
    assert (latency.p99, latency.p999, latency.max) == (0.001, 5.0, 5.0)


def test_nothing_measured_is_all_zero() -> None:
    assert Samples().summary() == (0, 0, 0, 0)
    assert per(5, 0) == 0
    with pytest.raises(ValueError):
        percentile([], 0.5)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_at_least_the_share_lies_at_or_below_a_percentile(values: list[float], q: float) -> None:
    ordered = sorted(values)
    value = percentile(ordered, q)
    assert sum(v <= value for v in ordered) >= q * len(ordered) - 1e-9
    assert sum(v < value for v in ordered) < q * len(ordered) + 1e-9
