"""Arguments that no broker would take are refused here, before they can get in the way of others.

What does not fit into the protocol's types must never reach an encoder that many callers share.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from ringpost.client.errors import InvalidRequest, Violation

MAX_UINT64: Final = 2**64 - 1
MAX_TIME_US: Final = 2**63 - 1
_FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def refused(field: str, description: str, **facts: object) -> InvalidRequest:
    """The error for one wrong argument."""
    metadata = {name: str(value) for name, value in facts.items()}
    violations = [Violation(field, description)]
    return InvalidRequest(f"{field}: {description}", violations=violations, metadata=metadata)


def text_bytes(field: str, text: object) -> bytes:
    """A string as UTF-8. Raises `InvalidRequest` for anything else, and for half a surrogate pair in it."""
    if not isinstance(text, str):
        raise refused(field, f"must be a str, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise refused(field, f"cannot be UTF-8: {text[error.start]!a} at {error.start}") from None


def check_name(field: str, name: object) -> None:
    """A name that can be sent; what it may hold beyond that the broker knows. Raises `InvalidRequest`."""
    if isinstance(name, str) and name and name.isascii():
        return
    if not text_bytes(field, name):
        raise refused(field, "is empty")


def time_us_of(field: str, time: object) -> int:
    """Microseconds since 1970 of a datetime with a zone. Raises `InvalidRequest`."""
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise refused(field, f"must be a datetime with a time zone, not {time!r}")
    if time < _FIRST_TIME:
        raise refused(field, f"must not be before 1970: {time}")
    return (time - _FIRST_TIME) // timedelta(microseconds=1)


def whole(field: str, number: object, low: int, high: int) -> int:
    """A whole number within its bounds. Raises `InvalidRequest`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise refused(field, f"must be a whole number from {low} to {high}, not {number!r}")
    if not low <= number <= high:
        raise refused(field, f"must be {low} to {high}, not {number}", limit=high)
    return number
