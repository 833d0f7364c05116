"""Patterns of channel names: what they match, and what cannot be one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.patterns import ChannelPattern, Patterns, pattern_problem

TOKENS = st.lists(st.sampled_from(["a", "b", "orders", "eu"]), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("orders.eu", ["orders.eu"], ["orders", "orders.eu.x", "ordersxeu"]),
        ("orders.*", ["orders.eu", "orders.us"], ["orders", "orders.eu.x"]),
        ("*.eu", ["orders.eu", "x.eu"], ["eu", "a.b.eu"]),
        ("orders.>", ["orders.eu", "orders.eu.x"], ["orders", "ordersx.eu"]),
        (">", ["orders", "orders.eu"], [""]),
        ("a+b", ["a+b"], ["aab", "ab"]),
    ],
)
def test_a_star_is_one_token_and_the_sign_at_the_end_is_the_rest(
    pattern: str, fits: list[str], does_not: list[str]
) -> None:
    assert pattern_problem(pattern) is None
    patterns = Patterns([pattern])
    assert [name for name in fits if not patterns.match(name)] == []
    assert [name for name in does_not if patterns.match(name)] == []


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("", "empty"),
        ("a.>.b", "before its end"),
        ("or*", "inside a token"),
        ("orders.eu>", "inside a token"),
        ("a..b", "empty token"),
        ("a b", "contains"),
        ("$sys.>", "belong to the broker"),
        ("x" * 256, "255"),
    ],
)
def test_what_is_no_pattern_says_why(pattern: str, told: str) -> None:
    assert told in (pattern_problem(pattern) or "")


def test_no_pattern_matches_nothing_and_two_sets_match_what_either_does() -> None:
    assert not Patterns([]).match("a")
    both = Patterns(["a.*"]) | Patterns(["b"])
    assert [name for name in ("a.x", "b", "a", "b.x") if both.match(name)] == ["a.x", "b"]
    assert (bool(Patterns([])), bool(both)) == (False, True)


@given(TOKENS, TOKENS, st.booleans())
def test_matching_is_token_by_token(pattern: list[str], name: list[str], rest: bool) -> None:
    pattern = ["*" if token == "a" else token for token in pattern] + [">"] * rest
    fixed = pattern[:-1] if rest else pattern
    expected = all(p in ("*", n) for p, n in zip(fixed, name, strict=False)) and (
        len(name) > len(fixed) if rest else len(name) == len(fixed)
    )
    assert Patterns([".".join(pattern)]).match(".".join(name)) == expected


def test_signs_that_mean_something_to_a_regular_expression_mean_themselves() -> None:
    assert Patterns(["a=~b/c:d@e-f"]).match("a=~b/c:d@e-f")


def test_a_pattern_to_subscribe_to_takes_inboxes_only_by_name() -> None:
    assert ChannelPattern("orders.*").match("orders.eu")
    assert not ChannelPattern("orders.*").match("orders.eu.de")
    assert not ChannelPattern("*.ann").match("_inbox.ann")
    assert not ChannelPattern(">").match("_inbox.ann")
    assert ChannelPattern("_inbox.>").match("_inbox.ann")
