"""Several fake brokers that share what they store, as if replication were perfect and immediate."""

import grpc

from ringpost.client.routes import shard_of
from ringpost.v1 import cluster_pb2, common_pb2
from tests.client.fake_broker import FakeBroker, FakeChannel, failure

SHARDS = 16
_SHARE = {cluster_pb2.DESIRED_DRAIN: 0, cluster_pb2.DESIRED_REST: 0}


class FakeRing:
    """`nodes[i]` is "n<i+1>". Shard s belongs to node s % count until `move` says otherwise."""

    def __init__(self, count: int = 3) -> None:
        self.channels: dict[str, FakeChannel] = {}
        self.nodes = [FakeBroker(f"n{i + 1}", self) for i in range(count)]
        self.owners = {shard: (self.nodes[shard % count].node, 1) for shard in range(SHARDS)}
        # False: who is not the owner answers NOT_LEADER.
        self.forwarding = True
        # What GetRoutes says of nodes' addresses, where it is not the truth.
        self.advertised: dict[str, str] = {}
        self.dead: set[str] = set()
        self.desired: dict[str, int] = {}
        self.offline: set[int] = set()
        self.moves: list[cluster_pb2.ShardMove] = []
        # Nodes that are cut off from the others: what they say of routes is what it was then.
        self._cut_off: dict[str, cluster_pb2.GetRoutesResponse] = {}
        self.route_calls = 0
        self.status_calls = 0
        self._view = 1

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        for node in self.nodes:
            node.thawed.set()
            node.answering.set()
            await node.stop()

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def node(self, name: str) -> FakeBroker:
        return next(node for node in self.nodes if node.node == name)

    def owner(self, channel: str) -> tuple[str, int]:
        return self.owners[shard_of(channel, SHARDS)]

    def owner_node(self, channel: str) -> FakeBroker:
        return self.node(self.owner(channel)[0])

    def others(self, channel: str) -> list[FakeBroker]:
        return [node for node in self.nodes if node.node != self.owner(channel)[0]]

    def owned_by(self, node: str) -> str:
        """A channel that the node owns."""
        return next(name for name in (f"c{n}" for n in range(1_000)) if self.owner(name)[0] == node)

    def move(self, channel: str, to: FakeBroker) -> None:
        """Another node is the owner from now on."""
        shard = shard_of(channel, SHARDS)
        self.owners[shard] = (to.node, self.owners[shard][1] + 1)
        self._view += 1

    def cut_off(self, broker: FakeBroker) -> None:
        """Clients reach it; it hears nothing new of the cluster, and nothing that it is sent gets an answer."""
        self._cut_off[broker.node] = self.routes()
        broker.answering.clear()

    async def kill(self, broker: FakeBroker) -> None:
        """Ends a node; the first of the others takes over what it owned, in the same moment."""
        self.dead.add(broker.node)
        heir = next(node for node in self.nodes if node.node not in self.dead)
        for shard, (owner, epoch) in self.owners.items():
            if owner == broker.node:
                self.owners[shard] = (heir.node, epoch + 1)
        self._view += 1
        await broker.stop()

    def refusal(self, broker: FakeBroker, channel: str) -> common_pb2.Failure | None:
        owner, epoch = self.owner(channel)
        if self.forwarding or owner == broker.node:
            return None
        refused = failure(grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
        refused.metadata.update({"leader": owner, "epoch": str(epoch)})
        return refused

    # -- what ClusterService says ---------------------------------------------------------------------------------

    def routes_of(self, broker: FakeBroker, *channels: str) -> cluster_pb2.GetRoutesResponse:
        return self._cut_off.get(broker.node) or self.routes(*channels)

    def routes(self, *channels: str) -> cluster_pb2.GetRoutesResponse:
        self.route_calls += 1
        answer = cluster_pb2.GetRoutesResponse(cluster_id="fake", view=self._view, shard_count=SHARDS)
        asked = {shard_of(channel, SHARDS) for channel in channels} or set(self.owners)
        everyone = [node.node for node in self.nodes]
        for shard, (owner, epoch) in self.owners.items():
            if shard in asked:
                answer.shards.add(shard=shard, owner=owner, epoch=epoch, in_sync=everyone[:2], replicas=everyone)
        for node in self.nodes:
            address = self.advertised.get(node.node, node.address)
            answer.nodes.add(node=node.node, address=address, zone="z", alive=node.node not in self.dead)
        return answer

    def members(self) -> list[cluster_pb2.Member]:
        return [
            cluster_pb2.Member(
                node=node.node,
                address=node.address,
                zone="z",
                alive=node.node not in self.dead,
                session=7,
                desired=self.desired.get(node.node, cluster_pb2.DESIRED_ACTIVE),
                leader_count=_SHARE.get(self.desired.get(node.node, 0), SHARDS // 3),
                replica_count=0 if self.desired.get(node.node) == cluster_pb2.DESIRED_DRAIN else SHARDS,
                in_sync_count=SHARDS,
                controller=node is self.nodes[0],
            )
            for node in self.nodes
        ]

    def set_desired(self, node: str, desired: int) -> None:
        self.desired[node] = desired

    def cluster(self) -> cluster_pb2.GetClusterResponse:
        self.status_calls += 1
        return cluster_pb2.GetClusterResponse(
            cluster_id="ab" * 16,
            view=self._view,
            shard_count=SHARDS,
            replication_factor=3,
            min_isr=2,
            controller="n1",
            offline_shards=sorted(self.offline),
            under_replicated_shards=sorted(self.offline),
            moves=self.moves,
            coordination="fake",
        )
