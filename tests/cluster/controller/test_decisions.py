"""What no decision may break is asserted; and how decisions become transactions."""

from dataclasses import replace

import pytest

from ringpost.cluster.controller import transactions
from ringpost.cluster.controller.decisions import Change, verify
from ringpost.cluster.kv import Compare, Field, Put
from ringpost.cluster.records import Keys, decode_shard
from ringpost.cluster.view import Leader, NodeRef, Replica, ShardRecord, View

REPLICAS = tuple(Replica(node, node * 4, directory=f"d{node}") for node in "abc")
RECORD = ShardRecord(3, 5, Leader("a", "aaaa", 7), ("aaaa", "bbbb", "cccc"), REPLICAS, 2, 40)
KEYS = Keys("/r/")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shard": 4}, "another record"),
        ({"revision": 41}, "another record"),
        ({"unclean_count": 1}, "not ours to accept"),
        ({"min_isr": 1}, "fewer in sync"),
        ({"leader": Leader("b", "bbbb", 8)}, "another leader in the same epoch"),
        ({"epoch": 7}, "an epoch was left out"),
        ({"epoch": 6, "leader": None}, "nobody won"),
        ({"replicas": (*REPLICAS, REPLICAS[0])}, "a replica id twice"),
        ({"replicas": (Replica("d", "aaaa"), *REPLICAS[1:])}, "went to another node"),
        ({"replicas": (replace(REPLICAS[0], directory="dx"), *REPLICAS[1:])}, "reused"),
        ({"replicas": (*REPLICAS, Replica("d", "dddd")), "in_sync": ("aaaa", "dddd")}, "only a leader"),
    ],
)
def test_a_wrong_decision_is_found_before_it_is_written(changes: dict[str, object], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        verify(RECORD, Change(replace(RECORD, **changes), "wrong"))  # type: ignore[arg-type]


def test_what_is_wanted_gets_no_tombstone() -> None:
    with pytest.raises(AssertionError, match="tombstone"):
        verify(RECORD, Change(RECORD, "wrong", tombs=[REPLICAS[1]]))


def test_good_decisions_pass() -> None:
    for changes in (
        {"in_sync": ("aaaa", "bbbb")},
        {"min_isr": 3},
        {"epoch": 6, "leader": Leader("b", "bbbb", 8)},
        {"transfer_to": "bbbb"},
        {"replicas": (*REPLICAS, Replica("d", "dddd"))},
        {"replicas": REPLICAS[:2], "in_sync": ("aaaa", "bbbb")},
    ):
        verify(RECORD, Change(replace(RECORD, **changes), "good"))  # type: ignore[arg-type]


def test_a_decision_as_a_transaction() -> None:
    change = Change(replace(RECORD, replicas=REPLICAS[:2], in_sync=("aaaa", "bbbb")), "", {"a": 7}, [REPLICAS[2]])
    compares, puts = transactions.write(KEYS, [change], term=33)
    assert compares == [
        Compare("/r/controller", Field.CREATE, 33),
        Compare("/r/shard/00000003", Field.MOD, 40),
        Compare("/r/live/a", Field.CREATE, 7),
    ]
    shard, tomb = puts
    assert isinstance(shard, Put)
    assert decode_shard(3, shard.value, 40) == change.record
    assert tomb.key == "/r/tomb/3/cccc"


def test_transactions_stay_below_what_a_store_takes() -> None:
    changes = [
        Change(replace(RECORD, shard=shard), "", {f"n{shard % 90}": 1}, [REPLICAS[2]] * (shard % 2))
        for shard in range(500)
    ]
    batches = list(transactions.batches(changes))
    assert [change for batch in batches for change in batch] == changes
    for batch in batches:
        compares, puts = transactions.write(KEYS, batch, term=1)
        assert len(batch) <= 60
        assert len(compares) <= 100
        assert len(puts) <= 100
    assert list(map(len, transactions.batches([Change(RECORD, "")] * 130))) == [60, 60, 10]
    assert list(transactions.batches([])) == []


def test_whether_a_decision_still_can_be_written() -> None:
    record = replace(RECORD, shard=0)
    view = View(50, "c", 1, {"a": NodeRef("a", "a:1", session=7)}, (record,))
    assert transactions.still_holds(view, Change(record, "", {"a": 7}))
    assert not transactions.still_holds(view, Change(record, "", {"a": 8}))
    assert not transactions.still_holds(view, Change(record, "", {"b": 7}))
    assert not transactions.still_holds(view, Change(replace(record, revision=39), ""))
    assert transactions.still_holds(replace(view, shards=()), Change(replace(record, revision=0), ""))
