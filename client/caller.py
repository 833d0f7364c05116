"""Unary calls: which node, how long, and which of their failures are worth another try."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import grpc

from ringpost.client.connection import Backoff, Connections
from ringpost.client.errors import SURELY_NOT, RingpostError, from_rpc_error
from ringpost.client.router import Router

_ROLE: Final = "admin"
# How a call ends whose connection is gone, or never was.
_CUT_OFF: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})
# A node that has not answered a question for so long may be frozen; another is asked.
_ATTEMPT_S: Final = 3.0

Request = TypeVar("Request")
Response = TypeVar("Response")
# How to find a method on a channel.
Unary: TypeAlias = Callable[[grpc.aio.Channel], "grpc.aio.UnaryUnaryMultiCallable[Request, Response]"]


class Caller:
    """Makes unary calls with a deadline and turns statuses into exceptions."""

    def __init__(self, connections: Connections, router: Router, timeout: float) -> None:
        self._connections = connections
        self._router = router
        self._timeout = timeout

    async def call(
        self,
        unary: "Unary[Request, Response]",
        request: Request,
        timeout: float | None = None,
    ) -> Response:
        """Carries the request out at most once, on whatever node can be reached. Raises `RingpostError`.

        Tried again only where nothing was changed: at other nodes when there was no connection; within `timeout`
        seconds (default: request_timeout) when the node says that it is not the time.
        """
        self._connections.check_loop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or self._timeout)
        backoff = Backoff()
        tried: set[str] = set()
        while True:
            address = self._router.any_address()
            tried.add(address)
            try:
                return await self._once(unary, request, address, max(0.001, deadline - loop.time()))
            except RingpostError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE or error.outcome_open:
                    raise
                if error.reason not in SURELY_NOT:
                    if self._router.any_address() in tried:
                        raise
                    continue
                delay = max(backoff.next_delay(), error.retry_after_ms / 1000)
                if loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    async def read(
        self,
        unary: "Unary[Request, Response]",
        request: Request,
        within: float | None = None,
    ) -> Response:
        """As `repeat`, for calls that change nothing: so no error of it leaves an outcome open."""
        try:
            return await self.repeat(unary, request, within)
        except RingpostError as error:
            raise error.copy(outcome_open=False) from None

    async def repeat(
        self,
        unary: "Unary[Request, Response]",
        request: Request,
        within: float | None = None,
    ) -> Response:
        """As `call`, tried again while no node is available, for `within` seconds. For calls that may be made twice."""
        self._connections.check_loop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (within or self._timeout)
        backoff = Backoff()
        tried: set[str] = set()
        while True:
            address = self._router.any_address()
            tried.add(address)
            try:
                return await self._once(unary, request, address, self._attempt_s(deadline - loop.time()))
            except RingpostError as error:
                late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED and loop.time() < deadline
                if late:
                    self._router.failed(address)
                if not _is_broken(error) and not late:
                    raise
                if self._router.any_address() not in tried:
                    continue
                tried.clear()
                delay = backoff.next_delay()
                if loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)

    def _attempt_s(self, left: float) -> float:
        several = self._router.routes.several
        return max(0.001, min(left, _ATTEMPT_S) if several else left)

    async def _once(
        self, unary: "Unary[Request, Response]", request: Request, address: str, timeout: float
    ) -> Response:
        method = unary(self._connections.channel(_ROLE, address))
        try:
            answer = await method(request, timeout=timeout, metadata=self._connections.metadata)
        except grpc.aio.AioRpcError as error:
            failed = from_rpc_error(error)
            if _is_broken(failed) and failed.reason not in SURELY_NOT:
                self._router.failed(address)
            elif failed.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._router.suspect(address)
            raise failed from None
        self._router.worked(address)
        return answer


def _is_broken(error: RingpostError) -> bool:
    """Whether no node was there, or none that can do it now. What a node explains has a reason."""
    return error.code is grpc.StatusCode.UNAVAILABLE or (error.code in _CUT_OFF and error.reason == error.code.name)
