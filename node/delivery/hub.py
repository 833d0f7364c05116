"""What all subscribe streams of a node share: limits, counters, the cutter, bytes that several of them send."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ringpost.node.access.access import Access
from ringpost.node.delivery.catalog import Catalog
from ringpost.node.delivery.encode import Piece, piece
from ringpost.node.delivery.flow import Relay
from ringpost.node.journal.cache import CachedFrame
from ringpost.node.shard.batch import Cutter
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.store import Store
from ringpost.node.tracing import OFF

if TYPE_CHECKING:
    from ringpost.node.delivery.session import Session
    from ringpost.node.delivery.subscription import Subscription

_SHARED_MAX = 64
_HOLD_MIN_S, _HOLD_MAX_S = 0.02, 0.5
_SHARED_BYTES_MAX = 512 << 10  # so all together hold at most 64 MiB
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def frame_piece(frame: CachedFrame) -> Piece:
    """A whole frame without a group, as it stands in a Deliver."""
    return piece(
        frame.body,
        first_offset=frame.base_offset,
        count=frame.count,
        time_us=frame.time_us,
        crc=frame.body_crc,
    )


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    if len(known) >= _SHARED_MAX:
        del known[next(iter(known))]
    known[key] = value


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Bytes, counts and milliseconds, all above 0. `queues_bytes` bounds what waits on all streams together."""

    queue_bytes: int = 1 << 20
    queues_bytes: int = 512 << 20
    delivery_bytes: int = 256 << 10
    heartbeat_ms: int = 10_000
    subscriptions_per_stream: int = 256
    settlements_per_stream: int = 1_000
    pattern_channels: int = 10_000
    stream_pattern_channels: int = 20_000


@dataclass(slots=True)
class DeliveryCounters:
    """Since the start."""

    messages: int = 0
    bytes: int = 0
    deliveries: int = 0
    redeliveries: int = 0
    expired: int = 0
    settled: dict[str, int] = field(default_factory=dict)


class Hub:
    """One a node. Everything runs in the loop's thread."""

    def __init__(
        self,
        store: Store,
        reading: Reading,
        limits: DeliveryLimits,
        *,
        node: str,
        access: Access | None = None,
        members_from: int = 0,
    ) -> None:
        """`access` None: everybody may read everything.

        `members_from`: members' numbers are above it; by chance, so that no other node, and no other start of this one,
        gives any of them.
        """
        self.store = store
        self.access = access or Access("")
        self.tracing = OFF
        self.reading = reading
        self.limits = limits
        self.node = node
        self.counters = DeliveryCounters()
        self.cutter = Cutter()
        self.sessions: set[Session] = set()
        self.subscriptions = 0
        self.draining = False
        self.relay: Relay | None = None  # set where there are other nodes
        # Whether nobody else can be a shard's leader by now; where that is not sure, groups are given nothing.
        self.may_deliver: Callable[[int], bool] = lambda _: True
        self._held_back: set[Subscription] = set()
        self._hold_s = 0.0
        self._released_at = 0.0
        self._members = members_from
        self._pieces: dict[int, Piece] = {}
        self._messages: dict[tuple[int, ...], bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.catalog = Catalog(store, self.spawn)

    def new_member(self) -> int:
        """A number for a group's member, never used before."""
        self._members += 1
        return self._members

    def queue_bytes(self) -> int:
        """How much may wait on one stream: less when there are very many."""
        return min(self.limits.queue_bytes, max(self.limits.queues_bytes // max(len(self.sessions), 1), 16 << 10))

    def piece(self, address: int, frame: CachedFrame) -> Piece:
        """A whole frame without a group, as it stands in a Deliver; the same for every subscriber."""
        known = self._pieces.get(address)
        if known is None:
            known = frame_piece(frame)
            if len(frame.body) <= _SHARED_BYTES_MAX:
                _remember(self._pieces, address, known)
        return known

    def shared(self, key: tuple[int, ...], make: Callable[[], bytes]) -> bytes:
        """The same bytes object for the same key (subscription id and addresses), for the latest few keys."""
        known = self._messages.get(key)
        if known is None:
            known = make()
            if len(known) <= _SHARED_BYTES_MAX:
                _remember(self._messages, key, known)
        return known

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine that handles its own errors."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def hold_back(self, subscription: "Subscription") -> None:
        """It tries again soon, for as long as this node does not surely lead: less often the longer that takes."""
        if not self._held_back:
            loop = asyncio.get_running_loop()
            again = loop.time() - self._released_at < _HOLD_MIN_S
            self._hold_s = min(2 * self._hold_s, _HOLD_MAX_S) if again else _HOLD_MIN_S
            loop.call_later(self._hold_s, self._release)
        self._held_back.add(subscription)

    def _release(self) -> None:
        held, self._held_back = self._held_back, set()
        self._released_at = asyncio.get_running_loop().time()
        for subscription in held:
            subscription.advanced()

    def beat(self) -> None:
        """To be called every half second: streams that were silent for long get a heartbeat."""
        now = asyncio.get_running_loop().time()
        for session in self.sessions:
            session.beat(now)

    def check_access(self) -> None:
        """Streams and subscriptions that are not permitted any more end. To be called about every half second."""
        for session in tuple(self.sessions):
            session.check_access()

    def changed(self) -> None:
        """Leaderships may have gone: subscriptions of shards that this node does not lead any more move on."""
        for session in tuple(self.sessions):
            session.leaderships_changed()

    def made_room(self) -> None:
        """Commands may be read again."""
        for session in self.sessions:
            session.made_room()

    @property
    def clients_left(self) -> bool:
        """Whether a client's stream is open."""
        return any(not session.forwarded for session in self.sessions)

    def drain(self, grace_ms: int, retry_after_ms: int) -> None:
        """Tells every stream that it ends soon."""
        self.draining = True
        for session in tuple(self.sessions):
            session.drain(grace_ms, retry_after_ms)

    def end_all(self) -> None:
        """Ends every stream with UNAVAILABLE."""
        for session in tuple(self.sessions):
            session.end_unavailable("the node is stopping")
