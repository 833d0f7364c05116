"""What a node's gRPC servers are set to, and which services they list."""

import resource
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from ringpost.node.config import Config
from ringpost.node.services import publisher, subscriber
from ringpost.v1 import channel_pb2, cluster_pb2, dead_letter_pb2, group_pb2, message_pb2

_ENVELOPE_BYTES = 64 << 10  # what a request may have beside its batch
_HANDSHAKE_MS = 10_000  # then a connection that says nothing is closed
_DESCRIPTORS_KEPT = 1_000
_STREAM_WINDOW_BYTES = 1 << 20  # what gRPC takes in of a stream before the node reads it


def connections_allowed() -> int:
    """How many connections leave enough descriptors for the journal and for other nodes."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1_000_000 if soft == resource.RLIM_INFINITY else soft
    return max(most - _DESCRIPTORS_KEPT, most // 2)


def server_options(config: Config) -> list[tuple[str, int]]:
    """gRPC's settings: two nodes never share a port, memory a peer can take is bounded, dead peers are noticed."""
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.max_batch_bytes + _ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", config.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", config.metadata_bytes_max * 2),
        ("grpc.max_concurrent_streams", config.connection_streams_max),
        ("grpc.max_allowed_incoming_connections", config.connections_max or connections_allowed()),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Left to itself, gRPC widens a stream's window with its estimate of bandwidth times delay, which on a busy
        # machine is many MiB a stream: memory that a client takes by not reading its answers.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _STREAM_WINDOW_BYTES),
    ]
    if config.connection_idle_max_s:
        options.append(("grpc.max_connection_idle_ms", config.connection_idle_max_s * 1000))
    if config.connection_age_max_s:
        options += [
            ("grpc.max_connection_age_ms", config.connection_age_max_s * 1000),
            ("grpc.max_connection_age_grace_ms", config.connection_age_grace_s * 1000),
        ]
    return options


def shared_server_options(config: Config) -> list[tuple[str, int]]:
    """The same for an address that several processes listen on: the kernel gives each connection to one of them."""
    return [(name, 1 if name == "grpc.so_reuseport" else value) for name, value in server_options(config)]


def peer_server_options(config: Config) -> list[tuple[str, int]]:
    """The same for other nodes: one of them carries the calls of all its clients, and pings often."""
    own = {
        "grpc.max_receive_message_length": config.max_batch_bytes + 2 * _ENVELOPE_BYTES,
        "grpc.max_allowed_incoming_connections": _DESCRIPTORS_KEPT // 2,
        "grpc.max_concurrent_streams": 1_000_000,
        "grpc.http2.min_ping_interval_without_data_ms": 1_000,
    }
    aged = ("grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms", "grpc.max_connection_idle_ms")
    return [(name, own.get(name, value)) for name, value in server_options(config) if name not in aged]


def service_of(file: Any) -> ServiceDescriptor:
    (service,) = file.DESCRIPTOR.services_by_name.values()
    assert isinstance(service, ServiceDescriptor)
    return service


def service_names() -> tuple[str, ...]:
    """What reflection lists."""
    return (
        publisher.SERVICE,
        subscriber.SERVICE,
        channel_pb2.DESCRIPTOR.services_by_name["ChannelService"].full_name,
        group_pb2.DESCRIPTOR.services_by_name["GroupService"].full_name,
        dead_letter_pb2.DESCRIPTOR.services_by_name["DeadLetterService"].full_name,
        message_pb2.DESCRIPTOR.services_by_name["MessageService"].full_name,
        cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        "grpc.channelz.v1.Channelz",
        reflection.SERVICE_NAME,
    )
