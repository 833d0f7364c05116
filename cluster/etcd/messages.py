"""Requests and failures in etcd's terms. Pure."""

from collections.abc import Sequence

import grpc

from ringpost.cluster.kv import Compare, Delete, Field, Put
from ringpost.internal.etcd import rpc_pb2

# The server did not begin, or said no: nothing was changed. Everything else may have been done, or be done later.
_DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
# Answered before anything is done, by a member that is cut off from its leader; another one may do it.
_NO_LEADER = "etcdserver: no leader"
_STALE_TOKEN = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")


def range_end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def prefix_range(prefix: str) -> rpc_pb2.RangeRequest:
    """A linearizable read of all keys below a prefix."""
    key = prefix.encode()
    return rpc_pb2.RangeRequest(key=key or b"\0", range_end=range_end(key))


def txn_request(compares: Sequence[Compare], then: Sequence[Put | Delete]) -> rpc_pb2.TxnRequest:
    """One transaction."""
    return rpc_pb2.TxnRequest(compare=map(_compare, compares), success=map(_operation, then))


def _compare(compare: Compare) -> rpc_pb2.Compare:
    message = rpc_pb2.Compare(result=rpc_pb2.Compare.EQUAL, key=compare.key.encode())
    if compare.field is Field.MOD:
        message.target = rpc_pb2.Compare.MOD
        message.mod_revision = compare.revision
    else:
        message.target = rpc_pb2.Compare.CREATE
        message.create_revision = compare.revision
    return message


def _operation(operation: Put | Delete) -> rpc_pb2.RequestOp:
    key = operation.key.encode()
    if isinstance(operation, Put):
        put = rpc_pb2.PutRequest(key=key, value=operation.value, lease=operation.lease)
        return rpc_pb2.RequestOp(request_put=put)
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))


def watch_request(prefix: str, revision: int) -> rpc_pb2.WatchRequest:
    """A watch of all keys below a prefix, from `revision` (above 0) on."""
    assert revision > 0, "0 would skip what happened meanwhile"
    key = prefix.encode()
    create = rpc_pb2.WatchCreateRequest(
        key=key or b"\0", range_end=range_end(key), start_revision=revision, progress_notify=True, fragment=True
    )
    return rpc_pb2.WatchRequest(create_request=create)


def surely_not_done(code: grpc.StatusCode, details: str) -> bool:
    """Whether a write that failed so has changed nothing and never will."""
    return code in _DEFINITE or details == _NO_LEADER


def worth_another(code: grpc.StatusCode, details: str) -> bool:
    """Whether another member may well do what this one did not."""
    return code not in _DEFINITE or details == _NO_LEADER


def token_is_stale(code: grpc.StatusCode, details: str) -> bool:
    """Whether a new token cures it."""
    return code is grpc.StatusCode.UNAUTHENTICATED or details in _STALE_TOKEN
