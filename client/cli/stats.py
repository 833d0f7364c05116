"""Percentiles and rates of measurements. Pure."""

import math
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Latency(NamedTuple):
    """Seconds. All 0 when nothing was measured."""

    p50: float
    p99: float
    p999: float
    max: float

    def as_ms(self) -> dict[str, float]:
        """For JSON: milliseconds, three digits."""
        return {name: round(getattr(self, name) * 1e3, 3) for name in ("p50", "p99", "p999", "max")}


class Samples:
    """Every measured value is kept (8 bytes each), so percentiles are exact. Seconds."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values = array("d", values)

    def add(self, seconds: float) -> None:
        self._values.append(seconds)

    @property
    def count(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)

    def summary(self) -> Latency:
        ordered = sorted(self._values)
        if not ordered:
            return Latency(0.0, 0.0, 0.0, 0.0)
        return Latency(percentile(ordered, 0.5), percentile(ordered, 0.99), percentile(ordered, 0.999), ordered[-1])


def percentile(ordered: list[float], q: float) -> float:
    """Nearest rank: the smallest value that at least the share `q` (0 < q <= 1) of all do not exceed."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def per(amount: float, count: float) -> float:
    """amount / count; 0 when there was nothing to divide by."""
    return amount / count if count else 0.0
