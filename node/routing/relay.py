"""Relaying subscriptions: each goes to the leader of its channel's shard, and goes along when that changes."""

import asyncio

from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.flow import Relay
from ringpost.node.delivery.hub import Hub
from ringpost.node.delivery.session import Session
from ringpost.node.errors import NotLeader
from ringpost.node.routing.peers import Peers
from ringpost.node.routing.relayed import Placer, Relayed
from ringpost.node.routing.relayed_member import RelayedMember
from ringpost.node.routing.router import Here, NotNow, Router, There
from ringpost.node.routing.subscribe_link import LinkOwner, SubscribeLink
from ringpost.v1.subscribe_pb2 import OpenSubscription

TICK_S = 0.05
WINDOW_BYTES_MIN = 64 << 10


class SubscriptionRelay(Relay, Placer, LinkOwner):
    """One a node. `patience_ms`: how long a subscription waits for a leader before it is closed."""

    def __init__(self, router: Router, peers: Peers, hub: Hub, *, patience_ms: int) -> None:
        self._relayed: set[Relayed] = set()
        self._router = router
        self._peers = peers
        self._hub = hub
        self._patience_s = patience_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._links: dict[str, SubscribeLink] = {}
        self._waiting: dict[Relayed, None] = {}
        self._ticking = False

    # -- for sessions -----------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        return any(link.full for link in self._links.values())

    @property
    def upstreams(self) -> int:
        """Number of subscriptions at other nodes."""
        return sum(len(link.upstreams) for link in self._links.values())

    def serves(self, channel: str) -> bool:
        router = self._router
        return router.here(router.shard(channel)) or isinstance(router.route(channel), Here)

    def refusal(self, channel: str) -> NotLeader:
        return self._router.refusal(self._router.shard(channel))

    def make(self, session: Session, command: OpenSubscription, credit: CreditWindow, *, told: bool) -> Relayed:
        kind = RelayedMember if command.pattern else Relayed
        relayed = kind(self, session, command, credit, told=told)
        if not command.pattern:  # which holds no window of its own
            self._relayed.add(relayed)
        return relayed

    @property
    def window(self) -> int:
        limits = self._hub.limits
        return min(limits.queue_bytes, max(limits.queues_bytes // max(len(self._relayed), 1), WINDOW_BYTES_MIN))

    # -- finding the leader -----------------------------------------------------------------------------------------

    def place(self, relayed: Relayed) -> None:
        route = self._router.route(relayed.channel)
        if isinstance(route, Here):
            relayed.serve_here()
            self.gone(relayed)
        elif isinstance(route, NotNow) or not self._link(route.node).open(relayed, route):
            self.wait(relayed)
        else:
            self._waiting.pop(relayed, None)

    def _link(self, node: str) -> SubscribeLink:
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = SubscribeLink(node, self._peers, self)
        return link

    def wait(self, relayed: Relayed) -> None:
        if relayed.waits_since is None:
            relayed.waits_since = self._loop.time()
        self._waiting[relayed] = None
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK_S, self._tick)

    def gone(self, relayed: Relayed) -> None:
        self._waiting.pop(relayed, None)
        self._relayed.discard(relayed)

    def _tick(self) -> None:
        self._ticking = False
        now = self._loop.time()
        for relayed in tuple(self._waiting):
            assert relayed.waits_since is not None, "it waits"
            if now - relayed.waits_since > self._patience_s:
                relayed.give_up(self.refusal(relayed.channel))
            else:
                self.place(relayed)

    # -- news -------------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """There is a newer view, or a leadership has begun here."""
        for link in tuple(self._links.values()):
            for upstream in tuple(link.upstreams.values()):
                route = self._router.route(upstream.channel)
                stays = isinstance(route, There) and (route.node, route.epoch) == (link.node, upstream.epoch)
                if not stays:
                    link.abandon(upstream, self.refusal(upstream.channel))
        for relayed in tuple(self._waiting):
            self.place(relayed)

    def link_has_room(self) -> None:
        self._hub.made_room()

    async def close(self) -> None:
        """Ends the streams to the peers."""
        await asyncio.gather(*(link.close() for link in self._links.values()))
        self._waiting.clear()
