"""One subscription: takes what its source wants, reads it, cuts it to the credit, encodes it."""

import asyncio
from bisect import bisect_right
from typing import TYPE_CHECKING

from crc32c import crc32c

from ringpost.node.delivery.commands import settle_action
from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.encode import Piece, deliver, piece
from ringpost.node.delivery.expiry import is_over, run_end
from ringpost.node.delivery.filtered import FilteredCursor, look_ahead
from ringpost.node.delivery.flow import SettleReply
from ringpost.node.delivery.hub import Hub, frame_piece
from ringpost.node.delivery.sources import Cursor, Membership, Source, Wanted
from ringpost.node.errors import NotFound, RingpostError, Unavailable
from ringpost.node.groups.changes import Outcome
from ringpost.node.groups.ranges import RangeSet
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.index import LOST, Row
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.claims import claim_of, read_token, unclaimed
from ringpost.node.shard.group import Group
from ringpost.node.shard.reading import read_ahead
from ringpost.node.status import known
from ringpost.v1.subscribe_pb2 import Settle

if TYPE_CHECKING:
    from ringpost.node.delivery.session import Session
from ringpost.node.tracing import now_ns

# Larger frames are delivered in parts: a client's gRPC takes 4 MiB at a time unless it is told otherwise.
WHOLE_FRAME_BYTES_MAX = (1 << 20) + (64 << 10)
# In one delivery; each that is cut costs as much as some ten messages, so many of them would hold the loop.
PIECES_MAX = 256


