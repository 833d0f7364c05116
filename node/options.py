"""One setting of the node: how it is declared, read from text or TOML, checked and written. Pure."""

import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SIZE = re.compile(r"(\d[\d_]*) ?(KiB|MiB|GiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

# Settings that a running node takes up on SIGHUP.
LIVE = frozenset(
    {
        *("log_level", "log_format", "max_channels", "max_groups", "max_scheduled_batches", "auto_create_channels"),
        *("retention_age_ms", "retention_bytes", "retention_messages", "streams_max"),
        *("stream_unanswered_batches", "stream_unanswered_bytes", "node_unanswered_bytes"),
        *("checkpoint_interval_s", "checkpoint_bytes", "scrub_bytes_per_s", "heartbeat_interval_ms"),
        *("disk_warn_fraction", "disk_refuse_fraction", "disk_fail_fraction"),
        *("drain_grace_ms", "stop_grace_ms"),
    }
)


class ConfigError(Exception):
    """A setting cannot be used. The message names the source, the setting and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What a field of `Config` may hold. `low` and `high` are inclusive; `choices` and `problem` are for text."""

    group: str
    help: str
    low: float = 0
    high: float = float(1 << 62)
    choices: tuple[str, ...] = ()
    problem: Callable[[str], str | None] | None = None


def option(default: object, group: str, help: str, **limits: Any) -> Any:
    """A dataclass field with its `Option` as metadata."""
    return dataclasses.field(default=default, metadata={"option": Option(group, help, **limits)})


def option_of(field: dataclasses.Field[Any]) -> Option:
    """The `Option` that `option` attached."""
    found = field.metadata["option"]
    assert isinstance(found, Option)
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default


def parse(field: dataclasses.Field[Any], raw: object) -> Any:
    """A value as the field's type, from text (environment, flags) or a TOML value.

    Raises ValueError with what is allowed. Booleans are true or false, yes or no, 1 or 0; numbers may have
    underscores, byte sizes also end in KiB, MiB or GiB.
    """
    kind = type(_default(field))
    if kind is bool:
        return _parse_boolean(raw)
    if kind in (int, float):
        return _parse_number(field, kind, raw)
    if not isinstance(raw, str):
        raise ValueError("must be text")
    return Path(raw) if issubclass(kind, Path) else raw


def _parse_boolean(raw: object) -> bool:
    found = raw if isinstance(raw, bool) else _BOOLEANS.get(raw.strip().lower()) if isinstance(raw, str) else None
    if found is None:
        raise ValueError("must be true or false")
    return found


def _parse_number(field: dataclasses.Field[Any], kind: type, raw: object) -> float:
    try:
        if isinstance(raw, str) and kind is int:
            return _parse_size(raw) if "bytes" in field.name else int(raw)
        if isinstance(raw, str) or (isinstance(raw, int | float) and not isinstance(raw, bool)):
            number = float(raw)
            if kind is float or number.is_integer():
                return kind(raw)  # type: ignore[no-any-return]
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"must be {describe_bounds(field)}, got {raw!r}")


def _parse_size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    return int(found.group(1)) * _UNITS[found.group(2)]


def problem_of(field: dataclasses.Field[Any], value: Any) -> str | None:
    """None when the value is allowed, else a half-sentence that follows the field's name."""
    known = option_of(field)
    kind = type(_default(field))
    if not isinstance(value, Path if issubclass(kind, Path) else kind):
        return f"must be of type {kind.__name__}, got {value!r}"
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        # A NaN is not within any bounds.
        return None if known.low <= value <= known.high else f"must be {describe_bounds(field)}, got {value}"
    if isinstance(value, Path):
        return None if "\0" not in str(value) else "must not contain a zero byte"
    if known.choices:
        return None if value in known.choices else f"must be one of {', '.join(known.choices)}; got {value!r}"
    return known.problem(value) if known.problem else None


def describe_bounds(field: dataclasses.Field[Any]) -> str:
    """The allowed numbers, such as `1 to 16777216 (16 MiB)`."""
    known = option_of(field)
    what = "a whole number" if isinstance(_default(field), int) else "a number"
    if known.high >= 1 << 62:
        return f"{what}, at least {known.low}"
    return f"{what} from {known.low} to {describe_value(field, known.high)}"


def describe_value(field: dataclasses.Field[Any], value: Any) -> str:
    """A value for people; sizes also in binary units."""
    if "bytes" in field.name and isinstance(value, int) and value:
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value % size == 0:
                return f"{value} ({value // size} {unit})"
    return json.dumps(value) if isinstance(value, bool) else str(value)


def to_toml(value: Any) -> str:
    """One value in TOML."""
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, but TOML wants DEL escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def split_address(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host, port); port 0 to 65535. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(address)
    host = host[1:-1] if bracketed else host
    if not host or any(not 32 < ord(letter) < 127 for letter in host) or bracketed != (":" in host):
        raise ValueError(address)
    return host, int(port)


def address_problem(address: str) -> str | None:
    """Checks `host:port`."""
    try:
        split_address(address)
    except ValueError:
        return f"must be host:port, such as 127.0.0.1:7400 or [::1]:7400; got {address!r}"
    return None


def optional_address_problem(address: str) -> str | None:
    """Checks `host:port`, or nothing."""
    return address_problem(address) if address else None


def addresses_problem(addresses: str) -> str | None:
    """Checks `host:port,host:port`."""
    return next(filter(None, map(address_problem, addresses.split(","))), None)


def prefix_problem(prefix: str) -> str | None:
    """Checks the beginning of keys in etcd."""
    if re.fullmatch(r"(/[A-Za-z0-9._-]+)+", prefix):
        return None
    return f"must be parts of A-Z a-z 0-9 . _ -, each after a /, such as /ringpost; got {prefix!r}"


def zone_problem(zone: str) -> str | None:
    """Checks a failure domain's name."""
    if re.fullmatch(r"[A-Za-z0-9._/:-]{0,127}", zone):
        return None
    return f"must be at most 127 of A-Z a-z 0-9 . _ / : -; got {zone!r}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `host:port`. A name other than localhost counts as reachable."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
