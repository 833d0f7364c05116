"""One cluster of three for all tests that leave it as they found it, and a load on it that is checked at the end."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from ringpost.client.routes import shard_of
from tests.system.load import Load, every_shard_accepts
from tests.system.local import LocalCluster

Loaded: TypeAlias = Callable[[LocalCluster], AbstractAsyncContextManager[Load]]
PER_NODE = 2
SHARDS = 256
AFTER_LAST_FAULT_S = 30.0


def one_name_per_shard(shards: int = SHARDS) -> list[str]:
    """A channel of each shard."""
    names: dict[int, str] = {}
    number = 0
    while len(names) < shards:
        names.setdefault(shard_of(f"every.{number}", shards), f"every.{number}")
        number += 1
    return list(names.values())


EVERY_SHARD = one_name_per_shard()


@pytest.fixture
async def own_cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """A whole cluster of three for one test that changes it for good."""
    async with started(tmp_path) as cluster:
        yield cluster


@asynccontextmanager
async def started(directory: Path, size: int = 3, *flags: str) -> AsyncIterator[LocalCluster]:
    """A cluster that is whole; killed at the end."""
    cluster = LocalCluster(directory, size, *flags)
    try:
        await asyncio.to_thread(cluster.start)
        await cluster.serving()
        await cluster.whole()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
async def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    async with started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def cluster(shared_cluster: LocalCluster) -> LocalCluster:
    """Whole at the beginning; whatever the test leaves broken is mended for the next one."""
    await shared_cluster.heal()
    return shared_cluster


@pytest.fixture
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """`async with loaded(cluster) as load`: channels on all nodes; leaving it checks every promise."""
    name = re.sub(r"\W", "-", request.node.name)

    @asynccontextmanager
    async def load_on(cluster: LocalCluster) -> AsyncIterator[Load]:
        faults_before = len(cluster.faults())
        channels = await cluster.channels_on_all_nodes(name, PER_NODE)
        async with Load(cluster.addresses, channels) as load:
            try:
                yield load
                await accepted_everywhere(cluster, load)
                await load.finish()
            except AssertionError:
                print(await cluster.describe())
                raise
            print(f"\n{request.node.name}: {load.told()}")
        assert cluster.faults()[faults_before:] == []

    return load_on


async def accepted_everywhere(cluster: LocalCluster, load: Load) -> None:
    """The last fault is over: 30 seconds later at most every shard is writable again."""
    up = [cluster.address(name) for name in cluster.up]
    await every_shard_accepts(up, EVERY_SHARD, AFTER_LAST_FAULT_S)
    await load.progress(3, AFTER_LAST_FAULT_S)
