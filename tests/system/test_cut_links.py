"""Links are cut for a while, both ways or one way: nothing acknowledged is lost, and soon afterwards all is well."""

import asyncio
import os
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


def leader_hears_nobody(cluster: CutCluster, leader: str, others: list[str]) -> None:
    for other in others:
        cluster.cut(other, leader, both_ways=False)


# What is cut for a leader and its followers, and whether publishing goes on before the links are whole again.
CUTS: dict[str, tuple[Cut, bool]] = {
    "leader-and-a-follower": (lambda c, leader, others: c.cut(leader, others[0]), True),
    "follower-does-not-hear-leader": (lambda c, leader, others: c.cut(leader, others[0], both_ways=False), True),
    "leader-does-not-hear-follower": (lambda c, leader, others: c.cut(others[0], leader, both_ways=False), True),
    "leader-and-etcd": (lambda c, leader, _: c.cut(leader, ETCD), True),
    "leader-does-not-hear-etcd": (lambda c, leader, _: c.cut(ETCD, leader, both_ways=False), True),
    "etcd-does-not-hear-leader": (lambda c, leader, _: c.cut(leader, ETCD, both_ways=False), True),
    "leader-and-everybody": (lambda c, leader, others: c.cut(leader, ETCD, *others), True),
    "leader-and-all-followers": (lambda c, leader, others: c.cut(leader, *others), True),
    "nobody-hears-leader": (lambda c, leader, others: c.cut(leader, *others, both_ways=False), True),
    "leader-hears-nobody": (leader_hears_nobody, True),
}
# A run of CI takes one of each kind; `make system` by hand takes all.
IN_CI = ("leader-and-a-follower", "leader-does-not-hear-etcd", "leader-and-everybody", "leader-hears-nobody")


@pytest.mark.parametrize("what", IN_CI if os.environ.get("RINGPOST_CI") else CUTS)
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


@pytest.mark.parametrize("controls", [True, False], ids=["controller", "another-node"])
async def test_a_node_that_only_etcd_hears_leads_and_controls_no_more(
    cut_cluster: CutCluster, loaded: Loaded, controls: bool
) -> None:
    cluster = cut_cluster
    await cluster.home()  # a hand-over that is still to come would be an epoch more
    async with loaded(cluster) as load:
        controller = await cluster.controller()
        victim = controller if controls else next(name for name in cluster.nodes if name != controller)
        sessions = {name: member.session for name, member in (await cluster.members()).items()}
        cluster.cut(victim, *(name for name in cluster.nodes if name != victim))
        seconds = await load.progress(3, FAILOVER_S_MAX)
        print(f"\nevery channel went on after {seconds:.2f} s, with the links still cut")
        await asyncio.sleep(6)
        routes = await cluster.routes()
        assert victim not in {shard.owner for shard in routes.shards}
        assert await cluster.controller() not in ("", victim)
        epochs = {shard.shard: shard.epoch for shard in routes.shards}
        await asyncio.sleep(6)
        assert {shard.shard: shard.epoch for shard in (await cluster.routes()).shards} == epochs, "one election each"
        assert {name: member.session for name, member in (await cluster.members()).items()} == sessions
        cluster.join()
        await cluster.whole()
        await load.progress(3, 30)


async def test_links_that_flap_make_no_leadership_flap(cut_cluster: CutCluster, loaded: Loaded) -> None:
    cluster = cut_cluster
    await cluster.home()
    async with loaded(cluster):
        victim = await cluster.leader_of("flap")
        others = [name for name in cluster.nodes if name != victim]
        before = {shard.shard: shard.epoch for shard in (await cluster.routes()).shards}
        for _ in range(4):
            cluster.cut(victim, *others)
            await asyncio.sleep(4.5)
            cluster.join()
            await asyncio.sleep(1.5)
        after = {shard.shard: shard.epoch for shard in (await cluster.routes()).shards}
        assert max(after[shard] - before[shard] for shard in after) == 1
        await cluster.whole()
