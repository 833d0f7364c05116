"""What a group's mode and filter forbid."""

from ringpost.node.errors import Exhausted, Precondition
from ringpost.v1.common_pb2 import GroupMode

RETRY_MS = 500


def occupied(group: str, consumer: str) -> Exhausted:
    """An exclusive group has its one consumer; that one's name may be empty."""
    named = f" {consumer!r}" if consumer else ""
    return Exhausted(
        f"open.group: group {group!r} is exclusive (GROUP_MODE_EXCLUSIVE) and has its consumer{named}; open again when "
        "that one has left",
        reason="GROUP_OCCUPIED",
        metadata={"consumer": consumer},
        retry_after_ms=RETRY_MS,
    )


def check_mode(group: str, mode: GroupMode.ValueType, wanted: GroupMode.ValueType) -> None:
    """Raises Precondition when a group has another mode than the one that is wanted; 0: any will do."""
    if not wanted or wanted == mode:
        return
    names = {"mode": GroupMode.Name(mode), "wanted": GroupMode.Name(wanted)}
    raise Precondition(
        f"open.mode: group {group!r} has mode {names['mode']}, wanted is {names['wanted']}; the mode of a group is "
        "fixed: leave open.mode unset, or make another group",
        reason="GROUP_MODE",
        metadata=names,
    )


def check_filter(group: str, known: str, wanted: str) -> None:
    """Raises Precondition when a group has another filter than the one that is wanted; "": any will do."""
    if not wanted or wanted == known:
        return
    has = f"filter {known!r}" if known else "no filter"
    raise Precondition(
        f"open.filter: group {group!r} has {has}, wanted is {wanted!r}; leave open.filter unset, or change the group's "
        "(SetGroup)",
        reason="GROUP_FILTER",
        metadata={"filter": known, "wanted": wanted},
    )


def modes_allowed() -> str:
    """The modes that a group may have, for people."""
    return ", ".join(f"{name} ({number})" for name, number in GroupMode.items() if number)
