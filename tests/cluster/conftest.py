"""One etcd for all tests that only use it, clients that are closed, clusters of nodes that only coordinate."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.etcd.endpoints import EtcdOptions
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from tests.cluster.coordination_rig import Cluster
from tests.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One member, for tests that neither stop nor compact it."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def make_etcd(tmp_path: Path) -> Iterator[Callable[..., EtcdServer]]:
    """Makes an etcd of one's own."""
    made: list[EtcdServer] = []

    def make(size: int = 1, **options: Any) -> EtcdServer:
        server = EtcdServer(tmp_path / f"etcd{len(made)}", size, **options)
        made.append(server)
        return server.start()

    try:
        yield make
    finally:
        for server in made:
            server.close()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., EtcdKv]]:
    """Makes clients of endpoints."""
    async with AsyncExitStack() as stack:

        def make(*endpoints: str, **options: Any) -> EtcdKv:
            kv = EtcdKv(EtcdOptions(endpoints=endpoints, **options))
            stack.push_async_callback(kv.close)
            return kv

        yield make


@pytest.fixture(params=["memory", "etcd"])
async def cluster(request: pytest.FixtureRequest, connect: Callable[..., EtcdKv]) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        if request.param == "etcd":
            server = request.getfixturevalue("shared_etcd")
            yield Cluster(lambda: connect(*server.endpoints), stack)
        else:
            store = MemoryStore()
            yield Cluster(lambda: MemoryKv(store), stack)


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def in_memory(store: MemoryStore) -> AsyncIterator[Cluster]:
    """For stories in which the store itself is tampered with."""
    async with AsyncExitStack() as stack:
        yield Cluster(lambda: MemoryKv(store), stack)
