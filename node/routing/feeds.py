"""Asks the other nodes which channels match this node's patterns: a stream to each, while there are patterns."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from ringpost.cluster.view import View
from ringpost.internal.v1.feed_pb2 import WatchChannelsRequest, WatchChannelsResponse
from ringpost.node.delivery.catalog import Catalog
from ringpost.node.delivery.catalog import Feeds as FeedsPort
from ringpost.node.routing.peers import BACKOFF_S_MAX, BACKOFF_S_MIN, Peers, PeerStream
from ringpost.node.shard.name_watch import Change, Listing

METHOD = "/ringpost.internal.v1.ChannelFeedService/WatchChannels"


class _Feed:
    """The stream to one node. When it breaks it is made anew, and all is told again: what is known stays meanwhile."""

    def __init__(self, node: str, address: str, peers: Peers, catalog: Catalog) -> None:
        self.node = node
        self.address = address
        self._peers = peers
        self._catalog = catalog
        self._loop = asyncio.get_running_loop()
        self._requests: deque[bytes] = deque()
        self._backoff_s = BACKOFF_S_MIN
        self._timer: asyncio.TimerHandle | None = None
        self._stream: PeerStream | None = None
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._timer = None
        self._requests.clear()
        channel = self._peers.channel(self.node, self.address)
        self._stream = PeerStream(channel, METHOD, take=self._take, received=self._received, ended=self._ended)
        self.ask(self._catalog.patterns, ())

    def ask(self, begun: Iterable[str], ended: Iterable[str]) -> None:
        """Patterns to begin and to end; without a stream the next one says all."""
        if self._stream is not None:
            self._requests.append(WatchChannelsRequest(begin=begun, end=ended).SerializeToString())
            self._stream.wake()

    def _take(self) -> bytes | None:
        return self._requests.popleft() if self._requests else None

    def _received(self, message: bytes) -> None:
        self._backoff_s = BACKOFF_S_MIN
        response = WatchChannelsResponse.FromString(message)
        for one in response.listings:
            self._catalog.hear(Listing(one.pattern, one.shard, one.epoch, tuple(one.names)))
        for change in response.changes:
            self._catalog.hear(Change(change.pattern, change.shard, change.epoch, change.name, change.removed))

    def _ended(self, _why: str) -> None:
        self._stream = None
        if not self._closed:
            self._timer = self._loop.call_later(self._backoff_s, self._open)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)

    async def close(self) -> None:
        """Ends the stream."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            stream = self._stream
            stream.cancel()
            await stream.finished()


class ChannelFeeds(FeedsPort):
    """One a node that has others beside it."""

    def __init__(self, node: str, view: Callable[[], View], peers: Peers, catalog: Catalog) -> None:
        self._node = node
        self._view = view
        self._peers = peers
        self._catalog = catalog
        self._closed = False
        self._feeds: dict[str, _Feed] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def patterns_changed(self, begun: Iterable[str], ended: Iterable[str]) -> None:
        for feed in self._feeds.values():
            feed.ask(begun, ended)
        self.look()

    def look(self) -> None:
        """Members may have come, gone or moved to another address."""
        wanted: dict[str, str] = {}
        if self._catalog.patterns and not self._closed:
            nodes = self._view().nodes.values()
            wanted = {ref.node: ref.peer_address for ref in nodes if ref.session and ref.node != self._node}
        for node, feed in tuple(self._feeds.items()):
            if wanted.get(node) != feed.address:
                self._close(self._feeds.pop(node))
        for node, address in wanted.items():
            if node not in self._feeds:
                self._feeds[node] = _Feed(node, address, self._peers, self._catalog)

    def _close(self, feed: _Feed) -> None:
        task = asyncio.get_running_loop().create_task(feed.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Ends all streams."""
        feeds, self._feeds = self._feeds, {}
        self._closed = True
        await asyncio.gather(*(feed.close() for feed in feeds.values()), *self._closing)
