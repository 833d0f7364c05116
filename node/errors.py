"""The errors a client can meet, each with its gRPC status, a stable reason and a sentence that helps.

Raised anywhere in the node, turned into a status (unary) or a `Failure` (streams) by `node.status` only.
A definite error means that nothing was changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc


class Violation(NamedTuple):
    """One request field at fault."""

    field: str
    description: str


class RingpostError(Exception):
    """Base of all. `code` and `reason` are the class's; an instance may carry more facts.

    The base itself stands for a fault of ours: UNKNOWN, because what it left undone is unknown.

    `metadata` holds facts a program can act on, `retry_after_ms` > 0 says that trying again is worth it,
    `violations` name the fields at fault.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int = 0,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        self.violations = tuple(violations)


class InvalidRequest(RingpostError):
    """A field of the request is wrong, whatever the state of the node."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, field: str, description: str) -> "InvalidRequest":
        """One wrong field."""
        return cls(f"{field}: {description}", violations=[Violation(field, description)])


class Unauthenticated(RingpostError):
    """Nobody knows who calls: NO_TOKEN, TOKEN_INVALID or TOKEN_EXPIRED. Another token may help."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_INVALID"


class PermissionDenied(RingpostError):
    """Who calls may not do this; the metadata say who it is and which verb is lacking."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "NOT_PERMITTED"


class NotFound(RingpostError):
    """No such channel or group: reason CHANNEL_NOT_FOUND, GROUP_NOT_FOUND or SUBSCRIPTION_NOT_FOUND."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(RingpostError):
    """There is one of that name already, or the batch was stored too long ago to tell its offsets."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Precondition(RingpostError):
    """The state does not allow it: SEQUENCE_GAP, UNKNOWN_PRODUCER, PRODUCER_FENCED and such."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class OutOfRange(RingpostError):
    """An offset beyond the end, or no longer kept."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "OFFSET_OUT_OF_RANGE"


class Exhausted(RingpostError):
    """A limit is reached: DISK_FULL, BUSY, CHANNEL_LIMIT. Nothing was changed; try again later."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BUSY"


class Unavailable(RingpostError):
    """The node cannot do it now; with reason NOT_APPENDED nothing was appended, otherwise the outcome is open."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"


class NotLeader(Unavailable):
    """This node does not lead the shard; nothing was changed. The metadata say who leads, as far as it knows."""

    reason = "NOT_LEADER"

    @classmethod
    def of(cls, message: str, *, shard: int, leader: str, epoch: int, retry_after_ms: int = 50) -> "NotLeader":
        """`leader` is a node's id, "" when there is none."""
        facts = {"shard": str(shard), "leader": leader, "epoch": str(epoch)}
        return cls(message, metadata=facts, retry_after_ms=retry_after_ms)


class PassedOn(RingpostError):
    """An error of another node, to be told to the client as it is."""

    def __init__(self, code: grpc.StatusCode, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.code = code


class DataLoss(RingpostError):
    """Stored bytes are damaged: SHARD_QUARANTINED or FRAME_DAMAGED."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "FRAME_DAMAGED"
