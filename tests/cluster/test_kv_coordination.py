"""A node's membership: joining, the session, the view, and what a node must refuse. On both stores."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ringpost.cluster.coordination import CoordinationError, Proposal
from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.joining import DirectoryFacts, Founding
from ringpost.cluster.kv import Delete, Item, Kv, KvError, OutcomeUnknown, Put
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.cluster.records import encode_shard, encode_tomb
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, ShardRecord, Tombstone, View
from ringpost.internal.v1 import cluster_pb2
from tests.cluster.kv_support import until

_numbers = itertools.count()
SHARDS = 4


@dataclass
class Cluster:
    """Makes nodes that join one cluster, and sees what is stored."""

    open_kv: Callable[[], Kv]
    stack: AsyncExitStack
    prefix: str = field(default_factory=lambda: f"/ringpost/test-{next(_numbers)}/")

    def node(self, name: str, boot: int = 1, *, directory: str = "", **options: Any) -> KvCoordination:
        facts = DirectoryFacts(
            directory=directory or f"dir-{name}",
            boot=boot,
            cluster_id=options.pop("cluster_id", ""),
            revision_seen=options.pop("revision_seen", 0),
        )
        founding = Founding(cluster_id=f"by-{name}", shard_count=SHARDS, replication_factor=3, min_isr=2)
        made = KvCoordination(
            options.pop("kv", None) or self.open_kv(), self.prefix, facts=facts, founding=founding, **options
        )
        self.stack.push_async_callback(made.close)
        return made

    async def join(self, name: str, boot: int = 1, **options: Any) -> KvCoordination:
        made = self.node(name, boot, **options)
        await made.start(member(name))
        return made

    async def items(self) -> dict[str, Item]:
        picture = await self.open_kv().range(self.prefix)
        return {item.key.removeprefix(self.prefix): item for item in picture.items}

    async def put(self, *operations: tuple[str, bytes | None]) -> int:
        then = [Delete(self.prefix + key) if v is None else Put(self.prefix + key, v) for key, v in operations]
        return (await self.open_kv().txn([], then)).revision

    async def make_shards(self, *nodes: str) -> None:
        await self.put(*((f"shard/{shard:08}", encode_shard(record(shard, *nodes))) for shard in range(SHARDS)))


@pytest.fixture(params=["memory", "etcd"])
async def cluster(request: pytest.FixtureRequest, connect: Callable[..., EtcdKv]) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        if request.param == "etcd":
            server = request.getfixturevalue("shared_etcd")
            yield Cluster(lambda: connect(*server.endpoints), stack)
        else:
            store = MemoryStore()
            yield Cluster(lambda: MemoryKv(store), stack)


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def in_memory(store: MemoryStore) -> AsyncIterator[Cluster]:
    """For stories in which the store itself is tampered with."""
    async with AsyncExitStack() as stack:
        yield Cluster(lambda: MemoryKv(store), stack)


def member(name: str, **changes: Any) -> NodeRef:
    return replace(NodeRef(name, f"{name}:7400", zone=f"zone-{name}", peer_address=f"{name}:7401"), **changes)


def record(shard: int, *nodes: str, revision: int = 0, **changes: Any) -> ShardRecord:
    replicas = tuple(Replica(node, f"r-{node}", directory=f"dir-{node}") for node in nodes)
    fields = {
        "shard": shard,
        "epoch": 0,
        "leader": None,
        "in_sync": tuple(replica.replica_id for replica in replicas),
        "replicas": replicas,
        "min_isr": 1,
        "revision": revision,
    }
    return ShardRecord(**{**fields, **changes})


async def test_the_first_node_makes_the_cluster_and_the_others_join_it(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await until(lambda: "b" in a.view.nodes)
    for view in (a.view, b.view):
        assert (view.cluster_id, view.shard_count, view.replication_factor, view.min_isr) == ("by-a", SHARDS, 3, 2)
        assert view.shards == ()
        assert view.nodes["a"] == member("a", session=a.session, directory="dir-a")
        assert view.nodes["b"] == member("b", session=b.session, directory="dir-b")
    assert 0 < a.session < b.session


async def test_nodes_that_start_together_make_one_cluster(cluster: Cluster) -> None:
    nodes = await asyncio.gather(*(cluster.join(name) for name in "abcd"))
    assert len({node.view.cluster_id for node in nodes}) == 1
    assert len({node.session for node in nodes}) == 4
    for node in nodes:
        await until(lambda node=node: sum(ref.alive for ref in node.view.nodes.values()) == 4)


async def test_shards_show_when_all_of_them_are_there(cluster: Cluster) -> None:
    a = await cluster.join("a")
    seen: list[View] = []
    a.watch(seen.append)
    await cluster.put(("shard/00000000", encode_shard(record(0, "a"))))
    await until(lambda: seen)
    assert a.view.shards == ()
    await cluster.make_shards("a")
    await until(lambda: a.view.shards)
    first = a.view.shards[0]
    await cluster.put(("shard/00000003", encode_shard(record(3, "a", epoch=5))))
    await until(lambda: a.view.shards[3].epoch == 5)
    assert a.view.shards[0] is first, "what did not change is not decoded again"
    assert a.view.shards[3].revision == a.view.revision
    assert [view.revision for view in seen] == sorted({view.revision for view in seen})


async def test_leaving_is_seen_at_once_and_the_member_stays_known(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    heard: list[View] = []
    b.watch(heard.append)
    assert b.lease_s > 3
    await b.close()
    await b.close()
    await until(lambda: "b" in a.view.nodes and not a.view.nodes["b"].alive)
    assert a.view.nodes["b"].session == 0
    assert b.lease_s == 0
    assert heard == []


async def test_a_restart_is_a_new_session_and_raises_boot(cluster: Cluster) -> None:
    first = await cluster.join("a", boot=1)
    await first.close()
    second = await cluster.join("a", boot=2)
    assert second.session > first.session
    assert second.boot == 2
    node = cluster_pb2.NodeRecord.FromString((await cluster.items())["node/a"].value)
    assert (node.boot, node.zone, node.weight) == (2, "zone-a", 1000)


async def test_a_restart_within_the_lease_replaces_the_old_session(cluster: Cluster) -> None:
    """The process was killed: its lease lives on, and whatever hangs on it must go with it."""
    old = await cluster.join("a", boot=1)
    lock = f"{cluster.prefix}controller"
    await old.kv.txn([], [Put(lock, b"", old.lease)])
    old._task.cancel()  # as good as killed
    new = await cluster.join("a", boot=2)
    assert new.session > old.session
    assert set(await cluster.items()) == {"meta", "node/a", "live/a"}


async def test_the_controller_shows_with_its_term(cluster: Cluster) -> None:
    a = await cluster.join("a")
    value = cluster_pb2.ControllerRecord(node="a", session=a.session).SerializeToString()
    done = await a.kv.txn([], [Put(a.keys.controller, value, a.lease)])
    await until(lambda: a.view.controller)
    assert (a.view.controller, a.view.controller_term) == ("a", done.revision)
    await a.kv.txn([], [Delete(a.keys.controller)])
    await until(lambda: not a.view.controller)
    assert a.view.controller_term == 0


async def test_a_lost_session_is_replaced_by_itself(cluster: Cluster) -> None:
    a = await cluster.join("a", ttl_s=2)
    seen: list[tuple[int, int]] = []
    a.watch(lambda view: seen.append((view.nodes["a"].session, a.session)))
    before = a.session
    await cluster.open_kv().revoke(a.lease)
    await until(lambda: a.session > before)
    assert a.view.nodes["a"].session == a.session
    assert a.lease_s > 0
    assert seen[-1] == (a.session, a.session), "the session changes with the view that shows it"
    if len(seen) > 1:
        assert seen[0] == (0, before)


async def test_a_session_outlives_its_ttl(cluster: Cluster) -> None:
    a = await cluster.join("a", ttl_s=1)
    session, least = a.session, 1.0
    async with asyncio.timeout(3):
        for _ in range(7):
            await asyncio.sleep(0.2)
            least = min(least, a.lease_s)
    assert a.session == session
    assert least > 0.2


async def test_a_node_that_is_not_healthy_gives_its_session_up(cluster: Cluster) -> None:
    healthy = True
    a, b = await cluster.join("a"), await cluster.join("b", ttl_s=1, healthy=lambda: healthy)
    healthy, before = False, b.session
    await until(lambda: not a.view.nodes.get("b", member("b")).alive)
    assert b.lease_s == 0
    assert "not healthy" in b.problem
    healthy = True
    await until(lambda: a.view.nodes["b"].session > before)
    await until(lambda: b.lease_s > 0)
    assert b.problem == ""


async def test_a_proposal_is_accepted_once(cluster: Cluster) -> None:
    a = await cluster.join("a")
    await cluster.make_shards("a")
    await until(lambda: a.view.shards)
    led = replace(a.view.shards[1], epoch=1, leader=Leader("a", "r-a", a.session))
    assert await a.propose(led, {"a": a.session}) is Proposal.ACCEPTED
    await until(lambda: a.view.shards[1].epoch == 1)
    assert a.view.shards[1] == replace(led, revision=a.view.shards[1].revision)
    assert a.view.leader_alive(a.view.shards[1])
    assert await a.propose(led, {"a": a.session}) is Proposal.CONFLICT


async def test_a_proposal_for_another_session_is_refused(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await cluster.make_shards("a", "b")
    await until(lambda: a.view.shards)
    wanted = replace(a.view.shards[0], epoch=1)
    assert await a.propose(wanted, {"a": a.session, "b": b.session + 1}) is Proposal.CONFLICT
    gone = b.session
    await b.close()
    assert await a.propose(wanted, {"b": gone}) is Proposal.CONFLICT
    assert await a.propose(wanted, {"a": a.session, "b": 0}) is Proposal.ACCEPTED


async def test_refreshing_shows_what_was_done_before(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await cluster.make_shards("a")
    for epoch in range(1, 20):
        revision = await cluster.put(("shard/00000002", encode_shard(record(2, "a", epoch=epoch))))
        views = await asyncio.gather(a.refresh(), b.refresh(), a.refresh())
        assert all(view.revision >= revision and view.shards[2].epoch == epoch for view in views)


async def test_damaged_copies_are_told_and_not_forgotten(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b", ttl_s=2)
    session = b.session
    await b.report_lost(frozenset({1, 3}))
    await until(lambda: a.view.nodes["b"].lost_shards == {1, 3})
    assert b.session == session, "the session stays"
    await cluster.open_kv().revoke(b.lease)
    await until(lambda: a.view.nodes["b"].session > session)
    assert a.view.nodes["b"].lost_shards == {1, 3}
    await b.report_lost(frozenset())
    assert b.view.nodes["b"].lost_shards == frozenset()


async def test_members_that_cannot_be_reached_are_told_beside_the_rest(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b", ttl_s=2)
    session = b.session
    await asyncio.gather(b.report_lost(frozenset({1})), b.report_unreachable(frozenset({"a", "c"})))
    await until(lambda: a.view.nodes["b"].unreachable == {"a", "c"})
    assert (a.view.nodes["b"].lost_shards, b.session) == ({1}, session)
    revision = (await a.refresh()).revision
    await b.report_unreachable(frozenset({"c", "a"}))
    assert (await a.refresh()).revision == revision, "written only when it changes"
    await cluster.open_kv().revoke(b.lease)
    await until(lambda: a.view.nodes["b"].session > session)
    assert a.view.nodes["b"].unreachable == {"a", "c"}
    await b.report_unreachable(frozenset())
    assert (b.view.nodes["b"].unreachable, b.view.nodes["b"].lost_shards) == (frozenset(), {1})


async def test_what_is_wanted_of_a_node_outlives_its_restart(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b", boot=1)
    await a.set_desired("b", Desired.DRAIN)
    assert a.view.nodes["b"].desired is Desired.DRAIN
    await a.set_desired("b", Desired.DRAIN)
    await b.close()
    again = await cluster.join("b", boot=2)
    assert again.view.nodes["b"].desired is Desired.DRAIN
    assert again.view.nodes["b"].zone == "zone-b"
    with pytest.raises(KeyError):
        await a.set_desired("nobody", Desired.ACTIVE)


async def test_only_a_dead_node_without_replicas_is_removed(cluster: Cluster) -> None:
    a, b = await cluster.join("a"), await cluster.join("b")
    await cluster.make_shards("a", "b")
    with pytest.raises(ValueError, match="b is alive"):
        await a.remove_node("b")
    await b.close()
    with pytest.raises(ValueError, match="b still holds replicas of 4 shards"):
        await a.remove_node("b")
    await cluster.make_shards("a")
    await a.remove_node("b")
    assert "b" not in a.view.nodes
    with pytest.raises(KeyError):
        await a.remove_node("b")


# -- what a node must refuse ------------------------------------------------------------------------------------------


async def refused(node: KvCoordination, name: str = "a") -> str:
    with pytest.raises(CoordinationError) as raised:
        await node.start(member(name))
    return str(raised.value)


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


# -- a store that fails -----------------------------------------------------------------------------------------------


async def test_without_a_store_no_node_starts(store: MemoryStore, in_memory: Cluster) -> None:
    kv = MemoryKv(store)
    kv.cut = True
    assert "cannot be used" in await refused(in_memory.node("a", kv=kv, start_timeout_s=0.1))


async def test_a_node_that_is_cut_off_keeps_its_view_and_loses_its_lease(
    store: MemoryStore, in_memory: Cluster
) -> None:
    kv = MemoryKv(store)
    a, b = await in_memory.join("a"), await in_memory.join("b", kv=kv, ttl_s=1)
    await in_memory.make_shards("a", "b")
    await until(lambda: b.view.shards)
    kv.cut, before = True, b.session
    await until(lambda: b.lease_s == 0)
    assert b.view.nodes["b"].alive, "it does not know better"
    assert await b.propose(replace(b.view.shards[0], epoch=9), {}) is Proposal.UNKNOWN
    with pytest.raises(CoordinationError, match="cannot be reached"):
        await b.refresh()
    await until(lambda: not a.view.nodes["b"].alive)
    kv.cut = False
    await until(lambda: b.lease_s > 0)
    assert b.session > before
    assert a.view.nodes["b"].session in (0, b.session)


class LosesAnswers(MemoryKv):
    """Does every other transaction and loses the answer."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.turn = 0

    async def txn(self, compares: Any, then: Any) -> Any:
        self.turn += 1
        done = await super().txn(compares, then)
        if self.turn % 2:
            raise OutcomeUnknown("lost")
        return done


