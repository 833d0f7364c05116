"""Brokers in containers, for tests with testcontainers: `pip install ringpost[containers]`, and a Docker engine.

    with RingpostContainer() as broker:
        async with connect(broker.address) as mq:
            ...

The image is `ringpost:latest`, which `make image` makes, or the one that RINGPOST_IMAGE names; etcd's is ETCD_IMAGE.
Where the image of testcontainers' own helper cannot be had, set TESTCONTAINERS_RYUK_DISABLED=true.
"""

import contextlib
import os
import time
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from ringpost.client.testing.broker import BrokerFailed

IMAGE = "ringpost:latest"
ETCD_IMAGE = "rancher/mirrored-coreos-etcd:v3.5.12"
_PORT, _HTTP_PORT, _ETCD_PORT = 7400, 7402, 2379
_LOG_TAIL = 4_000


class RingpostContainer(DockerContainer):
    """One node in a container; `start` returns when it serves. Data are gone with it.

    `settings` are a node's, such as `{"RINGPOST_MAX_MESSAGE_BYTES": "4MiB"}`. Clients reach it by `address`, which is
    another one after a `restart`: what the node calls itself has no meaning outside of Docker, so give several nodes to
    `connect` with `Options(routing="any")`.
    """

    def __init__(
        self,
        image: str = "",
        *,
        node: str = "node-1",
        settings: dict[str, str] | None = None,
        timeout: float = 60.0,
        **parameters: Any,
    ) -> None:
        super().__init__(image or os.environ.get("RINGPOST_IMAGE", IMAGE), **parameters)
        self.node = node
        self.timeout = timeout
        # Plain text on a port that Docker binds on this machine.
        self.with_envs(RINGPOST_NODE=node, RINGPOST_INSECURE="true", **(settings or {}))
        self.with_exposed_ports(_PORT, _HTTP_PORT)

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_PORT)}"

    @property
    def http(self) -> str:
        """host:port of metrics and health."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_HTTP_PORT)}"

    @property
    def log(self) -> str:
        """What the node has written, over all its starts."""
        out, err = self.get_logs()
        return (out + err).decode(errors="replace")

    def start(self) -> Self:
        """Starts the container. Raises `BrokerFailed` when the node does not serve within `timeout` seconds."""
        try:
            with contextlib.suppress(TimeoutError):  # it ended at once; below it is said why
                super().start()
            self.await_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def await_serving(self) -> None:
        """Until grpc.health.v1 says so. Raises `BrokerFailed`."""
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            if self._status() == "exited":
                break
            if self._serves():
                return
            time.sleep(0.1)
        raise BrokerFailed(f"the container of {self.node} does not serve:\n{self.log[-_LOG_TAIL:]}")

    def _serves(self) -> bool:
        try:
            address = self.address
        except TimeoutError:  # it has just ended
            return False
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _status(self) -> str:
        container = self.get_wrapped_container()
        container.reload()
        return str(container.status)

    def kill(self) -> None:
        """SIGKILL; the container and its data stay for `restart`."""
        self.get_wrapped_container().kill()

    def pause(self) -> None:
        """Freezes it."""
        self.get_wrapped_container().pause()

    def unpause(self) -> None:
        """The opposite."""
        self.get_wrapped_container().unpause()

    def restart(self) -> None:
        """Stops it if it runs, and starts it on the same data; returns when it serves."""
        self.get_wrapped_container().restart(timeout=30)
        self._cached_container_info = None
        self.await_serving()


class RingpostCluster:
    """Several nodes and an etcd in containers on a network of their own; a context manager.

    `nodes` are RingpostContainers; `cut` and `join` take one off the network and bring it back.
    """

    def __init__(self, nodes: int = 3, image: str = "", *, settings: dict[str, str] | None = None) -> None:
        self._network = Network()
        self.etcd = _etcd()
        shared = {"RINGPOST_COORDINATION": "etcd", "RINGPOST_ETCD_ENDPOINTS": f"etcd:{_ETCD_PORT}", **(settings or {})}
        self.nodes = [RingpostContainer(image, node=f"node{n}", settings=shared) for n in range(1, nodes + 1)]

    @property
    def addresses(self) -> list[str]:
        """For `connect(…, options=Options(routing="any"))`; of a node that is stopped there is none."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(Exception):
                found.append(node.address)
        return found

    def __enter__(self) -> Self:
        self._network.create()
        try:
            self.etcd.with_network(self._network).with_network_aliases("etcd").start()
            for node in self.nodes:
                node.with_network(self._network).with_network_aliases(node.node)
                node.with_kwargs(hostname=node.node)
                with contextlib.suppress(TimeoutError):  # it ended at once; `await_serving` says why
                    DockerContainer.start(node)
            for node in self.nodes:
                node.await_serving()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for container in (*self.nodes, self.etcd):
            with contextlib.suppress(Exception):
                container.stop()
        self._network.remove()

    def cut(self, node: RingpostContainer) -> None:
        """Takes a node off the network; clients do not reach it either."""
        self._docker_network().disconnect(node.get_wrapped_container())

    def join(self, node: RingpostContainer) -> None:
        """Brings it back."""
        self._docker_network().connect(node.get_wrapped_container(), aliases=[node.node])
        node._cached_container_info = None

    def _docker_network(self) -> Any:
        return self.nodes[0].get_docker_client().client.networks.get(self._network.id)


def _etcd() -> DockerContainer:
    urls = f"http://0.0.0.0:{_ETCD_PORT}"
    command = f"etcd --data-dir=/tmp/etcd --listen-client-urls={urls} --advertise-client-urls=http://etcd:{_ETCD_PORT}"
    return DockerContainer(os.environ.get("ETCD_IMAGE", ETCD_IMAGE)).with_command(command)
