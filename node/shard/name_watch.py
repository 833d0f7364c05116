"""Who wants to know which channels match a pattern: told of each shard that this node serves, then of every change.

A shard is listed in one turn, so nothing is made or deleted meanwhile, and no change of it is told before. Where nobody
watches, making a channel costs one look at an empty set.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ringpost.cluster.patterns import ChannelPattern
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.store import Store

PATTERNS_MAX = 10_000  # different ones that a node watches, here and at the others


class Listing(NamedTuple):
    """All channels of a shard that match, as of now, in the leadership of that epoch."""

    pattern: str
    shard: int
    epoch: int
    names: tuple[str, ...]


class Change(NamedTuple):
    """One was made, or deleted, in a shard that was listed."""

    pattern: str
    shard: int
    epoch: int
    name: str
    removed: bool


News = Listing | Change
Tell = Callable[[News], None]


class NameWatch:
    """One watcher. `tell` is called with news in their order; `wake` when there may be something to list.

    `_seen` and `_begun` bound what a look costs, which comes with every change: only patterns begun since the last one,
    and shards whose leadership is another one than then, are looked at one by one.
    """

    def __init__(self, store: Store, tell: Tell, wake: Callable[[], None]) -> None:
        self.patterns: dict[str, ChannelPattern] = {}
        self._store = store
        self._tell = tell
        self._wake = wake
        self._told: dict[str, dict[int, int]] = {}  # by pattern: shard → epoch in which it was listed
        self._todo: list[tuple[str, int]] = []
        self._seen: dict[int, int] = {}  # shards that were served at the last look, with their epochs
        self._begun: dict[str, None] = {}
        store.name_watches.add(self)

    def begin(self, pattern: str) -> None:
        """One more good pattern; the same again is listed again."""
        self.patterns[pattern] = ChannelPattern(pattern)
        self._told[pattern] = {}
        self._begun[pattern] = None
        self._wake()

    def end(self, pattern: str) -> None:
        """No news of it any more; unknown is fine."""
        self.patterns.pop(pattern, None)
        self._told.pop(pattern, None)
        self._begun.pop(pattern, None)

    def close(self) -> None:
        """Nothing more is told. Idempotent."""
        self._store.name_watches.discard(self)
        self.patterns.clear()
        self._told.clear()
        self._begun.clear()
        self._todo.clear()

    def look(self) -> None:
        """Leaderships may have changed."""
        if self.patterns:
            self._wake()

    def list_next(self) -> bool:
        """Lists one shard that has not been told of; False when there is none."""
        while self._todo or self._find_untold():
            text, shard = self._todo.pop()
            if not self._store.leads(shard):
                self._seen.pop(shard, None)  # looked at again when it comes back
            elif text in self.patterns and not self._is_told(text, shard):
                epoch = self._told[text][shard] = self._store.shards[shard].epoch
                self._tell(Listing(text, shard, epoch, tuple(self._names(self.patterns[text], shard))))
                return True
        return False

    def _find_untold(self) -> bool:
        led = {shard.number: shard.epoch for shard in self._store.shards if self._store.leads(shard.number)}
        others = [shard for shard, epoch in led.items() if self._seen.get(shard) != epoch]
        wanted = [(text, shard) for text in self.patterns for shard in others]
        wanted += [(text, shard) for text in self._begun for shard in led]
        self._seen = led
        self._begun.clear()
        self._todo = [(text, shard) for text, shard in wanted if not self._is_told(text, shard)]
        return bool(self._todo)

    def _is_told(self, pattern: str, shard: int) -> bool:
        return self._told[pattern].get(shard) == self._store.shards[shard].epoch

    def _names(self, pattern: ChannelPattern, shard: int) -> Iterator[str]:
        match, prefix = pattern.match, pattern.prefix
        for channel in self._store.shards[shard].channels.values():
            if channel.name.startswith(prefix) and match(channel.name) and self._store.get(channel.name) is channel:
                yield channel.name

    def changed(self, channel: Channel, *, removed: bool) -> None:
        """A channel was made or deleted."""
        shard = channel.shard
        for text, pattern in tuple(self.patterns.items()):
            if not channel.name.startswith(pattern.prefix):
                continue
            listed = text in self._told and self._is_told(text, shard.number) and self._store.leads(shard.number)
            if listed and pattern.match(channel.name):
                self._tell(Change(text, shard.number, shard.epoch, channel.name, removed))
