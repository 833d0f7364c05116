"""A group's changes as they stand in SETTLE frames and snapshots."""

from ringpost.internal.v1.record_pb2 import Failure as FailureRecord
from ringpost.internal.v1.record_pb2 import Retry as RetryRecord
from ringpost.internal.v1.record_pb2 import SettleRecord
from ringpost.node.groups.changes import Failure, Retry, SettleChange
from ringpost.node.groups.ranges import flatten, pairs


def encode_settle(group: str, change: SettleChange) -> bytes:
    """The body of a SETTLE frame."""
    return SettleRecord(
        group=group,
        acked=flatten(change.acked),
        rejected=flatten(change.rejected),
        reject_reason=change.reject_reason,
        retries=[retry_record(retry) for retry in change.retries],
        filtered=flatten(change.filtered),
    ).SerializeToString()


def decode_settle(record: SettleRecord) -> SettleChange:
    """The change that a SETTLE frame holds."""
    return SettleChange(
        acked=pairs(record.acked),
        rejected=pairs(record.rejected),
        reject_reason=record.reject_reason,
        retries=[retry_of(retry) for retry in record.retries],
        filtered=pairs(record.filtered),
    )


def retry_record(retry: Retry) -> RetryRecord:
    """As it stands in a SETTLE frame and in a snapshot."""
    first, last, attempt, not_before_us, failures = retry
    return RetryRecord(
        first=first,
        last=last,
        attempt=attempt,
        not_before_us=not_before_us,
        failures=[FailureRecord(attempt=one.attempt, time_us=one.time_us, reason=one.reason) for one in failures],
    )


def retry_of(record: RetryRecord) -> Retry:
    """The inverse."""
    failures = tuple(Failure(one.attempt, one.time_us, one.reason) for one in record.failures)
    return Retry(record.first, record.last, record.attempt, record.not_before_us, failures)
