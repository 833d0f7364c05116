"""`node …` and `cluster …` against several fake nodes; local processes are in test_local_cluster.py."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from ringpost.v1 import cluster_pb2
from tests.client.fake_ring import FakeRing

from .conftest import Ran, run_cli


@pytest_asyncio.fixture
async def ring() -> AsyncIterator[FakeRing]:
    ring = FakeRing()
    await ring.start()
    yield ring
    await ring.stop()


@pytest_asyncio.fixture
async def run(ring: FakeRing, tmp_path: Path) -> Callable[..., "asyncio.Future[Ran]"]:
    def start(*arguments: str) -> "asyncio.Future[Ran]":
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, lambda: run_cli(*arguments, addr=ring.addresses[0], home=tmp_path))

    return start


async def test_node_ls_shows_every_member_and_its_share(ring: FakeRing, run) -> None:
    ring.dead.add("n3")
    shown = (await run("node", "ls")).out.splitlines()
    assert shown[0].split() == [
        "node",
        "address",
        "zone",
        "alive",
        "desired",
        "leads",
        "replicas",
        *["in", "sync", "controller"],
    ]
    assert shown[1].split() == ["n1", ring.addresses[0], "z", "yes", "active", "5", "16", "16", "yes"]
    assert shown[3].split()[3] == "no"
    (first, *_) = (await run("node", "ls", "-o", "json")).json
    assert (first["node"], first["desired"], first["leader_count"], first["controller"]) == ("n1", "active", 5, True)


async def test_drain_waits_until_the_node_holds_nothing(ring: FakeRing, run) -> None:
    ran = await run("node", "drain", "n2", "--wait", "-o", "json")
    assert (ran.json["desired"], ran.json["replica_count"]) == ("drain", 0)


async def test_rest_activate_and_rm_say_what_they_did(ring: FakeRing, run) -> None:
    assert (await run("node", "rest", "n2")).out == "n2: rest, 5 shards led, 16 copies\n"
    assert (await run("node", "activate", "n2", "-o", "json")).json["desired"] == "active"
    unknown = await run("node", "rest", "n9")
    assert (unknown.code, "No member n9" in unknown.err) == (1, True)
    assert (await run("node", "rm", "n2")).code == 2
    refused = await run("node", "rm", "n2", "--yes")
    assert (refused.code, "drain it" in refused.err) == (1, True)


async def test_status_in_one_word_and_in_full(ring: FakeRing, run) -> None:
    whole = await run("cluster", "status")
    assert whole.out.splitlines()[0].split() == ["state", "whole"]
    assert "3 of 3 alive" in whole.out
    ring.offline.update(range(3))
    broken = (await run("cluster", "status", "-o", "json")).json
    assert (broken["state"], broken["offline_shards"], broken["replication_factor"]) == ("broken", [0, 1, 2], 3)


async def test_ring_shows_shards_and_who_has_them(ring: FakeRing, run) -> None:
    shown = (await run("cluster", "ring")).out.splitlines()
    assert len(shown) == 17
    assert shown[1].split() == ["0", "n1", "1", "n1", "n2", "n1", "n2", "n3"]
    (route,) = (await run("cluster", "ring", "--channel", "orders", "-o", "json")).json
    assert (route["leader"], route["in_sync"]) == (ring.owner("orders")[0], ["n1", "n2"])


async def test_moves_are_listed_and_watched_to_their_end(ring: FakeRing, run) -> None:
    ring.moves = [cluster_pb2.ShardMove(shard=4, kind="transfer", leader="n1", node="n2")]
    assert (await run("cluster", "moves")).out.splitlines()[1].split() == ["4", "transfer", "n1", "n2"]
    watching = run("cluster", "moves", "--watch", "-o", "json")
    while ring.status_calls < 2:
        await asyncio.sleep(0.01)
    ring.moves = []
    assert [line["event"] for line in (await watching).lines] == ["began", "done"]


async def test_accept_loss_wants_to_be_meant(ring: FakeRing, run) -> None:
    ring.offline.add(3)
    assert (await run("cluster", "accept-loss", "3", "n1")).code == 2
    assert (await run("cluster", "accept-loss", "3", "n1", "--yes")).code == 0
    again = await run("cluster", "accept-loss", "3", "n1", "--yes")
    assert (again.code, "has a leader" in again.err) == (1, True)


async def test_local_commands_without_a_local_cluster_say_how_to_get_one(run) -> None:
    for command in ("kill", "start", "pause", "resume"):
        ran = await run("node", command, "1")
        assert (ran.code, "`ringpost up --nodes 3` starts one" in ran.err) == (1, True)
