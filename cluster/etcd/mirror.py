"""What a watch knows of its keys, and how it is brought up to date. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringpost.cluster.kv import Change, Item, Picture
from ringpost.internal.etcd import rpc_pb2


def to_item(kv: rpc_pb2.KeyValue) -> Item:
    """etcd's key as an `Item`."""
    return Item(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


class Mirror:
    """The keys below a prefix as of `revision` (0: nothing is known yet).

    Invariant: `revision` never falls, and no item's mod revision is greater.
    """

    def __init__(self) -> None:
        self.revision = 0
        self._items: dict[str, Item] = {}

    def reset(self, picture: Picture) -> Change | None:
        """Takes a whole picture. The difference as one change, deletes included; None when there is none.

        A picture that is not newer changes nothing.
        """
        if picture.revision <= self.revision:
            return None
        fresh = {item.key: item for item in picture.items}
        changed: list[tuple[str, Item | None]] = [(key, None) for key in self._items if key not in fresh]
        changed += [(key, item) for key, item in fresh.items() if self._items.get(key) != item]
        self.revision = picture.revision
        self._items = fresh
        return Change(picture.revision, tuple(changed)) if changed else None

    def apply(self, change: Change) -> bool:
        """Takes one whole revision; False, and nothing is changed, when it is not newer."""
        if change.revision <= self.revision:
            return False
        for key, item in change.items:
            if item is None:
                self._items.pop(key, None)
            else:
                self._items[key] = item
        self.revision = change.revision
        return True


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
