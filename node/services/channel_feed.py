"""ChannelFeedService: tells other nodes which of the channels that this one serves match their patterns."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ringpost.cluster.patterns import pattern_problem
from ringpost.internal.v1.feed_pb2 import NameChange, ShardListing, WatchChannelsRequest, WatchChannelsResponse
from ringpost.node.bell import Bell
from ringpost.node.errors import InvalidRequest, RingpostError, Unavailable
from ringpost.node.services.stream import RawContext, StreamGate, serve
from ringpost.node.shard.name_watch import PATTERNS_MAX, Listing, NameWatch, News
from ringpost.node.shard.store import Store

SERVICE = "ringpost.internal.v1.ChannelFeedService"
METHOD = f"/{SERVICE}/WatchChannels"
STREAMS_MAX = 10_000
WAITING_MAX = 100_000  # changes for a node that does not read; then it begins anew
_NAMES_A_MESSAGE = 5_000
_SHARDS_A_MESSAGE = 64


class _FeedSession:
    """One node's stream. Changes wait in `_news`; a listing is made when there is nothing else to write."""

    limited = False

    def __init__(self, store: Store) -> None:
        self._news: list[News] = []
        self._listed_names = 0  # in the listings among them
        self._something = Bell()
        self._over = False
        self._problem: RingpostError | None = None
        self._watch = NameWatch(store, self._tell, self._something.ring)

    def handle_raw(self, message: bytes) -> None:
        try:
            request = WatchChannelsRequest.FromString(message)
        except DecodeError:
            self._end(InvalidRequest("the message is not an encoded WatchChannelsRequest"))
            return
        for pattern in request.end:
            self._watch.end(pattern)
        for pattern in request.begin:
            problem = pattern_problem(pattern)
            if problem is not None or len(self._watch.patterns) >= PATTERNS_MAX:
                self._end(InvalidRequest.of("begin", problem or f"more than {PATTERNS_MAX} patterns"))
                return
            self._watch.begin(pattern)

    async def room(self) -> bool:
        return not self._over

    def half_close(self) -> None:
        self._over = True
        self._something.ring()

    async def next_message(self) -> bytes | None:
        while not self._over:
            while self._listed_names < _NAMES_A_MESSAGE and len(self._news) < _SHARDS_A_MESSAGE:
                if not self._watch.list_next():
                    break
            if self._news:
                return self._take()
            await self._something.heard()
        if self._problem is not None:
            raise self._problem
        return None

    def _take(self) -> bytes:
        """Listings, then changes, as many as stand in this order and fit."""
        response, count = WatchChannelsResponse(), 0
        for one in self._news:
            if count >= _NAMES_A_MESSAGE or (isinstance(one, Listing) and response.changes):
                break
            if isinstance(one, Listing):
                response.listings.append(ShardListing(**one._asdict()))
                count += len(one.names)
            else:
                response.changes.append(NameChange(**one._asdict()))
                count += 1
        self._listed_names -= sum(len(listing.names) for listing in response.listings)
        del self._news[: len(response.listings) + len(response.changes)]
        return response.SerializeToString()

    def _tell(self, news: News) -> None:
        self._news.append(news)
        if isinstance(news, Listing):
            self._listed_names += len(news.names)
        if len(self._news) > WAITING_MAX:
            self._end(Unavailable("the names are not read; begin anew", retry_after_ms=50))
        self._something.ring()

    def _end(self, error: RingpostError) -> None:
        self._problem = self._problem or error
        self.half_close()
        self._watch.close()

    def close(self) -> None:
        self._over = True
        self._watch.close()
        self._news.clear()
        self._something.ring()


class ChannelFeed:
    """One a node that has others beside it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._gate = StreamGate(STREAMS_MAX)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server, with raw bytes in and out."""
        watch: Any = grpc.stream_stream_rpc_method_handler(self.watch_channels)
        return grpc.method_handlers_generic_handler(SERVICE, {"WatchChannels": watch})

    async def watch_channels(self, _requests: object, context: RawContext) -> None:
        """The stream of another node."""
        await serve(context, METHOD, self._gate, None, lambda _: _FeedSession(self._store))
