"""`top`: rates between two looks, and what of a node is not known."""

import json

from ringpost.client.cli.top import Picture, headline, rows
from ringpost.v1.cluster_pb2 import Desired, GetClusterResponse, Member, NodeInfo, NodeState

from .conftest import Cli

SERVING = NodeState.NODE_STATE_SERVING


def member(node: str, *, alive: bool = True, desired: Desired.ValueType = Desired.DESIRED_ACTIVE) -> Member:
    return Member(node=node, alive=alive, desired=desired, leader_count=5, replica_count=16, in_sync_count=15)


def picture(at: float, *members: Member, **published: int) -> Picture:
    infos = {
        node: NodeInfo(
            node=node, state=SERVING, published_messages=count, delivered_messages=2 * count, cpu_seconds=count / 1000
        )
        for node, count in published.items()
    }
    return Picture(at, GetClusterResponse(shard_count=16, controller="a"), list(members), infos)


def test_rates_are_between_two_looks() -> None:
    before, now = picture(10.0, member("a"), a=100), picture(12.0, member("a"), a=500)
    (first,) = rows(before, None)
    assert (first.published, first.delivered, first.cpu) == (None, None, None)
    (row,) = rows(now, before)
    assert (row.published, row.delivered, round(row.cpu or 0, 3)) == (200.0, 400.0, 0.2)
    assert (row.state, row.leads, row.copies, row.in_sync) == ("serving", 5, 16, 15)


def test_a_process_that_was_started_meanwhile_has_no_rates_yet() -> None:
    before, now = picture(10.0, member("a"), a=500), picture(12.0, member("a"), a=3)
    now.infos["a"].started_time_us = 7
    (row,) = rows(now, before)
    assert (row.published, row.state) == (None, "serving")


def test_who_is_gone_silent_or_resting_is_said_to_be() -> None:
    members = (member("a", desired=Desired.DESIRED_REST), member("b"), member("c", alive=False))
    found = rows(picture(1.0, *members, a=1), None)
    assert [row.state for row in found] == ["serving, rest", "silent", "gone"]
    assert found[1].memory_bytes is None


def test_the_first_line_names_what_is_wrong_and_nothing_else() -> None:
    members = [member("a"), member("b", alive=False)]
    well = GetClusterResponse(shard_count=16, controller="a")
    assert headline(well, [member("a")]) == "1 of 1 node alive · 16 shards · controller a"
    ill = GetClusterResponse(shard_count=16, offline_shards=[1, 2], under_replicated_shards=[3])
    told = "1 of 2 nodes alive · 16 shards · 2 without a leader · 1 under-replicated · controller none"
    assert headline(ill, members) == told


def test_a_real_node_is_watched(cli: Cli) -> None:
    assert cli("group", "add", "watched", "billing").code == 0
    assert cli("pub", "watched", "--lines", "-", stdin="a\n" * 500).code == 0  # more than other tests leave behind
    ran = cli("top", "--count", "2", "--every", "200ms", "-o", "json")
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert first["nodes"][0]["published"] is None
    assert second["nodes"][0]["published"] >= 0
    assert {"channel": "watched", "group": "billing", "pending": 500} in second["groups"]
    shown = cli("top", "--count", "1").out.splitlines()
    assert "of 1 node alive" in shown[0]
    assert shown[1].split()[:2] == ["node", "state"]
