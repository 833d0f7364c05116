"""The one place where an error becomes what a client sees: a gRPC status with google.rpc details, or a `Failure`.

An exception that is not a `RingpostError` is a fault of ours: it is logged once, with its traceback and an incident id,
and the client gets that id and nothing else.
"""

import functools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ringpost.node import log
from ringpost.node.errors import PassedOn, RingpostError, Violation
from ringpost.v1 import common_pb2

DOMAIN = "ringpost"
DETAILS_KEY = "grpc-status-details-bin"

# Together these keep a status under 8 KiB, the size that every client takes in trailing metadata.
MESSAGE_BYTES_MAX = 512
VIOLATIONS_MAX = 6
VIOLATION_FIELD_BYTES_MAX = 64
VIOLATION_BYTES_MAX = 192
FACTS_MAX = 8
FACT_NAME_BYTES_MAX = 64
FACT_BYTES_MAX = 256

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Request = TypeVar("Request")
Response = TypeVar("Response")


def known(error: Exception) -> RingpostError:
    """The error itself, or for one that nobody expected a logged incident in its place."""
    if isinstance(error, RingpostError):
        return error
    incident = secrets.token_hex(6)
    log.error("incident", exception=error, incident=incident, kind=type(error).__name__)
    return RingpostError(
        f"an error inside the node, incident {incident}; its log tells more", metadata={"incident": incident}
    )


def failure(error: Exception) -> common_pb2.Failure:
    """The error as it is told inside a stream. Logs an unexpected one."""
    told = known(error)
    return common_pb2.Failure(
        code=_number(told.code),
        reason=told.reason,
        message=_cut(told.message, MESSAGE_BYTES_MAX),
        metadata=_facts(told),
        retry_after_ms=told.retry_after_ms,
        violations=[common_pb2.FieldViolation(field=f, description=d) for f, d in _violations(told)],
    )


def error_of(failure: common_pb2.Failure) -> PassedOn:
    """The opposite of `failure`: what another node said."""
    return PassedOn(
        _CODES.get(failure.code, grpc.StatusCode.UNKNOWN),
        failure.message,
        reason=failure.reason,
        metadata=failure.metadata,
        retry_after_ms=failure.retry_after_ms,
        violations=[Violation(one.field, one.description) for one in failure.violations],
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """Ends a call with the error's status and details. Always raises, as `context.abort` does."""
    told = known(error)
    message = _cut(told.message, MESSAGE_BYTES_MAX)
    details = status_pb2.Status(code=_number(told.code), message=message, details=[_any(d) for d in _details(told)])
    await context.abort(told.code, message, ((DETAILS_KEY, details.SerializeToString()),))
    raise AssertionError("context.abort returned")


def translated(
    handler: Callable[[Any, Request, grpc.aio.ServicerContext[Any, Any]], Awaitable[Response]],
) -> Callable[[Any, Request, grpc.aio.ServicerContext[Any, Any]], Awaitable[Response]]:
    """Decorates the method of a unary call: what it raises ends the call with the right status."""

    @functools.wraps(handler)
    async def run(self: Any, request: Request, context: grpc.aio.ServicerContext[Any, Any]) -> Response:
        try:
            return await handler(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    return run


def _number(code: grpc.StatusCode) -> int:
    number, _ = code.value
    return int(number)


def _details(error: RingpostError) -> list[Message]:
    found: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_facts(error)),
    ]
    if error.retry_after_ms > 0:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        found.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        at_fault = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in _violations(error)]
        found.append(error_details_pb2.BadRequest(field_violations=at_fault))
    return found


def _any(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _facts(error: RingpostError) -> dict[str, str]:
    facts = list(error.metadata.items())[:FACTS_MAX]
    return {_cut(name, FACT_NAME_BYTES_MAX): _cut(value, FACT_BYTES_MAX) for name, value in facts}


def _violations(error: RingpostError) -> list[tuple[str, str]]:
    return [
        (_cut(field, VIOLATION_FIELD_BYTES_MAX), _cut(description, VIOLATION_BYTES_MAX))
        for field, description in error.violations[:VIOLATIONS_MAX]
    ]


def _cut(text: str, bytes_max: int) -> str:
    # Lone surrogates would not encode; a character that the cut splits goes whole.
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: bytes_max - 3].decode("utf-8", "ignore") + "..."
