"""Where requests go, by the view and the store's word alone."""

from dataclasses import replace

from ringpost.cluster.view import Leader, NodeRef, Replica, ShardRecord, View
from ringpost.node.routing.router import Here, NotNow, Router, There

NODES = {
    "n1": NodeRef("n1", "a:1", peer_address="a:2", session=11),
    "n2": NodeRef("n2", "b:1", peer_address="b:2", session=12),
}


def record(shard: int, node: str | None, session: int = 0, epoch: int = 5) -> ShardRecord:
    leader = None if node is None else Leader(node, "r", session)
    return ShardRecord(shard, epoch, leader, ("r",), (Replica(node or "n1", "r"),), 1, 1)


def view_of(*records: ShardRecord) -> View:
    return View(9, "c", len(records), NODES, records)


def router(view: View, *, leads: bool = True) -> Router:
    return Router(lambda: view, "n1", lambda _: leads)


def test_this_node_serves_what_it_leads() -> None:
    assert router(view_of(record(0, "n1", 11))).route("orders") == Here(5)


def test_it_does_not_serve_what_it_is_only_about_to_lead() -> None:
    route = router(view_of(record(0, "n1", 11)), leads=False).route("orders")
    assert isinstance(route, NotNow)
    assert (route.leader, route.epoch) == ("n1", 5)
    assert "about to lead" in route.why


def test_another_leader_is_named_with_the_view_it_was_decided_under() -> None:
    assert router(view_of(record(0, "n2", 12))).route("orders") == There("n2", "b:2", 5, 9)


def test_a_leader_of_an_earlier_life_is_none() -> None:
    route = router(view_of(record(0, "n2", 3))).route("orders")
    assert isinstance(route, NotNow)
    assert "is gone" in route.why


def test_without_a_leader_or_without_shards_it_is_not_now() -> None:
    for view in (view_of(record(0, None)), View(1, "c", 4, NODES, ())):
        route = router(view).route("orders")
        assert isinstance(route, NotNow)
        assert route.retry_after_ms > 0
        assert not router(view).here(0)


def test_a_name_that_no_channel_can_have_is_refused_here() -> None:
    assert isinstance(router(view_of(record(0, "n2", 12))).route("$sys"), Here)


def test_the_leaders_are_named_for_lists_and_what_is_missing() -> None:
    view = view_of(record(0, "n1", 11), record(1, "n2", 12))
    assert router(view).leaders() == ({"n1", "n2"}, None)
    gone = replace(view, shards=(view.shards[0], record(1, None)))
    found, missing = router(gone).leaders()
    assert found == {"n1"}
    assert missing is not None
    assert "shard 1 has no leader" in missing.why


def test_a_refusal_says_who_leads() -> None:
    error = router(view_of(record(0, "n2", 12))).refusal(0)
    assert error.reason == "NOT_LEADER"
    assert error.metadata == {"shard": "0", "leader": "n2", "epoch": "5"}
