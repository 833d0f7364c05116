"""From the broker's words to exceptions."""

import grpc
import pytest

from ringpost.client.errors import Exhausted, InvalidRequest, RingpostError, Timeout, Unavailable, from_failure
from ringpost.v1 import common_pb2


def test_a_failure_keeps_everything() -> None:
    failure = common_pb2.Failure(
        code=8, reason="DISK_FULL", message="no room", metadata={"limit": "92"}, retry_after_ms=500
    )
    failure.violations.add(field="publish.batch", description="too large")
    error = from_failure(failure)
    assert isinstance(error, Exhausted)
    assert (error.code, error.reason, error.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL", "no room")
    assert (error.metadata, error.retry_after_ms, error.violations) == (
        {"limit": "92"},
        500,
        (("publish.batch", "too large"),),
    )
    assert str(error) == "DISK_FULL: no room"


@pytest.mark.parametrize(
    ("code", "reason", "kind", "outcome_open"),
    [
        (grpc.StatusCode.UNAVAILABLE, "NOT_APPENDED", Unavailable, False),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING", Unavailable, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Timeout, True),
        (grpc.StatusCode.UNKNOWN, "", Unavailable, True),
        (grpc.StatusCode.INVALID_ARGUMENT, "", InvalidRequest, False),
        (grpc.StatusCode.INTERNAL, "", RingpostError, False),
    ],
)
def test_which_outcomes_are_open(code, reason, kind, outcome_open) -> None:
    error = from_failure(common_pb2.Failure(code=code.value[0], reason=reason))
    assert type(error) is kind
    assert (error.outcome_open, error.reason) == (outcome_open, reason or code.name)


def test_a_code_of_the_future_is_an_open_outcome() -> None:
    assert from_failure(common_pb2.Failure(code=99)).outcome_open
