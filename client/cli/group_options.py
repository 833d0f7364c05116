"""A group's configuration as options, and how it is shown."""

from collections.abc import Callable
from typing import Any

import click

from ringpost.client.cli.command import Wrong
from ringpost.client.cli.params import duration, size
from ringpost.client.cli.units import show_bytes, show_seconds
from ringpost.client.modes import mode_name
from ringpost.v1 import group_pb2

Command = Callable[..., Any]
_BACKOFFS = {"none": 0, "constant": 1, "linear": 2, "exponential": 3}
_NAMES = {number: name for name, number in _BACKOFFS.items()}


def config_options(command: Command) -> Command:
    """Adds what `config_of` takes."""
    for option in reversed(
        (
            click.option("--ack-deadline", type=duration, help="How long a member may work on one (default 30s)."),
            click.option("--max-in-flight", type=click.IntRange(1, 1_000_000), help="Most messages out at a time."),
            click.option("--filter", help="Deliver only what this lets through (a part of CEL); '': everything."),
            click.option("--backoff", type=click.Choice(list(_BACKOFFS)), help="How the delay after failures grows."),
            click.option("--retry-delay", type=duration, help="Delay after the first failure."),
            click.option("--max-retry-delay", type=duration, help="No delay is longer (default 7 days)."),
            click.option("--jitter", type=click.IntRange(0, 100), help="Shorten delays at random by up to so many %."),
            click.option("--max-attempts", type=click.IntRange(0, 1_000_000), help="Give a message up then; 0: never."),
            click.option("--dead-letters/--no-dead-letters", default=None, help="Keep what is given up (default)."),
            click.option(
                "--expired-to-dead-letters/--expired-away",
                "expired_to_dead_letters",
                default=None,
                help="What becomes of messages whose ttl is over (default: away).",
            ),
            click.option("--dead-letter-age", type=duration, help="Keep them so long (default 14 days); 0: always."),
            click.option("--dead-letter-bytes", type=size, help="Keep about so much (default 1 GiB); 0: all."),
            click.option("--max-consumers", type=click.IntRange(1, 10_000), help="broadcast: most (default 1,000)."),
            click.option("--consumer-expiry", type=duration, help="broadcast: forget unused ones (7 days); 0: never."),
        )
    ):
        command = option(command)
    return command


def config_of(
    ack_deadline: float | None,
    max_in_flight: int | None,
    filter: str | None,
    backoff: str | None,
    retry_delay: float | None,
    max_retry_delay: float | None,
    jitter: int | None,
    max_attempts: int | None,
    dead_letters: bool | None,
    expired_to_dead_letters: bool | None,
    dead_letter_age: float | None,
    dead_letter_bytes: int | None,
    max_consumers: int | None,
    consumer_expiry: float | None,
) -> group_pb2.GroupConfig:
    """What was given. Raises Wrong where a part of the retry policy is missing."""
    config = group_pb2.GroupConfig(
        ack_deadline_ms=_millis(ack_deadline),
        max_in_flight=max_in_flight,
        filter=filter,
        max_attempts=max_attempts,
        dead_letters=dead_letters,
        expired_to_dead_letters=expired_to_dead_letters,
        dead_letter_age_ms=_millis(dead_letter_age),
        dead_letter_bytes=dead_letter_bytes,
        max_consumers=max_consumers,
        consumer_expiry_ms=_millis(consumer_expiry),
    )
    if backoff is None and retry_delay is not None:
        backoff = "constant"
    if backoff is None and (max_retry_delay is not None or jitter is not None):
        raise Wrong("--max-retry-delay and --jitter need --retry-delay; a retry policy is set as a whole.")
    if backoff not in (None, "none") and retry_delay is None:
        raise Wrong("--backoff needs --retry-delay.")
    if backoff is not None:
        config.retry.CopyFrom(
            group_pb2.RetryPolicy(
                backoff=group_pb2.Backoff.ValueType(_BACKOFFS[backoff]),
                delay_ms=_millis(retry_delay) or 0,
                max_delay_ms=_millis(max_retry_delay) or 0,
                jitter_percent=jitter or 0,
            )
        )
    return config


def _millis(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def config_rows(config: group_pb2.GroupConfig) -> list[tuple[str, object]]:
    """Names and values for people."""
    return [
        ("ack deadline", show_seconds(config.ack_deadline_ms / 1000)),
        ("max in flight", config.max_in_flight),
        ("filter", config.filter or "none"),
        ("retry", _retry_text(config.retry)),
        ("max attempts", config.max_attempts or "no bound"),
        ("keeps dead letters", _keeps(config)),
        ("expired", "dead letters" if config.expired_to_dead_letters else "away"),
        *_consumers(config),
    ]


def _consumers(config: group_pb2.GroupConfig) -> list[tuple[str, object]]:
    if not config.max_consumers:
        return []
    expiry = show_seconds(config.consumer_expiry_ms / 1000) if config.consumer_expiry_ms else "never"
    return [("max consumers", config.max_consumers), ("forgets unused ones after", expiry)]


def _keeps(config: group_pb2.GroupConfig) -> str:
    if not config.dead_letters:
        return "no"
    age, size_max = config.dead_letter_age_ms, config.dead_letter_bytes
    bounds = [show_seconds(age / 1000)] * bool(age) + [show_bytes(size_max)] * bool(size_max)
    return ", ".join(bounds) or "always"


def _retry_text(retry: group_pb2.RetryPolicy) -> str:
    if not retry.backoff:
        return "at once"
    text = f"{_NAMES[retry.backoff]}, {show_seconds(retry.delay_ms / 1000)}"
    if retry.backoff != group_pb2.BACKOFF_CONSTANT:
        text += f" up to {show_seconds(retry.max_delay_ms / 1000)}"
    return text + (f", jitter {retry.jitter_percent} %" if retry.jitter_percent else "")


def config_json(config: group_pb2.GroupConfig) -> dict[str, Any]:
    """Names and units of the API."""
    retry = config.retry
    shown: dict[str, Any] = {
        "mode": mode_name(config.mode),
        "ack_deadline_ms": config.ack_deadline_ms,
        "max_in_flight": config.max_in_flight,
        "filter": config.filter,
        "max_attempts": config.max_attempts,
        "dead_letters": config.dead_letters,
        "expired_to_dead_letters": config.expired_to_dead_letters,
        "dead_letter_age_ms": config.dead_letter_age_ms,
        "dead_letter_bytes": config.dead_letter_bytes,
    }
    if config.max_consumers:
        shown |= {"max_consumers": config.max_consumers, "consumer_expiry_ms": config.consumer_expiry_ms}
    if retry.backoff:
        shown["retry"] = {
            "backoff": _NAMES[retry.backoff],
            "delay_ms": retry.delay_ms,
            "max_delay_ms": retry.max_delay_ms,
            "jitter_percent": retry.jitter_percent,
        }
    return shown
