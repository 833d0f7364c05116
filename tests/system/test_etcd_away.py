"""etcd freezes or dies for twenty seconds: publishing and consuming go on; when it is back, everything converges.

`ETCD_AWAY_S` makes it longer.
"""

import asyncio
import os

import pytest

from tests.system.conftest import Loaded
from tests.system.local import LocalCluster

pytestmark = pytest.mark.system

AWAY_S = float(os.environ.get("ETCD_AWAY_S", "20"))
PAUSE_S_MAX = 2.0  # of publishing while etcd is away


@pytest.mark.parametrize("how", ["freezes", "dies"])
async def test_etcd_goes_away_under_load(cluster: LocalCluster, loaded: Loaded, how: str) -> None:
    loop = asyncio.get_running_loop()
    etcd = cluster.etcd.members[0]
    # A hand-over that etcd did not live to answer leaves its shard's groups waiting for etcd: see ARCHITECTURE.
    await cluster.home()
    async with loaded(cluster) as load:
        begin = loop.time()
        etcd.freeze() if how == "freezes" else etcd.kill()
        await asyncio.sleep(AWAY_S)
        await load.read_up(PAUSE_S_MAX)
        await load.settle_up(PAUSE_S_MAX)
        assert load.acks_unconfirmed == 0, load.told()
        end = loop.time()
        etcd.thaw() if how == "freezes" else etcd.start()
        await asyncio.to_thread(cluster.etcd.wait)
        pause = load.longest_pause(begin, end)
        assert pause.seconds < PAUSE_S_MAX, f"publishing stood still while etcd was away: {pause}"
        await load.progress()
        await cluster.serving()
        # It works again beyond what needs no etcd: a leader dies and is replaced.
        victim = await cluster.leader_of(pause.channel)
        cluster.kill(victim)
        await load.progress()
        await asyncio.to_thread(cluster.restart, victim)
        await cluster.whole()
