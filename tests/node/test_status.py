"""What a client sees of an error, over a real gRPC server."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ringpost.node.errors import (
    Exhausted,
    InvalidRequest,
    NotFound,
    PassedOn,
    RingpostError,
    Unavailable,
    Violation,
)
from ringpost.node.status import DOMAIN, failure, translated

PATH = "/test.Service/Call"


class Service:
    """Raises what it is told."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.abort = False

    @translated
    async def call(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Echoes."""
        if self.error is not None:
            raise self.error
        if self.abort:
            await context.abort(grpc.StatusCode.ABORTED, "by the handler")
        return request


@pytest.fixture
async def service() -> AsyncIterator[tuple[Service, grpc.aio.UnaryUnaryMultiCallable]]:
    made = Service()
    server = grpc.aio.server()
    server.add_registered_method_handlers("test.Service", {"Call": grpc.unary_unary_rpc_method_handler(made.call)})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield made, channel.unary_unary(PATH)
    await server.stop(None)


async def refusal(service: tuple[Service, Any], error: Exception) -> grpc.aio.AioRpcError:
    made, call = service
    made.error = error
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"x")
    return raised.value


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The google.rpc details by the names of their types."""
    trailing = dict(error.trailing_metadata() or ())
    told = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (told.code, told.message) == (error.code().value[0], error.details())
    found = {}
    for packed in told.details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return found


async def test_a_good_call_passes(service) -> None:
    made, call = service
    assert await call(b"x") == b"x"
    assert made.error is None


async def test_a_wrong_field_is_named_in_the_details(service) -> None:
    error = await refusal(service, InvalidRequest.of("page_size", "must be 1 to 1000, got 5000"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "page_size: must be 1 to 1000, got 5000"
    told = details(error)
    assert told["ErrorInfo"].domain == DOMAIN
    assert told["ErrorInfo"].reason == "INVALID_ARGUMENT"
    (violation,) = told["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("page_size", "must be 1 to 1000, got 5000")
    assert "RetryInfo" not in told


async def test_a_full_disk_says_when_to_come_back(service) -> None:
    error = await refusal(
        service, Exhausted("the disk is full", reason="DISK_FULL", metadata={"limit": "0.92"}, retry_after_ms=1_500)
    )
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    told = details(error)
    assert (told["ErrorInfo"].reason, dict(told["ErrorInfo"].metadata)) == ("DISK_FULL", {"limit": "0.92"})
    assert told["RetryInfo"].retry_delay.ToMilliseconds() == 1_500
    assert "BadRequest" not in told


async def test_the_unexpected_is_an_incident_without_a_traceback(service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "ringpost"):
        error = await refusal(service, KeyError("secret detail"))
    assert error.code() is grpc.StatusCode.UNKNOWN
    incident = details(error)["ErrorInfo"].metadata["incident"]
    assert incident in (error.details() or "")
    assert "secret" not in repr(error)
    (record,) = [r for r in caplog.records if r.name == "ringpost"]
    assert record.msg == "incident"
    assert record.ringpost_facts["incident"] == incident  # type: ignore[attr-defined]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_a_handler_may_abort_by_itself(service, caplog: pytest.LogCaptureFixture) -> None:
    made, call = service
    made.abort = True
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"x")
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.ABORTED, "by the handler")
    assert [r for r in caplog.records if r.name == "ringpost"] == []


@pytest.mark.parametrize("letter", ["x", "ü", "\ud800"])
async def test_no_error_is_too_large_for_metadata(service, letter: str) -> None:
    long = letter * 10_000
    error = await refusal(
        service,
        InvalidRequest(
            long,
            metadata={f"{i}{long}": long for i in range(100)},
            violations=[Violation(long, long) for _ in range(100)],
            retry_after_ms=1,
        ),
    )
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    size = sum(len(key) + len(value) for key, value in error.trailing_metadata() or ())
    # Base64 on the wire, and the message once more as grpc-message, percent-encoded.
    assert size * 4 / 3 + 3 * len((error.details() or "").encode()) < 8 << 10
    assert len(details(error)["BadRequest"].field_violations) == 6


def test_a_failure_in_a_stream_says_the_same() -> None:
    told = failure(
        NotFound(
            "channel: there is no orders.eu",
            reason="CHANNEL_NOT_FOUND",
            metadata={"channel": "orders.eu"},
            violations=[Violation("open.channel", "unknown")],
            retry_after_ms=7,
        )
    )
    assert (told.code, told.reason, told.message) == (5, "CHANNEL_NOT_FOUND", "channel: there is no orders.eu")
    assert dict(told.metadata) == {"channel": "orders.eu"}
    assert told.retry_after_ms == 7
    assert [(v.field, v.description) for v in told.violations] == [("open.channel", "unknown")]


def test_an_incident_in_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    told = failure(ZeroDivisionError("secret"))
    assert told.code == grpc.StatusCode.UNKNOWN.value[0]
    assert told.metadata["incident"] in told.message
    assert "secret" not in str(told)
    assert len([r for r in caplog.records if r.name == "ringpost"]) == 1


@pytest.mark.parametrize(
    "kind",
    [RingpostError, *(kind for kind in RingpostError.__subclasses__() if kind is not PassedOn)],
    ids=lambda kind: kind.__name__,
)
def test_every_error_has_a_code_and_a_reason(kind: type[RingpostError]) -> None:
    told = failure(kind("why"))
    assert 0 < told.code <= 16
    assert told.reason == told.reason.upper() != ""


def test_a_fact_of_a_channels_length_is_not_cut() -> None:
    told = failure(Unavailable("moved", metadata={"channel": "c" * 255}))
    assert told.metadata["channel"] == "c" * 255
