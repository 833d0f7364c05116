"""Checking and translating what a subscriber sends. Pure."""

from collections.abc import Sequence

from ringpost.cluster.names import channel_problem, group_problem
from ringpost.cluster.patterns import pattern_problem
from ringpost.node.errors import InvalidRequest
from ringpost.node.groups.changes import Ack, Action, Extend, Nack, Reject
from ringpost.node.shard.claims import read_token
from ringpost.node.shard.modes import modes_allowed
from ringpost.v1.common_pb2 import GroupMode, OffsetRange
from ringpost.v1.group_pb2 import SettleMessagesRequest
from ringpost.v1.subscribe_pb2 import Nack as NackCommand
from ringpost.v1.subscribe_pb2 import OpenSubscription, Settle

RANGES_MAX = 1_000
RESUME_MAX = 10_000
NACK_DELAY_MS_MAX = 604_800_000
FORWARDED_RANGES_MAX = 20_000  # what another node may send for a cumulative settlement of its client
EXTEND_MS_MIN, EXTEND_MS_MAX = 1_000, 43_200_000
REASON_BYTES_MAX = 1_024


def check_settle(settle: Settle, ranges_max: int = RANGES_MAX) -> None:
    """Raises InvalidRequest naming the field. By a token without ranges is settled what the token has."""
    if settle.lease_token:
        token = read_token(settle.lease_token, "settle.lease_token")
        if settle.cumulative:
            raise InvalidRequest.of("settle.cumulative", "is set with a lease_token, which is about one delivery")
        if not settle.ranges:
            settle.ranges.add(first=token.first, last=token.last)
    check_ranges(settle.ranges, "settle.ranges", ranges_max)
    check_action(settle, "settle.")


def check_action(settle: Settle | SettleMessagesRequest, prefix: str = "") -> None:
    """Raises InvalidRequest for no action, or one that asks too much; `prefix` is where it is in the request."""
    action = settle.WhichOneof("action")
    if action is None:
        raise InvalidRequest.of(f"{prefix}action", "is not set; allowed are ack, nack, extend, reject")
    if action == "nack":
        _check_nack(settle.nack, f"{prefix}nack")
    if action == "extend" and settle.extend.deadline_ms:
        _check_extend(settle.extend.deadline_ms, f"{prefix}extend")
    if action == "reject":
        check_reason(settle.reject.reason, f"{prefix}reject.reason")


def check_settled_channel(settle: Settle, *, one: bool) -> None:
    """Raises InvalidRequest unless a channel is named where the subscription has several, and only there."""
    if one and settle.channel:
        raise InvalidRequest.of("settle.channel", "is set, but the subscription has one channel; leave it unset")
    if not one and not settle.channel:
        raise InvalidRequest.of("settle.channel", "is empty; with a pattern it says whose offsets these are")


def check_pattern(command: OpenSubscription, *, forwarded: bool = False) -> None:
    """Raises InvalidRequest for a pattern that is none, or with what does not go with it.

    `forwarded`: another node opens one of a pattern's channels here.
    """
    if not command.pattern:
        if command.resume:
            raise InvalidRequest.of("open.resume", "is set without a pattern; a channel begins at `start`")
        return
    if forwarded:
        return
    if command.channel:
        raise InvalidRequest.of("open.pattern", "is set beside `channel`; set one of the two")
    if (problem := pattern_problem(command.pattern)) is not None:
        raise InvalidRequest.of("open.pattern", problem)
    if command.group and (problem := group_problem(command.group)) is not None:
        raise InvalidRequest.of("open.group", problem)
    check_mode_known(command)
    if command.start.WhichOneof("at") == "offset":
        raise InvalidRequest.of("open.start.offset", "says nothing of several channels; name offsets in `resume`")
    _check_resume(command)


def _check_resume(command: OpenSubscription) -> None:
    if command.resume and command.group:
        raise InvalidRequest.of("open.resume", "is set with a group, which knows its places; leave it unset")
    if len(command.resume) > RESUME_MAX:
        raise InvalidRequest.of("open.resume", f"has {len(command.resume)} entries, allowed are up to {RESUME_MAX}")
    for i, place in enumerate(command.resume):
        if (problem := channel_problem(place.channel)) is not None:
            raise InvalidRequest.of(f"open.resume[{i}].channel", problem)


def check_mode_known(command: OpenSubscription) -> None:
    """Raises InvalidRequest for a mode that is none, and for what says something only with a group."""
    if command.lease_tokens and not command.group:
        raise InvalidRequest.of("open.lease_tokens", "is set without a group; only a group's deliveries are leased")
    if command.mode and not command.group:
        raise InvalidRequest.of("open.mode", "is set without a group; name the group, or leave mode unset")
    if command.mode not in GroupMode.values():
        raise InvalidRequest.of("open.mode", f"is {command.mode}, allowed are {modes_allowed()}")


def check_ranges(ranges: Sequence[OffsetRange], field: str, ranges_max: int = RANGES_MAX, ranges_min: int = 1) -> None:
    """Raises InvalidRequest for too few, too many, or one that is turned round."""
    if not ranges_min <= len(ranges) <= ranges_max:
        raise InvalidRequest.of(field, f"has {len(ranges)} ranges, allowed are {ranges_min} to {ranges_max}")
    for i, pair in enumerate(ranges):
        if pair.first > pair.last:
            raise InvalidRequest.of(f"{field}[{i}]", f"first {pair.first} is above last {pair.last}")


def check_reason(reason: str, field: str) -> None:
    """Raises InvalidRequest for a reason that is too long."""
    if len(reason.encode()) > REASON_BYTES_MAX:
        raise InvalidRequest.of(field, f"is longer than {REASON_BYTES_MAX} bytes")


def _check_nack(nack: NackCommand, where: str) -> None:
    for field in ("delay_ms", "fallback_delay_ms"):
        if (value := getattr(nack, field)) > NACK_DELAY_MS_MAX:
            raise InvalidRequest.of(
                f"{where}.{field}", f"is {value}, allowed are 0 to {NACK_DELAY_MS_MAX} (seven days)"
            )
    check_reason(nack.reason, f"{where}.reason")


def _check_extend(deadline_ms: int, where: str) -> None:
    if not EXTEND_MS_MIN <= deadline_ms <= EXTEND_MS_MAX:
        raise InvalidRequest.of(
            f"{where}.deadline_ms",
            f"is {deadline_ms}, allowed are {EXTEND_MS_MIN} to {EXTEND_MS_MAX} (twelve hours), or 0",
        )


def settle_action(settle: Settle | SettleMessagesRequest) -> Action:
    """The core's action of a checked command."""
    action = settle.WhichOneof("action")
    if action == "ack":
        return Ack()
    if action == "nack":
        return Nack(settle.nack.delay_ms * 1000, settle.nack.reason, settle.nack.fallback_delay_ms * 1000)
    if action == "extend":
        return Extend(settle.extend.deadline_ms * 1000)
    return Reject(settle.reject.reason)
