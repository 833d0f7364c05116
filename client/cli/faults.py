"""Random faults on the nodes of a local cluster, one at a time, each healed before the next."""

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ringpost.client.cli import local, local_cluster
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.local_cluster import ClusterNode
from ringpost.client.cli.netns import Network

# How long a killed node stays away, a paused one is frozen, and links are cut: seconds, from to.
AWAY_S = (0.2, 4.0)
FROZEN_S = (1.0, 8.0)
CUT_S = (1.0, 12.0)

ALL = "all other nodes and etcd"
NODES = "all other nodes"
DEAF = "all other nodes, which it does not hear"
MUTE = "all other nodes, which do not hear it"
ONE = "one other node"
STORE = "etcd"
_CUTS = (ALL, NODES, DEAF, MUTE, ONE, STORE)


@dataclass(frozen=True)
class Fault:
    """What was done: `kind` "kill", "pause" or "partition", to which node, when (seconds from the start), how long.

    `links`: of a partition, from what the node was cut off.
    """

    kind: str
    node: str
    at: float
    seconds: float
    links: str = ""


class Faults:
    """Strikes nodes of the cluster of `folder`. `kinds`: of which faults one is drawn each time.

    "partition" needs the `network` in which the nodes are.
    """

    def __init__(
        self, folder: Path, kinds: Sequence[str], rng: random.Random | None = None, network: Network | None = None
    ) -> None:
        self._folder = folder
        self._network = network
        self._kinds = list(kinds)
        self._random = rng or random.Random()
        self._begin = time.monotonic()
        local_cluster.of_processes(folder)

    def dead(self) -> list[str]:
        """Ids of nodes that do not run."""
        return [node.node for node in local_cluster.of_processes(self._folder).nodes if not local.running(node)]

    async def strike(self) -> Fault:
        """One fault at one node, from its beginning until it is healed."""
        cluster = local_cluster.of_processes(self._folder)
        node = self._random.choice(cluster.nodes)
        kind = self._random.choice(self._kinds)
        links = self._random.choice(_CUTS) if kind == "partition" else ""
        begin = time.monotonic()
        if kind == "kill":
            await self._kill(node)
        elif kind == "pause":
            await self._pause(node)
        else:
            await self._cut(node.node, [one.node for one in cluster.nodes if one is not node], links)
        now = time.monotonic()
        return Fault(kind, node.node, round(begin - self._begin, 3), round(now - begin, 3), links)

    async def _kill(self, node: ClusterNode) -> None:
        await asyncio.to_thread(local.kill, node)
        try:
            await asyncio.sleep(self._random.uniform(*AWAY_S))
        except BaseException:
            self._restart(node)
            raise
        await asyncio.to_thread(self._restart, node)

    def _restart(self, node: ClusterNode) -> None:
        with local.exclusive(self._folder):
            cluster = local_cluster.of_processes(self._folder)
            found = local_cluster.find(cluster, node.node)
            if not local.running(found):
                local_cluster.restart(self._folder, cluster, found)

    async def _cut(self, node: str, others: list[str], links: str) -> None:
        assert self._network is not None
        try:
            await asyncio.to_thread(cut, self._network, node, others, links)
            await asyncio.sleep(self._random.uniform(*CUT_S))
        finally:
            await asyncio.to_thread(self._network.join)

    async def _pause(self, node: ClusterNode) -> None:
        if not local.running(node):
            raise LocalNodeError(f"{node.node} does not run any more; see {node.log}")
        local.send(node, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(*FROZEN_S))
        finally:
            local.send(node, signal.SIGCONT)


def cut(network: Network, node: str, others: list[str], links: str) -> None:
    """Cuts the node off from what `links` says."""
    if links == ALL:
        network.cut(node, local_cluster.ETCD, *others)
    elif links == NODES:
        network.cut(node, *others)
    elif links == DEAF:
        for other in others:
            network.cut(other, node, both_ways=False)
    elif links == MUTE:
        network.cut(node, *others, both_ways=False)
    elif links == ONE:
        network.cut(node, others[0])
    else:
        network.cut(node, local_cluster.ETCD)
