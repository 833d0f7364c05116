"""What a client knows of the cluster, step by step."""

import random

from ringpost.client.routes import Routes, shard_of
from ringpost.v1 import cluster_pb2

A, B, C, SEED = "a:1", "b:1", "c:1", "seed:1"


def picture(view: int = 1, owner: str = "a", epoch: int = 1, dead: str = "", nodes: str = "abc"):
    answer = cluster_pb2.GetRoutesResponse(view=view, shard_count=4)
    for shard in range(4):
        answer.shards.add(shard=shard, owner=owner, epoch=epoch)
    for node in nodes:
        answer.nodes.add(node=node, address=f"{node}:1", alive=node not in dead)
    return answer


def made(**about) -> Routes:
    routes = Routes([SEED], random.Random(1))
    routes.learn(picture(**about))
    return routes


def test_shards_are_counted_as_the_proto_says() -> None:
    assert [shard_of(name, 256) for name in ("orders", "channel1", "a")] == [228, 39, 202]


def test_without_routes_the_first_address_that_answers_is_the_target() -> None:
    routes = Routes([A, B])
    assert routes.target("x") == A
    routes.failed(A, 0.0)
    assert routes.target("x") == B
    routes.worked(A)
    assert routes.target("x") == A


def test_when_nobody_answers_the_one_that_is_due_first_is_the_target() -> None:
    routes = Routes([A, B], random.Random(1))
    for n in range(4):
        routes.failed(A, n * 10.0)
    routes.failed(B, 30.0)
    assert routes.target("x") == B
    assert 0 < routes.delay(B, 30.0) <= 0.05
    assert routes.delay(B, 31.0) == 0.0


def test_an_address_is_left_alone_longer_each_time_until_it_works() -> None:
    routes = Routes([A, B], random.Random(1))
    delays = []
    for now in range(0, 80, 10):
        for _ in range(5):  # five streams of one node that died
            routes.failed(A, float(now))
        delays.append(routes.delay(A, float(now)))
    bounds = [min(2.0, 0.05 * 2**n) for n in range(8)]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    routes.worked(A)
    routes.failed(A, 90.0)
    assert routes.delay(A, 90.0) <= 0.05


def test_the_owner_is_the_target_and_others_stand_in_for_it() -> None:
    routes = made()
    assert routes.target("x") == A
    routes.failed(A, 0.0)
    assert routes.target("x") in (B, C, SEED)
    assert routes.due(1.0) == [A]
    routes.worked(A)
    assert routes.target("x") == A


def test_a_single_node_is_reached_by_the_address_that_was_given() -> None:
    routes = made(nodes="a")
    assert routes.target("x") == SEED
    assert not routes.several


def test_a_later_leadership_wins_whoever_tells_it() -> None:
    routes = made()
    version = routes.version
    assert routes.note("x", "b", 2)
    assert routes.target("x") == B
    assert routes.version > version
    assert not routes.note("x", "b", 2)
    assert not routes.note("x", "a", 1)
    routes.learn(picture(view=1, owner="a", epoch=1))
    assert routes.target("x") == B
    routes.learn(picture(view=2, owner="c", epoch=3))
    assert routes.target("x") == C


def test_an_owner_that_is_not_known_yet_is_news() -> None:
    routes = made()
    assert routes.note("x", "d", 2)
    assert routes.target("x") in (A, B, C, SEED)


def test_a_node_that_does_not_live_is_nobody_s_stand_in() -> None:
    routes = made(dead="b", owner="")
    assert {routes.fallback(n) for n in range(10)} == {A, C, SEED}


def test_an_older_picture_changes_no_addresses() -> None:
    routes = made(view=5)
    routes.learn(picture(view=4, nodes="ab"))
    assert {routes.fallback(n) for n in range(10)} == {A, B, C, SEED}


def test_a_node_that_left_is_forgotten() -> None:
    routes = made()
    routes.failed(C, 0.0)
    routes.learn(picture(view=2, nodes="ab"))
    assert routes.next_due() is None
    assert {routes.fallback(n) for n in range(10)} == {A, B, SEED}
