"""A network whose links can be cut: who hears whom, what is said where it cannot be made, and that nothing stays."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringpost.client.cli import netns
from ringpost.client.cli.faults import ALL, DEAF, MUTE, NODES, ONE, STORE, cut
from ringpost.client.cli.netns import Network

# Prints what it hears until its input ends, and a moment longer; the other says its name to an address.
_LISTEN = """
import select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 7)); print("ready", flush=True)
heard, sources, wait = set(), [s, sys.stdin], None
while ready := select.select(sources, [], [], wait)[0]:
    if s in ready: heard.add(s.recv(99).decode())
    else: sources, wait = [s], 0.3
print(*sorted(heard))
"""
_SAY = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
[s.sendto(sys.argv[1].encode(), (host, 7)) for host in sys.argv[2:] for _ in range(3)]
"""


class Places:
    """Three nodes and etcd as places, each with its address."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.places = {name: network.place(name) for name in ("a", "b", "c", "etcd")}

    def heard(self) -> dict[str, str]:
        """Whom each place hears, by first letters; m is this machine."""
        listeners = {
            name: subprocess.Popen(
                [*inside, sys.executable, "-c", _LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for name, (_, inside) in self.places.items()
        }
        for one in listeners.values():
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        hosts = [host for host, _ in self.places.values()]
        for name, inside in (("m", []), *((name[0], inside) for name, (_, inside) in self.places.items())):
            subprocess.run([*inside, sys.executable, "-S", "-c", _SAY, name, *hosts], check=True)
        heard = {name: one.communicate()[0].split() for name, one in listeners.items()}
        return {name[0]: "".join(sorted(set(who) - {name[0]})) for name, who in heard.items()}


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    if lacking := netns.missing():
        pytest.skip(lacking)
    network = Network()
    try:
        yield Places(network)
    finally:
        network.remove()


WHOLE = {"a": "bcem", "b": "acem", "c": "abem", "e": "abcm"}
CUTS = {
    ALL: {"a": "m", "b": "cem", "c": "bem", "e": "bcm"},
    NODES: {"a": "em", "b": "cem", "c": "bem", "e": "abcm"},
    DEAF: {"a": "em", "b": "acem", "c": "abem", "e": "abcm"},
    MUTE: {"a": "bcem", "b": "cem", "c": "bem", "e": "abcm"},
    ONE: {"a": "cem", "b": "cem", "c": "abem", "e": "abcm"},
    STORE: {"a": "bcm", "b": "acem", "c": "abem", "e": "bcm"},
}


@pytest.mark.parametrize("links", CUTS)
def test_a_node_is_cut_off_and_joined_again(places: Places, links: str) -> None:
    cut(places.network, "a", ["b", "c"], links)
    assert places.heard() == CUTS[links]
    places.network.join()
    assert places.heard() == WHOLE


def _spaces() -> str:
    return subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout


def test_a_network_is_removed_with_what_runs_in_it(places: Places) -> None:
    code = (
        "from ringpost.client.cli.netns import Network\n"
        "import subprocess, os\n"
        "network = Network(); _, inside = network.place('left')\n"
        "one = subprocess.Popen([*inside, 'sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(os.getpid(), one.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    maker, left = killed.stdout.split()
    try:
        assert f"rpnet{maker}-left" in _spaces()
        assert Path(f"/proc/{left}").exists()
    finally:
        netns.remove_leftovers()
    assert f"rpnet{maker}" not in _spaces()
    assert f"rpnet{os.getpid()}-a" in _spaces(), "that of a program that lives stays"
    assert not Path(f"/sys/class/net/rpnet{maker}").exists()
    end = time.monotonic() + 5
    while Path(f"/proc/{left}/exe").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{left}/exe").exists(), "it is dead, if perhaps not yet waited for"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert netns.missing() == "cutting links needs ip and nft: install iproute2 and nftables"
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "nft" else "/sbin/ip")
    assert netns.missing() == "cutting links needs nft: install nftables"
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert netns.missing() == "cutting links needs the right to make network namespaces: run this as root"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert netns.missing() == "links can be cut on Linux only, with network namespaces"
