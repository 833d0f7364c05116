"""What tests of membership share: a cluster of nodes on one store, which is etcd or in memory."""

import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.joining import DirectoryFacts, Founding
from ringpost.cluster.kv import Delete, Item, Kv, Put
from ringpost.cluster.kv_coordination import KvCoordination
from ringpost.cluster.records import encode_shard
from ringpost.cluster.view import NodeRef, Replica, ShardRecord

_numbers = itertools.count()
SHARDS = 4


@dataclass
class Cluster:
    """Makes nodes that join one cluster, and sees what is stored."""

    open_kv: Callable[[], Kv]
    stack: AsyncExitStack
    prefix: str = field(default_factory=lambda: f"/ringpost/test-{next(_numbers)}/")

    def node(self, name: str, boot: int = 1, *, directory: str = "", **options: Any) -> KvCoordination:
        facts = DirectoryFacts(
            directory=directory or f"dir-{name}",
            boot=boot,
            cluster_id=options.pop("cluster_id", ""),
            revision_seen=options.pop("revision_seen", 0),
            store_id=options.pop("store_id", ""),
            accept_store=options.pop("accept_store", False),
        )
        founding = Founding(cluster_id=f"by-{name}", shard_count=SHARDS, replication_factor=3, min_isr=2)
        made = KvCoordination(
            options.pop("kv", None) or self.open_kv(), self.prefix, facts=facts, founding=founding, **options
        )
        self.stack.push_async_callback(made.close)
        return made

    async def join(self, name: str, boot: int = 1, **options: Any) -> KvCoordination:
        made = self.node(name, boot, **options)
        await made.start(member(name))
        return made

    async def items(self) -> dict[str, Item]:
        picture = await self.open_kv().range(self.prefix)
        return {item.key.removeprefix(self.prefix): item for item in picture.items}

    async def put(self, *operations: tuple[str, bytes | None]) -> int:
        then = [Delete(self.prefix + key) if v is None else Put(self.prefix + key, v) for key, v in operations]
        return (await self.open_kv().txn([], then)).revision

    async def make_shards(self, *nodes: str) -> None:
        await self.put(*((f"shard/{shard:08}", encode_shard(record(shard, *nodes))) for shard in range(SHARDS)))


def member(name: str, **changes: Any) -> NodeRef:
    return replace(NodeRef(name, f"{name}:7400", zone=f"zone-{name}", peer_address=f"{name}:7401"), **changes)


def record(shard: int, *nodes: str, revision: int = 0, **changes: Any) -> ShardRecord:
    replicas = tuple(Replica(node, f"r-{node}", directory=f"dir-{node}") for node in nodes)
    fields = {
        "shard": shard,
        "epoch": 0,
        "leader": None,
        "in_sync": tuple(replica.replica_id for replica in replicas),
        "replicas": replicas,
        "min_isr": 1,
        "revision": revision,
    }
    return ShardRecord(**{**fields, **changes})


async def refused(node: KvCoordination, name: str = "a") -> str:
    with pytest.raises(CoordinationError) as raised:
        await node.start(member(name))
    return str(raised.value)
