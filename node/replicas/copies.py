"""Which copies this directory has: makes them, deletes those with a tombstone, tells the cluster which are lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ringpost.cluster.coordination import Coordination, CoordinationError
from ringpost.cluster.view import Tombstone, View
from ringpost.internal.v1.record_pb2 import ReplicaRecord
from ringpost.node import log
from ringpost.node.errors import RingpostError
from ringpost.node.shard.cluster_replay import clear_shard
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store

_RETRY_S = 1.0


class Copies:
    """`spawn` runs a coroutine; `found` hears of a shard whose copy the cluster does not take for lost any more.

    `made_whole`: the cluster takes none for lost any more.
    """

    def __init__(
        self,
        store: Store,
        coordination: Coordination,
        *,
        node: str,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        found: Callable[[int], None],
        made_whole: Callable[[], None],
    ) -> None:
        self._store = store
        self._coordination = coordination
        self._node = node
        self._spawn = spawn
        self._found = found
        self._made_whole = made_whole
        self._lost: set[int] = set()
        self._reported: frozenset[int] = frozenset()  # what the cluster was told to be lost
        self._reporting = False
        self._deleting: dict[Tombstone, bool] = {}  # those acted upon: whether the copy is gone for good
        self._removing = False

    def start(self, view: View) -> None:
        """What is damaged, and what the cluster takes for lost."""
        self._lost.update(shard.number for shard in self._store.shards if shard.quarantined)
        own = view.nodes.get(self._node)
        if own is not None:  # a directory that was rolled back has lost everything
            self._lost |= own.lost_shards
            self._reported = own.lost_shards
        self._report()

    # -- copies that are lost ---------------------------------------------------------------------------------------

    def sound(self, shard: Shard) -> bool:
        """Whether the copy may take part: the cluster must know first that what was here is lost, or no more is."""
        return not shard.quarantined and shard.number not in self._lost and shard.number not in self._reported

    def miss(self, shard: Shard, replica_id: str) -> None:
        """The cluster counts on a copy that is not here: it must know, and make another one."""
        if shard.number not in self._lost:
            log.error("replica.missing", shard=shard.number, replica=replica_id)
            self._lost.add(shard.number)
            self._report()

    def _report(self) -> None:
        if not self._reporting and self._lost != self._reported:
            self._reporting = True
            self._spawn(self._report_lost())

    async def _report_lost(self) -> None:
        while self._lost != self._reported:
            lost = frozenset(self._lost)
            try:
                await self._coordination.report_lost(lost)
            except CoordinationError as error:
                log.warning("replica.lost_not_reported", error=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            found, self._reported = self._reported - lost, lost
            for number in found:
                self._found(number)
            if not lost:
                self._made_whole()
        self._reporting = False

    # -- making and deleting ----------------------------------------------------------------------------------------

    def make(self, shard: Shard, replica_id: str) -> None:
        """A new, empty copy. Another one that was here is replaced: the record that names the new one permits it."""
        clear_shard(shard)
        shard.replicated = ReplicatedLog(shard, replica_id)
        shard.replicated.append_record(ReplicaRecord(replica_id=replica_id, fresh=True).SerializeToString())
        self.not_lost(shard)
        log.info("replica.made", shard=shard.number, replica=replica_id)

    def not_lost(self, shard: Shard) -> None:
        """It was made anew, or nobody counts on it."""
        self._lost.discard(shard.number)
        self._report()

    def bury(self, view: View) -> None:
        """Deletes the copies that have a tombstone here, and nothing else; `view` was seen by every shard.

        A tombstone goes when the deletion is fsynced, so a crash repeats it and never forgets it.
        """
        if not view.tombs and not self._deleting:
            return
        mine = [tomb for tomb in view.tombs if tomb.node == self._node and tomb.shard < len(view.shards)]
        self._deleting = {tomb: gone for tomb, gone in self._deleting.items() if tomb in mine}
        for tomb in mine:
            if tomb in self._deleting or view.shards[tomb.shard].replica(tomb.replica_id) is not None:
                continue
            shard = self._store.shards[tomb.shard]
            here = shard.replicated is not None and shard.replicated.replica_id == tomb.replica_id
            self._deleting[tomb] = False
            if here:
                self._delete(shard, tomb)
            # Also where another copy has taken its place: that must be on the disk, too.
            shard.log.commits.after_all(self._deleted, tomb)

    def _delete(self, shard: Shard, tomb: Tombstone) -> None:
        assert shard.replicated is not None
        record = ReplicaRecord(replica_id=tomb.replica_id, removed=True)
        shard.replicated.append_record(record.SerializeToString())
        clear_shard(shard)
        self.not_lost(shard)
        log.info("replica.deleted", shard=tomb.shard, replica=tomb.replica_id)

    def _deleted(self, error: RingpostError | None, tomb: Tombstone) -> None:
        if error is None and tomb in self._deleting:
            self._deleting[tomb] = True
            if not self._removing:
                self._removing = True
                self._spawn(self._tell_deleted())

    async def _tell_deleted(self) -> None:
        """Many at the same time are few transactions."""
        await asyncio.sleep(0)
        while gone := [tomb for tomb, deleted in self._deleting.items() if deleted]:
            try:
                await self._coordination.remove_tombs(gone)
            except CoordinationError as error:
                log.warning("replica.tombs_not_removed", error=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            for tomb in gone:
                self._deleting.pop(tomb, None)
        self._removing = False
