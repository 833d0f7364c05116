"""The brokers that are measured: each starts as the children of this process, in a directory of its own."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from ringpost.client.testing.broker import BrokerProcess
from tests.etcd_server import free_ports
from tests.system.local import LocalCluster

_START_S = 60.0


class Server:
    """Running. `pids`: all processes whose CPU is the broker's; `addresses`: HOST:PORT, one for each node."""

    def __init__(self, addresses: Sequence[str], pids: Sequence[int]) -> None:
        self.addresses = tuple(addresses)
        self.roots = tuple(pids)

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def pids(self) -> tuple[int, ...]:
        return (*self.roots, *(child.pid for root in self.roots for child in psutil.Process(root).children(True)))


def _answers(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Waits until somebody listens. Raises RuntimeError when the process ends instead."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not answer on port {port}")


@contextmanager
def _running(*command: str, port: int, **environment: str) -> "Iterator[subprocess.Popen[bytes]]":
    log = subprocess.DEVNULL
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        _answers(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ringpost(folder: Path, *arguments: str) -> Iterator[Server]:
    """One node."""
    with BrokerProcess(folder / "ringpost", arguments=arguments) as broker:
        assert broker.pid
        yield Server([broker.address], [broker.pid])


@contextmanager
def ringpost_cluster(folder: Path) -> Iterator[Server]:
    """Three nodes with three copies of everything, and an etcd, whose CPU is not counted."""
    cluster = LocalCluster(folder / "cluster")

    async def standing() -> None:
        await cluster.serving()
        await cluster.home()
        await cluster.whole()

    try:
        cluster.start()
        asyncio.run(standing())
        yield Server(cluster.addresses, [node.process.pid for node in cluster.nodes.values()])
    finally:
        cluster.close()


@contextmanager
def raw_grpc(_: Path) -> Iterator[Server]:
    """A gRPC server in Python that does nothing."""
    command = (sys.executable, "-m", "tests.benchmarks.ceiling", "--serve")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield Server([f"127.0.0.1:{int(process.stdout.readline())}"], [process.pid])
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nats(folder: Path, nodes: int = 1) -> Iterator[Server]:
    """nats-server with JetStream in files; several are a cluster."""
    ports, routes = free_ports(nodes), free_ports(nodes)
    known = ",".join(f"nats://127.0.0.1:{route}" for route in routes)
    with ExitStack() as stack:
        processes = []
        for number, (port, route) in enumerate(zip(ports, routes, strict=True)):
            command = ["nats-server", "-js", "-sd", str(folder / f"nats-{number}"), "-a", "127.0.0.1", "-p", str(port)]
            if nodes > 1:
                cluster = f"nats://127.0.0.1:{route}"
                command += ["-n", f"n{number}", "-cluster_name", "bench", "-cluster", cluster, "-routes", known]
            processes.append(stack.enter_context(_running(*command, port=port)))
        time.sleep(0.2 if nodes == 1 else 4.0)  # the members of a cluster elect who keeps the streams
        yield Server([f"127.0.0.1:{port}" for port in ports], [process.pid for process in processes])


@contextmanager
def redis(folder: Path, fsync: str) -> Iterator[Server]:
    """redis-server; `fsync`: `no` keeps nothing on disk, `everysec` and `always` are its append-only file's modes."""
    (port,) = free_ports(1)
    directory = folder / "redis"
    directory.mkdir(exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    # No rewriting of the file beside the measurement.
    command += ["--auto-aof-rewrite-percentage", "0"]
    command += ["--appendonly", "no"] if fsync == "no" else ["--appendonly", "yes", "--appendfsync", fsync]
    with _running(*command, port=port) as process:
        yield Server([f"127.0.0.1:{port}"], [process.pid])


@contextmanager
def rabbitmq(folder: Path) -> Iterator[Server]:
    """rabbitmq-server, alone; its port mapper is on a port of its own and ends with it."""
    port, distribution, mapper = free_ports(3)
    home = folder / "rabbitmq"
    home.mkdir(exist_ok=True)
    (home / "enabled_plugins").write_text("[].\n")
    (home / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nlog.file.level = error\n")
    environment = {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(home),
        "RABBITMQ_LOG_BASE": str(home),
        "RABBITMQ_LOGS": str(home / "log"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
    }
    try:
        with _running(str(_rabbitmq_program()), port=port, **environment) as process:
            yield Server([f"127.0.0.1:{port}"], [process.pid])
    finally:
        subprocess.run(("epmd", "-kill"), env={**os.environ, **environment}, check=False, capture_output=True)


def _rabbitmq_program() -> Path:
    """Debian's command on the PATH changes the user; the script behind it does not."""
    inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return inner if inner.exists() else Path(shutil.which("rabbitmq-server") or inner)


def _signal(server: Server, number: signal.Signals) -> None:
    for pid in server.roots:
        os.kill(pid, number)


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Its idling takes nothing from the others."""
    _signal(server, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(server, signal.SIGCONT)


@contextmanager
def awake(server: Server) -> Iterator[Server]:
    """For a while, a server that is frozen otherwise."""
    _signal(server, signal.SIGCONT)
    try:
        yield server
    finally:
        _signal(server, signal.SIGSTOP)


# The command that tells whether a peer is here, and the package that has it.
PEERS = {"nats": "nats-server", "redis": "redis-server", "rabbitmq": "rabbitmq-server"}


def present() -> dict[str, bool]:
    """Which peers can be measured here; says in one line for each other what to install."""
    found = {name: shutil.which(command) is not None for name, command in PEERS.items()}
    for name, there in found.items():
        if not there:
            print(f"{PEERS[name]} is not on the PATH: its columns are left out. Debian: apt-get install {PEERS[name]}")
    return found


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    asked = {"nats": ("nats-server", "--version"), "redis": ("redis-server", "--version")}
    told = {
        name: subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
        for name, command in asked.items()
        if shutil.which(command[0])
    }
    figures = {"nats": told.get("nats", "").split()[-1:], "redis": told.get("redis", "").split("v=")[-1].split()[:1]}
    found = {name: parts[0] for name, parts in figures.items() if parts}
    libraries = Path("/usr/lib/rabbitmq/lib")
    if libraries.exists():
        found["rabbitmq"] = next(iter(libraries.glob("rabbitmq_server-*"))).name.partition("-")[2]
    elif shutil.which("rabbitmq-server"):
        found["rabbitmq"] = "of unknown version"
    return found
