"""Which tombstones nobody will act upon."""

from dataclasses import replace

from ringpost.cluster import tombs
from ringpost.cluster.records import Keys
from ringpost.cluster.view import NodeRef, Tombstone, View

VIEW = View(9, "c", 0, {"a": NodeRef("a", "a:1", session=3, directory="da"), "b": NodeRef("b", "b:1")}, ())
TOMB = Tombstone(1, "r", "a", "da", 7)


def test_those_of_members_and_their_directories_stay() -> None:
    there = (TOMB, replace(TOMB, directory=""), replace(TOMB, node="b", directory=""))
    assert tombs.stale(replace(VIEW, tombs=there)) == []


def test_those_of_strangers_and_of_earlier_directories_go() -> None:
    gone = (replace(TOMB, node="z"), replace(TOMB, directory="before"), replace(TOMB, node="b"))
    assert tombs.stale(replace(VIEW, tombs=(TOMB, *gone))) == list(gone)


def test_removals_are_few_and_compare_every_revision() -> None:
    many = [replace(TOMB, replica_id=f"r{n}", revision=n) for n in range(1, 121)]
    steps = list(tombs.removals(Keys("/p/"), many))
    assert [len(deletes) for _, deletes in steps] == [50, 50, 20]
    assert steps[2][0][-1] == ("/p/tomb/1/r120", steps[2][0][0].field, 120)
    assert list(tombs.removals(Keys("/p/"), [])) == []
