"""Copies that cannot go on: damaged while they run, or newer than the store that says what to do with them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from ringpost.cluster.view import ShardRecord
from ringpost.node import log
from ringpost.node.replicas.copies import Copies
from ringpost.node.replication.core import ReplicaCore
from ringpost.node.shard.shard import Shard
from ringpost.node.shard.store import Store

# So many other copies must count before one with a damaged frame is given up: should another node find damage at the
# same moment, too, a whole one is left.
_WHOLE_MIN = 2


class Damage:
    """One a node. `detach`: the copy takes part no more. `propose`: asks for a change of a record."""

    def __init__(
        self,
        store: Store,
        cores: Mapping[int, ReplicaCore],
        copies: Copies,
        *,
        detach: Callable[[Shard], None],
        propose: Callable[[ShardRecord], None],
    ) -> None:
        self._store = store
        self._cores = cores
        self._copies = copies
        self._detach = detach
        self._propose = propose
        self._asked: dict[int, int] = {}  # shard → revision of the record for which a hand-over was asked for
        self._frames: set[int] = set()  # shards with a frame that cannot be read
        self._behind: set[int] = set()  # shards of which the store knows less than the log here
        self._alarms: dict[int, tuple[ReplicaCore | None, str]] = {}  # shard → the core that raised it, and why

    def found(self, shard: Shard, what: str) -> bool:
        """A stored frame of the shard is damaged: whether another copy takes over."""
        if shard.number not in self._frames:
            log.error("replica.damaged", shard=shard.number, what=what)
            self._frames.add(shard.number)
        core = self._cores.get(shard.number)
        return core is not None and _others(core) > 0

    def give_up(self) -> None:
        """Copies that cannot be trusted take part no more, and the cluster is told, so that it makes others."""
        for number in tuple(self._frames):
            core = self._cores.get(number)
            if core is None:
                self._frames.discard(number)
            elif _others(core) >= _WHOLE_MIN:
                self._frames.discard(number)
                self._store.shards[number].quarantined = "a stored frame is damaged"
            else:
                self._hand_over(core)
        for number, core in tuple(self._cores.items()):
            shard = self._store.shards[number]
            if shard.quarantined:
                self._detach(shard)
                self._copies.miss(shard, core.replica_id)

    def _hand_over(self, core: ReplicaCore) -> None:
        """One other copy counts: it leads from now on, since from this one no further copy can be made."""
        record = core.record
        if core.leading is None or record is None or record.transfer_to:
            return
        other = next((one for one in record.in_sync if one != core.replica_id), None)
        if other is not None and self._asked.get(core.shard) != record.revision:
            self._asked[core.shard] = record.revision
            self._propose(replace(record, transfer_to=other))

    def is_behind(self, shard: Shard, record: ShardRecord) -> bool:
        """Whether the record is older than the log here, which only a store that has lost something can say.

        Whatever it wants done with this copy may be wrong: nothing is, until a person has looked.
        """
        epoch = shard.replicated.epochs.last if shard.replicated is not None else 0
        if record.epoch >= epoch:
            self._behind.discard(shard.number)
            return False
        if shard.number not in self._behind:
            self._behind.add(shard.number)
            log.error("store.behind", shard=shard.number, record_epoch=record.epoch, log_epoch=epoch)
            self._detach(shard)
        return True

    def alarm(self, number: int, what: str) -> None:
        """A copy met what its protocol rules out: for a person, until there is another copy in its place."""
        log.error("replica.alarm", shard=number, what=what)
        self._alarms[number] = self._cores.get(number), what

    @property
    def problem(self) -> str:
        """What a person should look at; "" for nothing."""
        if self._behind:
            shards = sorted(self._behind)[:10]
            return f"the store is older than the logs of shards {shards}: was it restored from a backup?"
        for number, (core, what) in self._alarms.items():
            if core is self._cores.get(number):
                return f"shard {number}: {what}"
        return ""


def _others(core: ReplicaCore) -> int:
    """How many other copies count."""
    return len(set(core.record.in_sync) - {core.replica_id}) if core.record is not None else 0
