"""What a filter is made of: typed terms, each a closure over the message that it looks at.

An evaluation may fail, as in CEL: a header that is not there, or a text that is too long to look at, raises
`LookupError`. `&&` and `||` absorb a failure where another operand decides.
"""

import operator
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from ringpost.v1.publish_pb2 import Message

# Characters of a key, header or id that may be looked at: bounds the time that one message takes.
TEXT_MAX = 16_384

Evaluate = Callable[[Message], Any]
Condition = Callable[[Message], bool]


class Type(Enum):
    """Of a term; the value is the name that CEL has for it."""

    BOOL = "bool"
    INT = "int"
    STRING = "string"
    HEADERS = "map(string, string)"


class Term(NamedTuple):
    """A part of a filter: its type, how to evaluate it, and the index of the character where it begins."""

    type: Type
    evaluate: Evaluate
    at: int


def _bounded(text: str) -> str:
    if len(text) > TEXT_MAX:
        raise LookupError("too long")
    return text


def _key(message: Message) -> str:
    return _bounded(message.key.decode("utf-8", "surrogateescape"))


def _message_id(message: Message) -> str:
    return _bounded(message.message_id)


def _data_size(message: Message) -> int:
    return len(message.data)


VARIABLES: dict[str, tuple[Type, Evaluate]] = {
    "key": (Type.STRING, _key),
    "headers": (Type.HEADERS, operator.attrgetter("headers")),
    "message_id": (Type.STRING, _message_id),
    "producer_time_us": (Type.INT, operator.attrgetter("producer_time_us")),
    "size": (Type.INT, _data_size),
}

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

METHODS: dict[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": operator.contains,
}


def constant(value: Any) -> Evaluate:
    return lambda _: value


def header(name: str) -> Evaluate:
    """A header by a name that is fixed."""

    def value(message: Message) -> str:
        found = message.headers.get(name)
        if found is None:
            raise LookupError(name)
        return _bounded(found)

    return value


def header_named(name: Evaluate) -> Evaluate:
    def value(message: Message) -> str:
        wanted = name(message)
        if (found := message.headers.get(wanted)) is None:
            raise LookupError(wanted)
        return _bounded(found)

    return value


def has_header(name: Evaluate) -> Evaluate:
    return lambda message: name(message) in message.headers


def length(of: Evaluate) -> Evaluate:
    return lambda message: len(of(message))


def applied(function: Callable[[Any, Any], bool], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda message: function(left(message), right(message))


def compared(function: Callable[[Any, Any], bool], left: Evaluate, value: Any) -> Evaluate:
    """With a literal, which is the usual case."""
    return lambda message: function(left(message), value)


def is_among(left: Evaluate, values: frozenset[Any]) -> Evaluate:
    return lambda message: left(message) in values


def negated(of: Evaluate) -> Evaluate:
    return lambda message: not of(message)


def decided(operands: Sequence[Evaluate], by: bool) -> Evaluate:
    """`||` (by True) or `&&` (by False) of several: one that has this value decides, whatever fails beside it."""

    def value(message: Message) -> bool:
        failure: LookupError | None = None
        for operand in operands:
            try:
                if operand(message) == by:
                    return by
            except LookupError as error:
                failure = error
        if failure is not None:
            raise failure
        return not by

    return value
