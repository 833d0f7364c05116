"""Request and reply: an inbox for each client that asks, answers of a handler for each that replies.

A request is a message whose headers say where the answer goes (REPLY_TO, CORRELATION) and how long it is waited for
(TIMEOUT_MS, from when the owner has stored it). An inbox is an ordinary channel with a short retention, one a client
and not one a request: the client reads it from its beginning and goes on where it was when its stream breaks, so what
was answered meanwhile is not lost.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from ringpost.client.admin import Channels
from ringpost.client.errors import Closed, RequestFailed, RingpostError, Timeout
from ringpost.client.message import Message
from ringpost.client.subscription import Subscription
from ringpost.v1.channel_pb2 import ChannelConfig

_log = logging.getLogger(__name__)
REPLY_TO: Final = "ringpost-reply-to"
CORRELATION: Final = "ringpost-correlation"
TIMEOUT_MS: Final = "ringpost-timeout-ms"
ERROR: Final = "ringpost-error"
INBOX: Final = "_inbox"
RETENTION_MS: Final = 600_000
TIMEOUT_S_MAX: Final = 86_400.0
# Clocks of responders and of nodes differ: what is late by less is worked on all the same.
SLACK_US: Final = 1_000_000
_CLOSE_S = 1.0


class RequestFacts(NamedTuple):
    """What a message's headers say of the answer. `reply_to` "": nobody waits for one."""

    reply_to: str
    correlation: str
    # Microseconds since 1970 by the owner's clock; None: no end.
    until_us: int | None

    @classmethod
    def of(cls, message: Message) -> "RequestFacts":
        """Headers that make no sense count as if they were not there."""
        headers = message.headers
        said = headers.get(TIMEOUT_MS, "")
        timeout_ms = int(said) if said.isascii() and said.isdecimal() and len(said) < 16 else None
        until = None if timeout_ms is None else message.append_time_us + timeout_ms * 1_000
        return cls(headers.get(REPLY_TO, ""), headers.get(CORRELATION, ""), until)

    def is_late(self, now_us: int) -> bool:
        """Whether surely nobody waits for the answer any more."""
        return self.until_us is not None and now_us > self.until_us + SLACK_US


class Publish(Protocol):
    """`Client.publish`, as far as requests need it."""

    def __call__(
        self,
        channel: str,
        data: bytes | str,
        key: bytes | str | None,
        headers: Mapping[str, str],
        *,
        durability: str,
        ttl: float,
    ) -> Awaitable[object]: ...


class Inbox:
    """One inbox while it is read. Invariant: each waiting future is in `_waiting` until it has its answer."""

    def __init__(self, name: str, subscription: Subscription) -> None:
        self.name = name
        self._subscription = subscription
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._reader = asyncio.get_running_loop().create_task(self._read(), name=f"ringpost-inbox {name}")

    @property
    def ended(self) -> bool:
        """Whether no answers come any more."""
        return self._reader.done()

    def expect(self) -> tuple[str, "asyncio.Future[Message]"]:
        """A new correlation, and what will be its answer; `forget` it in the end."""
        correlation = str(next(self._numbers))
        future = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = future
        return correlation, future

    def forget(self, correlation: str) -> None:
        """Nobody waits for it any more; an answer that still comes is passed over."""
        self._waiting.pop(correlation, None)

    async def _read(self) -> None:
        error: RingpostError = Closed("the client was closed before the answer")
        try:
            async for message in self._subscription:
                future = self._waiting.pop(message.headers.get(CORRELATION, ""), None)
                if future is None or future.done():
                    continue
                if ERROR in message.headers:
                    future.set_exception(RequestFailed(message.headers[ERROR]))
                else:
                    future.set_result(message)
        except RingpostError as caught:
            error = caught.copy(outcome_open=True)
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error.copy())

    async def close(self) -> None:
        """Ends reading; who waits gets `Closed`."""
        await self._subscription.close(_CLOSE_S)
        await asyncio.gather(self._reader, return_exceptions=True)


class Requests:
    """What a client asks. Its inbox is made by the first request, and made anew when it was lost."""

    def __init__(
        self, channels: Channels, publish: Publish, subscribe: Callable[[str], Subscription], prefix: str
    ) -> None:
        self._channels = channels
        self._publish = publish
        self._subscribe = subscribe
        self._prefix = prefix
        self._inbox: Inbox | None = None
        self._opening: asyncio.Task[Inbox] | None = None

    async def request(
        self,
        channel: str,
        data: bytes | str,
        *,
        timeout: float,
        key: bytes | str | None,
        headers: Mapping[str, str] | None,
        durability: str,
    ) -> Message:
        """See `Client.request`."""
        sent = False
        try:
            async with asyncio.timeout(timeout):
                inbox = await self._ready()
                correlation, answer = inbox.expect()
                try:
                    facts = {REPLY_TO: inbox.name, CORRELATION: correlation, TIMEOUT_MS: str(round(timeout * 1_000))}
                    sent = True
                    # The same for all with this timeout: batches have one time to live.
                    how: Any = {"durability": durability, "ttl": timeout + SLACK_US / 1e6}
                    await self._publish(channel, data, key, {**(headers or {}), **facts}, **how)
                    return await answer
                finally:
                    inbox.forget(correlation)
                    if not answer.cancel() and not answer.cancelled():
                        answer.exception()  # it has been told, or comes too late
        except TimeoutError:
            what = f"no answer from {channel} within {timeout:g} s; it may have been worked on"
            raise Timeout(what if sent else f"no inbox within {timeout:g} s", outcome_open=sent) from None

    async def _ready(self) -> Inbox:
        if self._inbox is not None and not self._inbox.ended:
            return self._inbox
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="ringpost-inbox open")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, opening: "asyncio.Task[Inbox]") -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._inbox = opening.result()

    async def _open(self) -> Inbox:
        name = f"{self._prefix}.{secrets.token_hex(12)}"
        await self._channels.add(name, ChannelConfig(retention_age_ms=RETENTION_MS))
        return Inbox(name, self._subscribe(name))

    async def close(self) -> None:
        """Removes the inbox; should that fail, its owner does later."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._inbox is None:
            return
        await self._inbox.close()
        with contextlib.suppress(RingpostError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._channels.delete(self._inbox.name)
