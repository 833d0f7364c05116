"""The retry policy between the API's form and the core's."""

from ringpost.node.groups.policy import DELAY_US_MAX, Backoff, RetryPolicy
from ringpost.v1 import group_pb2


def policy_of(config: group_pb2.GroupConfig) -> RetryPolicy:
    """From a checked configuration; absent fields get their defaults."""
    retry = config.retry
    return RetryPolicy(
        Backoff(retry.backoff),
        retry.delay_ms * 1000,
        retry.max_delay_ms * 1000 or DELAY_US_MAX,
        retry.jitter_percent / 100,
        config.max_attempts,
        not config.HasField("dead_letters") or config.dead_letters,
    )


def retry_message(policy: RetryPolicy) -> group_pb2.RetryPolicy:
    """As the API shows it."""
    if policy.backoff == Backoff.NONE:
        return group_pb2.RetryPolicy()
    return group_pb2.RetryPolicy(
        backoff=group_pb2.Backoff.ValueType(policy.backoff),
        delay_ms=policy.delay_us // 1000,
        max_delay_ms=policy.max_delay_us // 1000,
        jitter_percent=round(policy.jitter * 100),
    )
