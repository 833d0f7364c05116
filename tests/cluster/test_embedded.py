"""One node that is its own cluster."""

import itertools
from dataclasses import replace

import pytest

from ringpost.cluster.coordination import Coordination, CoordinationError, Proposal
from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.view import Desired, NodeRef, View

ME = NodeRef("node-1", "127.0.0.1:7400")


def embedded(boot: int = 1) -> Coordination:
    return EmbeddedCoordination(cluster_id="c1", replica_id="ab" * 16, shard_count=8, boot=boot)


async def test_the_node_owns_everything() -> None:
    coordination = embedded(boot=5)
    view = await coordination.start(ME)
    assert view is coordination.view
    assert (view.cluster_id, view.shard_count, dict(view.nodes)) == ("c1", 8, {"node-1": replace(ME, session=5)})
    assert coordination.session == 5
    for record in view.shards:
        assert record.leader is not None
        assert (record.leader.node, record.leader.session, record.epoch) == ("node-1", 5, 5)
        assert record.in_sync_nodes == ("node-1",)


async def test_epochs_and_revisions_grow_over_restarts() -> None:
    seen: list[View] = []
    for boot in (1, 2, 3):
        coordination = embedded(boot)
        seen.append(await coordination.start(ME))
        await coordination.close()
        seen.append(coordination.view)
    assert all(later.is_newer_than(earlier) for earlier, later in itertools.pairwise(seen))
    assert [view.shards[0].epoch for view in seen] == [1, 1, 2, 2, 3, 3]


async def test_leaving_is_told_to_watchers_once() -> None:
    coordination = embedded()
    seen: list[View] = []
    gone: list[View] = []
    coordination.watch(seen.append)
    end = coordination.watch(gone.append)
    await coordination.start(ME)
    end()
    end()
    await coordination.close()
    await coordination.close()
    assert gone == []
    assert [view.shards[0].leader for view in seen] == [None]
    assert seen[0].nodes == {}
    assert seen[0] is coordination.view


async def test_without_leases_the_session_lives_until_it_leaves() -> None:
    coordination = embedded()
    view = await coordination.start(ME)
    assert view.nodes["node-1"].alive
    assert view.leader_alive(view.shards[0])
    assert coordination.name == "embedded"
    await coordination.close()


async def test_nothing_can_be_changed_where_one_is_alone() -> None:
    coordination = embedded()
    view = await coordination.start(ME)
    assert await coordination.propose(view.shards[0], {"node-1": coordination.session}) is Proposal.CONFLICT
    assert await coordination.refresh() is view
    await coordination.set_desired("node-1", Desired.ACTIVE)
    with pytest.raises(CoordinationError, match="nobody to hand over to"):
        await coordination.set_desired("node-1", Desired.DRAIN)
    with pytest.raises(CoordinationError, match="no other copy"):
        await coordination.report_lost(frozenset({1}))
    with pytest.raises(CoordinationError, match="nobody to be reached"):
        await coordination.report_unreachable(frozenset({"node-2"}))
    with pytest.raises(ValueError, match="node-1 is alive"):
        await coordination.remove_node("node-1")
    for change in (coordination.remove_node("x"), coordination.set_desired("x", Desired.ACTIVE)):
        with pytest.raises(KeyError):
            await change


async def test_it_starts_once_and_not_before() -> None:
    coordination = embedded()
    with pytest.raises(CoordinationError, match="not started"):
        _ = coordination.view
    with pytest.raises(CoordinationError, match="not started"):
        _ = coordination.session
    await coordination.start(ME)
    with pytest.raises(CoordinationError, match="already"):
        await coordination.start(ME)


async def test_a_node_that_never_started_closes_in_silence() -> None:
    coordination = embedded()
    seen: list[View] = []
    coordination.watch(seen.append)
    await coordination.close()
    assert seen == []


def test_impossible_numbers() -> None:
    with pytest.raises(ValueError, match="begin at 1"):
        EmbeddedCoordination(cluster_id="c", replica_id="r", shard_count=0, boot=1)
    with pytest.raises(ValueError, match="begin at 1"):
        EmbeddedCoordination(cluster_id="c", replica_id="r", shard_count=1, boot=0)
