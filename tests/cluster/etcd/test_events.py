"""What a watch makes of answers in pieces, without any etcd."""

import pytest

from ringpost.cluster.etcd.events import Assembly
from ringpost.internal.etcd import rpc_pb2


def events(revision: int, *changes: tuple[str, bytes | None]) -> list[rpc_pb2.Event]:
    made = []
    for key, value in changes:
        kv = rpc_pb2.KeyValue(key=key.encode(), mod_revision=revision, create_revision=1, value=value or b"")
        kind = rpc_pb2.Event.DELETE if value is None else rpc_pb2.Event.PUT
        made.append(rpc_pb2.Event(type=kind, kv=kv))
    return made


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


@pytest.mark.parametrize("revision", [0, -1])
def test_no_watch_begins_from_now_on(revision: int) -> None:
    from ringpost.cluster.etcd.messages import watch_request

    with pytest.raises(AssertionError, match="skip"):
        watch_request("/a/", revision)
