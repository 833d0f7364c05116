"""A node's membership: the session, the view, what becomes of proposals, and a store that fails. On both stores."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ringpost.cluster.coordination import CoordinationError, Proposal
from ringpost.cluster.kv import Delete, KvError, OutcomeUnknown, Put
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.cluster.records import encode_shard, encode_tomb
from ringpost.cluster.view import Desired, Leader, Replica, Tombstone, View
from ringpost.internal.v1 import cluster_pb2
from tests.cluster.coordination_rig import SHARDS, Cluster, member, record, refused
from tests.cluster.kv_support import until


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
