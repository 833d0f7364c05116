"""Where the demo plays: three node processes with etcd, three nodes in one process, or one node; what can be had."""

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ringpost.client.api import Client
from ringpost.client.cli import etcd, local, local_cluster
from ringpost.client.cli.cluster_up import await_ready
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.private import private_cluster
from ringpost.client.testing.broker import BrokerProcess

NODES = 3
# How long the killed owner stays away, so that the others must take over.
_AWAY_S = 2.0


class Stage(ABC):
    """`address`: for `connect`. `title`: what it is, for a person."""

    address: str
    title: str

    @abstractmethod
    async def crash(self, _mq: Client, _channel: str, /) -> str:
        """SIGKILL to whoever owns the channel; returns when it serves again, with the node's name."""


class OneNode(Stage):
    """A node that is killed and started again."""

    title = "one node"

    def __init__(self, broker: BrokerProcess) -> None:
        self._broker = broker
        self.address = broker.address

    async def crash(self, _mq: Client, _channel: str, /) -> str:
        await asyncio.to_thread(self._broker.kill)
        await asyncio.to_thread(self._broker.start)
        return "the node"


class Cluster(Stage):
    """Nodes of which the channel's owner is killed; the others go on, and it is started again later."""

    title = f"{NODES} node processes and etcd"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        cluster = local_cluster.of_processes(folder)
        self.address = ",".join(cluster.addresses)

    async def crash(self, mq: Client, channel: str, /) -> str:
        # The same as `ringpost cluster ring --channel …`.
        (route,) = (await mq.cluster.routes(channel)).shards
        cluster = local_cluster.of_processes(self._folder)
        owner = local_cluster.find(cluster, route.owner or cluster.nodes[0].node)
        await asyncio.to_thread(local.kill, owner)
        await asyncio.sleep(_AWAY_S)
        await asyncio.to_thread(local_cluster.restart, self._folder, cluster, owner)
        return f"{owner.node}, the owner of {channel},"


class Together(Stage):
    """Nodes in one process: it is killed with all of them, and started again."""

    title = f"{NODES} nodes in one process"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = ",".join(_of(folder).addresses)

    async def crash(self, _mq: Client, _channel: str, /) -> str:
        cluster = _of(self._folder)
        await asyncio.to_thread(local.kill, cluster.nodes[0])
        await asyncio.to_thread(local_cluster.start_together_again, self._folder, cluster)
        return "the process of all nodes"


def _of(folder: Path) -> local_cluster.LocalCluster:
    cluster = local_cluster.remembered(folder)
    if cluster is None:
        raise LocalNodeError(f"There is no cluster in {folder}.")
    return cluster


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """The best that can be had here; nothing of it is left afterwards. Raises `LocalNodeError`, `BrokerFailed`."""
    if takes_etcd() and etcd.find() is not None:
        with private_cluster(NODES) as folder:
            asyncio.run(await_ready(_of(folder).addresses))
            yield Cluster(folder)
    elif importlib.util.find_spec("ringpost.node.together") is not None:
        with private_cluster(NODES, in_process=True) as folder:
            asyncio.run(await_ready(_of(folder).addresses))
            yield Together(folder)
    else:
        broker = BrokerProcess(node="demo")
        try:
            broker.start()
            yield OneNode(broker)
        finally:
            broker.stop()


def takes_etcd() -> bool:
    """Whether the node that is installed here can be one of several."""
    asked = subprocess.run([sys.executable, "-m", "ringpost.node", "--help"], capture_output=True, check=False)
    return b"--coordination" in asked.stdout
