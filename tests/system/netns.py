"""A cluster of which each node, and etcd, has a network namespace of its own, so that links can be cut."""

from pathlib import Path

import pytest

from ringpost.client.cli.netns import Network, missing
from tests.etcd_server import EtcdServer
from tests.system.local import LocalCluster

ETCD = "etcd"


class CutCluster(LocalCluster):
    """`cut` and `join` links between the nodes n1, n2, … and `ETCD`; clients always reach every node."""

    def __init__(self, directory: Path, size: int = 3, *flags: str) -> None:
        if lacking := missing():
            pytest.skip(lacking)
        self.network = Network()
        self.cut = self.network.cut
        self.join = self.network.join
        try:
            super().__init__(directory, size, "--insecure", *flags)
        except BaseException:
            self.network.remove()
            raise

    def _make_etcd(self) -> EtcdServer:
        host, before = self.network.place(ETCD)
        return EtcdServer(self.directory / "etcd", host=host, before=tuple(before))

    def _place(self, name: str) -> tuple[str, tuple[str, ...]]:
        host, before = self.network.place(name)
        return host, tuple(before)

    async def heal(self) -> None:
        self.join()
        await super().heal()

    def close(self) -> None:
        super().close()
        self.network.remove()
