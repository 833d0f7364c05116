"""Where a request about a channel goes. Pure."""

from collections.abc import Callable, Set
from typing import NamedTuple

from ringpost.cluster.keys import shard_of
from ringpost.cluster.names import channel_problem
from ringpost.cluster.view import ShardRecord, View
from ringpost.node.errors import NotLeader

RETRY_AFTER_MS = 50


class Here(NamedTuple):
    """This node serves it: it leads the shard in `epoch`, or the request is wrong whoever answers it (epoch 0)."""

    epoch: int


class There(NamedTuple):
    """Another node leads. `view` is the revision under which that was decided."""

    node: str
    peer_address: str
    epoch: int
    view: int


class NotNow(NamedTuple):
    """Nobody leads now, or this node is to lead and does not yet. `leader` is "" or who should."""

    why: str
    retry_after_ms: int
    leader: str
    epoch: int


Route = Here | There | NotNow


class Router:
    """`view` gives the newest view, `leads` is the local store's word on a shard's number."""

    def __init__(self, view: Callable[[], View], node: str, leads: Callable[[int], bool]) -> None:
        self.node = node
        # Whether surely no other node leads a shard by now; where it is not sure, asking makes it so soon.
        self.sure: Callable[[int], bool] = lambda _: True
        self._view = view
        self._leads = leads

    def route(self, channel: str) -> Route:
        """A name that no channel can have is for this node to refuse."""
        if channel_problem(channel) is not None:
            return Here(0)
        return self.route_shard(self.shard(channel))

    def shard(self, channel: str) -> int:
        """The number of a channel's shard."""
        return shard_of(channel, self._view().shard_count or 1)

    def locate(self, channel: str) -> tuple[int, bool]:
        """The number of a channel's shard, and whether this node leads it: what every batch asks."""
        view = self._view()
        shard = shard_of(channel, view.shard_count or 1)
        if not view.shards:
            return shard, False
        leader = view.shards[shard].leader
        return shard, leader is not None and leader.node == self.node and self._leads(shard)

    def here(self, shard: int) -> bool:
        """Whether `route_shard` gives `Here`, at the least cost."""
        records = self._view().shards
        if not records:
            return False
        leader = records[shard].leader
        return leader is not None and leader.node == self.node and self._leads(shard)

    def leads_in(self, shard: int, epoch: int) -> bool:
        """Whether this node leads the shard, in that epoch."""
        return self.here(shard) and self._view().shards[shard].epoch == epoch

    def route_shard(self, shard: int) -> Route:
        """Where requests for a shard go."""
        view = self._view()
        if not view.shards:
            return NotNow("the cluster's shards are not made yet", RETRY_AFTER_MS, "", 0)
        record = view.shards[shard]
        leader, epoch = record.leader, record.epoch
        if leader is None:
            return NotNow(f"shard {shard} has no leader now", RETRY_AFTER_MS, "", epoch)
        if leader.node == self.node:
            if self._leads(shard):
                return Here(epoch)
            return NotNow(f"this node is about to lead shard {shard}", RETRY_AFTER_MS, leader.node, epoch)
        if not view.leader_alive(record):
            return NotNow(f"node {leader.node}, which leads shard {shard}, is gone", RETRY_AFTER_MS, "", epoch)
        return There(leader.node, view.nodes[leader.node].peer_address, epoch, view.revision)

    def leaders(self) -> tuple[Set[str], NotNow | None]:
        """The nodes that lead shards, this one included, and why a shard has none, if so."""
        view = self._view()
        found: set[str] = set()
        missing: NotNow | None = None if view.shards else NotNow("the cluster's shards are not made yet", 50, "", 0)
        for record in view.shards:
            if record.leader is not None and self._serves(view, record):
                found.add(record.leader.node)
            else:
                route = self.route_shard(record.shard)
                missing = route if isinstance(route, NotNow) else missing
        return found, missing

    def _serves(self, view: View, record: ShardRecord) -> bool:
        assert record.leader is not None
        return self._leads(record.shard) if record.leader.node == self.node else view.leader_alive(record)

    def peer_address(self, node: str) -> str:
        """Where another node answers its peers. Raises KeyError for one that is no member."""
        return self._view().nodes[node].peer_address

    def refusal(self, shard: int) -> NotLeader:
        """What a forwarded request is told that this node does not serve, or a client after a long wait."""
        route = self.route_shard(shard)
        if isinstance(route, NotNow):
            return NotLeader.of(f"{route.why}; nothing was done", shard=shard, leader=route.leader, epoch=route.epoch)
        leader = route.node if isinstance(route, There) else self.node
        message = f"node {leader} leads shard {shard}; nothing was done"
        return NotLeader.of(message, shard=shard, leader=leader, epoch=route.epoch)
