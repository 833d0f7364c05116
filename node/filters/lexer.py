"""A filter's text as tokens, each with its place.

Literals and names are those of CEL; what CEL has and filters do not (bytes, fractions, unsigned numbers, triple quotes)
is refused here with its place.
"""

import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1


class FilterError(ValueError):
    """A text that is no filter. `line` and `column` (in characters) count from 1."""

    def __init__(self, text: str, at: int, problem: str) -> None:
        """`at`: the index of the character where it goes wrong."""
        self.at = at
        self.line = text.count("\n", 0, at) + 1
        self.column = at - text.rfind("\n", 0, at)
        self.problem = problem
        super().__init__(f"goes wrong at line {self.line}, column {self.column}: {problem}")


class Kind(Enum):
    """Of a token."""

    STRING = "a string"
    INT = "a whole number"
    NAME = "a name"
    SYMBOL = "a symbol"
    END = "the end"


class Token(NamedTuple):
    """`text` as it stands in the filter, `value` of a literal; `at` is its first character."""

    kind: Kind
    text: str
    at: int
    value: str | int = ""

    @property
    def shown(self) -> str:
        """For people."""
        return "the end" if self.kind is Kind.END else self.text if len(self.text) <= 32 else f"{self.text[:32]}..."


_SPACE = re.compile(r"(?:[ \t\n\f\r]|//[^\n]*)+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
_SYMBOL = re.compile(r"&&|\|\||[=!<>]=|[!<>()\[\],.-]")
_QUOTED = re.compile(r"[rR]?[\"']")
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\?\"'`])|[xX]([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2}))"
)
_PLAIN = dict(zip("abfnrtv\\?\"'`", "\a\b\f\n\r\t\v\\?\"'`", strict=True))


def tokens(text: str) -> Iterator[Token]:
    """The tokens, the last one of kind END. Raises FilterError where something is none."""
    at = 0
    while True:
        if (space := _SPACE.match(text, at)) is not None:
            at = space.end()
        if at == len(text):
            yield Token(Kind.END, "", at)
            return
        token = _token(text, at)
        at += len(token.text)
        yield token


def _token(text: str, at: int) -> Token:
    if (quote := _QUOTED.match(text, at)) is not None:
        return _string(text, at, quote.end(), raw=len(quote[0]) == 2)
    if (name := _NAME.match(text, at)) is not None:
        if text[name.end() : name.end() + 1] in ("'", '"'):
            raise FilterError(text, at, "bytes are not supported; key and headers are strings")
        return Token(Kind.NAME, name[0], at)
    if (number := _NUMBER.match(text, at)) is not None:
        return _int(text, at, number)
    if (symbol := _SYMBOL.match(text, at)) is not None:
        return Token(Kind.SYMBOL, symbol[0], at)
    hint = {"=": "; equality is ==", "&": "; and is &&", "|": "; or is ||"}.get(text[at], "")
    raise FilterError(text, at, f"{text[at]!r} has no meaning here{hint}")


def _int(text: str, at: int, number: re.Match[str]) -> Token:
    behind = text[number.end() : number.end() + 1]
    if behind == "." or behind.isalnum() or behind == "_":
        raise FilterError(text, at, "only whole numbers are supported, such as 42 or 0x2a")
    digits = number[0]
    if len(digits) > 20 or (value := int(digits, 16 if digits.startswith("0x") else 10)) > INT_MAX + 1:
        raise FilterError(text, at, f"the number is beyond {INT_MAX}")
    return Token(Kind.INT, digits, at, value)


def _string(text: str, at: int, begin: int, *, raw: bool) -> Token:
    quote, position = text[begin - 1], begin
    parts: list[str] = []
    while position < len(text) and text[position] not in (quote, "\n", "\r"):
        if raw or text[position] != "\\":
            parts.append(text[position])
            position += 1
            continue
        escape = _ESCAPE.match(text, position)
        parts.append(_escaped(text, position, escape))
        position += len(escape[0]) if escape is not None else 1
    if text[position : position + 1] != quote:
        raise FilterError(text, at, f"the string does not end; expected {quote} on the same line")
    if position == begin and text[position + 1 : position + 2] == quote:
        raise FilterError(text, at, "strings in triple quotes are not supported")
    return Token(Kind.STRING, text[at : position + 1], at, "".join(parts))


def _escaped(text: str, at: int, escape: re.Match[str] | None) -> str:
    if escape is None:
        raise FilterError(text, at, "no such escape; allowed are \\n \\t \\\\ \\\" \\' and the others of CEL")
    plain, *numbers, octal = escape.groups()
    if plain is not None:
        return _PLAIN[plain]
    code = int(octal, 8) if octal is not None else int(next(one for one in numbers if one is not None), 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise FilterError(text, at, "the escape is no Unicode character")
    return chr(code)
