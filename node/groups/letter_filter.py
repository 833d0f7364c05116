"""Choosing dead letters by what is in them: terms such as `reason~timeout`, all of which must hold. Pure."""

import re
from collections.abc import Callable, Sequence

from ringpost.node.errors import InvalidRequest
from ringpost.v1.dead_letter_pb2 import DeadLetter

TERMS_MAX = 16
TERM_BYTES_MAX = 1_024

Matches = Callable[[DeadLetter], bool]

_SUBJECT = re.compile(r"key|reason|header\.[^=!~]+")
_OPERATOR = re.compile(r"=|!=|~")
_SHAPES = "allowed are key, reason and header.NAME, then =, != or ~, then a text"


def parse(terms: Sequence[str], field: str) -> Matches:
    """What a letter must be like. Raises InvalidRequest naming the term in `field`, and where it goes wrong."""
    if len(terms) > TERMS_MAX:
        raise InvalidRequest.of(field, f"has {len(terms)} terms, allowed are {TERMS_MAX}")
    tests = [_term(term, f"{field}[{number}]") for number, term in enumerate(terms)]
    return lambda letter: all(test(letter) for test in tests)


def _term(term: str, field: str) -> Matches:
    if len(term.encode()) > TERM_BYTES_MAX:
        raise InvalidRequest.of(field, f"is longer than {TERM_BYTES_MAX} bytes")
    subject = _SUBJECT.match(term)
    if subject is None:
        raise InvalidRequest.of(field, f"{term!r} goes wrong at character 1: {_SHAPES}")
    operator = _OPERATOR.match(term, subject.end())
    if operator is None:
        raise InvalidRequest.of(field, f"{term!r} goes wrong at character {subject.end() + 1}: {_SHAPES}")
    text = term[operator.end() :]
    read = _reader(subject[0])
    wanted: bytes = text.encode()
    match operator[0]:
        case "=":
            return lambda letter: read(letter) == wanted
        case "!=":
            return lambda letter: read(letter) != wanted
        case _:
            return lambda letter: wanted in (read(letter) or b"")


def _reader(subject: str) -> Callable[[DeadLetter], bytes | None]:
    """How to get what a term speaks of, as UTF-8; None where there is no such header."""
    if subject == "key":
        return lambda letter: letter.message.key
    if subject == "reason":
        return lambda letter: letter.reason.encode()
    name = subject.removeprefix("header.")

    def header(letter: DeadLetter) -> bytes | None:
        headers = letter.message.headers
        return headers[name].encode() if name in headers else None

    return header
