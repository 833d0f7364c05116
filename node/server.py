"""The node: the one place that wires the parts. Start, serve, drain, stop."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ringpost.cluster.coordination import Coordination
from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.view import NodeRef
from ringpost.node import log
from ringpost.node.about import DURABILITY, About
from ringpost.node.config import Config
from ringpost.node.delivery.hub import DeliveryLimits, Hub
from ringpost.node.health import Health, HealthService
from ringpost.node.http import HttpServer, Pages
from ringpost.node.journal.files import Files, RealFiles
from ringpost.node.maintenance import Maintenance
from ringpost.node.metrics import Stats
from ringpost.node.options import is_loopback, split_address
from ringpost.node.services import publisher, subscriber, unary
from ringpost.node.services.channels import Channels
from ringpost.node.services.cluster import Cluster
from ringpost.node.services.groups import Groups
from ringpost.node.services.messages import Messages
from ringpost.node.services.publisher import Publisher, PublishLimits
from ringpost.node.services.stream import StreamGate
from ringpost.node.services.subscriber import Subscriber
from ringpost.node.storage import Opener, Storage
from ringpost.node.watch import LagGauge, watch_loop
from ringpost.v1 import channel_pb2, cluster_pb2, group_pb2, message_pb2
from ringpost.v1.cluster_pb2 import NodeState

_ENVELOPE_BYTES = 64 << 10  # what a request may have beside its batch
_STREAM_WINDOW_BYTES = 1 << 20  # what gRPC takes in of a stream before the node reads it
_BEAT_INTERVAL_S = 0.5
_COME_BACK_MS = 500


class StartError(Exception):
    """The node cannot start; the message is for the operator."""


class Server:
    """One node. `start`, then `stopped` tells when it must end, then `stop`."""

    def __init__(self, config: Config, files: Files | None = None) -> None:
        self.config = config
        self.health = Health()
        self.failed: Exception | None = None
        self.stopped = asyncio.Event()
        self._files: Files = files or RealFiles()
        self._lag = LagGauge()
        self._tasks: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self.port = self.http_port = 0

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves when it returns. Raises StartError, one of storage.UNREADABLE, or OSError."""
        config = self.config
        host, port = split_address(config.listen)
        # 1. The directory: another node in it is the likeliest reason why a port is taken, too.
        opener = Opener(config, self._files, durable=self._durable, failed=self._failed, damaged=self._damaged)
        opener.hold()
        # 2. Health, so that a long recovery can be watched.
        try:
            await self._start_http()
        except BaseException:
            opener.release()
            raise
        # 3. The data: recovered before anybody may ask.
        try:
            self.storage = await opener.open()
        except BaseException:
            await self._stop_http()
            raise
        try:
            # 4. Who owns what.
            self.coordination = self._coordination(self.storage)
            self._build()
            # 5. The port.
            self.port = self._bind(host, port)
            address = config.advertised(self.port)
            view = await self.coordination.start(NodeRef(config.node, address))
            self.storage.store.lead(view, config.node)
            self.about.address = address
            if self.storage.losses:
                # From here on recovery never meets the damage again, whichever of the two it begins with.
                await self.maintenance.checkpoint()
                await self.maintenance.checkpoint()
            await self.maintenance.watch_disk()
            await self._grpc.start()
        except BaseException:
            await asyncio.to_thread(self.storage.close)
            await self._stop_http()
            raise
        # 6. Everything is there.
        self._go()

    def _coordination(self, storage: Storage) -> Coordination:
        identity = storage.identity
        return EmbeddedCoordination(
            cluster_id=identity.cluster_id,
            replica_id=identity.replica_id,
            shard_count=identity.shard_count,
            boot=identity.boot,
        )

    def _build(self) -> None:
        config, store, reading = self.config, self.storage.store, self.storage.reading
        gate = StreamGate(config.streams_max)
        publish_limits = PublishLimits(
            config.stream_unanswered_batches, config.stream_unanswered_bytes, config.node_unanswered_bytes
        )
        self.publisher = Publisher(store, publish_limits, gate, node=config.node)
        delivery_limits = DeliveryLimits(
            queue_bytes=config.subscriber_queue_bytes,
            delivery_bytes=config.delivery_bytes_max,
            heartbeat_ms=config.heartbeat_interval_ms,
        )
        self.hub = Hub(store, reading, delivery_limits, node=config.node)
        self.maintenance = Maintenance(self.storage, config, self.health)
        self.about = About(config, self.storage, self.publisher, self.hub, self.maintenance, self._lag, config.listen)
        self._grpc = grpc.aio.server(options=server_options(config))
        self._grpc.add_generic_rpc_handlers((self.publisher.handlers(), Subscriber(self.hub, gate).handlers()))
        for file, servicer in (
            (channel_pb2, Channels(store, node=config.node)),
            (group_pb2, Groups(store, reading)),
            (message_pb2, Messages(store, reading)),
            (cluster_pb2, Cluster(self.coordination, self.about.node_info)),
        ):
            (service,) = file.DESCRIPTOR.services_by_name.values()
            self._grpc.add_generic_rpc_handlers((unary.handlers(service, servicer),))
        self._health_service = HealthService(self.health)
        health_pb2_grpc.add_HealthServicer_to_server(self._health_service, self._grpc)
        channelz.add_channelz_servicer(self._grpc)
        reflection.enable_server_reflection(service_names(), self._grpc)

    def _bind(self, host: str, port: int) -> int:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not (self.config.insecure or is_loopback(self.config.listen)):
            raise StartError(
                f"listen: {self.config.listen} would serve other machines in plain text; "
                "say --insecure if that is meant, or listen on 127.0.0.1"
            )
        try:
            bound = self._grpc.add_insecure_port(target)
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartError(f"listen: cannot bind {target}; is another program using the port?")
        return bound

    async def _start_http(self) -> None:
        if not self.config.http_listen:
            return
        host, port = split_address(self.config.http_listen)
        pages = Pages(asyncio.get_running_loop(), self._stats, self.health)
        self._http = HttpServer(pages, host, port)
        try:
            self.http_port = self._http.start()
        except OSError as error:
            self._http = None
            raise StartError(f"http_listen: cannot bind {self.config.http_listen}: {error.strerror}") from error

    def _go(self) -> None:
        store = self.storage.store
        quarantined = [shard.number for shard in store.shards if shard.quarantined]
        self.health.set_part("recovery", True)
        self.health.set_part("journal", True)
        missing = self.storage.missing_segments
        self.health.set_part("frames", not missing, f"the journal's segments {missing} are missing")
        self.health.set_part("shards", not quarantined, f"shards {quarantined} are damaged")
        self.health.set_part("coordination", True)
        self._spawn(watch_loop(self.health, self._lag, asyncio.get_running_loop().time))
        self._spawn(self._beat())
        self.maintenance.start()
        self.about.state = NodeState.NODE_STATE_SERVING
        # What recovery built lives as long as the node: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        log.info("node.serving", listen=self.about.address, boot=self.storage.identity.boot, durability=DURABILITY)

    def _stats(self) -> Stats:
        return self.about.stats()  # which is made later than the pages

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_INTERVAL_S)
            self.hub.beat()

    # -- what the journal reports -----------------------------------------------------------------------------------

    def _durable(self) -> None:
        self.publisher.made_room()

    def _failed(self, error: Exception) -> None:
        log.error("journal.failed", exception=error)
        self.health.set_part("journal", False, "the journal cannot be written; the node is stopping")
        self.failed = error
        self.stopped.set()

    def _damaged(self, what: str) -> None:
        self.health.set_part("frames", False, what)

    # -- stop -------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Drains and stops; what was acknowledged stays. After a failure of the journal it does not wait."""
        grace_ms = 0 if self.failed else self.config.drain_grace_ms
        self.about.state = NodeState.NODE_STATE_DRAINING
        # 1. Nobody is sent here any more.
        self.health.drain()
        # 2. Streams are told; they work on for the grace, or until all of them have left.
        self.publisher.drain(grace_ms, _COME_BACK_MS)
        self.hub.drain(grace_ms, _COME_BACK_MS)
        await self._until_left(grace_ms / 1000)
        # 3. What is left ends with UNAVAILABLE; nothing is accepted any more.
        self.publisher.end_all()
        self.hub.end_all()
        self._health_service.close()
        await self._grpc.stop(self.config.stop_grace_ms / 1000 if not self.failed else 0.2)
        # 4. The last checkpoint makes the next start quick; then the journal is sealed and closed.
        await self.maintenance.stop()
        # Where nothing was ever written there is nothing to go on from, and recovery would miss what it names.
        if not self.failed and any(shard.position for shard in self.storage.store.shards):
            try:
                await self.maintenance.checkpoint()
            except Exception as error:
                log.error("checkpoint.failed", exception=error)
        await self.coordination.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.storage.close)
        await self._stop_http()
        log.info("node.stopped")

    async def _until_left(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (self.publisher.sessions or self.hub.sessions) and loop.time() < end:
            await asyncio.sleep(0.02)

    async def _stop_http(self) -> None:
        if self._http is not None:
            await self._http.stop()


def server_options(config: Config) -> list[tuple[str, int]]:
    """gRPC's settings: two nodes never share a port, memory a peer can take is bounded, dead peers are noticed."""
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", config.max_batch_bytes + _ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", config.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", config.metadata_bytes_max * 2),
        ("grpc.max_concurrent_streams", config.connection_streams_max),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Left to itself, gRPC widens a stream's window with its estimate of bandwidth times delay, which on a busy
        # machine is many MiB a stream: memory that a client takes by not reading its answers.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _STREAM_WINDOW_BYTES),
    ]
    if config.connection_age_max_s:
        options += [
            ("grpc.max_connection_age_ms", config.connection_age_max_s * 1000),
            ("grpc.max_connection_age_grace_ms", config.connection_age_grace_s * 1000),
        ]
    return options


def service_names() -> tuple[str, ...]:
    """What reflection lists."""
    return (
        publisher.SERVICE,
        subscriber.SERVICE,
        channel_pb2.DESCRIPTOR.services_by_name["ChannelService"].full_name,
        group_pb2.DESCRIPTOR.services_by_name["GroupService"].full_name,
        message_pb2.DESCRIPTOR.services_by_name["MessageService"].full_name,
        cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        "grpc.channelz.v1.Channelz",
        reflection.SERVICE_NAME,
    )
