"""Addresses, back-off, options: what needs no broker."""

import random

import pytest

from ringpost.client import InvalidRequest, Options
from ringpost.client.connection import Backoff, parse_targets


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        (None, ["there:1"]),
        ("host", ["host:7400"]),
        ("host:1, other", ["host:1", "other:7400"]),
        (["a:1", "b"], ["a:1", "b:7400"]),
        ("[::1]", ["[::1]:7400"]),
        ("[::1]:5", ["[::1]:5"]),
        ("unix:relative.socket", ["unix:relative.socket"]),
        ("dns:///host:1", ["dns:///host:1"]),
    ],
)
def test_addresses(target, addresses: list[str]) -> None:
    assert parse_targets(target, "there:1") == addresses


@pytest.mark.parametrize("target", [",", [], [""]])
def test_no_address_is_an_error(target) -> None:
    with pytest.raises(InvalidRequest):
        parse_targets(target, "there:1")


def test_back_off_doubles_with_jitter_to_its_bound() -> None:
    backoff = Backoff(random.Random(1))
    delays = [backoff.next_delay() for _ in range(10)]
    bounds = [min(2.0, 0.05 * 2**n) for n in range(10)]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    backoff.reset()
    assert backoff.next_delay() <= 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch_messages": 0},
        {"max_batch_messages": 65_536},
        {"linger_ms": -1},
        {"publish_timeout": 0},
        {"routing": "no"},
    ],
)
def test_options_outside_their_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Options(**wrong)
