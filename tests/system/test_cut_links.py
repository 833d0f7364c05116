"""Links are cut for a while, both ways or one way: nothing acknowledged is lost, and soon afterwards all is well."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.system.conftest import Loaded
from tests.system.netns import ETCD, CutCluster

pytestmark = pytest.mark.system

CUT_S = 15.0
FAILOVER_S_MAX = 9.0


@pytest.fixture(scope="module")
async def shared_cut_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CutCluster]:
    cluster = CutCluster(tmp_path_factory.mktemp("cut"))
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def cut_cluster(shared_cut_cluster: CutCluster) -> CutCluster:
    """Whole at the beginning."""
    await shared_cut_cluster.heal()
    return shared_cut_cluster


Cut = Callable[[CutCluster, str, list[str]], None]
# What is cut for a leader and its followers, and whether publishing goes on before the links are whole again.
CUTS: dict[str, tuple[Cut, bool]] = {
    "leader-and-a-follower": (lambda c, leader, others: c.cut(leader, others[0]), True),
    "follower-does-not-hear-leader": (lambda c, leader, others: c.cut(leader, others[0], both_ways=False), True),
    "leader-does-not-hear-follower": (lambda c, leader, others: c.cut(others[0], leader, both_ways=False), True),
    "leader-and-etcd": (lambda c, leader, _: c.cut(leader, ETCD), True),
    "leader-does-not-hear-etcd": (lambda c, leader, _: c.cut(ETCD, leader, both_ways=False), True),
    "etcd-does-not-hear-leader": (lambda c, leader, _: c.cut(leader, ETCD, both_ways=False), True),
    "leader-and-everybody": (lambda c, leader, others: c.cut(leader, ETCD, *others), True),
    "leader-and-all-followers": (lambda c, leader, others: c.cut(leader, *others), False),
    "nobody-hears-leader": (lambda c, leader, others: c.cut(leader, *others, both_ways=False), False),
}


@pytest.mark.parametrize("what", CUTS)
async def test_links_are_cut_and_come_back(cut_cluster: CutCluster, loaded: Loaded, what: str) -> None:
    cluster, loop = cut_cluster, asyncio.get_running_loop()
    cut, goes_on = CUTS[what]
    async with loaded(cluster) as load:
        leader = await cluster.leader_of(next(iter(load.books)))
        begin = loop.time()
        cut(cluster, leader, [name for name in cluster.nodes if name != leader])
        await asyncio.sleep(CUT_S)
        pause = load.longest_pause(begin, loop.time())
        print(f"\n{what}: longest pause while the links were cut: {pause.seconds:.2f} s on {pause.channel}")
        cluster.join()
        await load.progress(3, 30)
        await cluster.whole()
        assert not goes_on or pause.seconds <= FAILOVER_S_MAX
