"""What each unary call needs, and the check of it. Streams check each command; see their sessions."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc

from ringpost.node.access.access import Access
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.access.grants import Verb
from ringpost.node.arrivals import Arrivals
from ringpost.node.errors import NotLeader, PermissionDenied, RingpostError
from ringpost.node.tls import peer_name

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYONE)


class Need(NamedTuple):
    """A verb; the request's field that names the channel it is needed on, "" for none; what the log tells of an act.

    Without a verb: any of them on the channel; without a channel, too: a token. `act`: names of facts and the fields
    that they are from; where there are none the call is no act, and not logged.
    """

    verb: Verb | None = None
    field: str = ""
    act: tuple[tuple[str, str], ...] = ()


_TOKEN = Need()
_CHANNEL = (("channel", "name"),)
_GROUP = (("channel", "channel"), ("group", "name"))
_CONSUMER = (("channel", "channel"), ("group", "group"), ("consumer", "consumer"))
_LETTERS = (("channel", "channel"), ("group", "group"), ("dry_run", "dry_run"))
# Lists: with a channel as the others, without one everything that the caller may see.
NEEDS = {
    "/ringpost.v1.ChannelService/AddChannel": Need(Verb.MANAGE, "name", _CHANNEL),
    "/ringpost.v1.ChannelService/GetChannel": Need(None, "name"),
    "/ringpost.v1.ChannelService/ListChannels": _TOKEN,
    "/ringpost.v1.ChannelService/SetChannel": Need(Verb.MANAGE, "name", _CHANNEL),
    "/ringpost.v1.ChannelService/PurgeChannel": Need(Verb.MANAGE, "name", _CHANNEL),
    "/ringpost.v1.ChannelService/DeleteChannel": Need(Verb.MANAGE, "name", _CHANNEL),
    "/ringpost.v1.GroupService/AddGroup": Need(Verb.CONSUME, "channel", _GROUP),
    "/ringpost.v1.GroupService/GetGroup": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.GroupService/ListGroups": _TOKEN,
    "/ringpost.v1.GroupService/SeekGroup": Need(Verb.MANAGE, "channel", _GROUP),
    "/ringpost.v1.GroupService/SetGroup": Need(Verb.MANAGE, "channel", _GROUP),
    "/ringpost.v1.GroupService/PauseGroup": Need(Verb.MANAGE, "channel", _GROUP),
    "/ringpost.v1.GroupService/ResumeGroup": Need(Verb.MANAGE, "channel", _GROUP),
    "/ringpost.v1.GroupService/DeleteGroup": Need(Verb.MANAGE, "channel", _GROUP),
    "/ringpost.v1.GroupService/DeleteConsumer": Need(Verb.MANAGE, "channel", _CONSUMER),
    "/ringpost.v1.GroupService/Settle": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.DeadLetterService/ListDeadLetters": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.DeadLetterService/GetDeadLetter": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.DeadLetterService/RedriveDeadLetters": Need(Verb.MANAGE, "channel", _LETTERS),
    "/ringpost.v1.DeadLetterService/DropDeadLetters": Need(Verb.MANAGE, "channel", _LETTERS),
    "/ringpost.v1.MessageService/GetMessages": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.MessageService/ExplainMessage": Need(Verb.CONSUME, "channel"),
    "/ringpost.v1.ClusterService/GetRoutes": _TOKEN,
    "/ringpost.v1.ClusterService/GetNode": _TOKEN,  # without VIEW: what a client needs to know
    "/ringpost.v1.ClusterService/ListNodes": Need(Verb.VIEW),
    "/ringpost.v1.ClusterService/SetNode": Need(Verb.ADMIN, act=(("node", "node"), ("desired", "desired"))),
    "/ringpost.v1.ClusterService/RemoveNode": Need(Verb.ADMIN, act=(("node", "node"),)),
    "/ringpost.v1.ClusterService/GetCluster": Need(Verb.VIEW),
    "/ringpost.v1.ClusterService/AcceptLoss": Need(Verb.ADMIN, act=(("shard", "shard"), ("node", "node"))),
}


def current() -> Caller:
    """Who makes the unary call that is being served."""
    return _caller.get()


def passed_on() -> tuple[tuple[str, str], ...]:
    """The metadata that show another node who makes the call that is being served."""
    token = current().token
    return (("authorization", f"Bearer {token}"),) if token else ()


class Guard:
    """The checks of unary calls at one port, and the log of acts. `first`: clients call here; elsewhere other nodes do.

    An act that is passed on is logged twice, with the client's address and with the node's name: a node that lies logs
    nothing itself.
    """

    def __init__(self, access: Access, *, first: bool) -> None:
        self.arrivals = Arrivals()
        self._access = access
        self._first = first

    def _peer(self, context: Any) -> str:
        return str(context.peer()) if self._first else peer_name(context)

    async def enter(self, path: str, context: Any) -> Caller:
        """Before the request is read. Raises Unauthenticated."""
        caller = await self._access.authenticate(context, path, "" if self._first else peer_name(context))
        _caller.set(caller)
        return caller

    async def run(
        self, path: str, request: Any, caller: Caller, context: Any, serve: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Serves a call that is permitted. Raises PermissionDenied and what `serve` raises."""
        if not self._access.on:
            return await serve()
        need = NEEDS[path]
        try:
            _check(need, caller, getattr(request, need.field) if need.field else "")
        except PermissionDenied as error:
            self._access.note_denial(error, caller=caller.name, peer=self._peer(context), method=path)
            raise
        if not need.act:
            return await serve()
        outcome = "failed"
        try:
            answer = await serve()
            outcome = "done"
            return answer
        except grpc.aio.AbortError:
            outcome = f"refused: {context.code()}"
            raise
        except RingpostError as error:
            outcome = "" if isinstance(error, NotLeader) else f"refused: {error.reason}"
            raise
        finally:
            if outcome:  # nobody acts where another node has only looked for the leader
                facts = {name: _fact(request, field) for name, field in need.act}
                self._access.note_act(caller, facts, peer=self._peer(context), method=path, outcome=outcome)


def _fact(request: Any, field: str) -> object:
    """A field's value, of an enum its name."""
    value = getattr(request, field)
    kind = request.DESCRIPTOR.fields_by_name[field].enum_type
    known = kind.values_by_number.get(value) if kind is not None else None
    return value if known is None else known.name


def _check(need: Need, caller: Caller, channel: str) -> None:
    if need.verb is not None:
        caller.require(need.verb, channel)
    elif need.field and not caller.may_see(channel):
        raise caller.denial("publish, consume or manage", channel)
