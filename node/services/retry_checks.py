"""Checking a group's retry policy. Pure."""

from ringpost.node.errors import InvalidRequest
from ringpost.v1 import group_pb2 as api

DELAY_MS_MAX = 604_800_000
MAX_ATTEMPTS_MAX = 1_000_000


def check_retry(config: api.GroupConfig) -> None:
    """Raises InvalidRequest naming the field."""
    if config.max_attempts > MAX_ATTEMPTS_MAX:
        raise InvalidRequest.of(
            "config.max_attempts", f"is {config.max_attempts}, allowed are 1 to {MAX_ATTEMPTS_MAX}, or 0 for no bound"
        )
    retry = config.retry
    if retry.backoff not in api.Backoff.values():
        raise InvalidRequest.of(
            "config.retry.backoff", f"is {retry.backoff}, allowed are 0 to {max(api.Backoff.values())}"
        )
    if retry.backoff == api.BACKOFF_UNSPECIFIED:
        if retry.ListFields():
            raise InvalidRequest.of("config.retry.backoff", "is not set, so nothing else in config.retry may be")
        return
    _check_delay("delay_ms", retry.delay_ms, 1)
    _check_delay("max_delay_ms", retry.max_delay_ms, 0)
    if retry.jitter_percent > 100:
        raise InvalidRequest.of("config.retry.jitter_percent", f"is {retry.jitter_percent}, allowed are 0 to 100")


def _check_delay(field: str, value: int, least: int) -> None:
    if not least <= value <= DELAY_MS_MAX:
        raise InvalidRequest.of(
            f"config.retry.{field}", f"is {value}, allowed are {least} to {DELAY_MS_MAX} (seven days)"
        )
