"""Decisions as transactions of the coordination store. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from ringpost.cluster.controller.decisions import Change
from ringpost.cluster.kv import Compare, Delete, Field, Put
from ringpost.cluster.records import Keys, encode_shard, encode_tomb
from ringpost.cluster.view import View
from ringpost.internal.v1 import cluster_pb2

RECORDS_MAX = 60
OPERATIONS_MAX = 100

Transaction = tuple[list[Compare], list[Put | Delete]]


def batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Cuts decisions into what fits into one transaction each."""
    batch: list[Change] = []
    for change in changes:
        if batch and not _fits([*batch, change]):
            yield batch
            batch = []
        batch.append(change)
    if batch:
        yield batch


def _fits(batch: Sequence[Change]) -> bool:
    sessions = {item for change in batch for item in change.sessions.items()}
    puts = len(batch) + sum(len(change.tombs) for change in batch)
    return len(batch) <= RECORDS_MAX and max(1 + len(batch) + len(sessions), puts) <= OPERATIONS_MAX


def write(keys: Keys, batch: Sequence[Change], term: int) -> Transaction:
    """All of the batch or nothing: when we are the controller of this term (0: whoever is) and nothing has changed."""
    compares = [Compare(keys.controller, Field.CREATE, term)] if term else []
    compares += [Compare(keys.shard(change.record.shard), Field.MOD, change.record.revision) for change in batch]
    sessions = sorted({item for change in batch for item in change.sessions.items()})
    compares += [Compare(keys.live(node), Field.CREATE, session) for node, session in sessions]
    puts: list[Put | Delete] = []
    for change in batch:
        puts.append(Put(keys.shard(change.record.shard), encode_shard(change.record)))
        puts += [Put(keys.tomb(change.record.shard, tomb.replica_id), encode_tomb(tomb)) for tomb in change.tombs]
    return compares, puts


def still_holds(view: View, change: Change) -> bool:
    """Whether a transaction with this decision could succeed, as far as a view tells."""
    sessions = all(node in view.nodes and view.nodes[node].session == own for node, own in change.sessions.items())
    if not view.shards:
        return sessions  # some of the records may exist, but no view shows them before all do
    return sessions and view.shards[change.record.shard].revision == change.record.revision


def campaign(keys: Keys, node: str, session: int, lease: int) -> Transaction:
    """Becomes the controller, while there is none. The revision of its success is the term."""
    value = cluster_pb2.ControllerRecord(node=node, session=session).SerializeToString()
    compares = [Compare(keys.controller, Field.CREATE, 0), Compare(keys.live(node), Field.CREATE, session)]
    return compares, [Put(keys.controller, value, lease)]


def depose(keys: Keys, term: int) -> Transaction:
    """Ends the controller of this term. Nothing it decided can then be written any more."""
    return [Compare(keys.controller, Field.CREATE, term)], [Delete(keys.controller)]
