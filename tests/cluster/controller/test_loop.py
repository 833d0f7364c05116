"""The controller at work on a store: one at a time, deposed when its node dies, and never two."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from ringpost.cluster.controller import transactions
from ringpost.cluster.controller.decisions import Change, End, FenceRequest, Reach, Settings
from ringpost.cluster.controller.loop import ControllerLoop
from ringpost.cluster.controller.recovery import LossRefused
from ringpost.cluster.joining import DirectoryFacts, Founding
from ringpost.cluster.kv import Compare, Delete, KvError, OutcomeUnknown, Put, TxnResult
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.cluster.records import Keys
from ringpost.cluster.view import Desired, Leader, NodeRef, ShardRecord, View
from tests.cluster.kv_support import until

PREFIX = "/ringpost/test/"
SHARDS = 130  # more than fit into two transactions
SETTINGS = Settings(settle_s=0.05, bootstrap_wait_s=0.3, transfer_s=1.0, replace_after_s=0.5, moves_per_node=50)


class Flaky(MemoryKv):
    """Transactions whose answer is lost, done or not, as often as is asked for."""

    lose_before = 0
    lose_after = 0

    async def txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        if self.lose_before:
            self.lose_before -= 1
            raise OutcomeUnknown("lost on the way there")
        result = await super().txn(compares, then)
        if self.lose_after:
            self.lose_after -= 1
            raise OutcomeUnknown("lost on the way back")
        return result


@dataclass
class Node:
    """A member: its controller loop, and a leader that puts in sync and hands over whatever it is asked to."""

    name: str
    kv: Flaky
    coordination: KvCoordination
    loop: ControllerLoop
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    dead: bool = False

    async def lead(self) -> None:
        while True:
            with suppress(KvError):
                for record in self.coordination.view.shards:
                    after = self._improve(record, self.coordination.view)
                    if after is not None:
                        await self.coordination.propose(after, {})
            await asyncio.sleep(0.01)

    def _improve(self, record: ShardRecord, view: View) -> ShardRecord | None:
        leader = record.leader
        if leader is None or (leader.node, leader.session) != (self.name, self.coordination.session):
            return None
        for replica in record.replicas:
            if view.nodes[replica.node].alive and replica.replica_id not in record.in_sync:
                return replace(record, in_sync=(*record.in_sync, replica.replica_id))
        if target := record.replica(record.transfer_to):
            session = view.nodes[target.node].session
            heir = Leader(target.node, target.replica_id, session)
            return replace(record, epoch=record.epoch + 1, leader=heir, transfer_to="")
        return None


class Cluster:
    """Nodes in this process on one store."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.nodes: dict[str, Node] = {}
        self.refused: set[str] = set()
        self.asked: list[tuple[str, FenceRequest]] = []
        self._ids = itertools.count(1)

    async def join(self, *names: str) -> None:
        for name in names:
            kv = Flaky(self.store)
            facts = DirectoryFacts(directory=f"dir-{name}", boot=1)
            founding = Founding(cluster_id="c", shard_count=SHARDS, replication_factor=3, min_isr=2)
            coordination = KvCoordination(kv, PREFIX, facts=facts, founding=founding, ttl_s=600)
            loop = ControllerLoop(
                coordination,
                name,
                fence=self.fence,
                reachability=lambda: self.reach,
                new_id=lambda: f"{next(self._ids):032x}",
                settings=SETTINGS,
            )
            node = self.nodes[name] = Node(name, kv, coordination, loop)
            await coordination.start(NodeRef(name, f"{name}:1", peer_address=f"{name}:2"))
            node.tasks = [asyncio.create_task(loop.run()), asyncio.create_task(node.lead())]

    @property
    def reach(self) -> dict[str, Reach]:
        return {name: "refused" if name in self.refused else "up" for name in self.nodes}

    async def fence(self, node: str, request: FenceRequest) -> Sequence[End] | None:
        self.asked.append((node, request))
        if node in self.refused:
            return None
        return [End(fence.shard, fence.replica_id, fence.epoch - 1, 0) for fence in request.replicas]

    async def kill(self, name: str) -> None:
        """Nobody listens there any more, while its lease lives on."""
        self.refused.add(name)
        await self.stop(name)
        self.nodes[name].kv.cut = True
        for node in self.nodes.values():
            node.loop.wake()

    async def stop(self, name: str) -> None:
        for task in self.nodes[name].tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        for name, node in self.nodes.items():
            await self.stop(name)
            node.kv.cut = False
            await node.coordination.close()

    def view(self) -> View:
        return next(n for name, n in self.nodes.items() if name not in self.refused).coordination.view

    def led(self) -> bool:
        view = self.view()
        well = [r for r in view.shards if r.leader and view.leader_alive(r) and r.leader.node not in self.refused]
        return len(well) == SHARDS

    async def cut(self, name: str, *others: str) -> None:
        """The node says that it does not reach the others; it still answers whoever asks."""
        await self.nodes[name].coordination.report_unreachable(frozenset(others))

    def controllers(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.loop.term and name not in self.refused]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        await made.close()


