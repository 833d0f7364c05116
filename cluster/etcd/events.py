"""What comes from etcd as the cluster sees it: items, and whole revisions from answers in pieces. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringpost.cluster.kv import Change, Item
from ringpost.internal.etcd import rpc_pb2


def to_item(kv: rpc_pb2.KeyValue) -> Item:
    """etcd's key as an `Item`."""
    return Item(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


@dataclass(slots=True)
class Assembly:
    """Puts the pieces of long answers together and cuts them into revisions.

    etcd promises that an answer holds whole revisions; an answer in pieces ends with one that is not a fragment.
    """

    _pieces: list[rpc_pb2.Event] = field(default_factory=list)

    def add(self, response: rpc_pb2.WatchResponse) -> Sequence[Change]:
        """The revisions that are complete with this answer, in order."""
        self._pieces.extend(response.events)
        if response.fragment:
            return ()
        events, self._pieces = self._pieces, []
        return tuple(_by_revision(events))


def _by_revision(events: Iterable[rpc_pb2.Event]) -> Iterable[Change]:
    changes: dict[int, list[tuple[str, Item | None]]] = {}
    for event in events:
        deleted = event.type == rpc_pb2.Event.DELETE
        item = None if deleted else to_item(event.kv)
        changes.setdefault(event.kv.mod_revision, []).append((event.kv.key.decode(), item))
    return [Change(revision, tuple(changes[revision])) for revision in sorted(changes)]
