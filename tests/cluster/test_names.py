"""Which names are good, and what is said about the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.names import channel_problem, consumer_problem, group_problem, node_problem

LETTERS = "ABZabz059_-:/@+=~"
tokens = st.text(LETTERS, min_size=1, max_size=20)


@given(st.lists(tokens, min_size=1, max_size=10))
def test_tokens_with_dots_between_are_a_channel(parts: list[str]) -> None:
    assert channel_problem(".".join(parts)) is None


@given(st.text(max_size=300))
def test_every_other_text_is_refused_with_a_reason(name: str) -> None:
    good = 1 <= len(name) <= 255 and all(
        token and all(c.isascii() and (c.isalnum() or c in "_-:/@+=~") for c in token) for token in name.split(".")
    )
    problem = channel_problem(name)
    assert (problem is None) == good
    assert problem is None or problem


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("a" * 256, "256 bytes long; the limit is 255"),
        ("ü" * 128, "256 bytes long; the limit is 255"),
        ("$sys.audit", "belong to the broker"),
        ("orders.*", "'*', which is kept for patterns"),
        ("orders.>", "'>', which is kept for patterns"),
        ("two words", "' ' at 3"),
        ("caf\u00e9", r"'\xe9' at 3"),
        ("line\nbreak", r"'\n' at 4"),
        ("line\n", r"'\n' at 4"),
        ("a..b", "empty token"),
        (".a", "empty token"),
        ("a.", "empty token"),
        (".", "empty token"),
        ("a$b", "'$' at 1"),
        ("\ud800", r"'\ud800' at 0"),
    ],
)
def test_a_refused_channel_says_why(name: str, says: str) -> None:
    assert says in (channel_problem(name) or "")


@pytest.mark.parametrize("problem", [group_problem, consumer_problem])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("a" * 128, "128 bytes long; the limit is 127"),
        ("a.b", "contains '.'"),
        ("$g", "'$' at 0"),
        ("*", "kept for patterns"),
    ],
)
def test_groups_and_consumers_are_one_token(problem, name: str, says: str) -> None:
    assert says in (problem(name) or "")
    assert problem("a" * 127) is None
    assert problem("billing:v2") is None


@pytest.mark.parametrize("name", ["node-1", "n", "ringpost-0.ringpost", "A_1", "x" * 63])
def test_good_nodes(name: str) -> None:
    assert node_problem(name) is None


@pytest.mark.parametrize("name", ["", "-a", "a-", "x" * 64, "a b", "a/b", "n\n"])
def test_bad_nodes(name: str) -> None:
    assert "1 to 63" in (node_problem(name) or "")


def test_the_longest_names_take_no_longer_to_refuse() -> None:
    """The expression must not backtrack: 255 letters and a wrong end."""
    assert channel_problem("a." * 127 + "!") is not None
    assert channel_problem("a" * 254 + "!") is not None