async def test_one_node_becomes_the_controller_and_all_shards_are_led(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (controller,) = cluster.controllers()
    view = cluster.view()
    assert (view.controller, view.controller_term) == (controller, cluster.nodes[controller].loop.term)
    assert {len(record.in_sync) for record in view.shards} == {3}
    assert {request.term for _, request in cluster.asked} == {view.controller_term}
    assert {request.cluster_id for _, request in cluster.asked} == {"c"}


async def test_two_nodes_begin_without_the_third_after_a_wait(cluster: Cluster) -> None:
    await cluster.join("a", "b")
    await until(cluster.led)
    await cluster.join("c")
    await until(lambda: {len(record.in_sync) for record in cluster.view().shards} == {3})


async def test_a_leader_that_refuses_connections_is_replaced_at_once(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (controller,) = cluster.controllers()
    victim = next(name for name in cluster.nodes if name != controller)
    await cluster.kill(victim)
    begin = asyncio.get_running_loop().time()
    await until(cluster.led)
    assert asyncio.get_running_loop().time() - begin < 1.0
    assert cluster.view().nodes[victim].alive, "its lease has not ended"
    assert cluster.controllers() == [controller]


async def test_a_controller_that_refuses_connections_is_deposed(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (old,) = cluster.controllers()
    term = cluster.nodes[old].loop.term
    await cluster.kill(old)
    await until(cluster.led)
    (new,) = cluster.controllers()
    assert new != old
    assert cluster.nodes[new].loop.term > term


async def test_a_controller_that_was_deposed_writes_nothing_more(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (old,) = cluster.controllers()
    node = cluster.nodes[old]
    await cluster.stop(old)
    await cluster.nodes["b" if old != "b" else "c"].kv.txn([], [Delete(Keys(PREFIX).controller)])
    await until(lambda: cluster.controllers() not in ([], [old]))
    current = cluster.view().shards[0]
    change = Change(replace(current, transfer_to=current.in_sync[-1]), "late")
    late = transactions.write(node.coordination.keys, [change], node.loop._term)
    assert not (await node.kv.txn(*late)).succeeded


async def test_resigning_lets_another_begin_at_once(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (old,) = cluster.controllers()
    await cluster.stop(old)
    await cluster.nodes[old].loop.resign()
    await until(lambda: cluster.controllers() not in ([], [old]))


@pytest.mark.parametrize("told_by", ["itself", "others"])
async def test_a_controller_that_is_cut_off_from_most_others_is_so_no_more(cluster: Cluster, told_by: str) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (old,) = cluster.controllers()
    others = [name for name in cluster.nodes if name != old]
    if told_by == "itself":
        await cluster.cut(old, *others)
    else:
        for name in others:
            await cluster.cut(name, old)
    await until(lambda: cluster.controllers() not in ([], [old]))
    (new,) = cluster.controllers()
    term = cluster.nodes[new].loop.term
    await until(lambda: old not in {r.leader.node for r in cluster.view().shards if r.leader})
    assert old not in {node for node, request in cluster.asked if request.term == term}
    for name in cluster.nodes:
        await cluster.cut(name)
    await asyncio.sleep(0.3)
    assert (cluster.controllers(), cluster.nodes[new].loop.term) == ([new], term)
    await until(lambda: {len(record.in_sync) for record in cluster.view().shards} == {3})


async def test_where_everybody_is_cut_off_the_controller_stays(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (controller,) = cluster.controllers()
    term = cluster.nodes[controller].loop.term
    others = [name for name in cluster.nodes if name != controller]
    for name in (*others, controller):
        await cluster.cut(name, *(other for other in cluster.nodes if other != name))
    await asyncio.sleep(0.5)
    records = cluster.view().shards
    await asyncio.sleep(1.0)
    assert cluster.view().shards == records, "nothing flaps"
    assert (cluster.controllers(), cluster.nodes[controller].loop.term) == ([controller], term)


async def test_answers_that_are_lost_do_no_harm(cluster: Cluster) -> None:
    await cluster.join("a", "b")
    await until(lambda: bool(cluster.controllers()))
    kv = cluster.nodes[cluster.controllers()[0]].kv
    kv.lose_before, kv.lose_after = 3, 3
    await cluster.join("c")
    await until(cluster.led)
    kv.lose_after = 5
    await cluster.kill(next(name for name in cluster.nodes if name not in cluster.controllers()))
    await until(cluster.led)


async def test_an_answer_to_the_campaign_may_be_lost(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (old,) = cluster.controllers()
    for name, node in cluster.nodes.items():
        node.kv.lose_after = 2 if name != old else 0
    await cluster.kill(old)
    await until(cluster.led)


async def test_a_batch_goes_on_without_what_changed_meanwhile(cluster: Cluster) -> None:
    """All records of a transaction are compared; one that its leader changed must not hold back the others."""
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (controller,) = cluster.controllers()
    kv = cluster.nodes[controller].kv
    other = next(name for name in cluster.nodes if name != controller)
    record = next(r for r in cluster.view().shards if r.leader and r.leader.node == controller)
    inner, conflicts = kv.txn, 0

    async def txn(compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        nonlocal conflicts
        if conflicts == 0 and len(then) > 5:
            conflicts += 1
            key = Keys(PREFIX).shard(record.shard)
            assert any(put.key == key for put in then)
            current = cluster.nodes[controller].coordination.view.shards[record.shard]
            await cluster.nodes[controller].coordination.propose(replace(current, min_isr=3), {})
        return await inner(compares, then)

    kv.txn = txn  # type: ignore[method-assign]
    await cluster.nodes[controller].coordination.set_desired(controller, Desired.REST)
    await until(lambda: all(r.leader and r.leader.node != controller for r in cluster.view().shards))
    assert conflicts == 1
    assert other in {r.leader.node for r in cluster.view().shards if r.leader}


async def test_the_store_goes_away_and_comes_back(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    for node in cluster.nodes.values():
        node.kv.cut = True
    cluster.refused.add("c")
    for node in cluster.nodes.values():
        node.loop.wake()
    await asyncio.sleep(0.5)
    for node in cluster.nodes.values():
        node.kv.cut = False
    await until(cluster.led)
    assert sum("cannot work" in message for message in caplog.messages) <= 3, "said once a node, not at every try"


async def test_drain_and_removal(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c", "d")
    await until(lambda: cluster.led() and any(r.replica_on("d") for r in cluster.view().shards))
    await cluster.nodes["a"].coordination.set_desired("d", Desired.DRAIN)
    await until(lambda: not any(r.replica_on("d") for r in cluster.view().shards))
    tombs = await cluster.nodes["a"].kv.range(f"{PREFIX}tomb/")
    assert len(tombs.items) > SHARDS / 2, "each copy may be deleted where it was"
    await cluster.stop("d")
    await cluster.nodes["d"].coordination.close()
    await cluster.nodes["a"].coordination.remove_node("d")
    await until(lambda: not any(tomb.node == "d" for tomb in cluster.view().tombs))


async def test_accepting_loss(cluster: Cluster) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    loop = cluster.nodes["a"].loop
    with pytest.raises(LossRefused, match="is led by"):
        await loop.accept_loss(0, "a")
    for name in ("b", "c"):
        await cluster.stop(name)
        await cluster.nodes[name].coordination.close()
    record = cluster.nodes["a"].coordination.view.shards[0]
    await cluster.stop("a")
    view = await cluster.nodes["a"].coordination.refresh()
    lost = next((r for r in view.shards if not view.leader_alive(r)), record)
    cluster.nodes["a"].kv.lose_after = 1
    await loop.accept_loss(lost.shard, "a")
    after = cluster.nodes["a"].coordination.view.shards[lost.shard]
    assert (after.unclean_count, after.in_sync_nodes, after.epoch) == (1, ("a",), lost.epoch + 1)


async def test_a_fence_that_hangs_holds_up_an_election_for_a_moment_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.join("a", "b", "c")
    await until(cluster.led)
    (controller,) = cluster.controllers()
    dead, frozen = (name for name in cluster.nodes if name != controller)

    async def hang(node: str, request: FenceRequest) -> Sequence[End] | None:
        if node == frozen:
            await asyncio.Event().wait()
        return await cluster.fence(node, request)

    monkeypatch.setattr(cluster.nodes[controller].loop, "_fence", hang)
    await cluster.kill(dead)
    begin = asyncio.get_running_loop().time()
    await until(cluster.led)
    assert asyncio.get_running_loop().time() - begin < 2.0
