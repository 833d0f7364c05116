"""Medians, ranges and ratios of repetitions. Pure."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median


def digits(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value == 0:
        return "0"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3f}"
    )


def spread(values: Sequence[float], show: Callable[[float], str] = digits) -> str:
    """`median (least to greatest)`; a dash for none."""
    if not values:
        return "–"
    if len(values) == 1:
        return show(values[0])
    return f"{show(median(values))} ({show(min(values))} to {show(max(values))})"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios of the same repetition each: what the machine did to both cancels out."""
    return [mine / other for mine, other in zip(ours, theirs, strict=False) if other]


SMALL, LARGE = 100, 128 * 1024


def frames_per_s(ceiling: Mapping[str, float], frame_bytes: int) -> float:
    """How many stream messages of this size one Python client uploads a second, on the line between the two sizes that
    were measured, and beyond the larger one at its bytes a second.
    """
    small, large = (1 / ceiling[f"upload_{name}_per_s"] for name in ("small", "large"))
    if frame_bytes >= LARGE:
        return LARGE / (large * frame_bytes)
    return 1 / max(small + (large - small) * (frame_bytes - SMALL) / (LARGE - SMALL), min(small, large))
