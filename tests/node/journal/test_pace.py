"""The writer's pause: none while little comes, a short one while bytes come fast."""

from ringpost.node.journal.pace import BUSY_BYTES_PER_S, Pace

STEP_S = 0.002


def feed(pace: Pace, bytes_per_s: float, seconds: float, begin: float) -> float:
    """Groups at a steady rate; when the last was written."""
    now = begin
    for _ in range(round(seconds / STEP_S)):
        now += STEP_S
        pace.wrote(round(bytes_per_s * STEP_S), now)
    return now


def test_at_a_light_load_nothing_waits_longer_than_asked_for() -> None:
    pace = Pace(0.0, 0.001)
    now = feed(pace, BUSY_BYTES_PER_S / 2, 1.0, 100.0)
    assert pace.linger_s(now, waited=True) == pace.linger_s(now, waited=False) == 0
    assert Pace(0.004, 0.001).linger_s(5.0, waited=True) == 0.004
    assert Pace(0.004, 0.001).linger_s(5.0, waited=False) == 0


def test_at_a_heavy_load_every_group_may_grow() -> None:
    pace = Pace(0.0, 0.001)
    now = feed(pace, BUSY_BYTES_PER_S * 1.2, 0.5, 100.0)
    assert pace.linger_s(now, waited=False) == pace.linger_s(now, waited=True) == 0.001


def test_a_load_that_ends_is_forgotten_within_a_moment() -> None:
    pace = Pace(0.0, 0.001)
    now = feed(pace, BUSY_BYTES_PER_S * 4, 1.0, 100.0)
    assert pace.linger_s(now + 0.3, waited=True) == 0


def test_one_large_batch_is_no_load() -> None:
    pace = Pace(0.0, 0.001)
    pace.wrote(3 << 20, 50.0)
    assert pace.linger_s(50.0, waited=True) == 0
