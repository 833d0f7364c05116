"""The local cluster of `ringpost up --nodes N`: N node processes and an etcd, or N nodes in one process.

<home>/cluster.json    who runs
<home>/data/node-1 …   the nodes' data, with a log beside each
<home>/etcd, etcd.log  etcd's
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ringpost.client.cli import etcd, local
from ringpost.client.cli.etcd import LocalEtcd
from ringpost.client.cli.local import LocalNodeError

START_SECONDS = 60.0
PORT_STEP = 10
ETCD = "etcd"
# Where a node or etcd is to be: the host that it listens on, and the beginning of the command that starts it there.
Place = Callable[[str], tuple[str, list[str]]]


def on_loopback(_: str) -> tuple[str, list[str]]:
    """The usual place: this machine only."""
    return etcd.LOOPBACK, []


@dataclass(frozen=True)
class ClusterNode:
    """One node. Addresses are host:port; `pid` and `started` are those of its last start.

    `before` is the beginning of the command that starts it, such as one that enters a network namespace.
    """

    node: str
    pid: int
    started: float
    address: str
    peer_address: str
    http_address: str
    zone: str
    data_dir: str
    log: str
    before: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LocalCluster:
    """What cluster.json holds. `etcd` None: all nodes are in one process."""

    nodes: tuple[ClusterNode, ...]
    etcd: LocalEtcd | None
    replication_factor: int

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    @property
    def running(self) -> bool:
        """Whether any part of it is alive."""
        return any(map(local.running, self.nodes)) or local.running(self.etcd)


@dataclass(frozen=True)
class Wanted:
    """What `up` is asked for. `port`: of the first node, 0: any free ports; `replication_factor` 0: the default."""

    nodes: int
    port: int
    zones: Sequence[str] = ()
    replication_factor: int = 0
    place: Place = on_loopback


def remembered(folder: Path) -> LocalCluster | None:
    """The cluster that was started last, running or not; None when there is none."""
    try:
        state = json.loads((folder / "cluster.json").read_text())
        return LocalCluster(
            nodes=tuple(ClusterNode(**node) for node in state["nodes"]),
            etcd=None if state["etcd"] is None else LocalEtcd(**state["etcd"]),
            replication_factor=state["replication_factor"],
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _remember(folder: Path, cluster: LocalCluster) -> None:
    local.remember(folder / "cluster.json", asdict(cluster))


def start(folder: Path, wanted: Wanted, program: str) -> LocalCluster:
    """Starts etcd (`program`) and all nodes at once; returns when each serves. Raises `LocalNodeError`."""
    folder.mkdir(parents=True, exist_ok=True)
    before = remembered(folder)
    store = etcd.start(program, folder, None if before is None else before.etcd, *wanted.place(ETCD))
    drafts = [_draft(folder, wanted, number) for number in range(1, wanted.nodes + 1)]
    cluster = LocalCluster((), store, wanted.replication_factor)
    _remember(folder, cluster)
    started = [(draft, *local.spawn(_command(draft, cluster), Path(draft.log))) for draft in drafts]
    try:
        for draft, process, begin in started:
            node = _await_node(draft, process, begin)
            cluster = replace(cluster, nodes=(*cluster.nodes, node))
            _remember(folder, cluster)
    except BaseException:
        for _, process, _ in started:
            if process.poll() is None:
                process.kill()
                process.wait()
        for node in cluster.nodes:
            local.kill(node)
        local.kill(store)
        raise
    return cluster


def start_together(folder: Path, wanted: Wanted) -> LocalCluster:
    """Starts all nodes in one process. Raises `LocalNodeError`."""
    log = folder / "data" / "together.log"
    command = [sys.executable, "-m", "ringpost.node.together", "--nodes", str(wanted.nodes)]
    command += ["--data-dir", str(folder / "data"), "--listen-base-port", str(wanted.port)]
    process, begin = local.spawn(command, log)
    lines = local.await_serving(process, log, begin, wanted.nodes, START_SECONDS)
    started = local.start_of(process)
    drafts = [_draft(folder, wanted, number) for number in range(1, wanted.nodes + 1)]
    nodes = tuple(
        replace(_served(draft, line), pid=process.pid, started=started, log=str(log))
        for draft, line in zip(drafts, lines, strict=True)
    )
    cluster = LocalCluster(nodes, None, wanted.replication_factor)
    _remember(folder, cluster)
    return cluster


def start_together_again(folder: Path, cluster: LocalCluster) -> LocalCluster:
    """Starts the process of all nodes again, with its data and addresses. Raises `LocalNodeError`."""
    port = int(cluster.nodes[0].address.rpartition(":")[2])
    return start_together(folder, Wanted(len(cluster.nodes), port))


def _draft(folder: Path, wanted: Wanted, number: int) -> ClusterNode:
    """The node as it is to be, not yet started."""
    ports = [wanted.port + PORT_STEP * (number - 1) + n if wanted.port else 0 for n in range(3)]
    name = f"node-{number}"
    host, before = wanted.place(name)
    return ClusterNode(
        node=name,
        pid=0,
        started=0.0,
        address=f"{host}:{ports[0]}",
        peer_address=f"{host}:{ports[1]}",
        http_address=f"{host}:{ports[2]}",
        zone=wanted.zones[(number - 1) % len(wanted.zones)] if wanted.zones else "",
        data_dir=str(folder / "data" / name),
        log=str(folder / "data" / f"{name}.log"),
        before=before,
    )


def _command(node: ClusterNode, cluster: LocalCluster) -> list[str]:
    assert cluster.etcd is not None
    command = [*node.before, sys.executable, "-m", "ringpost.node", "--node", node.node, "--data-dir", node.data_dir]
    command += ["--listen", node.address, "--peer-listen", node.peer_address, "--http-listen", node.http_address]
    command += ["--coordination", "etcd", "--etcd-endpoints", cluster.etcd.address]
    if not node.address.startswith(f"{etcd.LOOPBACK}:"):
        command += ["--insecure"]
    if node.zone:
        command += ["--zone", node.zone]
    if cluster.replication_factor:
        command += ["--replication-factor", str(cluster.replication_factor)]
    return command


def _await_node(draft: ClusterNode, process: "subprocess.Popen[bytes]", begin: int) -> ClusterNode:
    try:
        (line,) = local.await_serving(process, Path(draft.log), begin, seconds=START_SECONDS)
    except LocalNodeError as error:
        raise LocalNodeError(f"{draft.node}: {error}") from None
    return replace(_served(draft, line), pid=process.pid, started=local.start_of(process))


def _served(draft: ClusterNode, line: dict[str, object]) -> ClusterNode:
    return replace(
        draft,
        node=str(line.get("node") or draft.node),
        address=str(line["listen"]),
        peer_address=str(line.get("peer") or draft.peer_address),
        http_address=str(line.get("http") or draft.http_address),
    )


# -- single nodes -----------------------------------------------------------------------------------------------------


def find(cluster: LocalCluster, name: str) -> ClusterNode:
    """The node by its number (from 1) or its id. Raises `LocalNodeError`."""
    for number, node in enumerate(cluster.nodes, start=1):
        if name in (str(number), node.node):
            return node
    known = ", ".join(node.node for node in cluster.nodes)
    raise LocalNodeError(f"There is no node {name} in the local cluster; there are {known}.")


def of_processes(folder: Path) -> LocalCluster:
    """The running local cluster, if its nodes are processes of their own. Raises `LocalNodeError`."""
    cluster = remembered(folder)
    if cluster is None or not cluster.running:
        raise LocalNodeError("There is no local cluster; `ringpost up --nodes 3` starts one.")
    if cluster.etcd is None:
        raise LocalNodeError("All nodes of this cluster are in one process: none can be stopped by itself.")
    return cluster


def restart(folder: Path, cluster: LocalCluster, node: ClusterNode) -> ClusterNode:
    """Starts a node that does not run again, with its data and addresses. Raises `LocalNodeError`."""
    if local.running(node):
        raise LocalNodeError(f"{node.node} runs already (process {node.pid}).")
    again = _await_node(node, *local.spawn(_command(node, cluster), Path(node.log)))
    nodes = tuple(again if one.node == node.node else one for one in cluster.nodes)
    _remember(folder, replace(cluster, nodes=nodes))
    return again


# -- the end ----------------------------------------------------------------------------------------------------------


def stop(cluster: LocalCluster) -> list[str]:
    """Stops all nodes at once, then etcd. Returns the ids of what had to be killed."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        for node in _processes(cluster):
            local.send(node, number)
    killed = [node.node for node in _processes(cluster) if not local.stop(node)]
    if cluster.etcd is not None and not local.stop(cluster.etcd):
        killed.append("etcd")
    return killed


def _processes(cluster: LocalCluster) -> list[ClusterNode]:
    return list({node.pid: node for node in cluster.nodes}.values())


def purge(folder: Path, cluster: LocalCluster) -> None:
    """Removes the nodes' and etcd's data and logs. Raises `LocalNodeError`."""
    for node in cluster.nodes:
        data_dir = Path(node.data_dir)
        if data_dir.exists() and any(data_dir.iterdir()) and not any(data_dir.rglob("*.journal")):
            raise LocalNodeError(f"{data_dir} holds no journal of Ringpost; remove it yourself if you mean it.")
    for node in cluster.nodes:
        shutil.rmtree(node.data_dir, ignore_errors=True)
        Path(node.log).unlink(missing_ok=True)
    shutil.rmtree(folder / "etcd", ignore_errors=True)
    (folder / "etcd.log").unlink(missing_ok=True)
    (folder / "cluster.json").unlink(missing_ok=True)
