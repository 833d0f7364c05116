"""A network of our own, in which links between processes can be cut, also one way.

Each process gets a network namespace with an address of its own. A bridge joins them and this machine, where clients
are; it is in a namespace itself, so that no firewall of the machine has a say. Needs Linux, root, iproute2, nftables.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

_PREFIX = "rpnet"
_LOCK = Path("/run/lock/ringpost-netns")
_SUBNETS = [f"10.213.{third}" for third in range(70, 90)]
_RULES = "table inet cut { chain heard { type filter hook input priority 0; policy accept; }; }"
_END_SECONDS = 5.0


class NetworkError(Exception):
    """No such network can be made or changed; the message says why."""


def missing() -> str:
    """What this machine lacks for a network of our own, and what to do; empty when it lacks nothing."""
    if not sys.platform.startswith("linux"):
        return "links can be cut on Linux only, with network namespaces"
    tools = [(tool, package) for tool, package in (("ip", "iproute2"), ("nft", "nftables")) if not shutil.which(tool)]
    if tools:
        names, packages = (" and ".join(one) for one in zip(*tools, strict=True))
        return f"cutting links needs {names}: install {packages}"
    if os.geteuid() != 0:
        return "cutting links needs the right to make network namespaces: run this as root"
    name = f"{_PREFIX}{os.getpid()}try"
    try:
        _run("ip", "netns", "add", name)
    except NetworkError as error:
        return f"network namespaces cannot be made here, perhaps since this is a container with too few rights: {error}"
    _run("ip", "netns", "del", name)
    return ""


class Network:
    """Places with a name and an address each, joined until links are cut. Leave it with `remove`, whatever happened.

    Raises `NetworkError`. What a run that was killed has left behind is removed first.
    """

    def __init__(self) -> None:
        self._name = f"{_PREFIX}{os.getpid()}"
        self._hosts: dict[str, str] = {}
        with _exclusive():
            remove_leftovers()
            self._net = _free_subnet()
            try:
                self._make_bridge()
            except BaseException:
                self.remove()
                raise

    def _make_bridge(self) -> None:
        hub = self._name
        _run("ip", "netns", "add", hub)
        _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", hub, "link", "set", "bridge", "up")
        _run("ip", "link", "add", hub, "type", "veth", "peer", "name", "clients", "netns", hub)
        _run("ip", "-n", hub, "link", "set", "clients", "master", "bridge", "up")
        _run("ip", "addr", "add", f"{self._net}.1/24", "dev", hub)
        _run("ip", "link", "set", hub, "up")

    def place(self, name: str) -> tuple[str, list[str]]:
        """A new place: its address, and the beginning of a command that runs another there, as the same process."""
        space, host = self._space(name), f"{self._net}.{len(self._hosts) + 2}"
        self._hosts[name] = host
        _run("ip", "netns", "add", space)
        link = f"place{len(self._hosts)}"
        _run("ip", "-n", self._name, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "-n", self._name, "link", "set", link, "master", "bridge", "up")
        _run("ip", "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        inside = ["ip", "netns", "exec", space]
        _run(*inside, "nft", _RULES)
        return host, inside

    def _space(self, name: str) -> str:
        return f"{self._name}-{name}"

    def cut(self, source: str, *targets: str, both_ways: bool = True) -> None:
        """From now on the targets hear nothing of the source; and the other way round, unless that is to work on."""
        for target in targets:
            self._drop(target, source)
            if both_ways:
                self._drop(source, target)

    def _drop(self, hearer: str, source: str) -> None:
        rule = f"add rule inet cut heard ip saddr {self._hosts[source]} drop"
        _run("ip", "netns", "exec", self._space(hearer), "nft", rule)

    def join(self) -> None:
        """All links work again."""
        for name in self._hosts:
            _run("ip", "netns", "exec", self._space(name), "nft", "flush chain inet cut heard")

    def remove(self) -> None:
        """Everything that was made here; processes that still run there are killed."""
        _remove(self._name)


def remove_leftovers() -> None:
    """Networks whose makers are dead, and the processes in them."""
    for name in {space.partition("-")[0] for space in _spaces() if space.startswith(_PREFIX)}:
        number = name.removeprefix(_PREFIX).removesuffix("try")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            _remove(name)


def _remove(network: str) -> None:
    spaces = [space for space in _spaces() if space == network or space.startswith(f"{network}-")]
    for space in spaces:
        _kill_all(space)
    for space in spaces:
        _try("ip", "netns", "del", space)
    _try("ip", "link", "del", network)


def _kill_all(space: str) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while (pids := _try("ip", "netns", "pids", space).split()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)  # other programs' children: there is no event to wait for


def _spaces() -> list[str]:
    return [line.split()[0] for line in _try("ip", "netns", "list").splitlines() if line]


def _free_subnet() -> str:
    taken = _run("ip", "-o", "-4", "addr")
    for net in _SUBNETS:
        if f" {net}." not in taken:
            return net
    raise NetworkError(f"All of {_SUBNETS[0]}.0/24 to {_SUBNETS[-1]}.0/24 are taken on this machine.")


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """One network at a time is made on a machine."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NetworkError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout


def _try(*command: str) -> str:
    """Output of a command that may fail."""
    return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
