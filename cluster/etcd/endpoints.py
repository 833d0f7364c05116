"""The members of an etcd cluster as addresses: one channel each, and which of them to ask next."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from ringpost.internal.etcd import rpc_pb2_grpc

_POLL_S = 0.01
_CHANNEL_OPTIONS = (
    # Clients in one process do not share connections: a test that cuts one cuts one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A lost member is looked for again quickly; a call does not wait for it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A call is tried again by us alone, who know what may be sent twice.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """Where etcd is and who we are. `endpoints` are `host:port`; `ca`, `cert` and `key` are PEM, empty: not used.

    With any of them, connections use TLS (`ca` empty: the system's authorities). `user` empty: no authentication.
    """

    endpoints: tuple[str, ...]
    user: str = ""
    password: str = ""
    ca: bytes = b""
    cert: bytes = b""
    key: bytes = b""
    call_timeout_s: float = 2.0
    connect_timeout_s: float = 1.0
    keep_alive_timeout_s: float = 0.5
    progress_interval_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ValueError("etcd needs at least one endpoint")
        if bool(self.cert) != bool(self.key):
            raise ValueError("a client certificate and its key belong together")

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return bool(self.ca or self.cert)


class Endpoint:
    """One member."""

    def __init__(self, address: str, options: EtcdOptions) -> None:
        self.address = address
        if options.tls:
            credentials = grpc.ssl_channel_credentials(options.ca or None, options.key or None, options.cert or None)
            self.channel = grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.lease = rpc_pb2_grpc.LeaseStub(self.channel)
        self.watch = rpc_pb2_grpc.WatchStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)
        self.auth = rpc_pb2_grpc.AuthStub(self.channel)

    async def ready(self, timeout_s: float) -> bool:
        """Whether it is connected, or gets so in time. False at once while the last attempt has failed.

        Asked before every call: what fails without a connection was surely not sent.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while True:
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return True
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                return False
            if clock() >= end:
                return False
            await asyncio.sleep(_POLL_S)


class Endpoints:
    """All members, the preferred one first. Whoever fails is asked last from then on."""

    def __init__(self, options: EtcdOptions) -> None:
        self._order = [Endpoint(address, options) for address in options.endpoints]

    def in_order(self) -> Sequence[Endpoint]:
        """All of them, the best first."""
        return tuple(self._order)

    def failed(self, endpoint: Endpoint) -> None:
        """It did not answer: the others come first."""
        self._order.sort(key=lambda known: known is endpoint)

    async def close(self) -> None:
        """Closes all connections; calls under way end."""
        for endpoint in self._order:
            await endpoint.channel.close()
