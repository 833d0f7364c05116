"""What is known of the channels that match one pattern, by what the shards' leaders have said. Pure.

News of one leader come in their order; those of an earlier leadership than the newest known count for nothing, so a
node that was cut off cannot bring a channel back. That a shard is led by nobody, or by another node, deletes nothing:
only a leader's word does.
"""

from collections.abc import Iterable, Iterator


class Matches:
    """The names of each shard with the epoch of whoever said so. Each event answers (joined, left)."""

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: dict[int, tuple[int, dict[str, None]]] = {}

    def __iter__(self) -> Iterator[str]:
        for _, names in self._shards.values():
            yield from names

    def __contains__(self, place: tuple[int, str]) -> bool:
        """Whether a (shard, name) is there."""
        shard, name = place
        return shard in self._shards and name in self._shards[shard][1]

    def complete(self, shard_count: int) -> bool:
        """Whether all shards have been heard of."""
        return len(self._shards) == shard_count

    def missing(self, shard_count: int) -> list[int]:
        """Shards that nobody has said anything of yet."""
        return [shard for shard in range(shard_count) if shard not in self._shards]

    def listed(self, shard: int, epoch: int, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """A leader says which channels there are."""
        known_epoch, known = self._shards.get(shard, (0, {}))
        if shard in self._shards and epoch < known_epoch:
            return [], []
        now = dict.fromkeys(names)
        self._shards[shard] = epoch, now
        return [name for name in now if name not in known], [name for name in known if name not in now]

    def changed(self, shard: int, epoch: int, name: str, *, removed: bool) -> tuple[list[str], list[str]]:
        """A leader that has listed the shard says that a channel was made or deleted."""
        known_epoch, known = self._shards.get(shard, (-1, {}))
        if epoch != known_epoch or removed != (name in known):
            return [], []
        if removed:
            del known[name]
            return [], [name]
        known[name] = None
        return [name], []
