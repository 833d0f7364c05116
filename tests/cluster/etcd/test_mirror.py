"""What a watch makes of pictures, revisions and pieces, without any etcd."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.etcd.mirror import Assembly, Mirror
from ringpost.cluster.kv import Change, Item, Picture
from ringpost.internal.etcd import rpc_pb2


def item(key: str, value: bytes, revision: int, created: int = 1) -> Item:
    return Item(key, value, created, revision, 0)


def events(revision: int, *changes: tuple[str, bytes | None]) -> list[rpc_pb2.Event]:
    made = []
    for key, value in changes:
        kv = rpc_pb2.KeyValue(key=key.encode(), mod_revision=revision, create_revision=1, value=value or b"")
        kind = rpc_pb2.Event.DELETE if value is None else rpc_pb2.Event.PUT
        made.append(rpc_pb2.Event(type=kind, kv=kv))
    return made


def test_the_first_picture_is_all_change() -> None:
    mirror = Mirror()
    a = item("a", b"1", 4)
    assert mirror.reset(Picture(5, (a,))) == Change(5, (("a", a),))
    assert mirror.revision == 5


def test_a_later_picture_is_the_difference_with_deletes() -> None:
    mirror = Mirror()
    kept, gone, old = item("kept", b"", 2), item("gone", b"", 2), item("changed", b"1", 3)
    mirror.reset(Picture(5, (kept, gone, old)))
    new, fresh = item("changed", b"2", 8), item("new", b"", 9, created=9)
    change = mirror.reset(Picture(9, (kept, new, fresh)))
    assert change is not None
    assert (change.revision, dict(change.items)) == (9, {"gone": None, "changed": new, "new": fresh})


def test_a_key_that_was_deleted_and_made_again_shows() -> None:
    mirror = Mirror()
    mirror.reset(Picture(5, (item("live", b"same", 2, created=2),)))
    again = item("live", b"same", 7, created=7)
    change = mirror.reset(Picture(8, (again,)))
    assert change is not None
    assert change.items == (("live", again),)


def test_what_is_not_newer_is_dropped() -> None:
    mirror = Mirror()
    mirror.reset(Picture(5, ()))
    assert mirror.reset(Picture(5, (item("a", b"", 5),))) is None
    assert not mirror.apply(Change(5, (("a", item("a", b"", 5)),)))
    assert mirror.apply(Change(6, (("a", item("a", b"", 6)),)))
    assert mirror.reset(Picture(7, (item("a", b"", 6),))) is None, "nothing has changed"
    assert mirror.revision == 7


def test_an_answer_is_cut_into_revisions() -> None:
    answer = rpc_pb2.WatchResponse(events=events(7, ("a", b"1"), ("b", None)) + events(9, ("a", b"2")))
    changes = Assembly().add(answer)
    assert [(change.revision, [key for key, _ in change.items]) for change in changes] == [(7, ["a", "b"]), (9, ["a"])]
    assert changes[0].items[1] == ("b", None)


def test_pieces_make_whole_revisions() -> None:
    """etcd cuts anywhere, also within a revision."""
    assembly = Assembly()
    assert assembly.add(rpc_pb2.WatchResponse(fragment=True, events=events(7, ("a", b"1")))) == ()
    assert assembly.add(rpc_pb2.WatchResponse(fragment=True, events=events(7, ("b", b"1")))) == ()
    changes = assembly.add(rpc_pb2.WatchResponse(events=events(7, ("c", b"1")) + events(8, ("a", None))))
    assert [(change.revision, len(change.items)) for change in changes] == [(7, 3), (8, 1)]
    assert assembly.add(rpc_pb2.WatchResponse()) == ()


@given(st.lists(st.sets(st.integers(0, 5)), max_size=12), st.randoms(use_true_random=False))
def test_however_it_is_brought_up_to_date_it_holds_the_same(revisions: list[set[int]], chance: random.Random) -> None:
    """Revisions one by one, or any of them missed and made up for by a picture."""
    truth: dict[str, Item] = {}
    mirror, seen = Mirror(), dict[str, Item]()

    def hear(change: Change | None) -> None:
        for key, found in change.items if change else ():
            seen.pop(key, None)
            if found is not None:
                seen[key] = found

    for revision, keys in enumerate(revisions, start=1):
        change = []
        for number in keys:
            key = str(number)
            new = None if key in truth and chance.random() < 0.4 else item(key, b"", revision)
            truth.pop(key, None)
            if new is not None:
                truth[key] = new
            change.append((key, new))
        if chance.random() < 0.5:
            hear(mirror.reset(Picture(revision, tuple(truth.values()))))
        elif mirror.revision == revision - 1 and mirror.apply(Change(revision, tuple(change))):
            hear(Change(revision, tuple(change)))
    hear(mirror.reset(Picture(len(revisions) + 1, tuple(truth.values()))))
    assert seen == truth


@pytest.mark.parametrize("revision", [0, -1])
def test_no_watch_begins_from_now_on(revision: int) -> None:
    from ringpost.cluster.etcd.messages import watch_request

    with pytest.raises(AssertionError, match="skip"):
        watch_request("/a/", revision)
