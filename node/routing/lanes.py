"""All publishes of this node that are for other leaders, or wait for one."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ringpost.cluster.names import channel_problem
from ringpost.internal.v1 import envelope_pb2 as envelope
from ringpost.node import status
from ringpost.node.access.caller import ANYONE, Caller
from ringpost.node.errors import NotLeader, RingpostError, Unavailable
from ringpost.node.routing.lane import Answer, Entry, Lane, Reply, Ways
from ringpost.node.routing.peers import Peers
from ringpost.node.routing.publish_link import PublishLink
from ringpost.node.routing.router import Route, Router, There
from ringpost.node.shard.shard import PublishReply, Stored

TICK_S = 0.02
# Of a local failure, these say that this node itself is at its end: nothing to wait for.
_OWN_END = frozenset({"NOT_APPENDED", "DISK_FAILED", "DRAINING"})

Accept = Callable[[envelope.PublishRequest, PublishReply], None]


@dataclass(frozen=True, slots=True)
class ForwardLimits:
    """Milliseconds that a batch may wait for a leader; batches and bytes on their way to one peer, or waiting."""

    patience_ms: int = 10_000
    peer_batches: int = 10_000
    peer_bytes: int = 64 << 20


class Lanes(Ways):
    """One a node. `accept` appends here, raising the definite errors; `made_room` is called when a full way is not."""

    def __init__(
        self, router: Router, peers: Peers, limits: ForwardLimits, *, accept: Accept, made_room: Callable[[], None]
    ) -> None:
        self.router = router
        self.limits = limits
        self.forwarded_batches = 0
        self._peers = peers
        self._accept = accept
        self._made_room = made_room
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[int, Lane] = {}
        self._links: dict[str, PublishLink] = {}
        self._load: dict[str, list[int]] = {}  # by destination: batches and bytes
        self._visits: set[Lane] = set()
        self._ticking = False
        self._held_up = False

    # -- for the services -------------------------------------------------------------------------------------------

    def lane_for(self, channel: str) -> Lane | None:
        """The lane that a batch for the channel must take; None: straight into the shard, here."""
        shard, here = self.router.locate(channel)
        lane = self._lanes.get(shard)
        if lane is not None and not lane.idle:
            return lane
        if here or channel_problem(channel) is not None:
            return None
        return self._lane(shard)

    def _lane(self, shard: int) -> Lane:
        lane = self._lanes.get(shard)
        if lane is None:
            lane = self._lanes[shard] = Lane(shard, self, self.limits.patience_ms / 1000)
        return lane

    def submit(
        self, lane: Lane, payload: bytes, request: envelope.PublishRequest, reply: Reply, caller: Caller = ANYONE
    ) -> None:
        """Sends a batch the lane's way. `payload` is its PublishStreamRequest; `reply` is called once."""
        lane.submit(_entry(payload, request, reply, caller))

    def guarded(self, payload: bytes, reply: Reply, caller: Caller = ANYONE) -> Reply:
        """A reply for a batch that is appended here: when the leadership is lost before it is answered, it goes on."""

        def answer(outcome: Answer) -> None:
            if not isinstance(outcome, Unavailable) or not self._goes_on(payload, outcome, reply, caller):
                reply(outcome)

        return answer

    def _goes_on(self, payload: bytes, error: Unavailable, reply: Reply, caller: Caller) -> bool:
        """Whether a batch that failed here has another chance; then it is on its way."""
        request = envelope.PublishStreamRequest.FromString(payload).publish
        shard, here = self.router.locate(request.channel)
        if error.reason in _OWN_END or here or not (isinstance(error, NotLeader) or request.producer_id):
            return False
        self._lane(shard).submit(_entry(payload, request, reply, caller))
        return True

    def full(self, lane: Lane) -> bool:
        """Whether as much goes the lane's way, or waits with it, as may. True also asks for `made_room`."""
        batches, size = self._load.get(lane.destination, (0, 0))
        full = batches >= self.limits.peer_batches or size >= self.limits.peer_bytes
        self._held_up |= full
        return full

    # -- news -------------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """There is a newer view, or a leadership has begun here."""
        for lane in tuple(self._lanes.values()):
            lane.news()

    async def close(self) -> None:
        """Ends the streams to the peers. What waits is never answered; its streams must have ended."""
        links, self._links = self._links, {}
        await asyncio.gather(*(link.close() for link in links.values()))
        self._visits.clear()

    # -- what lanes may do ------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._loop.time()

    def route(self, shard: int) -> Route:
        return self.router.route_shard(shard)

    def refusal(self, shard: int) -> NotLeader:
        return self.router.refusal(shard)

    def append(self, lane: Lane, entry: Entry) -> None:
        request = envelope.PublishStreamRequest.FromString(entry.payload).publish
        reply: PublishReply = partial(_appended, lane, entry)
        try:
            self._accept(request, reply)
        except Exception as error:
            lane.outcome(entry, status.known(error))

    def forward(self, lane: Lane, entry: Entry, to: There) -> bool:
        link = self._links.get(to.node)
        if link is None:
            link = self._links[to.node] = PublishLink(to.node, self._peers)
        sent = link.send(lane, entry, to)
        self.forwarded_batches += sent
        return sent

    def visit(self, lane: Lane) -> None:
        self._visits.add(lane)
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        visits, self._visits = self._visits, set()
        for lane in visits:
            lane.pump()

    def charge(self, destination: str, count: int, size: int) -> None:
        load = self._load.setdefault(destination, [0, 0])
        load[0] += count
        load[1] += size
        if self._held_up and count < 0:
            self._held_up = False
            self._loop.call_soon(self._made_room)


def _entry(payload: bytes, request: envelope.PublishRequest, reply: Reply, caller: Caller) -> Entry:
    producer = request.producer_id, request.producer_epoch, request.first_sequence
    return Entry(payload, request.channel, *producer, reply, caller, request.traceparent)


def _appended(lane: Lane, entry: Entry, outcome: Stored | RingpostError) -> None:
    lane.outcome(entry, outcome)
