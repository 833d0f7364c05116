"""The node: the one place that wires the parts. Start, serve, drain, stop."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ringpost.cluster.coordination import Coordination, CoordinationError
from ringpost.cluster.kv import Kv
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.view import Desired, NodeRef, View
from ringpost.node import log
from ringpost.node.about import About, package_version
from ringpost.node.cluster_stats import cluster_stats
from ringpost.node.config import Config
from ringpost.node.coordination import coordination_over, identity_facts, open_coordination
from ringpost.node.delivery.hub import DeliveryLimits, Hub
from ringpost.node.grpc_options import peer_server_options, server_options, service_names, service_of
from ringpost.node.health import Health, HealthService
from ringpost.node.http import HttpServer, Pages
from ringpost.node.journal.files import Files, RealFiles
from ringpost.node.maintenance import Maintenance
from ringpost.node.member import Member
from ringpost.node.metrics import Stats
from ringpost.node.options import is_loopback, split_address
from ringpost.node.routing.calls import Calls
from ringpost.node.routing.lanes import ForwardLimits
from ringpost.node.routing.routing import Routing
from ringpost.node.services import unary
from ringpost.node.services.channels import Channels, merge_channels
from ringpost.node.services.cluster import Cluster
from ringpost.node.services.groups import Groups, merge_groups
from ringpost.node.services.messages import Messages
from ringpost.node.services.publish_session import PublishLimits
from ringpost.node.services.publisher import Publisher
from ringpost.node.services.stream import StreamGate
from ringpost.node.services.subscriber import Subscriber
from ringpost.node.storage import Opener, Storage
from ringpost.node.tls import Dialer, TlsError, certificates
from ringpost.node.watch import LagGauge, watch_loop
from ringpost.v1 import channel_pb2, cluster_pb2, group_pb2, message_pb2
from ringpost.v1.cluster_pb2 import NodeState

_BEAT_INTERVAL_S = 0.5
_COME_BACK_MS = 500
_STALLED_S = 3.0


class StartError(Exception):
    """The node cannot start; the message is for the operator."""


class Server:
    """One node. `start`, then `stopped` tells when it must end, then `stop`."""

    def __init__(
        self,
        config: Config,
        files: Files | None = None,
        coordinate: Callable[[Storage], Coordination] | None = None,
        kv: Kv | None = None,
    ) -> None:
        """`kv` keeps the membership of a cluster, in place of what the settings name.

        `coordinate` makes the coordination of several nodes that replicate nothing.
        """
        self.config = config
        self._coordinate = coordinate
        self._kv = kv
        self._clustered = kv is not None or config.coordination != "embedded"
        self.member: Member | None = None
        self.health = Health()
        self.failed: Exception | None = None
        self.stopped = asyncio.Event()
        self._files: Files = files or RealFiles()
        self._lag = LagGauge()
        self._tasks: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self.port = self.http_port = self.peer_port = 0
        self.routing: Routing | None = None
        self._stepped_down = self._changing = False
        self._peer_grpc: grpc.aio.Server | None = None

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves when it returns. Raises StartError, one of storage.UNREADABLE, or OSError."""
        config = self.config
        try:
            self._certificates = certificates(config)
        except TlsError as error:
            raise StartError(str(error)) from error
        self._dialer = Dialer(self._certificates[1])
        # 1. The directory: another node in it is the likeliest reason why a port is taken, too.
        opener = Opener(
            config,
            self._files,
            durable=self._durable,
            failed=self._failed,
            damaged=self._damaged,
            clustered=self._clustered,
        )
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
            # 5. The ports; peers find this node as soon as it is a member.
            ref = self._bind()
            if self._peer_grpc is not None:
                await self._peer_grpc.start()
            await self._join(ref)
            self.about.address = ref.address
            if self.storage.losses:
                # From here on recovery never meets the damage again, whichever of the two it begins with.
                await self.maintenance.checkpoint()
                await self.maintenance.checkpoint()
            await self.maintenance.watch_disk()
            await self._grpc.start()
        except BaseException:
            await self._give_up()
            raise
        # 6. Everything is there.
        self._go()

    def _coordination(self, storage: Storage) -> Coordination:
        if self._coordinate is not None:
            return self._coordinate(storage)
        config, facts = self.config, identity_facts(storage)
        if self._kv is not None:
            return coordination_over(
                self._kv, config, facts, version=package_version(), healthy=self._healthy, remember=self._remember
            )
        return open_coordination(
            config, facts, version=package_version(), healthy=self._healthy, remember=self._remember
        )

    async def _join(self, ref: NodeRef) -> None:
        """Raises StartError when the cluster does not take this node."""
        try:
            if self.member is not None:
                view = await self.member.join(ref)
            else:
                view = await self.coordination.start(ref)
                self.storage.store.lead(view, self.config.node)
        except CoordinationError as error:
            raise StartError(f"coordination: {error}") from error
        if view.shard_count != len(self.storage.store.shards):
            raise StartError(
                f"shard_count: this data directory was made with {len(self.storage.store.shards)}, the cluster has "
                f"{view.shard_count}; start this node with --shard-count {view.shard_count} and an empty directory"
            )
        if self.routing is not None:
            self.coordination.watch(self.routing.view_changed)

    async def _give_up(self) -> None:
        """Undoes what a start that failed has done."""
        if self._peer_grpc is not None:
            await self._peer_grpc.stop(0)
        if self.member is not None:
            await self.member.leave()
        await asyncio.to_thread(self.storage.close)
        await self._stop_http()

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
        subscribers = Subscriber(self.hub, gate)
        servicers = (
            (channel_pb2, Channels(store, node=config.node)),
            (group_pb2, Groups(store, reading)),
            (message_pb2, Messages(store, reading)),
        )
        calls: Calls | None = None
        if isinstance(self.coordination, KvCoordination):
            self.member = Member(
                self.storage,
                self.coordination,
                node=config.node,
                serving_changed=self._serving_changed,
                dialer=self._dialer,
            )
        accept_loss = self.member.controller.accept_loss if self.member is not None else None
        cluster_service = Cluster(
            self.coordination, self.about.node_info, node=config.node, dialer=self._dialer, accept_loss=accept_loss
        )
        cluster = unary.handlers(service_of(cluster_pb2), cluster_service)
        if self.member is not None or self._coordinate is not None:
            self.routing = self._build_routing()
            calls = self.routing.calls
            self._peer_grpc = grpc.aio.server(options=peer_server_options(config))
            handlers = [unary.handlers(service_of(file), one, self.routing.peer_calls) for file, one in servicers]
            peer_handlers = (self.publisher.peer_handlers(), subscribers.peer_handlers(), cluster, *handlers)
            self._peer_grpc.add_generic_rpc_handlers(peer_handlers)
        if self.member is not None and self._peer_grpc is not None:
            self._peer_grpc.add_generic_rpc_handlers((self.member.handlers(),))
            self.hub.may_deliver = self.member.replicator.may_deliver
            self.about.view = self._view
            assert self.routing is not None
            self.about.cluster_stats = partial(cluster_stats, self.member, self.routing, self._view, config.node)
        self._grpc = grpc.aio.server(options=server_options(config))
        handlers = [unary.handlers(service_of(file), one, calls) for file, one in servicers]
        self._grpc.add_generic_rpc_handlers((self.publisher.handlers(), subscribers.handlers(), cluster, *handlers))
        self._health_service = HealthService(self.health)
        health_pb2_grpc.add_HealthServicer_to_server(self._health_service, self._grpc)
        channelz.add_channelz_servicer(self._grpc)
        reflection.enable_server_reflection(service_names(), self._grpc)

    def _build_routing(self) -> Routing:
        config = self.config
        routing = Routing(
            self.storage.store,
            self.hub,
            node=config.node,
            view=self._view,
            accept=self.publisher.accept,
            made_room=self.publisher.made_room_for_all,
            merges={"ListChannels": merge_channels, "ListGroups": merge_groups},
            limits=ForwardLimits(patience_ms=config.forward_patience_ms, peer_bytes=config.peer_unanswered_bytes),
            send_bytes_max=-1,
            dialer=self._dialer,
        )
        self.publisher.lanes = routing.lanes
        return routing

    def _bind(self) -> NodeRef:
        config = self.config
        clients, peers = self._certificates
        mutual = bool(config.tls_client_ca_file)
        tls = clients.server(mutual=mutual) if clients is not None else None
        self.port = self._bind_one(self._grpc, "listen", config.listen, tls)
        if self._peer_grpc is None:
            return NodeRef(config.node, config.advertised(self.port), config.zone)
        tls = peers.server(mutual=True) if peers is not None else None
        self.peer_port = self._bind_one(self._peer_grpc, "peer_listen", config.peer_listen, tls)
        peer_address = config.peer_advertised(self.peer_port)
        address = config.advertised(self.port)
        return NodeRef(config.node, address, config.zone, peer_address, weight=config.weight)

    def _bind_one(self, server: grpc.aio.Server, name: str, address: str, tls: grpc.ServerCredentials | None) -> int:
        host, port = split_address(address)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not (tls is not None or self.config.insecure or is_loopback(address)):
            raise StartError(
                f"{name}: {address} would serve other machines in plain text; "
                "say --insecure if that is meant, or listen on 127.0.0.1"
            )
        try:
            bound = server.add_secure_port(target, tls) if tls is not None else server.add_insecure_port(target)
        except RuntimeError:
            bound = 0
        if not bound:
            raise StartError(f"{name}: cannot bind {target}; is another program using the port?")
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
        if self.member is not None:
            self._spawn(self.member.activate())
        log.info(
            "node.serving", listen=self.about.address, boot=self.storage.identity.boot, durability=self.about.durability
        )

    def _stats(self) -> Stats:
        return self.about.stats()  # which is made later than the pages

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_INTERVAL_S)
            self.hub.beat()
            if self.member is not None:
                problem = self.member.coordination.problem
                self.health.set_part("coordination", not problem, problem)
                damaged = [shard.number for shard in self.storage.store.shards if shard.quarantined]
                self.health.set_part("shards", not damaged, f"shards {damaged} are damaged")

    # -- in a cluster -----------------------------------------------------------------------------------------------

    def _view(self) -> View:
        """The newest view; one that knows nothing before this node is a member."""
        try:
            return self.coordination.view
        except CoordinationError:
            return View(0, "", len(self.storage.store.shards), {}, ())

    def _healthy(self) -> bool:
        """Whether this node deserves its lease: a stalled disk or loop must not look alive."""
        journal = self.storage.journal
        stalled = journal.pending_bytes and time.monotonic() - journal.counters.last_sync_finished > _STALLED_S
        fresh = journal.counters.last_sync_finished == 0
        return self._lag.ok and self.failed is None and not (stalled and not fresh)

    def _remember(self, revision: int) -> None:
        if self.member is not None:
            self.member.remember(revision)

    def _serving_changed(self, stepped_down: bool) -> None:
        """A leadership has begun or ended here; many at the same time are told together."""
        self._stepped_down = self._stepped_down or stepped_down
        if not self._changing:
            self._changing = True
            asyncio.get_running_loop().call_soon(self._tell_change)

    def _tell_change(self) -> None:
        self._changing = False
        if self.routing is None:
            return
        if self._stepped_down:
            self._stepped_down = False
            self.hub.changed()
        self.routing.leaders_changed()

    async def _rest(self, seconds: float) -> None:
        """Asks for others to lead what this node leads, and waits for that."""
        if self.member is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.coordination.set_desired(self.config.node, Desired.REST)
                while self.member.replicator.leads_any and self.member.has_company:
                    await asyncio.sleep(0.02)
        except (TimeoutError, CoordinationError, KeyError) as error:
            log.warning("drain.incomplete", error=str(error) or "leaderships remain")

    # -- what the journal reports -----------------------------------------------------------------------------------

    def _durable(self) -> None:
        if self.member is not None:
            self.member.replicator.durable()
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
        # 0. Others take over what this node leads; until then it serves as ever.
        if not self.failed:
            await self._rest(max(grace_ms / 1000, 1.0))
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
        if self._peer_grpc is not None and self.routing is not None:
            await self.routing.close()
            if self.member is not None:
                await self.member.leave()
            await self._peer_grpc.stop(0.2)
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
        while (self.publisher.clients_left or self.hub.clients_left) and loop.time() < end:
            await asyncio.sleep(0.02)

    async def _stop_http(self) -> None:
        if self._http is not None:
            await self._http.stop()
