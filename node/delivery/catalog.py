"""Which channels match the patterns that are subscribed to on this node, wherever they are led."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from ringpost.cluster.keys import shard_of
from ringpost.node.delivery.matches import Matches
from ringpost.node.errors import Exhausted
from ringpost.node.shard.name_watch import PATTERNS_MAX, Listing, NameWatch, News
from ringpost.node.shard.store import Store


class PatternReader(Protocol):
    """Who wants to know."""

    def matched(self, joined: list[str], left: list[str]) -> None:
        """Channels have come and gone, or a shard has been heard of for the first time."""


class Feeds(Protocol):
    """Asks the other nodes; what they say goes to `Catalog.hear`."""

    def patterns_changed(self, begun: Iterable[str], ended: Iterable[str]) -> None:
        """These are wanted, or not any more."""


class _Known:
    """One pattern."""

    __slots__ = ("matches", "readers")

    def __init__(self) -> None:
        self.matches = Matches()
        self.readers: list[PatternReader] = []


class Catalog:
    """One a node. Readers of the same pattern share what is known of it; without readers nothing is watched."""

    def __init__(self, store: Store, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self.feeds: Feeds | None = None  # set where there are other nodes
        self._store = store
        self._spawn = spawn
        self._known: dict[str, _Known] = {}
        self._here: NameWatch | None = None
        self._listing = False
        self._news: list[News] = []

    @property
    def patterns(self) -> list[str]:
        """What is read."""
        return list(self._known)

    def read(self, pattern: str, reader: PatternReader) -> None:
        """`reader` hears of all that match from now on. Raises Exhausted: other nodes would refuse them all."""
        known = self._known.get(pattern)
        if known is None:
            if len(self._known) >= PATTERNS_MAX:
                message = f"open.pattern: this node has its {PATTERNS_MAX:,} different patterns; use wider ones"
                raise Exhausted(message, reason="PATTERN_LIMIT", metadata={"limit": str(PATTERNS_MAX)})
            known = self._known[pattern] = _Known()
            if self._here is None:
                self._here = NameWatch(self._store, self._hear_soon, self._list_soon)
            self._here.begin(pattern)
            if self.feeds is not None:
                self.feeds.patterns_changed((pattern,), ())
        known.readers.append(reader)

    def unread(self, pattern: str, reader: PatternReader) -> None:
        """The opposite; unknown is fine."""
        known = self._known.get(pattern)
        if known is None or reader not in known.readers:
            return
        known.readers.remove(reader)
        if known.readers:
            return
        del self._known[pattern]
        if self._here is not None:
            self._here.end(pattern)
            if not self._known:
                self._here.close()
                self._here = None
        if self.feeds is not None:
            self.feeds.patterns_changed((), (pattern,))

    def names(self, pattern: str) -> list[str]:
        """All that match, as far as is known."""
        known = self._known.get(pattern)
        return [] if known is None else list(known.matches)

    def has(self, pattern: str, name: str) -> bool:
        """Whether a channel is there by the last word of its leader."""
        known = self._known.get(pattern)
        return known is not None and (shard_of(name, len(self._store.shards)), name) in known.matches

    def complete(self, pattern: str) -> bool:
        """Whether something has been heard of every shard."""
        known = self._known.get(pattern)
        return known is not None and known.matches.complete(len(self._store.shards))

    def missing(self, pattern: str) -> list[int]:
        """Shards of which nothing has been heard yet."""
        known = self._known.get(pattern)
        return [] if known is None else known.matches.missing(len(self._store.shards))

    def hear(self, news: News) -> None:
        """A leader, this node or another, has said something."""
        known = self._known.get(news.pattern)
        if known is None:
            return
        if isinstance(news, Listing):
            joined, left = known.matches.listed(news.shard, news.epoch, news.names)
        else:
            joined, left = known.matches.changed(news.shard, news.epoch, news.name, removed=news.removed)
            if not (joined or left):
                return
        for reader in tuple(known.readers):
            reader.matched(joined, left)

    # -- this node --------------------------------------------------------------------------------------------------

    def _hear_soon(self, news: News) -> None:
        """Whoever makes or deletes a channel is in the middle of that, and may be anybody: readers act later."""
        self._news.append(news)
        if len(self._news) == 1:
            asyncio.get_running_loop().call_soon(self._hear_all)

    def _hear_all(self) -> None:
        news, self._news = self._news, []
        for one in news:
            self.hear(one)

    def _list_soon(self) -> None:
        if not self._listing:
            self._listing = True
            self._spawn(self._list())

    async def _list(self) -> None:
        """A shard a turn: no channel waits for all the others."""
        try:
            while self._here is not None and self._here.list_next():
                await asyncio.sleep(0)
        finally:
            self._listing = False
