"""The background node of `ringpost up`: one process, its state directory, how it is found again.

<home>/node.json   who runs: pid, when it started, addresses, arguments
<home>/node.log    the node's output
<home>/data        its data directory, unless another was named
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

START_SECONDS = 30.0
STOP_SECONDS = 30.0


class LocalNodeError(Exception):
    """The local node could not be started or stopped; the message says why and what to look at."""


class Started(Protocol):
    """A process that outlives this program. `started` tells it from another one with the same pid."""

    @property
    def pid(self) -> int: ...

    @property
    def started(self) -> float: ...


ACCEPT_LOSS = "--accept-loss"


@dataclass(frozen=True)
class LocalNode:
    """What node.json holds. `started` is the process's start as the system tells it, so a reused pid is noticed.

    `settings` are the node's further arguments, for starting it again; giving up what is damaged is for one start only.
    """

    pid: int
    started: float
    address: str
    http_address: str
    data_dir: str
    log: str
    settings: list[str] = field(default_factory=list)


def home(environment: dict[str, str] | None = None) -> Path:
    """$RINGPOST_HOME, or ringpost below $XDG_STATE_HOME, or ~/.local/state/ringpost."""
    env = os.environ if environment is None else environment
    if env.get("RINGPOST_HOME"):
        return Path(env["RINGPOST_HOME"]).absolute()
    base = Path(env["XDG_STATE_HOME"]) if env.get("XDG_STATE_HOME") else Path.home() / ".local" / "state"
    return base / "ringpost"


def remembered(folder: Path) -> LocalNode | None:
    """The node that `up` started last, running or not; None when its data was purged."""
    try:
        return LocalNode(**json.loads((folder / "node.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running(node: Started | None) -> bool:
    """Whether that very process is alive."""
    if node is None:
        return False
    try:
        process = psutil.Process(node.pid)
        same = abs(process.create_time() - node.started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(folder: Path, data_dir: Path, listen: str, http_listen: str, settings: Sequence[str] = ()) -> LocalNode:
    """Starts a node of its own session and waits until it serves. Raises `LocalNodeError`.

    `settings` are more arguments of `ringpost serve`.
    """
    log = folder / "node.log"
    arguments = ["--data-dir", str(data_dir), "--listen", listen, "--http-listen", http_listen, *settings]
    process, begin = spawn([sys.executable, "-m", "ringpost.node", *arguments], log)
    (serving,) = await_serving(process, log, begin)
    node = LocalNode(
        pid=process.pid,
        started=start_of(process),
        address=str(serving["listen"]),
        http_address=str(serving.get("http") or http_listen),
        data_dir=str(data_dir),
        log=str(log),
        settings=[setting for setting in settings if setting != ACCEPT_LOSS],
    )
    remember(folder / "node.json", asdict(node))
    return node


def spawn(command: Sequence[str], log: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """Starts a program of its own session that writes to the end of `log`; also returns where its output begins."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return process, begin


def start_of(process: "subprocess.Popen[bytes]") -> float:
    """When the process began, as the system tells it; it is left to itself from now on. Raises `LocalNodeError`."""
    try:
        started = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        raise LocalNodeError(f"Process {process.pid} ended at once.") from None
    # It is to outlive this program: without an end noted here, subprocess would complain that nobody waits for it.
    process.returncode = 0
    return started


def restart(folder: Path) -> LocalNode:
    """SIGKILL, and starts it again with the same addresses and data. Raises `LocalNodeError`."""
    node = remembered(folder)
    if node is None:
        raise LocalNodeError("There is no node of `ringpost up` to restart.")
    kill(node)
    return start(folder, Path(node.data_dir), node.address, node.http_address, node.settings)


def stop(node: Started) -> bool:
    """SIGTERM, and SIGKILL when it has not drained in time. True when it ended by itself."""
    send(node, signal.SIGTERM)
    if _await_end(node):
        return True
    kill(node)
    return False


def kill(node: Started) -> None:
    """SIGKILL, and waits until the process is gone."""
    send(node, signal.SIGKILL)
    if not _await_end(node):
        raise LocalNodeError(f"Process {node.pid} does not die; is its disk hanging?")


def purge(folder: Path, data_dir: Path) -> None:
    """Removes a node's data and log. Refuses a directory that holds no journal. Raises `LocalNodeError`."""
    if data_dir.exists():
        if any(data_dir.iterdir()) and not any(data_dir.rglob("*.journal")):
            raise LocalNodeError(f"{data_dir} holds no journal of Ringpost; remove it yourself if you mean it.")
        shutil.rmtree(data_dir)
    (folder / "node.log").unlink(missing_ok=True)
    (folder / "node.json").unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Only one `up` or `down` at a time works on a home."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def send(node: Started, number: signal.Signals) -> None:
    """Sends a signal, if that very process is alive."""
    if running(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, number)


def _await_end(node: Started) -> bool:
    # Not psutil's wait: below an init that reaps nobody the process stays a zombie, which is dead enough.
    deadline = time.monotonic() + STOP_SECONDS
    while running(node):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def remember(path: Path, state: dict[str, object]) -> None:
    """Writes a state file, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(state, indent=2))
    draft.replace(path)


def await_serving(
    process: "subprocess.Popen[bytes]", log: Path, begin: int, nodes: int = 1, seconds: float = START_SECONDS
) -> list[dict[str, object]]:
    """The lines of `nodes` nodes that say that they serve, looked for in the log from byte `begin` on.

    Raises `LocalNodeError`; then the process is gone.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        found = [event for line in _lines(log, begin) if (event := _serving(line)) is not None]
        if len(found) >= nodes:
            return found[:nodes]
        if ended:
            raise LocalNodeError(f"The node ended at once: {_last_words(log, begin)} (all of it: {log})")
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise LocalNodeError(f"The node did not serve within {seconds:.0f} s; see {log}")


def _serving(line: bytes) -> dict[str, object] | None:
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict) and event.get("event") == "serving" and "listen" in event:
            return event
    return None


def _lines(log: Path, begin: int) -> list[bytes]:
    with log.open("rb") as source:
        source.seek(begin)
        return source.read().splitlines()


def _last_words(log: Path, begin: int) -> str:
    lines = [line for line in _lines(log, begin) if line.strip()]
    return lines[-1].decode(errors="replace") if lines else "it said nothing."