async def test_transactions_without_an_answer_are_looked_up(store: MemoryStore, in_memory: Cluster) -> None:
    a = await in_memory.join("a", kv=LosesAnswers(store))
    assert a.view.cluster_id == "by-a"
    for shards in (frozenset({1}), frozenset({2}), frozenset[int]()):
        await a.report_lost(shards)
        assert a.view.nodes["a"].lost_shards == shards
    await a.set_desired("a", Desired.REST)
    await a.set_desired("a", Desired.DRAIN)
    assert a.view.nodes["a"].desired is Desired.DRAIN
    await (await in_memory.join("b")).close()
    await a.remove_node("b")
    assert "b" not in a.view.nodes


async def test_a_wiped_store_is_noticed_and_never_joined(store: MemoryStore, in_memory: Cluster) -> None:
    a = await in_memory.join("a", ttl_s=1)
    await in_memory.make_shards("a")
    await until(lambda: a.view.shards)
    store.wipe()
    await until(lambda: "revision fell" in a.problem and a.lease_s == 0)
    assert a.view.shards, "the last view stays"
    with pytest.raises(KvError):
        await a.kv.range("")
    assert store.range("").items == ()


async def test_revisions_are_remembered_at_start_and_end(in_memory: Cluster) -> None:
    remembered: list[int] = []
    a = await in_memory.join("a", remember=remembered.append)
    assert remembered == [a.view.revision]
    await in_memory.make_shards("a")
    await until(lambda: a.view.shards)
    assert len(remembered) == 1
    last = a.view.revision
    await a.close()
    assert len(remembered) == 2
    assert remembered[-1] >= last
    again = await in_memory.join("a", boot=2, revision_seen=remembered[-1])
    assert again.view.revision >= remembered[-1]


