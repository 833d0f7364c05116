"""How the owner looks ahead for a group with a filter: what is not let through is settled, the rest may be handed out.

In a group that keeps order per key the keys of the rest are learned by the way.
"""

from typing import TYPE_CHECKING

from ringpost.node.errors import RingpostError
from ringpost.node.filters.filter import Filter
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.ranges import Range
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.index import Row
from ringpost.node.shard.batch import keys_of
from ringpost.node.shard.keys import TURN_MESSAGES, Spawn
from ringpost.node.shard.reading import Reading, read_ahead
from ringpost.node.shard.sieve import CHUNK, Sifted
from ringpost.node.status import known

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group


class FilterScan:
    """Looks at no more than is wanted, a slice of time in a turn of the loop; reads in a task.

    Invariant: every fresh message below `_end` is let through. A core that keeps order by key knows that itself: what
    it has learned is let through.
    """

    __slots__ = (
        "_core",
        "_end",
        "_filter",
        "_found",
        "_group",
        "_keyed",
        "_pinned",
        "_reading",
        "_runs",
        "_spawn",
        "_wanted",
    )

    def __init__(self, group: "Group", wanted: Filter, reading: Reading, spawn: Spawn) -> None:
        """`spawn` runs a coroutine that handles its own errors."""
        self._group = group
        self._core = group.core
        self._keyed = group.core if isinstance(group.core, KeyedCore) else None
        self._filter = wanted
        self._reading = reading
        self._spawn = spawn
        self._runs = False  # a read is on its way
        self._pinned: dict[int, CachedFrame] = {}  # what was read, while there is something to look at
        self._end = 0
        self._wanted = 0
        self._found = 0  # that may go out, about

    def reach(self, end_offset: int) -> int:
        """Below this fresh messages may be handed out."""
        return end_offset if self._keyed is not None else min(end_offset, self._end)

    def rewind(self, offset: int) -> None:
        """Messages from there on are fresh again and must be looked at."""
        self._end = min(self._end, offset)

    def ahead(self, wanted: int) -> None:
        """About so many messages are wanted."""
        self._wanted = wanted
        self._look()

    def advanced(self) -> None:
        """There is time to look on, or something to look at: members hear of what was found."""
        if self._over:
            return
        before = self._count()
        self._look()
        if self._found > before:
            self._group.kick()

    def _count(self) -> int:
        if self._keyed is not None:
            return len(self._keyed.ready)
        return self._core.fresh(self._end, self._wanted)

    @property
    def _over(self) -> bool:
        group = self._group
        return group.removed or not group.members or group.scan is not self or group.seeks > 0 or group.paused

    def _look(self) -> None:
        self._found, left = self._count(), TURN_MESSAGES
        while not self._over and (offset := self._next_offset()) is not None:
            index = self._group.channel.index
            row = index.row(number := index.find(offset))
            if left <= 0:  # what the sieve knows already costs something here, too
                self._reading.sieve.wait(self)
                return
            if row.lost:
                self._pass_lost(offset, self._group.channel.end_of_row(number))
                continue
            frame = self._pinned.get(row.address) or self._reading.cached(row.address)
            if frame is None:
                if not self._runs:
                    self._runs = True
                    self._spawn(self._read(row, number))
                return
            sifted = self._reading.sieve.sift(self, row.address, frame, offset, self._filter)
            if sifted is None:
                return
            if self._keyed is not None:  # keys are read from the messages, however much the sieve knows already
                sifted = sifted.below(offset + CHUNK)
            self._learn(row.address, frame, offset, sifted)
            left -= sifted.end - offset
        self._pinned.clear()

    def _next_offset(self) -> int | None:
        """Where to look next; None when there is no need to."""
        end = self._group.channel.end_offset
        if self._found >= self._wanted:
            self._found = self._count()  # some that were let through may be in somebody's hands
        enough = self._found >= self._wanted and not self._core.stalled
        if enough:
            return None
        return self._core.next_fresh(self._end, end) if self._keyed is None else self._keyed.unknown(end)

    def _learn(self, address: int, frame: CachedFrame, first: int, sifted: Sifted) -> None:
        kept_back: list[Range] = []
        low = first
        for run_first, run_last in (*sifted.runs, (sifted.end, sifted.end)):
            if low < run_first:
                kept_back += self._core.keep_back(low, run_first - 1)
            low = run_last + 1
        if kept_back:
            self._group.filter_out(kept_back)
            self._reading.sieve.filtered["group"] += sum(last - low + 1 for low, last in kept_back)
        if self._keyed is None:
            self._found += sum(last - first + 1 for first, last in sifted.runs)
            self._end = sifted.end
            return
        if kept_back == [(first, sifted.end - 1)]:
            keys = [0] * (sifted.end - first)
        else:
            keys = keys_of(self._reading.sieve.messages(address, frame, first, sifted.end))
        self._keyed.learn(first, keys)
        self._found = len(self._keyed.ready)

    def _pass_lost(self, first: int, end: int) -> None:
        """Lost messages have no key and nothing to look at: they are settled when it is their turn."""
        if self._keyed is None:
            self._end = end
        else:
            self._keyed.learn(first, [0] * (end - first))
            self._found = len(self._keyed.ready)

    # -- the disk ---------------------------------------------------------------------------------------------------

    async def _read(self, row: Row, number: int) -> None:
        try:
            await self._fetch(row, number)
        except Exception as error:
            self._runs = False
            self._fail(known(error))
            return
        self._runs = False
        self.advanced()

    async def _fetch(self, row: Row, number: int) -> None:
        channel = self._group.channel
        rows = read_ahead(channel, number, channel.end_offset - 1)
        try:
            frames = await self._reading.fetch(channel, rows)
        except FileNotFoundError as error:
            if all(channel.keeps(one) for one in rows):
                raise self._reading.unreadable(channel, row, error) from error
            return  # moved to another segment, or trimmed: look again
        except OSError as error:
            raise self._reading.unreadable(channel, row, error) from error
        self._pinned = {one.address: frame for one, frame in zip(rows, frames, strict=True)}

    def _fail(self, error: RingpostError) -> None:
        if self._group.removed or self._group.scan is not self:
            return
        for member in tuple(self._group.members.values()):
            member.failed(error)
