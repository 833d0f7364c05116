"""Patterns of channel names. Pure.

`*` stands for exactly one token, `>` at the end for one token or more: `orders.*.eu`, `orders.>`, `>` for all.
"""

import re
from collections.abc import Iterable

from ringpost.cluster.names import channel_problem, is_inbox

REST = ">"
ONE = "*"


def pattern_problem(pattern: str) -> str | None:
    """None for a good pattern, otherwise half a sentence that follows the field's name."""
    tokens = pattern.split(".")
    if REST in tokens[:-1]:
        return f"{pattern!r} has '{REST}' before its end; it stands for all tokens that follow"
    # With a plain token in each place of a wildcard it must be a channel's name.
    plain = ".".join("x" if token in (ONE, REST) else token for token in tokens)
    if (problem := channel_problem(plain)) is None:
        return None
    if ONE in plain or REST in plain:
        return f"{pattern!r} has a wildcard inside a token; '{ONE}' and '{REST}' stand for whole tokens"
    return f"{pattern!r} {problem}"


class Patterns:
    """Any of several patterns, each a good one."""

    __slots__ = ("_match", "texts")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.texts = tuple(sorted(set(patterns)))
        needed = (REST,) if REST in self.texts else self.texts  # the others add nothing to that one
        parts = [r"\.".join(map(_expression, pattern.split("."))) for pattern in needed]
        # Without a pattern nothing matches: not even the empty name.
        self._match = re.compile("|".join(parts) if parts else r"(?!)").fullmatch

    def match(self, channel: str) -> bool:
        """Whether one of them is about the channel."""
        return self._match(channel) is not None

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __or__(self, other: "Patterns") -> "Patterns":
        return Patterns((*self.texts, *other.texts))


def _expression(token: str) -> str:
    if token == ONE:
        return r"[^.]+"
    if token == REST:
        return r"[^.]+(?:\.[^.]+)*"
    return re.escape(token)


class ChannelPattern:
    """One good pattern of channels to subscribe to: inboxes match only where its first token says so literally."""

    __slots__ = ("_match", "_skips_inboxes", "prefix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        # What all that match begin with.
        self.prefix = re.split(r"[*>]", text, maxsplit=1)[0]
        self._match = Patterns((text,)).match
        self._skips_inboxes = text.split(".", 1)[0] in (ONE, REST)

    def match(self, channel: str) -> bool:
        """Whether it is about the channel."""
        return self._match(channel) and not (self._skips_inboxes and is_inbox(channel))
