"""The node: the one place that wires the parts. Start, serve, drain, stop."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from functools import partial
from secrets import randbits
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

import grpc

from ringpost.cluster.coordination import Coordination, CoordinationError
from ringpost.cluster.kv import Kv
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.view import Desired, NodeRef, View
from ringpost.node import log
from ringpost.node.about import About, package_version
from ringpost.node.access.access import Access, AccessError
from ringpost.node.access_watch import watch_access
from ringpost.node.answers import Answers, servicers_of
from ringpost.node.binding import Ports, StartError
from ringpost.node.cluster_stats import cluster_stats
from ringpost.node.config import Config
from ringpost.node.coordination import coordination_over, identity_facts, open_coordination
from ringpost.node.delivery.hub import DeliveryLimits, Hub
from ringpost.node.health import Health
from ringpost.node.http import HttpServer, Pages
from ringpost.node.journal.files import Files, RealFiles
from ringpost.node.maintenance import Maintenance
from ringpost.node.member import Member
from ringpost.node.metrics import Stats
from ringpost.node.options import split_address
from ringpost.node.reload import publish_limits, take_up
from ringpost.node.routing.lanes import ForwardLimits
from ringpost.node.routing.routing import Routing
from ringpost.node.services.channels import merge_channels
from ringpost.node.services.cluster import Cluster
from ringpost.node.services.groups import merge_groups
from ringpost.node.services.health import HealthService
from ringpost.node.services.publisher import Publisher
from ringpost.node.services.stream import StreamGate
from ringpost.node.services.subscriber import Subscriber
from ringpost.node.storage import Opener, Storage
from ringpost.node.tls import Dialer, TlsError, certificates
from ringpost.node.tracing import Tracing, TracingError, open_provider
from ringpost.node.watch import LagGauge, watch_loop
from ringpost.v1.cluster_pb2 import NodeState

_BEAT_INTERVAL_S = 0.5
_COME_BACK_MS = 500
_STALLED_S = 3.0


class Server:
    """One node. `start`, then `stopped` tells when it must end, then `stop`."""

    def __init__(
        self,
        config: Config,
        files: Files | None = None,
        coordinate: Callable[[Storage], Coordination] | None = None,
        kv: Kv | None = None,
        provider: "TracerProvider | None" = None,
    ) -> None:
        """`provider` takes spans, in place of what the settings say.

        `kv` keeps the membership of a cluster, in place of what the settings name.

        `coordinate` makes the coordination of several nodes that replicate nothing.
        """
        self.config = config
        self._coordinate = coordinate
        self._kv = kv
        self._provider = provider
        self._clustered = kv is not None or config.coordination != "embedded"
        self.member: Member | None = None
        self.health = Health()
        self.failed: Exception | None = None
        self.stopped = asyncio.Event()
        self._files: Files = files or RealFiles()
        self._lag = LagGauge()
        self._tasks: list[asyncio.Task[None]] = []
        self._http: HttpServer | None = None
        self.http_port = 0
        self.routing: Routing | None = None
        self._stepped_down = self._changing = False
        self._peer_grpc: grpc.aio.Server | None = None
        self._shared_grpc: grpc.aio.Server | None = None

    @property
    def port(self) -> int:
        """What clients reach; 0 before the start."""
        return self._ports.client

    @property
    def shared_port(self) -> int:
        """What clients reach, this process or another; 0 where nothing is shared."""
        return self._ports.shared

    @property
    def peer_port(self) -> int:
        """What other nodes reach; 0 where there are none."""
        return self._ports.peer

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves when it returns. Raises StartError, one of storage.UNREADABLE, or OSError."""
        config = self.config
        try:
            clients, peers = certificates(config)
            self.access = Access(config.access_file)
            self.tracing = Tracing(config.node, self._provider or open_provider(config, package_version()))
        except (TlsError, AccessError, TracingError) as error:
            raise StartError(str(error)) from error
        self._ports, self._dialer = Ports(config, clients, peers), Dialer(peers)
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
            ref = self._ports.bind(self._grpc, self._peer_grpc, self._shared_grpc)
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
            if self._shared_grpc is not None:
                await self._shared_grpc.start()
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
        config, store = self.config, self.storage.store
        gate = self._gate = StreamGate(config.streams_max)
        self.publisher = Publisher(
            store, publish_limits(config), gate, node=config.node, access=self.access, tracing=self.tracing
        )
        delivery_limits = DeliveryLimits(
            queue_bytes=config.subscriber_queue_bytes,
            delivery_bytes=config.delivery_bytes_max,
            heartbeat_ms=config.heartbeat_interval_ms,
        )
        self.hub = Hub(
            store,
            self.storage.reading,
            delivery_limits,
            node=config.node,
            access=self.access,
            members_from=randbits(62),
        )
        self.hub.tracing = self.tracing
        self.maintenance = Maintenance(self.storage, config, self.health)
        self.about = About(config, self.storage, self.publisher, self.hub, self.maintenance, self._lag, config.listen)
        if isinstance(self.coordination, KvCoordination):
            self._build_member(self.coordination)
        if self.member is not None or self._coordinate is not None:
            self.routing = self._build_routing()
        if self.member is not None and self.routing is not None:
            self.hub.may_deliver = self.routing.router.sure = self.member.replicator.may_deliver
            self.about.view = self._view
            self.about.cluster_stats = partial(cluster_stats, self.member, self.routing, self._view, config.node)
        self._build_servers(gate)

    def _build_member(self, coordination: KvCoordination) -> None:
        self.member = Member(
            self.storage,
            coordination,
            node=self.config.node,
            serving_changed=self._serving_changed,
            dialer=self._dialer,
            tracing=self.tracing,
        )

    def _build_servers(self, gate: StreamGate) -> None:
        accept_loss = self.member.controller.accept_loss if self.member is not None else None
        cluster = Cluster(
            self.coordination, self.about.node_info, node=self.config.node, dialer=self._dialer, accept_loss=accept_loss
        )
        self._health_service = HealthService(self.health)
        answers = Answers(
            config=self.config,
            servicers=servicers_of(self.config, self.storage),
            access=self.access,
            publisher=self.publisher,
            subscriber=Subscriber(self.hub, gate),
            cluster=cluster,
            health=self._health_service,
            routing=self.routing,
            member=self.member,
        )
        self._grpc, self._peer_grpc = answers.for_clients(), answers.for_peers()
        self._shared_grpc = answers.for_shared_clients()

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
        self.health.set_part("access", True)
        self._spawn(watch_loop(self.health, self._lag, asyncio.get_running_loop().time))
        self._spawn(self._beat())
        if self.access.on:
            self._spawn(watch_access(self.access, self.health, (self.publisher.check_access, self.hub.check_access)))
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

    def take_up(self, config: Config) -> None:
        """Goes on with other settings, of those that may change."""
        self.config = self.about.config = config
        take_up(
            config,
            storage=self.storage,
            publisher=self.publisher,
            hub=self.hub,
            maintenance=self.maintenance,
            gate=self._gate,
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
                problem = self.member.coordination.problem or self.member.replicator.damage.problem
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
        # 1. Nobody is sent here any more: at a shared address the others take what comes.
        self.health.drain()
        left = asyncio.ensure_future(self._leave_shared_address(grace_ms / 1000))
        # 2. Streams are told; they work on for the grace, or until all of them have left.
        self.publisher.drain(grace_ms, _COME_BACK_MS)
        self.hub.drain(grace_ms, _COME_BACK_MS)
        await self._until_left(grace_ms / 1000)
        # 3. What is left ends with UNAVAILABLE; nothing is accepted any more.
        self.publisher.end_all()
        self.hub.end_all()
        self._health_service.close()
        await asyncio.gather(self._grpc.stop(self.config.stop_grace_ms / 1000 if not self.failed else 0.2), left)
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
        await asyncio.to_thread(self.tracing.close)
        log.info("node.stopped")

    async def _leave_shared_address(self, drain_s: float) -> None:
        """No connection is taken there any more; what came before is drained as everywhere."""
        if self._shared_grpc is not None:
            await self._shared_grpc.stop(drain_s + self.config.stop_grace_ms / 1000 if not self.failed else 0.2)

    async def _until_left(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (self.publisher.clients_left or self.hub.clients_left) and loop.time() < end:
            await asyncio.sleep(0.02)

    async def _stop_http(self) -> None:
        if self._http is not None:
            await self._http.stop()
