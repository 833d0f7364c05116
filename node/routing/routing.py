"""What a node knows and does about the others: the parts, put together."""

from collections.abc import Callable, Mapping

from ringpost.cluster.view import View
from ringpost.node.delivery.hub import Hub
from ringpost.node.routing.calls import Calls, Merge, PeerCalls
from ringpost.node.routing.feeds import ChannelFeeds
from ringpost.node.routing.lanes import Accept, ForwardLimits, Lanes
from ringpost.node.routing.peers import Peers
from ringpost.node.routing.relay import SubscriptionRelay
from ringpost.node.routing.router import Router
from ringpost.node.shard.store import Store
from ringpost.node.tls import Dialer


class Routing:
    """One a node that has others beside it. `send_bytes_max` bounds one message to a peer."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        *,
        node: str,
        view: Callable[[], View],
        accept: Accept,
        made_room: Callable[[], None],
        merges: Mapping[str, Merge],
        limits: ForwardLimits,
        send_bytes_max: int,
        dialer: Dialer | None = None,
    ) -> None:
        self.router = Router(view, node, store.leads)
        self.peers = Peers(send_bytes_max=send_bytes_max, dialer=dialer)
        self.lanes = Lanes(self.router, self.peers, limits, accept=accept, made_room=made_room)
        self.relay = SubscriptionRelay(self.router, self.peers, hub, patience_ms=limits.patience_ms)
        self.feeds = hub.catalog.feeds = ChannelFeeds(node, view, self.peers, hub.catalog)
        self.calls = Calls(self.router, self.peers, merges, patience_ms=limits.patience_ms)
        self.peer_calls = PeerCalls(self.router)
        self._store = store
        self._hub = hub
        hub.relay = self.relay

    def view_changed(self, view: View) -> None:
        """Takes a newer view up: leaderships here, then everything that goes to a leader."""
        self._store.lead(view, self.router.node)
        self._hub.changed()
        self.leaders_changed()
        self.feeds.look()

    def leaders_changed(self) -> None:
        """This node serves, or no longer serves, a shard, in this or an earlier view."""
        for watch in tuple(self._store.name_watches):
            watch.look()
        self.relay.changed()
        self.lanes.changed()
        self.calls.changed()

    async def close(self) -> None:
        """Ends the connections to the other nodes."""
        await self.lanes.close()
        await self.relay.close()
        await self.feeds.close()
        await self.peers.close()
