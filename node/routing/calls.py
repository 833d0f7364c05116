"""Unary calls: each goes to the leader of its channel's shard as the bytes that came, and its answer comes back so."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ringpost.node import status
from ringpost.node.access.guard import passed_on
from ringpost.node.delivery.certainty import SURE_S, becomes_sure
from ringpost.node.errors import Unavailable
from ringpost.node.routing.peers import Peers
from ringpost.node.routing.router import Here, Router, There

RETRY_S = 0.05
# Those that may be sent again when it is not known what became of them.
REPEATABLE = frozenset(
    {
        "GetChannel",
        "ListChannels",
        "GetGroup",
        "ListGroups",
        "Settle",
        "GetMessages",
        "ExplainMessage",
        "ListDeadLetters",
        "GetDeadLetter",
    }
)
# Those whose answers tell how far something is. A leader that was frozen, or cut off, and does not know yet that there
# is another one, would tell less than its clients have seen.
# The same with leases, which only who leads now can know.
NEWEST = frozenset(
    {"GetChannel", "GetGroup", "Settle", "GetMessages", "ExplainMessage", "ListDeadLetters", "GetDeadLetter"}
)
_NEVER_SENT = "failed to connect"  # how gRPC begins to tell of a connection that was not made

Context = grpc.aio.ServicerContext[Any, Any]
Merge = Callable[[Any, Sequence[Any]], Message]


class Call(NamedTuple):
    """One call of a client. `channel` is what it is about, None when that is every channel.

    `local` serves it here, and ends the call itself when it fails.
    """

    method: str  # /package.Service/Method
    channel: str | None
    message: bytes
    request: Message
    response_class: type[Message]
    context: Context
    local: Callable[[], Awaitable[Message]]

    @property
    def name(self) -> str:
        """The method's last part."""
        return self.method.rpartition("/")[2]


class Passing(Protocol):
    """What decides who serves a call."""

    async def run(self, call: Call) -> bytes:
        """The encoded response; ends the call with a status, or raises RingpostError, when it fails."""


class PeerCalls(Passing):
    """For calls that another node has passed on: served here or refused. One about every channel: those led here."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def run(self, call: Call) -> bytes:
        router = self._router
        if call.channel is not None:
            route = router.route(call.channel)
            end = asyncio.get_running_loop().time() + SURE_S
            if not isinstance(route, Here) or not await _surely_here(router, call, route, end):
                raise router.refusal(router.shard(call.channel))
        return (await call.local()).SerializeToString()


class Calls(Passing):
    """For clients' calls. While there is no leader a call waits, at most `patience_ms` and within its deadline.

    `merges` makes one answer of those of all leaders, for calls about every channel, by their methods' last parts.
    """

    def __init__(self, router: Router, peers: Peers, merges: Mapping[str, Merge], *, patience_ms: int) -> None:
        self._router = router
        self._peers = peers
        self._merges = merges
        self._patience_s = patience_ms / 1000
        self._news = asyncio.Event()

    def changed(self) -> None:
        """There is a newer view, or a leadership has begun here."""
        self._news.set()
        self._news = asyncio.Event()

    async def run(self, call: Call) -> bytes:
        if call.channel is None:
            return await self._run_everywhere(call)
        router = self._router
        end = self._end(call)
        while True:
            route = router.route(call.channel)
            if isinstance(route, Here) and await _surely_here(router, call, route, end):
                return (await call.local()).SerializeToString()
            error = None
            if isinstance(route, There):
                try:
                    return await self._ask(call, route.node, route.peer_address)
                except grpc.aio.AioRpcError as caught:
                    error = caught
            if not await self._again(call, error, end):
                await status.abort(call.context, router.refusal(router.shard(call.channel)))

    async def _run_everywhere(self, call: Call) -> bytes:
        mine = await call.local()
        end = self._end(call)
        while True:
            nodes, missing = self._router.leaders()
            error = None
            if missing is None:
                asked = [self._ask_node(call, node) for node in sorted(nodes - {self._router.node})]
                answers = await asyncio.gather(*asked, return_exceptions=True)
                failed = [answer for answer in answers if isinstance(answer, BaseException)]
                if not failed:
                    parsed = [call.response_class.FromString(answer) for answer in answers]  # type: ignore[arg-type]
                    return self._merges[call.name](call.request, [mine, *parsed]).SerializeToString()
                if not isinstance(failed[0], grpc.aio.AioRpcError):
                    raise failed[0]
                error = failed[0]
            if not await self._again(call, error, end):
                why = missing.why if missing is not None else "a node cannot be reached"
                message = f"{why}, so the list would not be complete"
                await status.abort(call.context, Unavailable(message, reason="NOT_LEADER", retry_after_ms=50))
            mine = await call.local()

    async def _ask_node(self, call: Call, node: str) -> bytes:
        return await self._ask(call, node, self._router.peer_address(node))

    async def _ask(self, call: Call, node: str, address: str) -> bytes:
        stub: Any = self._peers.channel(node, address).unary_unary(call.method)
        answer: bytes = await stub(call.message, timeout=call.context.time_remaining(), metadata=passed_on())
        return answer

    def _end(self, call: Call) -> float:
        remaining = call.context.time_remaining()
        patience = self._patience_s if remaining is None else min(self._patience_s, remaining)
        return asyncio.get_running_loop().time() + patience

    async def _again(self, call: Call, error: grpc.aio.AioRpcError | None, end: float) -> bool:
        """Waits a little; False when there is no time left. Ends the call with an error that trying does not cure."""
        if error is not None and not _curable(error, call.name):
            await _pass_back(call.context, error)
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        news = self._news
        waiting = asyncio.get_running_loop().call_later(min(RETRY_S, left), news.set)
        await news.wait()
        waiting.cancel()
        if self._news is news:
            self._news = asyncio.Event()
        return True


async def _surely_here(router: Router, call: Call, route: Here, end: float) -> bool:
    """Whether this node may say how far something is; waits a little for that. False: it leads no more, or too late."""
    if call.name not in NEWEST or route.epoch == 0:
        return True
    assert call.channel is not None, "it is about one"
    shard = router.shard(call.channel)
    return await becomes_sure(partial(router.sure, shard), end, still=partial(router.here, shard))


def _details(error: grpc.aio.AioRpcError) -> bytes:
    found = dict(error.trailing_metadata() or ()).get(status.DETAILS_KEY, b"")
    return found if isinstance(found, bytes) else b""


def _curable(error: grpc.aio.AioRpcError, method: str) -> bool:
    """Whether the call was surely not carried out, or may be carried out twice, and may succeed elsewhere or later."""
    if error.code() != grpc.StatusCode.UNAVAILABLE:
        return False
    details = _details(error)
    if not details:
        return method in REPEATABLE or (error.details() or "").startswith(_NEVER_SENT)
    info = error_details_pb2.ErrorInfo()
    return any(
        one.Unpack(info) and info.reason == "NOT_LEADER" for one in status_pb2.Status.FromString(details).details
    )


async def _pass_back(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    details = _details(error)
    if not details and error.code() == grpc.StatusCode.UNAVAILABLE:
        message = f"the connection to the leader broke, the outcome is open ({error.details()})"
        await status.abort(context, Unavailable(message, retry_after_ms=50))
    metadata = ((status.DETAILS_KEY, details),) if details else ()
    await context.abort(error.code(), error.details() or "", metadata)
    raise AssertionError("context.abort returned")
