"""The one publish stream to another node, shared by all client streams of this one."""

import asyncio
from collections import deque
from typing import NamedTuple

from ringpost.node.delivery.encode import varint
from ringpost.node.errors import RingpostError, Unavailable
from ringpost.node.routing.lane import Entry, Lane
from ringpost.node.routing.peers import BACKOFF_S_MAX, BACKOFF_S_MIN, Peers, PeerStream
from ringpost.node.routing.router import There
from ringpost.node.status import error_of
from ringpost.v1.publish_pb2 import PublishStreamResponse

METHOD = "/ringpost.v1.PublisherService/PublishStream"
CONNECT_S_MAX = 2.0

# Field numbers of ForwardedPublishRequest. Appended to a client's message: the last value of a field counts.
_CORRELATION = b"\x08"
_EPOCH = b"\x80\x01"
_ATTEMPT = b"\x88\x01"
_TOKEN_NUMBER = b"\x90\x01"
_TOKEN = b"\x9a\x01"
_TRACEPARENT = b"\xa2\x01"
TOKENS_MAX = 1_024  # that one node may have shown on its stream


class _Sending(NamedTuple):
    lane: Lane
    entry: Entry
    correlation: int
    epoch: int
    attempt: int


class PublishLink:
    """Batches are written only once the peer has answered the stream's opening, so that one which was not written
    has surely not been appended. After a break there is none for 50 ms to 1 s."""

    def __init__(self, node: str, peers: Peers) -> None:
        self._node = node
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._address = ""
        self._stream: PeerStream | None = None
        self._opened = False
        self._closed = False
        self._tokens: dict[str, int] = {}  # those that the leader has been shown on this stream, with their numbers
        self._queue: deque[_Sending] = deque()
        self._unanswered: dict[int, _Sending] = {}
        self._correlation = 0
        self._backoff_s = BACKOFF_S_MIN
        self._next_try = 0.0

    def send(self, lane: Lane, entry: Entry, to: There) -> bool:
        """Queues a batch; False when there is no stream and must not be one yet."""
        if self._closed or (self._stream is None and self._loop.time() < self._next_try):
            return False
        if self._stream is not None and self._address != to.peer_address:
            self._stream.cancel()  # the node came back elsewhere
            return False
        if self._stream is None:
            self._open(to.peer_address)
        assert self._stream is not None
        self._correlation += 1
        entry.correlation = self._correlation
        entry.taken = False
        sending = _Sending(lane, entry, self._correlation, to.epoch, lane.attempt)
        self._queue.append(sending)
        self._unanswered[self._correlation] = sending
        if self._opened:
            self._stream.wake()
        return True

    async def close(self) -> None:
        """Ends the stream; what is unanswered goes back to its lanes."""
        self._closed = True
        if self._stream is not None:
            stream = self._stream
            stream.cancel()
            await stream.finished()

    def _open(self, address: str) -> None:
        self._address = address
        self._opened = False
        channel = self._peers.channel(self._node, address)
        stream = PeerStream(channel, METHOD, take=self._take, received=self._received, ended=self._ended)
        self._stream = stream
        self._loop.call_later(CONNECT_S_MAX, self._check_opened, stream)

    def _check_opened(self, stream: PeerStream) -> None:
        if self._stream is stream and not self._opened:
            stream.cancel()

    def _take(self) -> bytes | None:
        if not self._opened or not self._queue:
            return None
        _, entry, correlation, epoch, attempt = self._queue.popleft()
        entry.taken = True
        number, token = self._token(entry.caller.token)
        trace = entry.traceparent.encode()
        traced = (_TRACEPARENT, varint(len(trace)), trace) if trace else ()
        return b"".join(
            (
                *(entry.payload, _CORRELATION, varint(correlation), _EPOCH, varint(epoch), _ATTEMPT, varint(attempt)),
                *(_TOKEN_NUMBER, varint(number), _TOKEN, varint(len(token)), token),
                *traced,
            )
        )

    def _token(self, token: str) -> tuple[int, bytes]:
        """The token's number, and its text if the leader has not been shown it."""
        known = self._tokens.pop(token, None)
        if known is not None:
            self._tokens[token] = known  # the latest used is last
            return known, b""
        number = len(self._tokens)
        if number >= TOKENS_MAX:
            number = self._tokens.pop(next(iter(self._tokens)))
        self._tokens[token] = number
        return number, token.encode()

    def _received(self, message: bytes) -> None:
        response = PublishStreamResponse.FromString(message)
        if response.HasField("opened"):
            self._opened = True
            self._backoff_s = BACKOFF_S_MIN
            assert self._stream is not None
            self._stream.wake()
        for result in response.results:
            sending = self._unanswered.pop(result.correlation, None)
            if sending is None or sending.entry.correlation != sending.correlation:
                continue
            if result.WhichOneof("outcome") == "stored":
                sending.lane.outcome(sending.entry, result.stored)
            else:
                sending.lane.outcome(sending.entry, error_of(result.failure))

    def _ended(self, why: str) -> None:
        self._stream = None
        self._opened = False
        self._tokens.clear()
        self._next_try = self._loop.time() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)
        self._queue.clear()
        unanswered, self._unanswered = self._unanswered, {}
        for lane, entry, correlation, _, _ in unanswered.values():
            if entry.correlation == correlation:
                lane.outcome(entry, self._lost(why, entry))

    def _lost(self, why: str, entry: Entry) -> RingpostError:
        if entry.taken:
            message = f"the connection to node {self._node} broke, the outcome is open ({why})"
            return Unavailable(message, retry_after_ms=50)
        message = f"node {self._node} cannot be reached, nothing was appended ({why})"
        return Unavailable(message, reason="NOT_APPENDED", retry_after_ms=50)
