"""A stream ends when it is told to, at whatever moment."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.etcd.stream import Stream
from ringpost.cluster.kv import KvError
from ringpost.internal.etcd import rpc_pb2, rpc_pb2_grpc
from tests.cluster.kv_support import Ear
from tests.etcd_server import EtcdServer, free_ports

KEEP_ALIVE = rpc_pb2.LeaseKeepAliveRequest(id=7)


@pytest.mark.parametrize("turns", range(8))
async def test_a_write_ends_with_its_stream(shared_etcd: EtcdServer, turns: int) -> None:
    """gRPC lets a write wait for ever when its call ends before it has begun."""
    async with asyncio.timeout(5), grpc.aio.insecure_channel(shared_etcd.endpoints[0]) as channel:
        stream = Stream(rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive())
        writing = asyncio.create_task(stream.send(KEEP_ALIVE))
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.end()
        (result,) = await asyncio.gather(writing, return_exceptions=True)
        assert result is None or isinstance(result, KvError), "it was quicker, or failed; it does not wait"
        with pytest.raises(KvError):
            await stream.send(KEEP_ALIVE)
        assert await stream.receive() is None


async def test_a_write_to_nobody_fails() -> None:
    async with asyncio.timeout(5), grpc.aio.insecure_channel(f"127.0.0.1:{free_ports(1)[0]}") as channel:
        stream = Stream(rpc_pb2_grpc.LeaseStub(channel).LeaseKeepAlive())
        with pytest.raises(KvError):
            await stream.send(KEEP_ALIVE)
        assert await stream.receive() is None
        stream.end()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_a_watch_can_be_closed_at_any_moment(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdKv], turns: int
) -> None:
    kv = connect(*shared_etcd.endpoints)
    async with asyncio.timeout(5):
        watch = await Ear().listen(kv, "/close/")
        for _ in range(turns):
            await asyncio.sleep(0)
        await watch.close()
