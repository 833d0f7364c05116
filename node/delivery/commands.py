"""Checking and translating what a subscriber sends. Pure."""

from collections.abc import Sequence

from ringpost.node.errors import InvalidRequest
from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Reject
from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.subscribe_pb2 import Nack as NackCommand
from ringpost.v1.subscribe_pb2 import Settle

RANGES_MAX = 1_000
NACK_DELAY_MS_MAX = 604_800_000
FORWARDED_RANGES_MAX = 20_000  # what another node may send for a cumulative settlement of its client
EXTEND_MS_MIN, EXTEND_MS_MAX = 1_000, 43_200_000
REASON_BYTES_MAX = 1_024


def check_settle(settle: Settle, ranges_max: int = RANGES_MAX) -> None:
    """Raises InvalidRequest naming the field."""
    check_ranges(settle.ranges, "settle.ranges", ranges_max)
    action = settle.WhichOneof("action")
    if action is None:
        raise InvalidRequest.of("settle.action", "is not set; allowed are ack, nack, extend, reject")
    if action == "nack":
        _check_nack(settle.nack)
    if action == "extend" and settle.extend.deadline_ms:
        _check_extend(settle.extend.deadline_ms)
    if action == "reject":
        check_reason(settle.reject.reason, "settle.reject.reason")


def check_ranges(ranges: Sequence[OffsetRange], field: str, ranges_max: int = RANGES_MAX) -> None:
    """Raises InvalidRequest for none, too many, or one that is turned round."""
    if not 1 <= len(ranges) <= ranges_max:
        raise InvalidRequest.of(field, f"has {len(ranges)} ranges, allowed are 1 to {ranges_max}")
    for i, pair in enumerate(ranges):
        if pair.first > pair.last:
            raise InvalidRequest.of(f"{field}[{i}]", f"first {pair.first} is above last {pair.last}")


def check_reason(reason: str, field: str) -> None:
    """Raises InvalidRequest for a reason that is too long."""
    if len(reason.encode()) > REASON_BYTES_MAX:
        raise InvalidRequest.of(field, f"is longer than {REASON_BYTES_MAX} bytes")


def _check_nack(nack: NackCommand) -> None:
    for field in ("delay_ms", "fallback_delay_ms"):
        if (value := getattr(nack, field)) > NACK_DELAY_MS_MAX:
            raise InvalidRequest.of(
                f"settle.nack.{field}", f"is {value}, allowed are 0 to {NACK_DELAY_MS_MAX} (seven days)"
            )
    check_reason(nack.reason, "settle.nack.reason")


def _check_extend(deadline_ms: int) -> None:
    if not EXTEND_MS_MIN <= deadline_ms <= EXTEND_MS_MAX:
        raise InvalidRequest.of(
            "settle.extend.deadline_ms",
            f"is {deadline_ms}, allowed are {EXTEND_MS_MIN} to {EXTEND_MS_MAX} (twelve hours), or 0",
        )


def settle_action(settle: Settle) -> Action:
    """The core's action of a checked command."""
    action = settle.WhichOneof("action")
    if action == "ack":
        return Ack()
    if action == "nack":
        return Nack(settle.nack.delay_ms * 1000, settle.nack.reason, settle.nack.fallback_delay_ms * 1000)
    if action == "extend":
        return Extend(settle.extend.deadline_ms * 1000)
    return Reject(settle.reject.reason)
