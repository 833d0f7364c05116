"""The one subscribe stream to another node, which carries the upstreams of all sessions of this one."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import grpc

from ringpost.internal.v1.envelope_pb2 import SubscribeResponse as RawResponse
from ringpost.node.delivery.encode import is_deliver, split_deliver, varint
from ringpost.node.errors import PassedOn, RingpostError, Unavailable
from ringpost.node.routing.peers import BACKOFF_S_MAX, BACKOFF_S_MIN, Peers, PeerStream
from ringpost.node.routing.relayed import Relayed
from ringpost.node.routing.router import There
from ringpost.node.routing.upstream import Upstream
from ringpost.node.status import error_of
from ringpost.v1.subscribe_pb2 import (
    Closed,
    CloseSubscription,
    Credit,
    GrantCredit,
    Opened,
    Settle,
    Settled,
    SubscribeRequest,
    SubscribeResponse,
)

METHOD = "/ringpost.v1.SubscriberService/Subscribe"
COMMANDS_MAX = 10_000
_TOKEN = b"\x82\x01"  # ForwardedSubscribeRequest.token
_OF_ONE = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})

SettledReply = Callable[[Settled | RingpostError], None]


class LinkOwner(Protocol):
    """Who is told."""

    def link_has_room(self) -> None:
        """Commands may be read again."""

    def wait(self, relayed: Relayed) -> None:
        """The subscription needs another upstream."""


class SubscribeLink:
    """See the module. What breaks it loses all upstreams; their subscribers look for the leader again."""

    def __init__(self, node: str, peers: Peers, owner: LinkOwner) -> None:
        self.node = node
        self.upstreams: dict[int, Upstream] = {}
        self._peers = peers
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._stream: PeerStream | None = None
        self._closed = False
        self._commands: deque[bytes] = deque()
        self._grants: dict[int, Upstream] = {}
        self._settles: dict[int, SettledReply] = {}
        self._numbers = self._correlation = 0
        self._was_full = False
        # Where an upstream without a group stands, the latest to come there: one that comes to the same place joins.
        self._places: dict[tuple[str, str, int], Upstream] = {}
        self._backoff_s = BACKOFF_S_MIN
        self._next_try = 0.0

    # -- commands ---------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether too many commands wait."""
        full = len(self._commands) >= COMMANDS_MAX
        self._was_full |= full
        return full

    def open(self, relayed: Relayed, to: There) -> bool:
        """Begins an upstream; False when there is no stream and must not be one yet."""
        if self._closed or (self._stream is None and self._loop.time() < self._next_try):
            return False
        if self._stream is not None and self._address != to.peer_address:
            self._stream.cancel()  # the node came back elsewhere
            return False
        if self._stream is None:
            self._address = to.peer_address
            channel = self._peers.channel(self.node, to.peer_address)
            self._stream = PeerStream(channel, METHOD, take=self._take, received=self._received, ended=self._ended)
        self._begin(relayed, relayed.channel, to.epoch)
        return True

    def _begin(self, relayed: Relayed, channel: str, epoch: int) -> None:
        self._numbers += 1
        upstream = self.upstreams[self._numbers] = Upstream(self, self._numbers, channel, epoch)
        relayed.upstream = upstream
        token = relayed.session.caller.token.encode()
        opening = SubscribeRequest(open=upstream.opening(relayed)).SerializeToString()
        self._say_raw(b"".join((opening, _TOKEN, varint(len(token)), token)) if token else opening)

    def split(self, shared: Upstream, relayed: Relayed, next_offset: int) -> None:
        """One that cannot keep up goes on alone."""
        relayed.split(next_offset, self._loop.time())
        self._begin(relayed, shared.channel, shared.epoch)
        if not shared.subscribers:
            self.close_upstream(shared)

    def grant(self, upstream: Upstream) -> None:
        """Its credit is to be told; only the latest counts."""
        self._grants[upstream.number] = upstream
        self._wake()

    def settle(self, upstream: Upstream, settle: Settle, reply: SettledReply) -> None:
        """Passes a settlement on; `reply` is called once."""
        self._correlation += 1
        self._settles[self._correlation] = reply
        settle.subscription_id = upstream.number
        settle.correlation = self._correlation
        self._say(SubscribeRequest(settle=settle))

    def close_upstream(self, upstream: Upstream) -> None:
        """Nobody wants it any more."""
        if self._forget(upstream):
            self._say(SubscribeRequest(close=CloseSubscription(subscription_id=upstream.number)))

    def _forget(self, upstream: Upstream) -> bool:
        self._grants.pop(upstream.number, None)
        self._leave_place(upstream)
        return self.upstreams.pop(upstream.number, None) is not None

    def _say(self, request: SubscribeRequest) -> None:
        self._say_raw(request.SerializeToString())

    def _say_raw(self, request: bytes) -> None:
        self._commands.append(request)
        self._wake()

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()

    def _take(self) -> bytes | None:
        if self._commands:
            command = self._commands.popleft()
            if self._was_full and not self.full:
                self._was_full = False
                self._loop.call_soon(self._owner.link_has_room)
            return command
        if self._grants:
            number = next(iter(self._grants))
            messages, size = self._grants.pop(number).granted
            credit = Credit(messages=messages, bytes=size)
            return SubscribeRequest(credit=GrantCredit(subscription_id=number, credit=credit)).SerializeToString()
        return None

    # -- events -----------------------------------------------------------------------------------------------------

    def _received(self, message: bytes) -> None:
        self._backoff_s = BACKOFF_S_MIN
        if is_deliver(message):
            number, batches = split_deliver(message)
            upstream = self.upstreams.get(number)
            if upstream is not None:  # nobody wants it any more
                self._leave_place(upstream)
                upstream.deliver(RawResponse.FromString(message).deliver, batches)
                self._meet(upstream)
            return
        response = SubscribeResponse.FromString(message)
        event = response.WhichOneof("event")
        if event == "opened":
            self._on_opened(response.opened)
        elif event == "settled":
            self._on_settled(response.settled)
        elif event == "closed":
            self._on_closed(response.closed)
        elif event == "gap":
            upstream = self.upstreams.get(response.gap.subscription_id)
            if upstream is not None:
                self._leave_place(upstream)
                upstream.gap(response.gap.missing.first, response.gap.missing.last)

    def _on_opened(self, opened: Opened) -> None:
        upstream = self.upstreams.get(opened.subscription_id)
        if upstream is None:
            return
        if upstream.begin(opened):
            self._meet(upstream)

    def _on_settled(self, settled: Settled) -> None:
        reply = self._settles.pop(settled.correlation, None)
        if reply is not None:
            reply(error_of(settled.failure) if settled.HasField("failure") else settled)

    def _on_closed(self, closed: Closed) -> None:
        upstream = self.upstreams.get(closed.subscription_id)
        if upstream is not None:
            self.lose(upstream, error_of(closed.failure))

    def lose(self, upstream: Upstream, error: RingpostError) -> None:
        """It has ended; its subscribers see to themselves."""
        self._forget(upstream)
        subscribers, upstream.subscribers = upstream.subscribers, []
        for subscriber in subscribers:
            # What one client may no longer do says nothing of the others that shared its upstream.
            others = isinstance(error, PassedOn) and error.code in _OF_ONE and subscriber is not upstream.opener
            subscriber.lost(Unavailable(error.message, retry_after_ms=50) if others else error)

    def abandon(self, upstream: Upstream, error: RingpostError) -> None:
        """The node no longer leads what it reads."""
        subscribers, upstream.subscribers = upstream.subscribers, []
        self.close_upstream(upstream)
        for subscriber in subscribers:
            subscriber.lost(error)

    def _ended(self, why: str) -> None:
        self._stream = None
        self._next_try = self._loop.time() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)
        self._commands.clear()
        self._grants.clear()
        self._places.clear()
        error = Unavailable(f"the connection to node {self.node} broke ({why}); settle again", retry_after_ms=50)
        settles, self._settles = self._settles, {}
        for reply in settles.values():
            reply(error)
        upstreams, self.upstreams = self.upstreams, {}
        for upstream in upstreams.values():
            self.lose(upstream, error)
        if self._was_full:
            self._was_full = False
            self._owner.link_has_room()

    async def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        if self._stream is not None:
            stream = self._stream
            stream.cancel()
            await stream.finished()

    # -- sharing ----------------------------------------------------------------------------------------------------

    def _leave_place(self, upstream: Upstream) -> None:
        place = upstream.place
        if self._places.get(place) is upstream:
            del self._places[place]

    def _meet(self, upstream: Upstream) -> None:
        """Joins it with another one that is at the same place of the channel."""
        if upstream.grouped or not upstream.subscribers:
            return
        place = upstream.place
        other = self._places.get(place)
        if other is None or other is upstream:
            self._places[place] = upstream
            return
        small, large = sorted((upstream, other), key=lambda one: len(one.subscribers))
        if small.epoch == large.epoch and small.may_join(self._loop.time()):
            large.join(small)
            self.close_upstream(small)
            self._places[place] = large
