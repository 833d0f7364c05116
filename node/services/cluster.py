"""ClusterService."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ringpost.cluster.controller.recovery import LossRefused
from ringpost.cluster.coordination import Coordination, CoordinationError
from ringpost.cluster.names import channel_problem
from ringpost.cluster.view import ShardRecord, View
from ringpost.node.access.grants import Verb
from ringpost.node.access.guard import current, passed_on
from ringpost.node.errors import InvalidRequest, NotFound, Precondition, Unavailable
from ringpost.node.services.members import DESIRED, cluster_state, member, members
from ringpost.node.status import DETAILS_KEY, translated
from ringpost.node.tls import Dialer
from ringpost.v1 import cluster_pb2 as api
from ringpost.v1.cluster_pb2_grpc import ClusterServiceServicer, ClusterServiceStub

Context = grpc.aio.ServicerContext[Any, Any]

CHANNELS_MAX = 1_000
_ASK_S = 5.0

AcceptLoss = Callable[[int, str], Awaitable[None]]


class Cluster(ClusterServiceServicer):
    """The view, and what the server says of itself."""

    def __init__(
        self,
        coordination: Coordination,
        node_info: Callable[[], api.NodeInfo],
        *,
        node: str,
        dialer: Dialer | None = None,
        accept_loss: AcceptLoss | None = None,
    ) -> None:
        """`accept_loss` None: there is one node only."""
        self._coordination = coordination
        self._node_info = node_info
        self._node = node
        self._dialer = dialer or Dialer()
        self._accept_loss = accept_loss

    @translated
    async def GetRoutes(self, request: api.GetRoutesRequest, context: Context) -> api.GetRoutesResponse:
        view = self._coordination.view
        if len(request.channels) > CHANNELS_MAX:
            raise InvalidRequest.of("channels", f"has {len(request.channels)} names, allowed are up to {CHANNELS_MAX}")
        records: dict[int, ShardRecord] = {}
        for i, name in enumerate(request.channels):
            if (problem := channel_problem(name)) is not None:
                raise InvalidRequest.of(f"channels[{i}]", problem)
            if not view.shards:
                raise Unavailable("the cluster's shards are not made yet", reason="NO_SHARDS", retry_after_ms=200)
            record = view.of_channel(name)
            records[record.shard] = record
        chosen = [records[number] for number in sorted(records)] if request.channels else view.shards
        return api.GetRoutesResponse(
            cluster_id=view.cluster_id,
            view=view.revision,
            shard_count=view.shard_count,
            shards=[_route(record) for record in chosen],
            nodes=[
                api.NodeAddress(node=ref.node, address=ref.address, zone=ref.zone, alive=ref.alive)
                for ref in view.nodes.values()
            ],
        )

    @translated
    async def GetNode(self, request: api.GetNodeRequest, context: Context) -> api.GetNodeResponse:
        views = current().may(Verb.VIEW)
        if request.node in ("", self._node):
            found = self._node_info()
            return api.GetNodeResponse(node=found if views else _for_clients(found))
        if not views:
            raise current().denial(Verb.VIEW)
        ref = self._coordination.view.nodes.get(request.node)
        if ref is None:
            raise _unknown(request.node)
        if not ref.alive:
            raise Unavailable(f"node {request.node!r} is not alive", reason="NODE_UNREACHABLE")
        async with self._dialer.dial(ref.node, ref.peer_address or ref.address, ()) as channel:
            ask = ClusterServiceStub(channel).GetNode
            try:
                answer: api.GetNodeResponse = await ask(api.GetNodeRequest(), timeout=_ASK_S, metadata=passed_on())
            except grpc.aio.AioRpcError as error:
                if said := dict(error.trailing_metadata() or ()).get(DETAILS_KEY):
                    await context.abort(error.code(), error.details() or "", ((DETAILS_KEY, said),))
                message = f"node {request.node!r} does not answer at {ref.peer_address or ref.address}"
                raise Unavailable(message, reason="NODE_UNREACHABLE", retry_after_ms=500) from error
        return answer

    @translated
    async def ListNodes(self, request: api.ListNodesRequest, context: Context) -> api.ListNodesResponse:
        return api.ListNodesResponse(members=members(self._coordination.view))

    @translated
    async def SetNode(self, request: api.SetNodeRequest, context: Context) -> api.SetNodeResponse:
        desired = DESIRED.get(request.desired)
        if desired is None:
            raise InvalidRequest.of("desired", f"is {request.desired}, allowed are ACTIVE (1), DRAIN (2), REST (3)")
        self._check_several()
        await self._changed(self._coordination.set_desired(request.node, desired), request.node)
        found = member((await self._refreshed()), request.node)
        if found is None:
            raise _unknown(request.node)
        return api.SetNodeResponse(member=found)

    @translated
    async def RemoveNode(self, request: api.RemoveNodeRequest, context: Context) -> api.RemoveNodeResponse:
        self._check_several()
        try:
            await self._changed(self._coordination.remove_node(request.node), request.node)
        except ValueError as error:
            raise Precondition(f"node: {error}; drain it, stop it, then remove it", reason="NODE_IN_USE") from error
        return api.RemoveNodeResponse()

    @translated
    async def GetCluster(self, request: api.GetClusterRequest, context: Context) -> api.GetClusterResponse:
        return cluster_state(self._coordination.view, self._coordination.name)

    @translated
    async def AcceptLoss(self, request: api.AcceptLossRequest, context: Context) -> api.AcceptLossResponse:
        self._check_several()
        assert self._accept_loss is not None
        count = self._coordination.view.shard_count
        if request.shard >= count:
            raise InvalidRequest.of("shard", f"is {request.shard}, allowed are 0 to {count - 1}")
        try:
            await self._accept_loss(request.shard, request.node)
        except LossRefused as error:
            raise Precondition(str(error), reason=error.reason) from error
        except CoordinationError as error:
            raise _no_store(error) from error
        return api.AcceptLossResponse()

    def _check_several(self) -> None:
        if self._accept_loss is None:
            raise Precondition("this cluster has one node; there is nobody to hand over to", reason="SINGLE_NODE")

    async def _changed(self, change: Awaitable[None], node: str) -> None:
        try:
            await change
        except KeyError as error:
            raise _unknown(node) from error
        except CoordinationError as error:
            raise _no_store(error) from error

    async def _refreshed(self) -> View:
        try:
            return await self._coordination.refresh()
        except CoordinationError as error:
            raise _no_store(error) from error


def _for_clients(info: api.NodeInfo) -> api.NodeInfo:
    """What every client needs to know of a node."""
    return api.NodeInfo(
        node=info.node,
        cluster_id=info.cluster_id,
        version=info.version,
        state=info.state,
        address=info.address,
        durability=info.durability,
        limits=info.limits,
    )


def _unknown(node: str) -> NotFound:
    return NotFound(f"node: there is no member {node!r}", reason="NODE_NOT_FOUND", metadata={"node": node})


def _no_store(error: CoordinationError) -> Unavailable:
    return Unavailable(f"the coordination store cannot be used: {error}", reason="NO_STORE", retry_after_ms=1_000)


def _route(record: ShardRecord) -> api.ShardRoute:
    return api.ShardRoute(
        shard=record.shard,
        owner=record.leader.node if record.leader is not None else "",
        epoch=record.epoch,
        in_sync=record.in_sync_nodes,
        replicas=[replica.node for replica in record.replicas],
    )
