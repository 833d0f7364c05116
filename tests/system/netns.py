"""A cluster of which each node, and etcd, has a network namespace of its own, so that links can be cut, also one way.

Needs root, iproute2 and nftables. A bridge joins the namespaces and this machine's own, where the clients are. It is in
a namespace itself, so that no firewall of the machine has a say.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.etcd_server import EtcdServer
from tests.system.local import LocalCluster

ETCD = "etcd"
_NET = "10.213.77"
_RULES = "table inet cut { chain heard { type filter hook input priority 0; policy accept; }; }"


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def require() -> None:
    """Skips with the reason where namespaces cannot be made."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"cutting links needs iproute2 and nftables; not found: {', '.join(missing)}")
    name = f"rp{os.getpid()}try"
    try:
        _run("ip", "netns", "add", name)
    except AssertionError as error:
        pytest.skip(f"cutting links needs the right to make network namespaces: {error}")
    _run("ip", "netns", "del", name)


class CutCluster(LocalCluster):
    """`cut` and `join` links between the nodes n1, n2, … and `ETCD`; clients always reach every node."""

    def __init__(self, directory: Path, size: int = 3, *flags: str) -> None:
        require()
        self._name = f"rp{os.getpid()}"
        self._spaces: list[str] = []
        try:
            self._make_bridge()
            super().__init__(directory, size, "--insecure", *flags)
        except BaseException:
            self._remove()
            raise

    def _make_bridge(self) -> None:
        hub = self._name
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        _run("ip", "link", "add", self._name, "type", "veth", "peer", "name", "clients", "netns", hub)
        _run("ip", "-n", hub, "link", "set", "clients", "master", "bridge", "up")
        _run("ip", "addr", "add", f"{_NET}.1/24", "dev", self._name)
        _run("ip", "link", "set", self._name, "up")

    def _make_etcd(self) -> EtcdServer:
        host, before = self._place(ETCD)
        return EtcdServer(self.directory / "etcd", host=host, before=before)

    def _place(self, name: str) -> tuple[str, tuple[str, ...]]:
        space, host = self._space(name), self._host(name)
        _run("ip", "netns", "add", space)
        self._spaces.append(space)
        _run("ip", "-n", self._name, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "-n", self._name, "link", "set", name, "master", "bridge", "up")
        _run("ip", "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        inside = ("ip", "netns", "exec", space)
        _run(*inside, "nft", _RULES)
        return host, inside

    def _space(self, name: str) -> str:
        return f"{self._name}-{name}"

    def _host(self, name: str) -> str:
        return f"{_NET}.{2 if name == ETCD else 10 + int(name[1:])}"

    def cut(self, source: str, *targets: str, both_ways: bool = True) -> None:
        """From now on the targets hear nothing of the source; and the other way round, unless that is to work on."""
        for target in targets:
            self._drop(target, source)
            if both_ways:
                self._drop(source, target)

    def _drop(self, hearer: str, source: str) -> None:
        rule = f"add rule inet cut heard ip saddr {self._host(source)} drop"
        _run("ip", "netns", "exec", self._space(hearer), "nft", rule)

    def join(self) -> None:
        """All links work again."""
        for space in self._spaces:
            _run("ip", "netns", "exec", space, "nft", "flush chain inet cut heard")

    async def heal(self) -> None:
        self.join()
        await super().heal()

    def close(self) -> None:
        super().close()
        self._remove()

    def _remove(self) -> None:
        for space in (*self._spaces, self._name):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._name], check=False, capture_output=True)
