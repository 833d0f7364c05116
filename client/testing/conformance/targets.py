"""The cluster that a program is run against: one of our own, whose nodes may be killed, or one that is there."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc

from ringpost.client.api import connect
from ringpost.client.cli import local, local_cluster
from ringpost.client.cli.cluster_up import await_ready
from ringpost.client.cli.private import private_cluster
from ringpost.client.errors import Timeout, Unavailable
from ringpost.client.routes import shard_of

NODES = 3
_CALM_SECONDS = 60.0
# Of the average number of shards.
_SHARE = 0.8
_POLL_S = 0.1
# A channel that is not there is an error to be seen, and a message may be greater than gRPC's usual bound.
_SETTINGS = {
    "RINGPOST_AUTO_CREATE_CHANNELS": "false",
    "RINGPOST_MAX_MESSAGE_BYTES": "6MiB",
    "RINGPOST_MAX_BATCH_BYTES": "8MiB",
}


class Target(Protocol):
    """A cluster. `credentials` None: no TLS."""

    addresses: list[str]
    credentials: grpc.ChannelCredentials | None

    async def calm(self) -> None:
        """Waits until nothing moves by itself."""


class Given:
    """Nodes that somebody else runs; RINGPOST_CA means TLS, as for `ringpost`."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        ca = os.environ.get("RINGPOST_CA")
        self.credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes()) if ca else None

    async def calm(self) -> None:
        """Whoever runs it knows."""


class OwnCluster:
    """Three node processes and an etcd of our own, made by `own_cluster`."""

    credentials: grpc.ChannelCredentials | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.addresses = local_cluster.of_processes(folder).addresses

    def kill(self, address: str) -> None:
        """SIGKILL to the node with this address. Blocks for a moment."""
        cluster = local_cluster.of_processes(self._folder)
        (node,) = (node for node in cluster.nodes if node.address == address)
        local.kill(node)

    async def restart(self) -> None:
        """Starts what was killed; returns when it serves."""
        for node in local_cluster.of_processes(self._folder).nodes:
            cluster = local_cluster.of_processes(self._folder)
            if not local.running(node):
                await asyncio.to_thread(local_cluster.restart, self._folder, cluster, node)

    async def calm(self) -> None:
        """Waits until all copies are in sync and every node leads its share: then no leader changes by itself."""
        end = asyncio.get_running_loop().time() + _CALM_SECONDS
        async with connect(self.addresses) as mq:
            while True:
                with contextlib.suppress(Unavailable, Timeout):
                    status, members = await mq.cluster.status(), await mq.cluster.nodes()
                    leading = [member.leader_count for member in members]
                    shared = min(leading) >= _SHARE * sum(leading) / len(leading) > 0
                    if shared and not (status.offline_shards or status.under_replicated_shards or status.moves):
                        return
                if asyncio.get_running_loop().time() > end:
                    raise local.LocalNodeError(f"The cluster is not whole within {_CALM_SECONDS:.0f} s.")
                await asyncio.sleep(_POLL_S)

    async def name_led_by(self, address: str, prefix: str) -> str:
        """A channel's name whose shard the node with this address leads, once it leads any."""
        async with asyncio.timeout(_CALM_SECONDS), connect(self.addresses) as mq:
            while True:
                routes = await mq.cluster.routes()
                (node,) = (node.node for node in routes.nodes if node.address == address)
                led = {route.shard for route in routes.shards if route.owner == node}
                if led:
                    return next(
                        name
                        for number in range(1 << 20)
                        if shard_of(name := f"{prefix}.{number}", routes.shard_count) in led
                    )
                await asyncio.sleep(_POLL_S)


@contextmanager
def own_cluster() -> Iterator[OwnCluster]:
    """A cluster that is gone afterwards. Raises `LocalNodeError`. Blocks; not to be entered on an event loop."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    # In the environment of this process, since nodes that are started again must have them, too.
    os.environ.update(_SETTINGS)
    try:
        with private_cluster(NODES) as folder:
            cluster = OwnCluster(folder)
            asyncio.run(await_ready(cluster.addresses))
            yield cluster
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
