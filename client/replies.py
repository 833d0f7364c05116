"""The other side of `client.requests`: a pool whose handlers' results go back to who asked."""

import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Protocol

import grpc

from ringpost.client.batch import OutMessage, Publishable, as_bytes
from ringpost.client.checks import refused
from ringpost.client.consumer import Consumer
from ringpost.client.errors import Denied, InvalidRequest, NotFound, RequestFailed
from ringpost.client.message import Message
from ringpost.client.pool import Handler, HandlerPool
from ringpost.client.requests import CORRELATION, ERROR, INBOX, RequestFacts

_log = logging.getLogger(__name__)
_ERROR_BYTES_MAX = 1_024


def _now_us() -> int:
    return time.time_ns() // 1_000


class Answering(Protocol):
    """`Client.publish`, as far as answers need it."""

    def __call__(
        self, channel: str, data: bytes | str, key: bytes | str | None, headers: Mapping[str, str], *, durability: str
    ) -> Awaitable[object]: ...


class ResponderPool(HandlerPool):
    """A `HandlerPool` that publishes what its handler returns to the inbox that a request names, and then acks.

    `answered`, `failed` (answered with an error), `late` (nobody waits any more: not worked on, or not answered),
    `gone` (there was no inbox any more), `astray` (worked on, but what they name is no inbox: nothing is published
    there) and `undeliverable` (the broker refused the answer for good) count requests.
    """

    def __init__(
        self,
        consumer: Consumer,
        handler: Handler,
        *,
        publish: Answering,
        max_concurrency: int,
        nack_delay: float,
        durability: str,
    ) -> None:
        self.answered = self.failed = self.late = self.gone = self.astray = self.undeliverable = 0
        self._publish = publish
        self._durability = durability
        super().__init__(consumer, handler, max_concurrency=max_concurrency, ordered=False, nack_delay=nack_delay)

    async def _call(self, message: Message) -> None:
        request = RequestFacts.of(message)
        if request.is_late(_now_us()):
            self.late += 1
            return
        try:
            result, error = await self._result(message), ""
        except RequestFailed as told:
            result, error = b"", told.message or "refused"
        if not request.reply_to:
            return
        if not request.reply_to.startswith(f"{INBOX}."):  # who asks must not choose where a responder publishes
            if not self.astray:
                _log.info("a request names %.100r for its answer, which is no inbox: not answered", request.reply_to)
            self.astray += 1
            return
        if request.is_late(_now_us()):
            self.late += 1
            return
        await self._reply(request, result, error)

    async def _reply(self, request: RequestFacts, result: object, error: str) -> None:
        data, key, headers = _parts(result)
        try:
            try:
                await self._send(request, data, key, headers, error)
            except InvalidRequest as problem:  # the answer is too large, say: that can be told
                if error:
                    raise
                error = f"the answer was refused: {problem.message}"
                await self._send(request, b"", None, {}, error)
        except NotFound:
            self.gone += 1
            _log.info("the answer for %s is not wanted any more: the inbox is gone", request.reply_to)
            return
        except (InvalidRequest, Denied) as problem:  # asked again it would be refused again
            if problem.code == grpc.StatusCode.UNAUTHENTICATED:  # our token, which may be renewed
                raise
            self.undeliverable += 1
            _log.warning("the answer for %.300r was refused: %s", request.reply_to, problem)
            return
        self.failed += bool(error)
        self.answered += not error

    async def _send(
        self,
        request: RequestFacts,
        data: bytes,
        key: bytes | str | None,
        headers: Mapping[str, str],
        error: str,
    ) -> None:
        facts = {CORRELATION: request.correlation}
        if error:
            facts[ERROR] = error.encode(errors="replace")[:_ERROR_BYTES_MAX].decode(errors="ignore")
        await self._publish(request.reply_to, data, key, {**headers, **facts}, durability=self._durability)


def _parts(result: object) -> tuple[bytes, bytes | str | None, Mapping[str, str]]:
    """What a handler returned: nothing, bytes, a string, (key, data) or an `OutMessage`."""
    known: Publishable
    match result:
        case None:
            return b"", None, {}
        case OutMessage():
            return as_bytes(result.data), result.key, result.headers or {}
        case bytes() | str():
            known = result
            return as_bytes(known), None, {}
        case (bytes() | str() | None as key, bytes() | str() as data):
            return as_bytes(data), key, {}
    raise refused(
        "result", f"a handler returns None, bytes, str, (key, data) or OutMessage, not {type(result).__name__}"
    )
