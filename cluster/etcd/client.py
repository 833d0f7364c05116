"""etcd as a `Kv`."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import grpc

from ringpost.cluster.etcd.caller import Caller, CallError
from ringpost.cluster.etcd.endpoints import EtcdOptions
from ringpost.cluster.etcd.leases import LeaseStream
from ringpost.cluster.etcd.messages import txn_request
from ringpost.cluster.etcd.watch import EtcdWatch, read_picture
from ringpost.cluster.kv import Change, Compare, Delete, Kv, KvError, Picture, Put, TxnResult, Watch
from ringpost.internal.etcd import rpc_pb2

OPERATIONS_MAX = 100


class EtcdKv(Kv):
    """A client of one etcd cluster. Connects with the first call, which needs a running loop."""

    def __init__(self, options: EtcdOptions) -> None:
        self._caller = Caller(options)
        self._leases = LeaseStream(self._caller)
        self._watches: set[EtcdWatch] = set()
        self._name = "etcd"
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def store_id(self) -> str:
        return f"{self._caller.cluster_id:x}" if self._caller.cluster_id else ""

    async def ask_version(self) -> None:
        """Makes `name` hold the version. Raises KvError."""
        request = rpc_pb2.StatusRequest()
        answer = await self._caller.read(
            lambda member: member.maintenance.Status, request, rpc_pb2.StatusResponse, linearizable=False
        )
        self._name = f"etcd {answer.version}"

    async def range(self, prefix: str) -> Picture:
        return await read_picture(self._caller, prefix)

    async def txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete]) -> TxnResult:
        assert len(compares) <= OPERATIONS_MAX, "too many comparisons"
        assert len(then) <= OPERATIONS_MAX, "too many operations"
        request = txn_request(compares, then)
        answer = await self._caller.write(lambda member: member.kv.Txn, request, rpc_pb2.TxnResponse)
        return TxnResult(answer.succeeded, answer.header.revision)

    async def grant(self, ttl_s: int) -> int:
        # Granting twice only leaves a lease that ends by itself.
        request = rpc_pb2.LeaseGrantRequest(ttl=ttl_s)
        answer = await self._caller.read(
            lambda member: member.lease.LeaseGrant, request, rpc_pb2.LeaseGrantResponse, linearizable=False
        )
        if answer.error:
            raise KvError(f"etcd grants no lease: {answer.error}")
        return answer.id

    async def keep_alive(self, lease: int) -> float:
        return await self._leases.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        request = rpc_pb2.LeaseRevokeRequest(id=lease)
        try:
            await self._caller.read(
                lambda member: member.lease.LeaseRevoke, request, rpc_pb2.LeaseRevokeResponse, linearizable=False
            )
        except CallError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:  # it is gone already
                raise

    async def watch(self, prefix: str, picture: Callable[[Picture], None], change: Callable[[Change], None]) -> Watch:
        watch = EtcdWatch(self._caller, prefix, picture, change)
        await watch.begin()
        self._watches.add(watch)
        with suppress(KvError):  # only people read it
            await self.ask_version()
        return watch

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            await watch.close()
        await self._leases.close()
        await self._caller.endpoints.close()
