"""What can go wrong, as typed exceptions.

Every error carries the gRPC `code`, a stable `reason` to switch on, a `message` for a person and the facts that the
broker gave. `outcome_open` is True where the request may or may not have been carried out; every other error is
definite: nothing was changed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from ringpost.v1 import common_pb2

_DETAILS_KEY = "grpc-status-details-bin"
# Reasons of UNAVAILABLE that say that nothing was changed.
SURELY_NOT = frozenset({"NOT_APPENDED", "NOT_LEADER"})


class Retry(Exception):  # noqa: N818
    """Raised by a handler: not done, deliver the message again after `delay` seconds, at most seven days.

    0: as the group's retry policy says. `reason`: for whoever gets it next; what is above 1,024 bytes is cut off.
    """

    def __init__(self, delay: float = 0.0, reason: str = "") -> None:
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason


class Reject(Exception):  # noqa: N818
    """Raised by a handler: the message will never be done. `reason`: what is above 1,024 bytes is cut off."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Violation(NamedTuple):
    """One request field at fault: its path and what is wrong with it."""

    field: str
    description: str


class RingpostError(Exception):
    """Base of all. `retry_after_ms` above 0 says that trying again after that time is worth it."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int = 0,
        violations: Sequence[Violation] = (),
        outcome_open: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        self.violations = tuple(violations)
        self.outcome_open = outcome_open

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def copy(self, *, outcome_open: bool | None = None) -> Self:
        """The same error without a traceback, for one of several that it is raised to."""
        return type(self)(
            self.message,
            code=self.code,
            reason=self.reason,
            metadata=self.metadata,
            retry_after_ms=self.retry_after_ms,
            violations=self.violations,
            outcome_open=self.outcome_open if outcome_open is None else outcome_open,
        )


class InvalidRequest(RingpostError, ValueError):  # noqa: N818
    """A field of the request, or an argument, is wrong; `violations` say which and why."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"


class NotFound(RingpostError):  # noqa: N818
    """No such channel, group or subscription."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(RingpostError):  # noqa: N818
    """There is one of that name; or (DUPLICATE_TOO_OLD) the batch is stored and its offsets are no longer known."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class OutOfRange(RingpostError):  # noqa: N818
    """An offset beyond the end, or no longer kept."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OFFSET_OUT_OF_RANGE"


class Exhausted(RingpostError):  # noqa: N818
    """A limit of the broker is reached (DISK_FULL, BUSY, CHANNEL_LIMIT) and stayed so until the timeout."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BUSY"


class Precondition(RingpostError):  # noqa: N818
    """The state of the broker does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class OffsetMismatch(Precondition):
    """The channel has gone on: the message would not get the expected offset. Nothing was stored."""

    reason = "OFFSET_MISMATCH"

    @property
    def next_offset(self) -> int:
        """The offset that the channel's next message gets; everything below it can be read."""
        return int(self.metadata.get("next_offset", 0))


class Denied(RingpostError):  # noqa: N818
    """Not authenticated, or not allowed."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unavailable(RingpostError):  # noqa: N818
    """No node can be reached, or it cannot do it now."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class Timeout(RingpostError):  # noqa: N818
    """No answer in time. `outcome_open` is False only when the request was never sent or surely refused."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "TIMEOUT"


class DataLoss(RingpostError):  # noqa: N818
    """Stored bytes are damaged: SHARD_QUARANTINED, FRAME_DAMAGED."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "FRAME_DAMAGED"


class DataCorrupted(DataLoss):
    """A delivered batch does not match its CRC-32C or its count."""

    reason = "DATA_CORRUPTED"


class RequestFailed(RingpostError):  # noqa: N818
    """The responder refused the request; the message is its own. Raise it in a handler of `respond` to say so."""

    code = grpc.StatusCode.ABORTED
    reason = "REQUEST_FAILED"


class LeaseLost(RingpostError):  # noqa: N818
    """The message is no longer leased to this subscription; it was or will be delivered again."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "LEASE_LOST"


class BufferFull(RingpostError):  # noqa: N818
    """`publish_nowait` found `max_pending_messages` or `max_pending_bytes` reached. Nothing was taken."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BUFFER_FULL"


class Closed(RingpostError):  # noqa: N818
    """The client or the subscription was closed by this program."""

    code = grpc.StatusCode.CANCELLED
    reason = "CLOSED"


_BY_CODE: dict[grpc.StatusCode, type[RingpostError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.FAILED_PRECONDITION: Precondition,
    grpc.StatusCode.ABORTED: Precondition,
    grpc.StatusCode.UNAUTHENTICATED: Denied,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.DATA_LOSS: DataLoss,
}
_BY_REASON: dict[str, type[RingpostError]] = {OffsetMismatch.reason: OffsetMismatch}
_OPEN_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# How gRPC says that there was no connection to send the request on.
_NEVER_SENT = ("failed to connect to all addresses", "DNS resolution failed", "Errors resolving")
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _is_open(code: grpc.StatusCode, reason: str) -> bool:
    return code in _OPEN_CODES and reason not in SURELY_NOT


def _class_of(code: grpc.StatusCode, reason: str) -> type[RingpostError]:
    return _BY_REASON.get(reason) or _BY_CODE.get(code, RingpostError)


def from_failure(failure: common_pb2.Failure) -> RingpostError:
    """The error that a stream answer carries."""
    code = _BY_NUMBER.get(failure.code, grpc.StatusCode.UNKNOWN)
    reason = failure.reason or code.name
    return _class_of(code, reason)(
        failure.message or reason,
        code=code,
        reason=reason,
        metadata=dict(failure.metadata),
        retry_after_ms=failure.retry_after_ms,
        violations=[Violation(v.field, v.description) for v in failure.violations],
        outcome_open=_is_open(code, reason),
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> RingpostError:
    """The error of a gRPC status, with the google.rpc details that came along."""
    code = error.code()
    reason, metadata, retry_after_ms, violations = "", {}, 0, []
    for detail in _details(error):
        if (info := _unpack(detail, error_details_pb2.ErrorInfo())) is not None:
            reason, metadata = info.reason, dict(info.metadata)
        elif (retry := _unpack(detail, error_details_pb2.RetryInfo())) is not None:
            retry_after_ms = retry.retry_delay.ToMilliseconds()
        elif (bad := _unpack(detail, error_details_pb2.BadRequest())) is not None:
            violations = [Violation(v.field, v.description) for v in bad.field_violations]
    reason = reason or code.name
    text = error.details() or reason
    return _class_of(code, reason)(
        text,
        code=code,
        reason=reason,
        metadata=metadata,
        retry_after_ms=retry_after_ms,
        violations=violations,
        outcome_open=_is_open(code, reason) and not text.startswith(_NEVER_SENT),
    )


def _details(error: grpc.aio.AioRpcError) -> Sequence[Message]:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return ()
    return ()


M = TypeVar("M", bound=Message)


def _unpack(detail: object, into: M) -> M | None:
    return into if detail.Unpack(into) else None  # type: ignore[attr-defined]
