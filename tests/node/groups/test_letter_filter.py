"""Which dead letters a filter chooses, and how it is refused."""

import pytest

from ringpost.node.errors import InvalidRequest
from ringpost.node.groups.letter_filter import TERM_BYTES_MAX, TERMS_MAX, parse
from ringpost.v1.dead_letter_pb2 import DeadLetter
from ringpost.v1.publish_pb2 import Message

LETTER = DeadLetter(
    reason="HTTP 503: try = later", message=Message(key="käse".encode(), headers={"tenant": "a", "x.y": "1=2", "e": ""})
)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([], True),
        (["key=käse"], True),
        (["key=k"], False),
        (["key~äs"], True),
        (["key!=käse"], False),
        (["reason=HTTP 503: try = later"], True),
        (["reason~503"], True),
        (["reason~504"], False),
        (["header.tenant=a"], True),
        (["header.tenant=b"], False),
        (["header.tenant!=b"], True),
        (["header.x.y=1=2"], True),
        (["header.e="], True),
        (["header.none="], False),
        (["header.none!=a"], True),
        (["header.none~a"], False),
        (["reason~503", "header.tenant=a"], True),
        (["reason~503", "header.tenant=b"], False),
    ],
)
def test_all_terms_must_hold(terms: list[str], expected: bool) -> None:
    assert parse(terms, "filters")(LETTER) is expected


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ("", "character 1"),
        ("colour=red", "character 1"),
        ("header.=x", "character 1"),
        ("key", "character 4"),
        ("key<3", "character 4"),
        ("reason!x", "character 7"),
        ("header.a", "character 9"),
        ("key=" + "x" * TERM_BYTES_MAX, "1024 bytes"),
    ],
)
def test_a_wrong_term_is_named_with_the_place_of_the_mistake(term: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as error:
        parse(["key=a", term], "select.filters")
    assert "select.filters[1]" in str(error.value)


def test_too_many_terms_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="allowed are 16"):
        parse(["key=a"] * (TERMS_MAX + 1), "select.filters")
