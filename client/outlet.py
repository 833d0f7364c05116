"""One channel's way out of a publisher: the open batch and the producer behind it."""

import secrets
from typing import TYPE_CHECKING

from crc32c import crc32c

from ringpost.client.options import Options
from ringpost.client.producer import Lane, OutBatch
from ringpost.client.receipts import Ticket
from ringpost.client.timing import AT_ONCE, Timing

if TYPE_CHECKING:
    from ringpost.client.pipe import Pipe


class OpenBatch:
    """What waits for the next frame of a channel."""

    __slots__ = ("deadline", "due", "durability", "parts", "size", "ticket", "timing")

    def __init__(self, ticket: Ticket, durability: int, now: float, options: Options, timing: Timing) -> None:
        self.ticket = ticket
        self.timing = timing
        self.durability = durability
        self.parts: list[bytes] = []
        self.size = 0
        self.due = now + options.linger_ms / 1000
        self.deadline = now + options.publish_timeout


class Outlet:
    """One channel's way out: its producer, its open batch, and the pipe that it uses.

    Invariant: everything outstanding is on `pipe`, so batches of one channel are never on two streams at a time.
    """

    __slots__ = ("held_since", "lane", "open", "pipe", "queued", "version")

    def __init__(self, channel: str) -> None:
        # Ids are per channel, so that a channel whose session is over leaves the others alone.
        self.lane = Lane(channel, lambda: secrets.randbits(63) or 1)
        self.open: OpenBatch | None = None
        self.pipe: Pipe | None = None
        # Whether it stands in the pipe's queue.
        self.queued = False
        # Of the routes by which the pipe was chosen.
        self.version = -1
        # Since when it waits for answers of a pipe that it is to leave; 0: it does not.
        self.held_since = 0.0

    def seal(self) -> None:
        """Closes the open batch: it goes to the producer."""
        opened, self.open = self.open, None
        assert opened is not None
        self.enqueue(b"".join(opened.parts), opened.ticket, opened.durability, opened.deadline, timing=opened.timing)

    def enqueue(
        self,
        payload: bytes,
        ticket: Ticket,
        durability: int,
        deadline: float,
        expected_offset: int | None = None,
        timing: Timing = AT_ONCE,
    ) -> None:
        """Hands an encoded batch to the producer; its outcome goes to the ticket."""
        batch = OutBatch(payload, ticket.count, crc32c(payload), durability, deadline, ticket)
        batch.expected_offset = expected_offset
        batch.timing = timing
        self.lane.enqueue(batch)
