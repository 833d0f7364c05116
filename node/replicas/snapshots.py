"""Whole shards on their way, to followers of shards that this node leads and from leaders that it follows."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from ringpost.internal.v1.peer_pb2 import Fetch, Refused, SnapshotPart
from ringpost.node import log
from ringpost.node.journal.frame import FrameDamaged
from ringpost.node.journal.reader import ColdReader
from ringpost.node.replicas.outbox import ToFollower
from ringpost.node.replicas.receive import Receiving
from ringpost.node.replicas.send import send_snapshot
from ringpost.node.replication.core import ReplicaCore
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store

_SENT_AT_A_TIME = 2
_AGAIN_US = 1_000_000


class Owner(Protocol):
    """What a snapshot has to do with a node's replicas."""

    cores: dict[int, ReplicaCore]

    def box_for(self, node: str) -> ToFollower | None:
        """Where messages for a follower are put."""

    def damaged(self, shard: Shard, what: str) -> bool:
        """A stored frame of the shard is damaged: whether others have it, so that this copy goes."""

    def installed(self, shard: Shard, next_fetch_id: int) -> None:
        """The shard is what a snapshot has made it: its core must be another one."""


class Snapshots:
    """One a node. `clock` gives microseconds that never fall, `spawn` runs a coroutine."""

    def __init__(
        self,
        owner: Owner,
        store: Store,
        reader: ColdReader,
        clock: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.sent = 0
        self.received = 0
        self._owner = owner
        self._store = store
        self._reader = reader
        self._clock = clock
        self._spawn = spawn
        self._receiving: dict[int, Receiving] = {}
        self._sending = asyncio.Semaphore(_SENT_AT_A_TIME)

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, shard: Shard, node: str, fetch: Fetch) -> None:
        """A follower needs the whole shard."""
        self._spawn(self._send(shard, node, fetch))

    async def _send(self, shard: Shard, node: str, fetch: Fetch) -> None:
        async with self._sending:
            core, box = self._owner.cores.get(shard.number), self._owner.box_for(node)
            if core is None or core.leading is None or box is None:
                return
            try:
                wanted = partial(core.wants_snapshot, node, fetch.fetch_id)
                await send_snapshot(shard, fetch, core.leading.epoch, self._reader, box, wanted)
                self.sent += 1
            except Exception as error:
                log.warning("snapshot.not_sent", shard=shard.number, to=node, error=str(error))
                box.refuse(Refused(shard=shard.number, fetch_id=fetch.fetch_id, epoch=fetch.epoch))
                if isinstance(error, FrameDamaged):
                    self._owner.damaged(shard, str(error))
            core.snapshot_sent(node, fetch.fetch_id)

    # -- receiving --------------------------------------------------------------------------------------------------

    def take(self, node: str, part: SnapshotPart) -> None:
        """A part of a snapshot from the leader."""
        core = self._owner.cores.get(part.shard)
        if core is None or not core.on_snapshot(node, part.epoch, part.fetch_id):
            return
        if part.WhichOneof("part") == "begin":
            self.forget(part.shard)
            made = Receiving(self._store, self._store.shards[part.shard], core.replica_id, part.fetch_id)
            self._receiving[part.shard] = made
        receiving = self._receiving.get(part.shard)
        if receiving is None or receiving.fetch_id != part.fetch_id:
            return
        problem = receiving.take(part, self._complete)
        if problem is not None:
            log.error("snapshot.refused", shard=part.shard, problem=problem)
            self.forget(part.shard)
            core.snapshot_installed(self._clock() + _AGAIN_US)

    def forget(self, shard: int) -> None:
        """What has come of a snapshot comes to nothing."""
        if (receiving := self._receiving.pop(shard, None)) is not None:
            receiving.abandon()

    def prune(self) -> None:
        """Forgets those whose rest will not come: unfinished ones hold up checkpoints and reclaiming."""
        for number, receiving in tuple(self._receiving.items()):
            core = self._owner.cores.get(number)
            following = core.following if core is not None else None
            comes = following is not None and following.takes(receiving.fetch_id)
            if not comes and not receiving.ended:
                log.info("snapshot.given_up", shard=number)
                self.forget(number)

    def _complete(self, receiving: Receiving) -> None:
        """Everything of a snapshot is fsynced: it takes the place of what was here."""
        shard = receiving.shard
        core = self._owner.cores.get(shard.number)
        if self._receiving.pop(shard.number, None) is not receiving or core is None or core.leading is not None:
            receiving.abandon()
            return
        receiving.install()
        self.received += 1
        log.info("snapshot.installed", shard=shard.number, position=shard.position)
        self._owner.installed(shard, core.next_fetch_id)
