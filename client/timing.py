"""When a message is to be delivered: what `delay`, `deliver_at` and `ttl` of a publish become on the wire."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from ringpost.client.checks import MAX_TIME_US, refused, time_us_of, whole

SPAN_S_MAX: Final = 366 * 24 * 3600
Span: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""


class Timing(NamedTuple):
    """Messages of one batch have the same. 0: at once; for ever."""

    deliver_time_us: int = 0
    delay_ms: int = 0
    ttl_ms: int = 0


AT_ONCE: Final = Timing()


def timing_of(delay: Span | None, deliver_at: datetime | int | None, ttl: Span | None = None) -> Timing:
    """Raises `InvalidRequest` for what no broker would take."""
    if delay is None and deliver_at is None and ttl is None:
        return AT_ONCE
    if delay is not None and deliver_at is not None:
        raise refused("delay", "and deliver_at exclude each other")
    at_us = 0
    if deliver_at is not None:
        at_us = deliver_at if isinstance(deliver_at, int) else time_us_of("deliver_at", deliver_at)
        whole("deliver_at", at_us, 0, MAX_TIME_US)
    return Timing(at_us, 0 if delay is None else _span_ms("delay", delay), 0 if ttl is None else _span_ms("ttl", ttl))


def _span_ms(field: str, span: Span) -> int:
    """Whole milliseconds, rounded up: never early, never none."""
    if isinstance(span, timedelta):
        span = span.total_seconds()
    if isinstance(span, bool) or not isinstance(span, int | float):
        raise refused(field, f"must be seconds or a timedelta, not {span!r}")
    least = 0 if field == "delay" else 0.001
    if not least <= span <= SPAN_S_MAX:
        raise refused(field, f"must be {least:g} to {SPAN_S_MAX:,} seconds (366 days), not {span}", limit=SPAN_S_MAX)
    return -int(-span * 1000 // 1)


def remaining_ms(delay_ms: int, waited_s: float) -> int:
    """What is left of a delay of a batch that has waited to be sent; at least 1, so that it is a delayed one still."""
    return max(1, delay_ms - int(max(waited_s, 0.0) * 1000))
