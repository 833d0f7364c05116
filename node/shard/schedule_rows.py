"""What is scheduled, as it stands in a snapshot of its shard.

A million entries are 32 MB. So they are not put into a message, which would copy them thrice while the loop stands
still: the encoded field is made around them, and whoever joins the snapshot's parts copies them once.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ringpost.internal.v1.record_pb2 import ScheduledIdsSnapshot, ScheduleSnapshot, ShardSnapshot
from ringpost.node.shard.scheduled_ids import ScheduledIds, ScheduledRun
from ringpost.node.shard.scheduling import Schedule
from ringpost.node.shard.timetable import Timetable

if TYPE_CHECKING:
    from ringpost.node.shard.shard import Shard

_LENGTH_DELIMITED = 2
_SCHEDULES = ShardSnapshot.SCHEDULES_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_ENTRIES = ScheduleSnapshot.ENTRIES_FIELD_NUMBER << 3 | _LENGTH_DELIMITED


def encode_schedules(shard: "Shard") -> Iterator[bytes]:
    """What is committed of a shard's schedules: parts of an encoded ShardSnapshot."""
    for number, schedule in shard.schedules.items():
        entries = schedule.table.to_bytes()
        seen = list(_seen(schedule, shard.last_time_us))
        if entries or seen:
            row = ScheduleSnapshot(channel=number, seen=seen).SerializeToString()
            row += bytes((_ENTRIES,)) + _varint(len(entries))
            yield bytes((_SCHEDULES,)) + _varint(len(row) + len(entries)) + row
            yield entries


def _seen(schedule: Schedule, time_us: int) -> Iterator[ScheduledIdsSnapshot]:
    if schedule.ids is not None:
        schedule.ids.let_go(time_us - schedule.channel.limits.dedup_window_ms * 1000)
        for run in schedule.ids.runs():
            yield ScheduledIdsSnapshot(time_us=run.time_us, due_time_us=run.due_us, ids=run.ids)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def load_schedules(shard: "Shard", rows: Iterable[ScheduleSnapshot]) -> None:
    """The inverse; counts their frames as live. Raises ValueError for entries that are none."""
    log = shard.log
    for row in rows:
        table = Timetable.from_bytes(row.entries)
        runs = [ScheduledRun(run.time_us, run.due_time_us, tuple(run.ids)) for run in row.seen]
        ids = ScheduledIds(runs) if runs else None
        shard.schedules[row.channel] = Schedule(shard.channels[row.channel], table, ids)
        for segment, length in table.bytes_by_segment().items():
            log.ledger.add_bytes(segment, length)
        log.schedules.entries += len(table)
