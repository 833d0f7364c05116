"""Prefixes as ranges, and which failures leave the outcome open."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.cluster.etcd.endpoints import EtcdOptions
from ringpost.cluster.etcd.messages import range_end, surely_not_done, token_is_stale, worth_another

Code = grpc.StatusCode


@given(st.binary(max_size=4), st.binary(max_size=5))
def test_a_range_holds_what_begins_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = range_end(prefix)
    within = prefix <= key and (end == b"\0" or key < end)
    assert within == key.startswith(prefix)


@pytest.mark.parametrize(
    ("code", "details", "definite", "elsewhere"),
    [
        (Code.UNAVAILABLE, "etcdserver: request timed out", False, True),
        (Code.UNAVAILABLE, "etcdserver: leader changed", False, True),
        (Code.UNAVAILABLE, "Socket closed", False, True),
        (Code.UNAVAILABLE, "etcdserver: no leader", True, True),
        (Code.DEADLINE_EXCEEDED, "", False, True),
        (Code.CANCELLED, "", False, True),
        (Code.INTERNAL, "", False, True),
        (Code.UNKNOWN, "", False, True),
        (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", True, False),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", True, False),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", True, False),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", True, False),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", True, False),
    ],
)
def test_what_a_failed_write_means(code: Code, details: str, definite: bool, elsewhere: bool) -> None:
    assert surely_not_done(code, details) == definite
    assert worth_another(code, details) == elsewhere


def test_a_stale_token_is_known_by_its_words() -> None:
    assert token_is_stale(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
    assert token_is_stale(Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
    assert not token_is_stale(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")


def test_options_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        EtcdOptions(endpoints=())
    with pytest.raises(ValueError, match="belong together"):
        EtcdOptions(endpoints=("a:1",), cert=b"c")
