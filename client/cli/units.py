"""What people type and read: durations, sizes, places in a channel. Pure; the clock is an argument."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from ringpost.client.checks import MAX_UINT64

_SIZES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _SIZES |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_DAYS = 106_751_991  # as many microseconds as 63 bits hold
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_STEP = re.compile(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s|m|h|d)", re.IGNORECASE)


class Place(NamedTuple):
    """Where reading begins: `kind` is earliest, latest, offset or time; `value` an offset or µs since the epoch."""

    kind: str
    value: int = 0


def parse_bytes(text: str) -> int:
    """Bytes of "4096", "64KiB", "1.5 MB", "2g". Raises `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else None
    if match is None or unit not in _SIZES:
        raise ValueError(f"{text!r} is not a size; write 4096, 64KiB or 1.5MB")
    scale = _SIZES[unit]
    count = int(match[1]) * scale if match[1].isdigit() else float(match[1]) * scale
    if count > MAX_UINT64:
        raise ValueError(f"{text!r} is too much; at most {MAX_UINT64} bytes")
    return round(count)


def parse_duration(text: str) -> float:
    """Seconds of "10" (seconds), "10s", "250ms", "1h30m", "7d". Raises `ValueError`."""
    seconds = _seconds(text.strip())
    if seconds > _LONGEST_DAYS * 86400:
        raise ValueError(f"{text!r} is too long; at most {_LONGEST_DAYS}d")
    return seconds


def _seconds(plain: str) -> float:
    steps = list(_STEP.finditer(plain))
    if re.fullmatch(r"\d+(\.\d+)?", plain):
        return float(plain)
    if not steps or "".join(step[0] for step in steps) != plain:
        raise ValueError(f"{plain!r} is not a duration; write 10s, 250ms or 1h30m")
    return sum(float(step[1]) * _SECONDS[step[2].lower()] for step in steps)


def parse_place(text: str, now_us: int) -> Place:
    """`earliest`, `latest`, an offset, a time in ISO 8601 (local zone when it names none) or "10m": that long ago.

    Raises `ValueError`.
    """
    plain = text.strip().lower()
    if plain in ("earliest", "latest"):
        return Place(plain)
    if plain.isascii() and plain.isdigit():
        if len(plain) > 20 or int(plain) > MAX_UINT64:
            raise ValueError(f"{text!r} is no offset; the greatest is {MAX_UINT64}")
        return Place("offset", int(plain))
    try:
        if _STEP.match(plain) and "-" not in plain:
            time_us = now_us - round(_seconds(plain) * 1e6)
        else:
            time_us = round(datetime.fromisoformat(text.strip()).astimezone(UTC).timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a place; write earliest, latest, an offset such as 42, a time such as"
            " 2026-01-31T12:00:00Z, or 10m for ten minutes ago"
        ) from None
    if time_us < 0:
        raise ValueError(f"{text!r} is a time before 1970; write earliest to begin with what is there")
    return Place("time", time_us)


def parse_moment(text: str) -> int:
    """Microseconds since 1970 of a time in ISO 8601 (local zone when it names none). Raises `ValueError`."""
    try:
        time_us = round(datetime.fromisoformat(text.strip()).astimezone(UTC).timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time; write it as 2026-01-31T12:00:00Z") from None
    if time_us < 0:
        raise ValueError(f"{text!r} is a time before 1970")
    return time_us


def show_bytes(count: float) -> str:
    """ "512 B", "1.5 KiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """ "250 µs", "3.2 ms", "1.5 s", "2 min 5 s", "3 h 2 min", "7 d"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"


def show_time(time_us: int) -> str:
    """ISO 8601 in the local zone; "-" for 0."""
    if not time_us:
        return "-"
    return datetime.fromtimestamp(time_us / 1e6, UTC).astimezone().isoformat(timespec="milliseconds")


def counted(count: int, noun: str) -> str:
    """ "1 message", "1,200 messages"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