class Subscription:
    """A watcher of its channel. Until `begin` it only gathers credit."""

    __slots__ = (
        "_pinned",
        "_reading",
        "channel",
        "consumer",
        "credit",
        "epoch",
        "hub",
        "number",
        "queued",
        "session",
        "source",
    )

    def __init__(self, session: "Session", number: int, consumer: str, credit: CreditWindow) -> None:
        self.session = session
        self.hub: Hub = session.hub
        self.number = number
        self.consumer = consumer
        self.credit = credit
        self.channel: Channel | None = None
        self.source: Source | None = None
        self.epoch = 0  # of the leadership that serves it
        self.queued = False  # waits for its turn in the session
        self._reading = False
        self._pinned: dict[int, CachedFrame] = {}  # what was read for it, until it is sent

    def begin(self, channel: Channel, source: Source) -> None:
        """From now on there are deliveries."""
        self.channel = channel
        self.source = source
        self.epoch = channel.shard.epoch
        channel.watch(self)
        self.advanced()

    def close(self) -> None:
        """The end; leases are given back."""
        if self.channel is not None:
            self.channel.unwatch(self)
        if self.source is not None:
            self.source.close()
        self.source = None
        self._pinned.clear()

    def advanced(self) -> None:
        """There may be something to send."""
        if not self.queued and not self._reading and self.source is not None and self.credit.open:
            self.queued = True
            self.session.ready(self)

    def removed(self, reason: str, message: str) -> None:
        """The channel or group is gone."""
        self.session.close_subscription(self, NotFound(message, reason=reason))

    def moved(self, message: str) -> None:
        """The group was moved: what was delivered before is another story, so the subscription begins anew."""
        self.session.close_subscription(self, Unavailable(message, reason="GROUP_MOVED", retry_after_ms=10))

    def failed(self, error: RingpostError) -> None:
        """The group's messages cannot be read."""
        self.session.close_subscription(self, error)

    @property
    def has_credit(self) -> bool:
        """Whether it may be sent a message."""
        return self.credit.open

    # -- settling ---------------------------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership | None:
        """The group's side of it, None without a group."""
        return self.source if isinstance(self.source, Membership) else None

    @property
    def grouped(self) -> bool:
        """Whether it stands and is a member of a group."""
        return isinstance(self.source, Membership)

    takes_turns = grouped

    def settle(self, settle: Settle, reply: SettleReply) -> None:
        """Settles what this member holds; `reply` is called once."""
        membership = self.membership
        assert membership is not None, "grouped"

        begun_ns, tracing = now_ns(), self.hub.tracing

        def counted(outcome: list[tuple[int, int, Outcome]] | RingpostError) -> None:
            if not isinstance(outcome, RingpostError):
                self._count_settled(outcome)
                if tracing.remembers:
                    tracing.settled(membership.group.channel.name, outcome, begun_ns)
            reply(outcome)

        ranges = [(pair.first, pair.last) for pair in settle.ranges]
        if settle.lease_token:
            self._settle_claim(membership.group, settle, RangeSet(ranges), counted)
            return
        unsent = membership.unsent if settle.cumulative else ()
        membership.group.settle(membership.member, settle_action(settle), ranges, settle.cumulative, counted, unsent)

    def _settle_claim(self, group: Group, settle: Settle, wanted: RangeSet, reply: SettleReply) -> None:
        token = read_token(settle.lease_token, "settle.lease_token")
        try:
            claim = claim_of(group, token, wanted, "settle.lease_token")
            left = [(first, last, Outcome.UNKNOWN) for first, last in unclaimed(wanted, [token])]
            group.settle_claims(settle_action(settle), [claim], left, reply)
        except RingpostError as error:
            reply(error)

    def _count_settled(self, results: list[tuple[int, int, Outcome]]) -> None:
        counts = self.hub.counters.settled
        for first, last, verdict in results:
            if verdict != Outcome.UNKNOWN:  # of which there may be 2**64
                counts[verdict.name] = counts.get(verdict.name, 0) + last - first + 1

    # -- sending ----------------------------------------------------------------------------------------------------

    def collect(self, bytes_max: int, now_us: int) -> bytes | None:
        """One encoded delivery of about `bytes_max`, None when there is nothing to send now."""
        source, credit = self.source, self.credit
        if source is None or self._reading:
            return None
        if isinstance(source, Membership) and not self.hub.may_deliver(source.group.channel.shard.number):
            self.hub.hold_back(self)
            return None
        self.skip_gaps()
        pieces: list[Piece] = []
        key = [self.number]
        size = messages = 0
        while credit.open and size < bytes_max and len(pieces) < PIECES_MAX:
            if isinstance(source, FilteredCursor) and not look_ahead(self, source, now_us, may_skip=not pieces):
                break
            wanted = source.next(self._messages_max(), now_us)
            if wanted is None:
                break
            found = self.find(wanted, 0 if pieces else now_us)
            if found is None:
                break
            address, frame = found
            if pieces and size + len(frame.body) > bytes_max:
                break
            part, last = self._piece(address, frame, wanted, max(bytes_max, WHOLE_FRAME_BYTES_MAX))
            source.sent(last)
            pieces.append(part)
            count = last - wanted.first + 1
            key.append(address if count == frame.count and not wanted.attempt else -1)
            credit.sent(count, len(part[1]))
            size += len(part[1])
            messages += count
            self._count(frame, wanted, count)
            if isinstance(source, Membership) and source.spent:
                break
        if not credit.open:
            self._pinned.clear()  # it may be long until there is more credit
        if not pieces:
            return None
        counters = self.hub.counters
        counters.messages += messages
        counters.bytes += size
        counters.deliveries += 1
        if -1 in key or not self._has_company:
            return deliver(self.number, pieces)
        return self.hub.shared(tuple(key), lambda: deliver(self.number, pieces))

    def skip_gaps(self) -> bool:
        """Tells of messages that will not come, where they are next; whether there were any."""
        found = False
        while isinstance(self.source, Cursor) and (missing := self.source.skip_gap()) is not None:
            self.session.gap(self, missing)
            found = True
        return found

    @property
    def _has_company(self) -> bool:
        """Whether other subscriptions may send the same bytes."""
        return self.channel is not None and self.channel.watchers is not None and len(self.channel.watchers) > 1

    def _messages_max(self) -> int:
        """What the credit allows; of a group only about as much is leased as the bytes allow, too."""
        messages = self.credit.messages
        channel = self.channel
        if channel is None or not isinstance(self.source, Membership):
            return messages
        average = channel.stored_bytes // max(channel.next_offset - channel.first_offset, 1)
        return min(messages, max(1, self.credit.bytes // max(average, 1)))

    def _count(self, frame: CachedFrame, wanted: Wanted, count: int) -> None:
        if wanted.attempt > 1:
            self.hub.counters.redeliveries += count
        if self.hub.tracing.remembers and self.channel is not None:
            self.hub.tracing.delivered(self.channel.name, frame.base_offset, wanted.first, frame.time_us)

    def _piece(self, address: int, frame: CachedFrame, wanted: Wanted, bytes_max: int) -> tuple[Piece, int]:
        """The wanted part of a frame as far as credit and `bytes_max` go, and the last offset in it."""
        low = wanted.first - frame.base_offset
        high = min(wanted.last - frame.base_offset, frame.count - 1)
        bytes_max = min(bytes_max, self.credit.bytes)
        if len(frame.body) > bytes_max:
            high = self._cut_to_bytes(address, frame, low, high, bytes_max)
        whole = low == 0 and high == frame.count - 1
        if high == frame.count - 1:
            self._pinned.pop(address, None)
        if whole and not wanted.attempt:
            last = frame.base_offset + high
            return (self.hub.piece(address, frame) if self._has_company else frame_piece(frame)), last
        batch = frame.body if whole else self.hub.cutter.cut(address, frame.body, low, high)
        part = piece(
            batch,
            first_offset=wanted.first,
            count=high - low + 1,
            time_us=frame.time_us,
            crc=frame.body_crc if whole else crc32c(batch),
            attempt=wanted.attempt,
            lease_ms=wanted.lease_ms,
            last_reason=wanted.last_reason,
            lease_token=self._lease_token(wanted, frame.base_offset + high),
        )
        return part, frame.base_offset + high

    def _lease_token(self, wanted: Wanted, last: int) -> bytes:
        mint = self.source.mint if isinstance(self.source, Membership) else None
        return b"" if mint is None else mint.token(wanted.first, last, wanted.attempt)

    def _cut_to_bytes(self, address: int, frame: CachedFrame, low: int, high: int, bytes_max: int) -> int:
        bounds = self.hub.cutter.of(address, frame.body).bounds
        room = bounds[low] + bytes_max
        return max(low, bisect_right(bounds, room, low + 1, high + 2) - 2)

    # -- reading ----------------------------------------------------------------------------------------------------

    def find(self, wanted: Wanted, now_us: int) -> tuple[int, CachedFrame] | None:
        """The frame that holds the first wanted offset; None when it must be read first, or has nothing to give out.

        `now_us` 0: something is to be sent before anything may be passed over.
        """
        assert self.channel is not None, "begun"
        index = self.channel.index
        number = index.find(wanted.first)
        address = index.row(number).address
        if address == LOST:
            self._pass_over(self.channel, wanted)
            return None
        frame = self._pinned.get(address) or self.hub.reading.cached(address)
        if frame is None:
            self._reading = True
            self.hub.spawn(self._read(self.channel, read_ahead(self.channel, number, wanted.last)))
            return None
        if frame.ttl_ms and is_over(frame, now_us or self.hub.store.log.clock()):
            if now_us:
                self._pass_expired(self.channel, frame, wanted, now_us)
            return None
        return address, frame

    def _pass_expired(self, channel: Channel, frame: CachedFrame, wanted: Wanted, now_us: int) -> None:
        """Messages whose time to live is over: a group settles them, to a cursor they are a gap."""
        last = run_end(channel, self.hub.reading, frame, now_us)
        counters, source = self.hub.counters, self.source
        if isinstance(source, Membership):
            last = min(wanted.last, last)
            source.sent(last)
            counters.expired += source.group.expire(wanted.first, last)
        elif source is not None:
            source.sent(last)
            self.session.gap(self, (wanted.first, last))
            counters.expired += last - wanted.first + 1
        asyncio.get_running_loop().call_soon(self.advanced)  # other streams have their turn in between

    def _pass_over(self, channel: Channel, wanted: Wanted) -> None:
        """Lost messages: a group takes them as settled; to a cursor the gap is told when it comes to its turn."""
        lost = channel.lost_at(wanted.first)
        if lost is not None and isinstance(self.source, Membership):
            self.source.sent(min(wanted.last, lost[1]))
            self.source.group.pass_over(*lost)

    async def _read(self, channel: Channel, rows: list[Row]) -> None:
        try:
            frames = await self.hub.reading.fetch(channel, rows)
        except FileNotFoundError as error:
            self._reading = False
            if all(channel.keeps(row) for row in rows):
                self._cannot_read(channel, rows[0], error)
            else:
                self.advanced()  # moved to another segment, or trimmed: look again
            return
        except OSError as error:
            self._reading = False
            self._cannot_read(channel, rows[0], error)
            return
        except Exception as error:
            self._reading = False
            self.session.close_subscription(self, known(error))
            return
        self._reading = False
        if self.source is not None:
            self._pinned = {row.address: frame for row, frame in zip(rows, frames, strict=True)}
            self.advanced()

    def _cannot_read(self, channel: Channel, row: Row, error: OSError) -> None:
        self.session.close_subscription(self, self.hub.reading.unreadable(channel, row, error))
