"""Random faults for minutes, then everything promised is looked at. `make soak` runs it and prints a summary.

`RINGPOST_TEST_SOAK_S` sets how long (default 600 seconds), `RINGPOST_TEST_SOAK_SEED` which faults.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from ringpost.v1.cluster_pb2 import Desired
from tests.system.conftest import Loaded, accepted_everywhere
from tests.system.load import Load
from tests.system.local import LocalCluster

SOAK_S = float(os.environ.get("RINGPOST_TEST_SOAK_S", "600"))
SEED = int(os.environ.get("RINGPOST_TEST_SOAK_SEED", "20261"))
ETCD_AWAY_S = 120.0
FREEZE_S = (2.0, 12.0)


class Faults:
    """One fault at a time, seldom two; each ends by itself and leaves nothing broken."""

    def __init__(self, cluster: LocalCluster, rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster = cluster
        self._random = rng
        self._kinds: dict[str, Callable[[str], Awaitable[None]]] = {
            "kill": self._kill,
            "kill two": self._kill_two,
            "kill all": self._kill_all,
            "freeze": self._freeze,
            "freeze and kill another": self._freeze_and_kill,
            "restart at once": self._restart,
            "stop and start": self._stop,
            "rest and be active": self._rest,
            "etcd freezes": self._etcd_freezes,
            "etcd dies": self._etcd_dies,
            "etcd and a node die": self._etcd_and_node,
        }

    async def strike(self) -> str:
        """One random fault, from beginning to end; its name."""
        kind = self._random.choice(list(self._kinds))
        self.counts[kind] += 1
        await self._kinds[kind](self._random.choice(list(self._cluster.nodes)))
        return kind

    async def _wait(self, least: float = 0.2, most: float = 5.0) -> None:
        await asyncio.sleep(self._random.uniform(least, most))

    async def _start(self, *names: str) -> None:
        await asyncio.to_thread(self._cluster.start_nodes, names)

    def _other(self, name: str) -> str:
        return self._random.choice([other for other in self._cluster.nodes if other != name])

    async def _kill(self, name: str) -> None:
        self._cluster.kill(name)
        await self._wait()
        await self._start(name)

    async def _kill_two(self, name: str) -> None:
        other = self._other(name)
        self._cluster.kill(name)
        await self._wait(0.0, 1.0)
        self._cluster.kill(other)
        await self._wait()
        await self._start(name, other)

    async def _kill_all(self, _: str) -> None:
        self._cluster.kill(*self._cluster.nodes)
        await self._start(*self._cluster.nodes)

    async def _freeze(self, name: str) -> None:
        self._cluster.freeze(name)
        await self._wait(*FREEZE_S)
        self._cluster.thaw(name)

    async def _freeze_and_kill(self, name: str) -> None:
        other = self._other(name)
        self._cluster.freeze(name)
        await self._wait(0.0, FREEZE_S[1])
        self._cluster.kill(other)
        await self._wait()
        await self._start(other)
        self._cluster.thaw(name)

    async def _restart(self, name: str) -> None:
        await asyncio.to_thread(self._cluster.restart, name)

    async def _stop(self, name: str) -> None:
        assert await asyncio.to_thread(self._cluster.stop, name) == 0
        await self._wait()
        await self._start(name)

    async def _rest(self, name: str) -> None:
        await self._cluster.serving(30)
        await self._cluster.set_desired(name, Desired.DESIRED_REST)
        await self._wait()
        await self._cluster.set_desired(name, Desired.DESIRED_ACTIVE)

    async def _etcd_freezes(self, _: str) -> None:
        member = self._cluster.etcd.members[0]
        member.freeze()
        await self._wait(*FREEZE_S)
        member.thaw()

    async def _etcd_dies(self, _: str) -> None:
        member = self._cluster.etcd.members[0]
        member.kill()
        await self._wait(*FREEZE_S)
        member.start()
        await asyncio.to_thread(self._cluster.etcd.wait)

    async def _etcd_and_node(self, name: str) -> None:
        """The node cannot be replaced before etcd is back, nor come back itself."""
        member = self._cluster.etcd.members[0]
        member.kill()
        self._cluster.kill(name)
        await self._wait()
        member.start()
        await asyncio.to_thread(self._cluster.etcd.wait)
        await self._start(name)


async def _etcd_away(cluster: LocalCluster, load: Load) -> float:
    """etcd is away for two minutes; the longest pause of publishing meanwhile."""
    loop = asyncio.get_running_loop()
    member = cluster.etcd.members[0]
    begin = loop.time()
    member.kill()
    await asyncio.sleep(ETCD_AWAY_S)
    await load.read_up(5.0)
    end = loop.time()
    member.start()
    await asyncio.to_thread(cluster.etcd.wait)
    await cluster.serving()
    return load.longest_pause(begin, end).seconds


@pytest.mark.timeout(SOAK_S + 1200)
async def test_minutes_of_random_faults(own_cluster: LocalCluster, loaded: Loaded) -> None:
    cluster, loop = own_cluster, asyncio.get_running_loop()
    faults = Faults(cluster, random.Random(SEED))
    waits: list[float] = []
    async with loaded(cluster) as load:
        begin = loop.time()
        while loop.time() - begin < SOAK_S:
            kind = await faults.strike()
            over = loop.time()
            await accepted_everywhere(cluster, load)
            waits.append(loop.time() - over)
            print(f"{loop.time() - begin:6.0f} s  {kind}: writable {waits[-1]:.1f} s later; {load.told()}", flush=True)
            if faults.counts.total() % 5 == 0:
                await cluster.whole()
        await cluster.whole()
        await load.progress()
        pause = await _etcd_away(cluster, load)
        print(f"etcd away for {ETCD_AWAY_S:g} s: longest pause {pause:.2f} s", flush=True)
        assert pause < 2.0, "publishing stood still while etcd was away"
        await load.progress()
        await cluster.whole()
        print(f"seed {SEED}: {faults.counts.total()} faults in {SOAK_S:g} s: {dict(faults.counts)}")
        print(f"all shards writable at most {max(waits):.1f} s after a fault")
