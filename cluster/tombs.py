"""The end of tombstones: which nobody will act upon, and the transactions that remove them. Pure."""

from collections.abc import Iterator, Sequence

from ringpost.cluster.kv import Compare, Delete, Field
from ringpost.cluster.records import Keys
from ringpost.cluster.view import Tombstone, View

_TOGETHER = 50


def stale(view: View) -> list[Tombstone]:
    """Those of nodes that are no members any more, or have come with another directory."""

    def nobody_there(tomb: Tombstone) -> bool:
        ref = view.nodes.get(tomb.node)
        return ref is None or tomb.directory not in ("", ref.directory)

    return [tomb for tomb in view.tombs if nobody_there(tomb)]


def removals(keys: Keys, tombs: Sequence[Tombstone]) -> Iterator[tuple[list[Compare], list[Delete]]]:
    """Each removes some of them, as they are: one that was made anew meanwhile has another revision and stays."""
    for start in range(0, len(tombs), _TOGETHER):
        some = [(keys.tomb(tomb.shard, tomb.replica_id), tomb.revision) for tomb in tombs[start : start + _TOGETHER]]
        yield [Compare(key, Field.MOD, revision) for key, revision in some], [Delete(key) for key, _ in some]
