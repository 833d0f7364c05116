"""Types of options and arguments: click's view of `units`. click shows a function's name as the kind of value."""

import time
from collections.abc import Callable
from typing import TypeVar

import click

from ringpost.client.checks import MAX_UINT64
from ringpost.client.cli.units import Place, parse_bytes, parse_duration, parse_moment, parse_place

T = TypeVar("T")
OFFSET = click.IntRange(0, MAX_UINT64)
DURABILITY = click.Choice(["memory", "leader", "quorum"])


def size(text: str | int) -> int:
    """Bytes: 4096, 64KiB, 1.5MB."""
    return text if isinstance(text, int) else _checked(parse_bytes, text)


def duration(text: str | float) -> float:
    """Seconds: 10s, 250ms, 1h30m."""
    return _checked(parse_duration, text) if isinstance(text, str) else text


def place(text: str | Place) -> Place:
    """earliest, latest, an offset, a time, or so long ago."""
    return text if isinstance(text, Place) else _checked(lambda typed: parse_place(typed, time.time_ns() // 1000), text)


def moment(text: str | int) -> int:
    """A time: 2026-01-31T12:00:00Z."""
    return text if isinstance(text, int) else _checked(parse_moment, text)


def header(text: str | tuple[str, str]) -> tuple[str, str]:
    """NAME=VALUE as a pair."""
    if isinstance(text, tuple):
        return text
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} has no name and value; write name=value.")
    return name, value


def _checked(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None
