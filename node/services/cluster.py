"""ClusterService."""

from collections.abc import Callable
from typing import Any

import grpc

from ringpost.cluster.coordination import Coordination
from ringpost.cluster.names import channel_problem
from ringpost.cluster.view import ShardRecord
from ringpost.node.errors import InvalidRequest
from ringpost.node.status import translated
from ringpost.v1 import cluster_pb2 as api
from ringpost.v1.cluster_pb2_grpc import ClusterServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

CHANNELS_MAX = 1_000


class Cluster(ClusterServiceServicer):
    """The view, and what the server says of itself."""

    def __init__(self, coordination: Coordination, node_info: Callable[[], api.NodeInfo]) -> None:
        self._coordination = coordination
        self._node_info = node_info

    @translated
    async def GetRoutes(self, request: api.GetRoutesRequest, context: Context) -> api.GetRoutesResponse:
        view = self._coordination.view
        if len(request.channels) > CHANNELS_MAX:
            raise InvalidRequest.of("channels", f"has {len(request.channels)} names, allowed are up to {CHANNELS_MAX}")
        records: dict[int, ShardRecord] = {}
        for i, name in enumerate(request.channels):
            if (problem := channel_problem(name)) is not None:
                raise InvalidRequest.of(f"channels[{i}]", problem)
            record = view.of_channel(name)
            records[record.shard] = record
        chosen = [records[number] for number in sorted(records)] if request.channels else view.shards
        return api.GetRoutesResponse(
            cluster_id=view.cluster_id,
            view=view.revision,
            shard_count=view.shard_count,
            shards=[_route(record) for record in chosen],
            nodes=[api.NodeAddress(node=ref.node, address=ref.address) for ref in view.nodes.values()],
        )

    @translated
    async def GetNode(self, request: api.GetNodeRequest, context: Context) -> api.GetNodeResponse:
        return api.GetNodeResponse(node=self._node_info())


def _route(record: ShardRecord) -> api.ShardRoute:
    return api.ShardRoute(
        shard=record.shard,
        owner=record.leader.node if record.leader is not None else "",
        epoch=record.epoch,
        in_sync=record.in_sync_nodes,
    )
