"""The modes of a group, by the names that people use."""

from typing import Final

from ringpost.client.checks import refused
from ringpost.v1.common_pb2 import GroupMode

_PREFIX: Final = "GROUP_MODE_"
# "shared", "key_ordered", "exclusive", "failover", "broadcast".
MODES: Final = {name.removeprefix(_PREFIX).lower(): value for name, value in GroupMode.items() if value}


def mode_value(name: str | None) -> GroupMode.ValueType:
    """The protocol's number; 0, unset, for None. Raises `InvalidRequest`."""
    if name is None:
        return GroupMode.GROUP_MODE_UNSPECIFIED
    if name not in MODES:
        raise refused("mode", f"must be {', '.join(map(repr, MODES))}, not {name!r}")
    return MODES[name]


def mode_name(mode: GroupMode.ValueType) -> str:
    """The opposite; a number that this client does not know stays one."""
    return next((name for name, value in MODES.items() if value == mode), str(mode))
