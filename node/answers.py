"""What the node's ports answer: which services, behind which guard, passed on or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import grpc
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection

from ringpost.node.access.access import Access
from ringpost.node.access.guard import Guard
from ringpost.node.access.inspection import InspectionGuard
from ringpost.node.config import Config
from ringpost.node.grpc_options import (
    peer_server_options,
    server_options,
    service_names,
    service_of,
    shared_server_options,
)
from ringpost.node.member import Member
from ringpost.node.routing.calls import Passing
from ringpost.node.routing.routing import Routing
from ringpost.node.services import unary
from ringpost.node.services.channel_feed import ChannelFeed
from ringpost.node.services.channels import Channels
from ringpost.node.services.cluster import Cluster
from ringpost.node.services.dead_letters import DeadLetters
from ringpost.node.services.groups import Groups
from ringpost.node.services.health import HealthService
from ringpost.node.services.messages import Messages
from ringpost.node.services.publisher import Publisher
from ringpost.node.services.subscriber import Subscriber
from ringpost.node.storage import Storage
from ringpost.v1 import channel_pb2, cluster_pb2, dead_letter_pb2, group_pb2, message_pb2

Servicers = Sequence[tuple[ModuleType, object]]


def servicers_of(config: Config, storage: Storage) -> Servicers:
    """What answers about the data, each with the file that describes it."""
    store, reading = storage.store, storage.reading
    return (
        (channel_pb2, Channels(store, node=config.node)),
        (group_pb2, Groups(store, reading)),
        (dead_letter_pb2, DeadLetters(store, reading)),
        (message_pb2, Messages(store, reading)),
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """The parts that answer, and the servers made of them. `routing` and `member` are absent on a node alone."""

    config: Config
    servicers: Servicers
    access: Access
    publisher: Publisher
    subscriber: Subscriber
    cluster: Cluster
    health: HealthService
    routing: Routing | None
    member: Member | None

    def for_clients(self) -> grpc.aio.Server:
        return self._client_server(server_options(self.config))

    def for_shared_clients(self) -> grpc.aio.Server | None:
        """Of the address that several processes share; None where there is none."""
        if not self.config.shared_listen:
            return None
        return self._client_server(shared_server_options(self.config))

    def for_peers(self) -> grpc.aio.Server | None:
        """Of other nodes, where nothing is passed on; None where there are none."""
        if self.routing is None:
            return None
        own = [self.member.handlers()] if self.member is not None else []
        feed = ChannelFeed(self.publisher.store).handlers()
        streams = (self.publisher.peer_handlers(), self.subscriber.peer_handlers(), feed)
        passed_on = self._unary(Guard(self.access, first=False), self.routing.peer_calls)
        server = grpc.aio.server(options=peer_server_options(self.config))
        server.add_generic_rpc_handlers((*streams, *passed_on, *own))
        return server

    def _client_server(self, settings: Sequence[tuple[str, int]]) -> grpc.aio.Server:
        inspection = [InspectionGuard(self.access)] if self.access.on else []
        calls = self.routing.calls if self.routing is not None else None
        streams = (self.publisher.handlers(), self.subscriber.handlers())
        server = grpc.aio.server(interceptors=inspection, options=settings)
        server.add_generic_rpc_handlers((*streams, *self._unary(Guard(self.access, first=True), calls)))
        server.add_generic_rpc_handlers((self.health.handlers(),))
        channelz.add_channelz_servicer(server)
        reflection.enable_server_reflection(service_names(), server)
        return server

    def _unary(self, guard: Guard, passing: Passing | None) -> list[grpc.GenericRpcHandler]:
        found = [unary.handlers(service_of(file), one, guard, passing) for file, one in self.servicers]
        return [unary.handlers(service_of(cluster_pb2), self.cluster, guard), *found]
