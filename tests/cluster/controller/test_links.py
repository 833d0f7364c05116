"""Which links are bad, who is isolated and may then be the controller, and what is moved over which links."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.controller.links import Links, fit_to_control, isolated, linked
from ringpost.cluster.view import Desired, NodeRef
from tests.cluster.controller.world import started

NAMES = "abcde"


def nodes(said: dict[str, str], dead: str = "") -> dict[str, NodeRef]:
    """Five nodes; `said` tells for each whom it cannot reach, one letter a node."""
    return {
        name: NodeRef(name, "", session=0 if name in dead else 1, unreachable=frozenset(said.get(name, "")))
        for name in NAMES
    }


def fit(said: dict[str, str], dead: str = "") -> str:
    return "".join(name for name in NAMES if name not in dead and fit_to_control(nodes(said, dead), name))


def test_one_end_is_enough_to_call_a_link_bad() -> None:
    seen = nodes({"a": "b"})
    assert not linked(seen, "a", "b")
    assert not linked(seen, "b", "a")
    assert linked(seen, "a", "c")
    assert linked(seen, "a", "a")
    assert linked(seen, "a", "nobody")


@pytest.mark.parametrize(
    ("said", "dead", "may_control"),
    [
        ({}, "", "abcde"),
        ({"a": "bc"}, "", "abcde"),  # half of the links is not most of them
        ({"a": "bcd"}, "", "bcde"),
        ({"b": "a", "c": "a", "d": "a"}, "", "bcde"),  # a frozen node says nothing
        ({"a": "bc"}, "de", "bc"),  # the dead do not count
        ({"a": "cde", "b": "cde"}, "", "cde"),
        ({"a": "cd", "b": "cd"}, "e", "abcd"),  # two halves: another controller would do no better
        ({name: NAMES.replace(name, "") for name in NAMES}, "", "abcde"),
        ({"a": "b"}, "cde", "ab"),
        ({}, "bcde", "a"),
    ],
)
def test_who_may_be_the_controller(said: dict[str, str], dead: str, may_control: str) -> None:
    assert fit(said, dead) == may_control


@given(st.dictionaries(st.sampled_from(NAMES), st.text(NAMES, max_size=5)), st.sets(st.sampled_from(NAMES), max_size=4))
def test_somebody_always_may(said: dict[str, str], dead: set[str]) -> None:
    said = {name: others.replace(name, "") for name, others in said.items()}
    seen, able = nodes(said, "".join(dead)), fit(said, "".join(dead))
    assert able
    everybody = [name for name in NAMES if name not in dead]
    alone = [name for name in everybody if isolated(seen, name)]
    assert set(able) == set(everybody) - (set(alone) if len(alone) < len(everybody) else set())
    assert all(linked(seen, *pair) == linked(seen, *reversed(pair)) for pair in combinations(NAMES, 2))


def test_a_link_that_was_bad_is_not_relied_upon_at_once() -> None:
    links = Links(10.0)
    links.observe(nodes({}), 100.0)
    assert links.settled("a", "b"), "a new controller takes what it sees"
    links.observe(nodes({"a": "b"}), 101.0)
    assert (links.good("a", "b"), links.settled("b", "a"), list(links.deadlines())) == (False, False, [])
    links.observe(nodes({}), 150.0)
    assert (links.good("a", "b"), links.settled("b", "a")) == (True, False), "it was bad until just now"
    assert (links.settled("a", "c"), links.all_good, list(links.deadlines())) == (True, True, [160.0])
    links.observe(nodes({}), 160.0)
    assert (links.settled("a", "b"), list(links.deadlines())) == (True, [])


@pytest.mark.parametrize("bad", ["b", "c", "bc"])
def test_leadership_goes_home_only_over_links_that_have_been_good_for_a_while(bad: str) -> None:
    world = started("a", "b", "c")
    shard = world.leaders().index("a")
    world.kill("a")
    world.settle()
    world.start("a")
    world.cut("a", *bad)
    world.run(200)
    assert world.leaders()[shard] != "a"
    world.join_links()
    world.run(int(world.settings.link_settle_s / 0.25) - 2)
    assert world.leaders()[shard] != "a"
    world.run(200)
    assert world.leaders()[shard] == "a"


def test_a_transfer_over_a_link_that_breaks_is_taken_back() -> None:
    world = started("a", "b", "c")
    shard = world.leaders().index("a")
    world.want("a", Desired.REST)
    world.write(world.plan().changes)
    target = world.records[shard].replica(world.records[shard].transfer_to)
    assert target is not None
    world.cut("a", target.node)
    world.write(world.plan().changes)
    assert world.records[shard].transfer_to == ""
    world.run(40)
    assert world.leaders()[shard] not in ("a", target.node), "the other one can be reached"


def test_who_shall_yield_keeps_what_nobody_could_lead_better() -> None:
    world = started("a", "b", "c")
    led = world.leaders()
    world.cut("a", "b", "c")
    world.cut("b", "c")
    world.want("a", Desired.REST)
    world.run(100)
    assert world.leaders() == led
