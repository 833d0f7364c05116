"""A filter, compiled."""

from functools import lru_cache

from ringpost.node.errors import InvalidRequest
from ringpost.node.filters.lexer import FilterError
from ringpost.node.filters.parser import Parser
from ringpost.v1.publish_pb2 import Message

TEXT_BYTES_MAX = 1_024


class Filter:
    """What a subscription or group wants. Equal texts give the same object, for a while.

    `matches`: whether it lets a message through. One of which that cannot be told, since a header that the filter needs
    is not there, is not let through.
    """

    __slots__ = ("_evaluate", "text")

    def __init__(self, text: str) -> None:
        """Raises FilterError."""
        self.text = text
        self._evaluate = Parser(text).parse().evaluate

    def matches(self, message: Message) -> bool:
        try:
            return self._evaluate(message) is True
        except LookupError:
            return False


@lru_cache(512)
def compiled(text: str) -> Filter:
    """The filter of a text that is one. Raises FilterError."""
    return Filter(text)


def checked(text: str, field: str) -> Filter | None:
    """The filter of a request's text; None for an empty one, which lets everything through. Raises InvalidRequest."""
    if not text:
        return None
    size = len(text.encode())
    if size > TEXT_BYTES_MAX:
        raise InvalidRequest.of(field, f"is {size} bytes long, allowed are {TEXT_BYTES_MAX}")
    try:
        return compiled(text)
    except FilterError as error:
        raise InvalidRequest.of(field, str(error)) from None
