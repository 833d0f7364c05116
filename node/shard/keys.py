"""How the owner learns the keys of a KEY_ORDERED group's messages ahead of their delivery."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from ringpost.node.errors import RingpostError
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.index import LOST, Row
from ringpost.node.shard.batch import message_keys
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.reading import Reading, read_ahead
from ringpost.node.status import known

if TYPE_CHECKING:
    from ringpost.node.shard.group import Group

TURN_MESSAGES = 5_000  # looked at in one turn of the loop
Spawn = Callable[[Coroutine[Any, Any, None]], object]


class KeyScan:
    """Reads ahead for one group: what is in memory at once, the rest in a task that tells the members when it is done.

    Nothing is read while there is enough that may go out.
    """

    __slots__ = ("_core", "_group", "_reading", "_running", "_spawn")

    def __init__(self, group: "Group", core: KeyedCore, reading: Reading, spawn: Spawn) -> None:
        """`spawn` runs a coroutine that handles its own errors."""
        self._group = group
        self._core = core
        self._reading = reading
        self._spawn = spawn
        self._running = False

    def reach(self, end_offset: int) -> int:
        """Below this fresh messages may be handed out: the core itself waits for keys."""
        return end_offset

    def rewind(self, offset: int) -> None:
        """Messages from there on are fresh again; the core itself asks for their keys."""

    def ahead(self, wanted: int) -> None:
        """About so many messages are wanted."""
        if self._running:
            return
        left = TURN_MESSAGES
        while (row := self._next_row(wanted)) is not None:
            frame = self._reading.cached(row.address) if left > 0 and row.address != LOST else None
            if frame is None:
                self._running = True
                self._spawn(self._run(wanted))
                return
            left -= self._learn(frame)

    def _next_row(self, wanted: int) -> Row | None:
        """Where the next message with an unknown key is; None when there is no need to look."""
        if len(self._core.ready) >= wanted and not self._core.stalled:
            return None
        channel = self._group.channel
        offset = self._core.unknown(channel.end_offset)
        return None if offset is None else channel.index.row(channel.index.find(offset))

    def _learn(self, frame: CachedFrame) -> int:
        self._core.learn(frame.base_offset, message_keys(frame.body))
        return frame.count

    @property
    def _over(self) -> bool:
        return self._group.removed or not self._group.members

    async def _run(self, wanted: int) -> None:
        try:
            while not self._over and (row := self._next_row(wanted)) is not None:
                if row.address == LOST:
                    self._pass_over(self._group.channel, row)
                else:
                    await self._read(self._group.channel, row)
        except Exception as error:
            self._running = False
            self._fail(known(error))
            return
        self._running = False
        self._group.kick()

    async def _read(self, channel: Channel, row: Row) -> None:
        """Learns from a frame, and from others that come from the disk with it."""
        frame = self._reading.cached(row.address)
        if frame is not None:
            self._learn(frame)
            await asyncio.sleep(0)
            return
        number = channel.index.find(row.base)
        rows = read_ahead(channel, number, channel.end_offset - 1)
        try:
            frames = await self._reading.fetch(channel, rows)
        except FileNotFoundError as error:
            if all(channel.keeps(one) for one in rows):
                raise self._reading.unreadable(channel, row, error) from error
            return  # moved to another segment, or trimmed: look again
        except OSError as error:
            raise self._reading.unreadable(channel, row, error) from error
        for frame in frames:
            # A seek or a trim may have come meanwhile, or the last member has left.
            offset = None if self._over else self._core.unknown(channel.end_offset)
            if offset is not None and frame.base_offset <= offset < frame.base_offset + frame.count:
                self._learn(frame)
                await asyncio.sleep(0)

    def _pass_over(self, channel: Channel, row: Row) -> None:
        """Lost messages have no order: they are settled when it is their turn."""
        end = channel.end_of_row(channel.index.find(row.base))
        self._core.learn(row.base, [0] * (end - row.base))

    def _fail(self, error: RingpostError) -> None:
        if self._group.removed:
            return
        for member in tuple(self._group.members.values()):
            member.failed(error)
