"""Going on with what is left of damaged shards: the operator's word (`accept_loss`) in place of the quarantine.

Replay as always, but what is damaged or does not fit is stepped over, and each loss is noted.

* A DATA frame whose body is damaged keeps its place: its offsets are lost, the channel goes on behind them.
* Offsets that a later frame of the channel leaves out are lost: they jump, and are never given again.
* Where frames are missing and no later one of a channel tells how far it had come, its offsets jump by as many as the
  missing bytes can have held: one a byte at most.
* A scheduled batch that is damaged is gone. Where the frame that released one is damaged, its offsets are lost and it
  is not released again; where that frame is missing altogether, it is.
* Control frames count as far as they are whole and fit. One that is missing takes with it what it said: a channel that
  nobody made any more is lost with its messages, an ack is forgotten and its messages come again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ringpost.internal.v1.record_pb2 import ChannelRecord
from ringpost.node.journal.frame import DATA_TYPES, FLAG_REWRITTEN, FrameType, Header
from ringpost.node.journal.index import LOST, Row
from ringpost.node.journal.segment import address_of, segment_of
from ringpost.node.shard.apply import apply_frame
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.producers import ProducerTable
from ringpost.node.shard.replay import Damaged, Replay
from ringpost.node.shard.scheduling import Schedule, apply_release
from ringpost.node.shard.shard import Shard, apply_delete
from ringpost.node.shard.store import Store

UNKNOWN_SPAN = 1 << 32
"""Offsets to jump where frames are gone and nobody knows how many bytes they had: no segment has more."""


class Loss(NamedTuple):
    """Something of a shard is gone; `channel` "" and offsets None where it is not messages. `last` is inclusive."""

    shard: int
    channel: str
    first: int | None
    last: int | None
    what: str

    def __str__(self) -> str:
        where = f"shard {self.shard}"
        if self.first is not None:
            where += f", channel {self.channel}, offsets {self.first} to {self.last}"
        return f"{where}: {self.what}"


class Salvage(Replay):
    """A `Replay` that quarantines nothing; `losses` says what is gone."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.losses: list[Loss] = []
        self._orphans: dict[tuple[int, int], Loss] = {}  # messages of channels that are not there
        self._told: dict[Channel, int] = {}  # where the last frame is that told the channel's next offset
        self._gaps: dict[int, int] = {}  # per shard, the last frame in front of which others are missing
        self._loaded: dict[int, int] = {}

    def visit(self, header: Header, address: int, body: bytes | memoryview, body_ok: bool) -> None:
        if header.shard < len(self._store.shards) and not header.flags & FLAG_REWRITTEN:
            shard = self._store.shards[header.shard]
            known = self._loaded.setdefault(shard.number, shard.position)
            if header.type == FrameType.CONFIG and body_ok and header.position > shard.position:
                self._make_room(shard, ChannelRecord.FromString(bytes(body)))
            if known < header.position <= shard.position and shard.number in self._gaps:
                self._note_frame(shard, header, "comes too late")
        super().visit(header, address, body, body_ok)
        if header.type in DATA_TYPES and header.shard < len(self._store.shards):
            self._after_data(self._store.shards[header.shard], header, address, body_ok)

    def _make_room(self, shard: Shard, record: ChannelRecord) -> None:
        """A channel is made whose name is taken: the frame that deleted the older one is missing."""
        boxes = (box for box in shard.boxes.values() if box.box_of == record.box_of and box.name == record.name)
        older = next(boxes, None) if record.box_of else self._store.get(record.name)
        if record.channel == 0 and older is not None:
            self._store.exclude(older)
            apply_delete(older)

    def _after_data(self, shard: Shard, header: Header, address: int, body_ok: bool) -> None:
        channel = shard.channels.get(header.channel)
        if channel is None or header.flags & FLAG_REWRITTEN:
            return
        if header.base_offset + header.count == channel.next_offset:
            self._told[channel] = address
        if not body_ok and (row := _row_at(channel, header.base_offset)) and row.address == address:
            self._lose_row(channel, row, f"the body of position {header.position} is damaged")

    def _quarantine(self, shard: Shard, address: int, problem: str) -> None:
        self._note(Loss(shard.number, "", None, None, f"{problem} (journal address {address:#x})"))

    def _step_over(
        self, shard: Shard, header: Header, address: int, body: bytes | memoryview | None, problem: str
    ) -> bool:
        if header.epoch < shard.started_epoch:
            self._note_frame(shard, header, problem)
            return False
        if header.position != shard.position + 1 or header.previous_crc != shard.last_crc:
            self._gaps[shard.number] = address
        if header.type in DATA_TYPES:
            self._place(shard, header, address, body, problem)
            return True
        self._quarantine(shard, address, problem)
        if body is not None:
            misfit = apply_frame(shard, header, address, body, self._store)
            if misfit is not None and misfit != problem:
                self._quarantine(shard, address, misfit)
        return True

    def _place(self, shard: Shard, header: Header, address: int, body: bytes | memoryview | None, problem: str) -> None:
        """Gives a DATA frame its place if it can have it; what it leaves out is lost, and so is a damaged body."""
        channel = shard.channels.get(header.channel)
        if channel is None or header.base_offset < channel.next_offset:
            self._note_frame(shard, header, problem)
            return
        self._lose_up_to(channel, header.base_offset, problem)
        if body is not None:
            apply_frame(shard, header, address, body, self._store)
            return
        self._lose_up_to(channel, header.base_offset + header.count, problem)
        if header.type == FrameType.RELEASE:
            apply_release(channel, header.base_sequence)  # some may have got these messages, so none gets them twice
        if header.producer:
            channel.producers = channel.producers or ProducerTable()
            channel.producers.lost(
                header.producer, header.producer_epoch, header.base_sequence, header.count, header.time_us
            )

    # -- losses -----------------------------------------------------------------------------------------------------

    def _note(self, loss: Loss) -> None:
        last = self.losses[-1] if self.losses else None
        if last and loss.first is not None and last[:2] == loss[:2] and last.last == loss.first - 1:
            self.losses[-1] = last._replace(last=loss.last)
        else:
            self.losses.append(loss)

    def _note_frame(self, shard: Shard, header: Header, what: str) -> None:
        """A frame that cannot be taken. A channel that is not there may have had many: they are told as one."""
        if header.type not in DATA_TYPES:
            self._note(Loss(shard.number, "", None, None, f"position {header.position}: {what}"))
            return
        first, last = header.base_offset, header.base_offset + header.count - 1
        channel = shard.channels.get(header.channel)
        if channel is not None:
            self._note(Loss(shard.number, channel.name, first, last, what))
            return
        key = shard.number, header.channel
        told = self._orphans.get(key)
        if told is not None and told.first is not None:
            first = min(first, told.first)
        self._orphans[key] = Loss(*key[:1], f"(number {header.channel}, name unknown)", first, last, what)

    def _lose_up_to(self, channel: Channel, end: int, what: str) -> None:
        first = channel.next_offset
        if end > first:
            channel.index.append(first, LOST, LOST)
            channel.next_offset = channel.end_offset = end
            self._lost(channel, first, end - 1, what)

    def _lost(self, channel: Channel, first: int, last: int, what: str) -> None:
        channel.lossy = True
        if channel.seen is not None:
            channel.seen.lose(first, last)
        self._store.lossy.add(channel)
        self._note(Loss(channel.shard.number, channel.name, first, last, what))

    def lose_segments(self, segments: Sequence[int]) -> None:
        """The files of these segments are gone."""
        for segment in segments:
            self._lose_rows(address_of(segment, 0), address_of(segment + 1, 0), f"segment {segment} is missing")

    def _lose_rows(self, start: int, stop: int, what: str) -> None:
        """Rows whose frames begin in a stretch of the journal that cannot be read."""
        for segment in range(segment_of(start), segment_of(stop - 1) + 1 if stop > start else 0):
            if self._store.log.ledger.live(segment):
                for channel in self._store.all_channels():
                    rows = [row for rows in channel.peek_index().rows_in_segment(segment) for row in rows]
                    for row in rows:
                        if start <= row.address < stop:
                            self._lose_row(channel, row, what)
                for schedule in [one for shard in self._store.shards for one in shard.schedules.values()]:
                    rows = [row for rows in schedule.rows_in_segment(segment) for row in rows]
                    for row in rows:
                        if start <= row.address < stop:
                            self._lose_entry(schedule, row, what)

    def _lose_entry(self, schedule: Schedule, row: Row, what: str) -> None:
        entry = schedule.drop(row.base)
        assert entry is not None, "it is there"
        channel = schedule.channel
        told = f"{entry.count} messages of channel {channel.name!r}, scheduled for {entry.due_us} µs: {what}"
        self._note(Loss(channel.shard.number, "", None, None, told))

    def _lose_row(self, channel: Channel, row: Row, what: str) -> None:
        number = channel.index.find(row.base)
        channel.index.lose(number)
        channel.stored_bytes -= row.length
        self._store.log.ledger.drop(row.address, row.length)
        self._lost(channel, row.base, channel.end_of_row(number) - 1, what)

    # -- the end ----------------------------------------------------------------------------------------------------

    def finish(self, damages: Sequence[Damaged]) -> list[Shard]:
        """Takes from every channel what a damage may have hit; quarantines nothing."""
        self.losses += self._orphans.values()
        unknown = [damage for damage in damages if damage.shard is None]
        for damage in unknown:
            self._lose_rows(damage.address, damage.address + damage.length, damage.what)
        for shard in self._store.shards:
            gap, last = self._gaps.get(shard.number, -1), self._last_address.get(shard.number, -1)
            near = [damage for damage in unknown if damage.address > last or damage.address < gap]
            for channel in tuple(shard.channels.values()) if near or gap >= 0 else ():
                self._jump(channel, near, gap)
        return []

    def _jump(self, channel: Channel, near: Sequence[Damaged], gap: int) -> None:
        """Beyond all offsets that the channel may have given in what is missing behind its last frame."""
        told = self._told.get(channel, -1)
        missing = [damage for damage in near if damage.address > told]
        span = sum(damage.length or UNKNOWN_SPAN for damage in missing)
        if span or gap > told:
            what = missing[0].what if missing else "frames are missing"
            self._lose_up_to(channel, channel.next_offset + (span or UNKNOWN_SPAN), f"may have been there: {what}")


def _row_at(channel: Channel, offset: int) -> Row | None:
    try:
        return channel.index.row(channel.index.find(offset))
    except LookupError:
        return None
