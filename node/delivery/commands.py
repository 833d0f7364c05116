"""Checking and translating what a subscriber sends. Pure."""

from ringpost.node.errors import InvalidRequest
from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Reject
from ringpost.v1.subscribe_pb2 import Settle

RANGES_MAX = 1_000
NACK_DELAY_MS_MAX = 604_800_000
EXTEND_MS_MIN, EXTEND_MS_MAX = 1_000, 43_200_000
REASON_BYTES_MAX = 1_024


def check_settle(settle: Settle) -> None:
    """Raises InvalidRequest naming the field."""
    if not 1 <= len(settle.ranges) <= RANGES_MAX:
        raise InvalidRequest.of("settle.ranges", f"has {len(settle.ranges)} ranges, allowed are 1 to {RANGES_MAX}")
    for i, pair in enumerate(settle.ranges):
        if pair.first > pair.last:
            raise InvalidRequest.of(f"settle.ranges[{i}]", f"first {pair.first} is above last {pair.last}")
    action = settle.WhichOneof("action")
    if action is None:
        raise InvalidRequest.of("settle.action", "is not set; allowed are ack, nack, extend, reject")
    if action == "nack" and settle.nack.delay_ms > NACK_DELAY_MS_MAX:
        raise InvalidRequest.of(
            "settle.nack.delay_ms", f"is {settle.nack.delay_ms}, allowed are 0 to {NACK_DELAY_MS_MAX} (seven days)"
        )
    if action == "extend" and settle.extend.deadline_ms:
        _check_extend(settle.extend.deadline_ms)
    if action == "reject" and len(settle.reject.reason.encode()) > REASON_BYTES_MAX:
        raise InvalidRequest.of("settle.reject.reason", f"is longer than {REASON_BYTES_MAX} bytes")


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
        return Nack(settle.nack.delay_ms * 1000)
    if action == "extend":
        return Extend(settle.extend.deadline_ms * 1000)
    return Reject(settle.reject.reason)
