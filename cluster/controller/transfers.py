"""Which transfers are under way, since when, and which failed lately: seen from the records alone. Pure."""

from collections.abc import Iterable, Iterator

from ringpost.cluster.controller.decisions import Settings
from ringpost.cluster.view import ShardRecord


class Transfers:
    """A leader that could not hand over says so by taking the wish back; asking it again at once would hold the
    shard's publishers for ever.
    """

    def __init__(self, settings: Settings) -> None:
        self._patience = settings.transfer_s
        self._now = 0.0
        # By shard: the replica that shall lead, and since when.
        self._asked: dict[int, tuple[str, float]] = {}
        # By shard: the replica that did not come to lead, and until when it is left alone.
        self._failed: dict[int, tuple[str, float]] = {}

    def observe(self, records: Iterable[ShardRecord], now: float) -> None:
        """Takes the newest records."""
        self._now = now
        asked = {}
        for record in records:
            before = self._asked.get(record.shard)
            if record.transfer_to:
                same = before is not None and before[0] == record.transfer_to
                asked[record.shard] = before if same and before is not None else (record.transfer_to, now)
            elif before is not None and (record.leader is None or record.leader.replica_id != before[0]):
                self._failed[record.shard] = (before[0], now + self._patience)
        self._asked = asked
        self._failed = {shard: failed for shard, failed in self._failed.items() if failed[1] > now}

    def may_ask(self, record: ShardRecord, replica_id: str) -> bool:
        """Whether the shard may be asked to hand over to this replica."""
        failed = self._failed.get(record.shard)
        return failed is None or failed[0] != replica_id

    def overdue(self, record: ShardRecord) -> bool:
        """Whether the transfer that the record asks for takes too long."""
        asked = self._asked.get(record.shard)
        return asked is not None and self._now >= asked[1] + self._patience

    def deadlines(self) -> Iterator[float]:
        """When something that this knows changes by time alone."""
        yield from (until for _, until in self._failed.values())
        yield from (since + self._patience for _, since in self._asked.values() if since + self._patience > self._now)
