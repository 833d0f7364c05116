"""Records there and back, and the view that they make."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.kv import Change, Item, Picture
from ringpost.cluster.records import Keys, RecordError, Records, decode_shard, encode_node, encode_shard, encode_tomb
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, Role, ShardRecord, Tombstone
from ringpost.internal.v1 import cluster_pb2

KEYS = Keys("/ringpost/test/")
names = st.text("abcdef0123456789", min_size=1, max_size=8)


@st.composite
def shard_records(draw: st.DrawFn) -> ShardRecord:
    ids = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    replicas = tuple(Replica(f"n-{i}", i, draw(st.sampled_from(Role)), draw(names | st.just(""))) for i in ids)
    in_sync = tuple(draw(st.lists(st.sampled_from(ids), min_size=1, unique=True)))
    leader = draw(st.none() | st.builds(Leader, names, st.sampled_from(in_sync), st.integers(1, 1 << 60)))
    return ShardRecord(
        shard=draw(st.integers(0, 65_535)),
        epoch=draw(st.integers(0, 1 << 60)),
        leader=leader,
        in_sync=in_sync,
        replicas=replicas,
        min_isr=draw(st.integers(1, len(in_sync))),
        revision=draw(st.integers(1, 1 << 60)),
        transfer_to=draw(st.just("") | st.sampled_from(ids)),
        unclean_count=draw(st.integers(0, 5)),
    )


@given(shard_records())
def test_a_shard_comes_back_as_it_was(record: ShardRecord) -> None:
    assert decode_shard(record.shard, encode_shard(record), record.revision) == record


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xff",
        b"",
        cluster_pb2.ShardState(in_sync=["x"], min_isr=1).SerializeToString(),
        cluster_pb2.ShardState(
            in_sync=["x"], min_isr=1, replicas=[cluster_pb2.ReplicaState(node="a", replica_id="x")]
        ).SerializeToString(),
    ],
)
def test_what_is_no_shard_is_refused(value: bytes) -> None:
    with pytest.raises(RecordError, match="shard 7"):
        decode_shard(7, value, 1)


def test_the_keys_are_those_of_the_schema() -> None:
    assert (KEYS.meta, KEYS.controller) == ("/ringpost/test/meta", "/ringpost/test/controller")
    assert (KEYS.node("a"), KEYS.live("a")) == ("/ringpost/test/node/a", "/ringpost/test/live/a")
    assert KEYS.shard(7) == "/ringpost/test/shard/00000007"
    assert KEYS.tomb(7, "r") == "/ringpost/test/tomb/7/r"
    with pytest.raises(AssertionError):
        Keys("/ringpost/test")


def shard(number: int, leader: str = "", epoch: int = 1) -> bytes:
    return encode_shard(
        ShardRecord(
            shard=number,
            epoch=epoch,
            leader=Leader(leader, "r", 5) if leader else None,
            in_sync=("r",),
            replicas=(Replica("a", "r"),),
            min_isr=1,
            revision=0,
        )
    )


def stored(shards: int) -> list[Item]:
    meta = cluster_pb2.ClusterRecord(cluster_id="c", shard_count=shards, format=1, replication_factor=3, min_isr=2)
    values = {
        KEYS.meta: meta.SerializeToString(),
        KEYS.node("a"): encode_node(NodeRef("a", "a:1", weight=500, host="h"), 4),
    }
    values |= {KEYS.shard(number): shard(number, "a") for number in range(shards)}
    live = cluster_pb2.LiveRecord(boot=4, directory="d", lost_shards=[1], unreachable=["b"]).SerializeToString()
    return [
        *(Item(key, value, 2, 2, 0) for key, value in values.items()),
        Item(KEYS.live("a"), live, 5, 5, 77),
        Item(KEYS.tomb(1, "old"), encode_tomb(Replica("a", "old", directory="d")), 2, 2, 0),
        Item(KEYS.prefix + "acl/later", b"?", 2, 2, 0),
    ]


def test_a_view_is_made_of_records() -> None:
    records = Records(KEYS)
    with pytest.raises(RecordError, match="no /ringpost/test/meta"):
        records.view()
    records.reset(Picture(9, tuple(stored(3))))
    view = records.view()
    assert (view.revision, view.cluster_id, view.shard_count, view.min_isr) == (9, "c", 3, 2)
    lost, unreachable = frozenset({1}), frozenset({"b"})
    ref = NodeRef("a", "a:1", session=5, lost_shards=lost, weight=500, unreachable=unreachable, host="h")
    assert view.nodes == {"a": ref}
    assert [record.shard for record in view.shards] == [0, 1, 2]
    assert {record.revision for record in view.shards} == {2}
    assert view.tombs == (Tombstone(1, "old", "a", "d", 2),)


def test_a_tombstone_that_is_removed_is_no_more_in_the_view() -> None:
    records = Records(KEYS)
    records.reset(Picture(9, tuple(stored(3))))
    before = records.view()
    records.apply(Change(10, ((KEYS.tomb(1, "old"), None),)))
    assert records.view().tombs == ()
    assert len(before.tombs) == 1, "a view never changes"
    records.apply(Change(11, ((KEYS.tomb(2, "x"), Item(KEYS.tomb(2, "x"), b"", 11, 11, 0)),)))
    assert records.view().tombs == (Tombstone(2, "x", "", "", 11),)


def test_a_node_that_lost_its_lease_stays_a_member() -> None:
    records = Records(KEYS)
    records.reset(Picture(9, tuple(stored(1))))
    assert records.apply(Change(10, ((KEYS.live("a"), None),)))
    assert records.view().nodes["a"] == NodeRef("a", "a:1", weight=500, host="h")
    node = cluster_pb2.NodeRecord(address="a:1", desired=cluster_pb2.DESIRED_DRAIN).SerializeToString()
    records.apply(Change(11, ((KEYS.node("a"), Item(KEYS.node("a"), node, 2, 11, 0)),)))
    assert records.view().nodes["a"].desired is Desired.DRAIN


def test_a_leader_that_was_removed_is_known_and_dead() -> None:
    records = Records(KEYS)
    records.reset(Picture(9, tuple(stored(1))))
    records.apply(Change(10, ((KEYS.node("a"), None), (KEYS.live("a"), None))))
    view = records.view()
    assert view.nodes == {"a": NodeRef("a", "")}
    assert not view.leader_alive(view.shards[0])


def test_older_changes_do_nothing() -> None:
    records = Records(KEYS)
    records.reset(Picture(9, tuple(stored(1))))
    assert not records.apply(Change(9, ((KEYS.meta, None),)))
    assert not records.reset(Picture(9, ()))
    assert records.view().cluster_id == "c"


def test_a_bad_value_leaves_the_last_good_one_and_is_named() -> None:
    records = Records(KEYS)
    records.reset(Picture(9, tuple(stored(1))))
    key = KEYS.shard(0)
    records.apply(Change(10, ((key, Item(key, b"\xff", 2, 10, 0)),)))
    assert list(records.problems) == [key]
    assert records.view().shards[0].epoch == 1
    records.apply(Change(11, ((key, Item(key, shard(0, epoch=3), 2, 11, 0)),)))
    assert records.problems == {}
    assert records.view().shards[0].epoch == 3


def test_one_change_among_4096_shards_is_cheap() -> None:
    """Nothing that did not change is decoded again, neither by a change nor by another picture."""
    records, items = Records(KEYS), stored(4096)
    records.reset(Picture(9, tuple(items)))
    before = records.view()
    key = KEYS.shard(17)
    changed = Item(key, shard(17, epoch=2), 2, 10, 0)
    began = time.perf_counter()
    records.apply(Change(10, ((key, changed),)))
    view = records.view()
    took = time.perf_counter() - began
    records.reset(Picture(11, tuple(changed if item.key == key else item for item in items)))
    later = records.view()
    assert view.shards[17].epoch == later.shards[17].epoch == 2
    assert all(a is b for a, b in zip(before.shards, later.shards, strict=True) if a.shard != 17)
    assert took < 0.05, "seconds; a hundredth of that is usual"
