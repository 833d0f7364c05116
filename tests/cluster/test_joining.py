"""What a node refuses when it joins, and who wins when two want one name. On both stores."""

from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.etcd.client import EtcdKv
from ringpost.internal.v1 import cluster_pb2
from tests.cluster.coordination_rig import SHARDS, Cluster, member, refused
from tests.cluster.kv_support import until
from tests.etcd_server import EtcdServer


async def test_a_store_that_is_older_than_the_directory_is_refused(cluster: Cluster) -> None:
    a = await cluster.join("a")
    revision = (await a.refresh()).revision
    said = await refused(cluster.node("b", revision_seen=revision + 1_000_000), "b")
    assert "wiped or restored" in said
    assert "live/b" not in await cluster.items()


async def test_another_cluster_is_refused(cluster: Cluster) -> None:
    await cluster.join("a")
    assert "this data directory belongs to cluster elsewhere" in await refused(
        cluster.node("b", cluster_id="elsewhere"), "b"
    )


async def test_a_directory_of_a_cluster_makes_no_new_one(cluster: Cluster) -> None:
    assert "there is no cluster in the coordination store" in await refused(cluster.node("a", cluster_id="lost"))
    assert await cluster.items() == {}


async def test_records_of_a_later_version_are_refused(cluster: Cluster) -> None:
    meta = cluster_pb2.ClusterRecord(cluster_id="c", shard_count=4, format=2).SerializeToString()
    await cluster.put(("meta", meta))
    assert "format 2" in await refused(cluster.node("a"))
    await cluster.put(("meta", b"\xff\xff"))
    assert "cannot be read" in await refused(cluster.node("a"))


async def test_a_name_that_is_taken_is_refused_after_the_lease(in_memory: Cluster) -> None:
    await in_memory.join("a")
    said = await refused(in_memory.node("a", directory="dir-other", ttl_s=1))
    assert "alive with another data directory (dir-a)" in said


async def test_a_replaced_volume_waits_for_the_old_session_to_end(cluster: Cluster) -> None:
    old = await cluster.join("a", ttl_s=1)
    old._task.cancel()  # as good as killed
    new = await cluster.join("a", directory="dir-new", ttl_s=1)
    assert new.view.nodes["a"].directory == "dir-new"
    assert new.view.nodes["a"].lost_shards == frozenset(), "nothing is said of a directory that is new"


async def test_a_directory_that_was_rolled_back_has_lost_everything(cluster: Cluster) -> None:
    for boot in (1, 2, 3):
        await (await cluster.join("a", boot=boot)).close()
    back = await cluster.join("a", boot=3)
    assert back.boot == 4
    assert back.view.nodes["a"].lost_shards == set(range(SHARDS))


async def test_of_two_copies_of_a_directory_one_is_stopped(cluster: Cluster) -> None:
    first = await cluster.join("a", boot=1, ttl_s=1)
    second = await cluster.join("a", boot=1)
    await until(lambda: "another process" in first.problem)
    assert first.lease_s == 0
    assert second.lease_s > 0


async def test_it_starts_once_and_not_before(cluster: Cluster) -> None:
    a = cluster.node("a")
    for ask in (lambda: a.view, lambda: a.session):
        with pytest.raises(CoordinationError, match="not started"):
            ask()
    await a.start(member("a"))
    with pytest.raises(CoordinationError, match="already"):
        await a.start(member("a"))


async def test_a_store_that_is_another_one_is_refused_unless_a_person_accepts_it(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdKv]
) -> None:
    """etcd restored from a backup has another id, whatever its revision."""
    async with AsyncExitStack() as stack:
        cluster = Cluster(lambda: connect(*shared_etcd.endpoints), stack)
        first = await cluster.join("a")
        known = first.store_id
        assert known
        await cluster.join("b", store_id=known)
        said = await refused(cluster.node("c", store_id="123abc"), "c")
        assert f"has id {known}, but this data directory was a member in 123abc" in said
        await cluster.join("c", store_id="123abc", accept_store=True)