async def test_a_record_that_makes_no_sense_leaves_the_last_good_one(in_memory: Cluster) -> None:
    a = await in_memory.join("a")
    await in_memory.make_shards("a")
    await until(lambda: a.view.shards)
    await in_memory.put(("shard/00000001", b"\xff\xff"), ("shard/00000002", encode_shard(record(2, "a", epoch=7))))
    await until(lambda: a.view.shards[2].epoch == 7)
    assert a.view.shards[1].epoch == 0


async def test_tombstones_are_removed_as_they_are(cluster: Cluster) -> None:
    a = await cluster.join("a")
    names = [f"tomb/{shard}/r{shard}" for shard in range(120)]
    for start in range(0, len(names), 60):
        await cluster.put(*((name, encode_tomb(Replica("a", "r"))) for name in names[start : start + 60]))
    view = await a.refresh()
    assert len(view.tombs) == 120
    assert view.tombs[0] == Tombstone(0, "r0", "a", "", view.tombs[0].revision)
    await cluster.put((names[7], encode_tomb(Replica("a", "r", directory="another"))))
    await a.remove_tombs(view.tombs)
    (left,) = (await a.refresh()).tombs
    assert (left.shard, left.directory) == (7, "another"), "it is another one"
    await a.remove_tombs([left])
    await a.remove_tombs([left])
    assert (await a.refresh()).tombs == ()
