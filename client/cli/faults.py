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

# How long a killed node stays away, and how long a paused one is frozen: seconds, from to.
AWAY_S = (0.2, 4.0)
FROZEN_S = (1.0, 8.0)


@dataclass(frozen=True)
class Fault:
    """What was done: `kind` "kill" or "pause", to which node, when (seconds from the start), for how many seconds."""

    kind: str
    node: str
    at: float
    seconds: float


class Faults:
    """Strikes nodes of the cluster of `folder`. `kinds`: of which faults one is drawn each time."""

    def __init__(self, folder: Path, kinds: Sequence[str], rng: random.Random | None = None) -> None:
        self._folder = folder
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
        begin = time.monotonic()
        if kind == "kill":
            await self._kill(node)
        else:
            await self._pause(node)
        now = time.monotonic()
        return Fault(kind, node.node, round(begin - self._begin, 3), round(now - begin, 3))

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

    async def _pause(self, node: ClusterNode) -> None:
        if not local.running(node):
            raise LocalNodeError(f"{node.node} does not run any more; see {node.log}")
        local.send(node, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(*FROZEN_S))
        finally:
            local.send(node, signal.SIGCONT)
