"""The commands of deploy/README.md that lead to three containers with TLS and a token, run as they stand there."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from deploy.compose_demo import NODES, compose
from ringpost.client import Denied, Options, Unavailable, connect, token_file
from tests.deploy.readme import commands

ROOT = Path(__file__).resolve().parents[2]
MADE_BEFORE = "make image"  # by a fixture, for all tests
COMMANDS_MAX = 9
PROJECT = "ringpost-operator"
ADDRESSES = ("localhost:7400", "localhost:7410", "localhost:7420")
COMPOSE = "docker-compose -f deploy/compose.yaml -f deploy/compose.secure.yaml"
QUICK = Options(connect_timeout=5.0, routing="any")
HEALTH_SECONDS = 60.0
_NOT_THE_OPERATORS = ("RINGPOST_", "BIND", "METRICS_BIND")

# In a container: the beginning of HTTP/2 at another node's peer port, with the files of its arguments.
ASK = r"""
import socket, ssl, sys
authority, *pair = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
context.set_alpn_protocols(["h2"])
if pair:
    context.load_cert_chain(*pair)
try:
    plain = socket.create_connection(("node2", 7401), 5)
    with context.wrap_socket(plain, server_hostname="node2") as tls:
        tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        print("heard" if tls.recv(1) else "not heard")
except ssl.SSLCertVerificationError:
    print("another authority's")
except (ssl.SSLError, ConnectionError):
    print("not heard")
"""


class Shell:
    """Runs commands in a copy of what an operator has, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=lambda _, names: {"wheels"} & set(names))
        shutil.rmtree(folder / "deploy/secure", ignore_errors=True)
        (folder / ".venv").symlink_to(sys.prefix)
        self._environment = {
            # BIND and METRICS_BIND are what another test of this run has set for its own containers.
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_THE_OPERATORS)},
            "RINGPOST_HOME": str(folder / "home"),
            "COMPOSE_PROJECT_NAME": PROJECT,
        }
        self._compose = compose() or []

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        said = script.replace("docker-compose", " ".join(self._compose))
        return subprocess.run(
            ["bash", "-euc", said],
            cwd=self.folder,
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=180,
        )

    def ringpost(self, script: str) -> subprocess.CompletedProcess[str]:
        """In the environment that the operator has made."""
        return self.run(f"source .venv/bin/activate\n{script}")

    def down(self) -> None:
        self.run(f"{COMPOSE} down -v --remove-orphans")

    def health(self, node: str) -> str:
        asked = self.run(f"docker inspect --format '{{{{json .State.Health}}}}' $({COMPOSE} ps -q {node})")
        found: str = json.loads(asked.stdout)["Status"]
        return found

    @property
    def tls(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials((self.folder / "deploy/secure/ca.pem").read_bytes())


def test_there_are_fewer_than_ten_and_what_is_made_before_is_the_same() -> None:
    found = commands()
    assert len(found) <= COMMANDS_MAX
    assert found[0] == MADE_BEFORE
    says = subprocess.run(["make", "-n", "image"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "deploy/image/build.sh" in says


@pytest.fixture(scope="module")
def shell(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """After all the commands, in one shell. Only by the last of them something is printed for programs."""
    made = Shell(tmp_path_factory.mktemp("operator"))
    made.down()  # what an earlier run has left
    try:
        ran = made.run("\n".join(commands()[1:]))
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        assert ran.stdout.endswith("\nhello\n"), ran.stdout
        yield made
    finally:
        made.down()


LONG = [pytest.mark.long, pytest.mark.timeout(400)]


class TestWhereTheyLead:
    pytestmark = LONG

    async def test_every_node_serves_and_none_without_a_token_or_in_plain_text(self, shell: Shell) -> None:
        nodes = json.loads(shell.ringpost("ringpost node ls -o json").stdout)
        assert sorted(node["node"] for node in nodes) == sorted(NODES)
        token = token_file(shell.folder / "admin.token")
        for address in ADDRESSES:
            async with connect(address, credentials=shell.tls, token=token, options=QUICK) as mq:
                assert len((await mq.publish("orders.eu", "by any node")).replicas) >= 2, "copied by mutual TLS"
            with pytest.raises(Denied):
                await connect(address, credentials=shell.tls, options=QUICK)
            with pytest.raises(Denied):
                await connect(address, credentials=shell.tls, token=lambda: "rp_another", options=QUICK)
            with pytest.raises(Unavailable):
                await connect(address, token=token, options=QUICK)

    async def test_the_health_checks_of_the_containers_work(self, shell: Shell) -> None:
        async with asyncio.timeout(HEALTH_SECONDS):
            while [shell.health(node) for node in NODES] != ["healthy"] * len(NODES):
                await asyncio.sleep(0.5)

    async def test_the_peer_port_hears_nobody_without_a_peer_s_certificate(self, shell: Shell) -> None:
        (shell.folder / "ask.py").write_text(ASK)

        def answer(*files: str) -> str:
            given = " ".join(f"/secure/{file}" for file in files)
            return shell.run(f"{COMPOSE} exec -T node1 python - {given} <ask.py").stdout.strip()

        assert answer("peers.pem", "node1.peer.pem", "node1.peer.key") == "heard"
        assert answer("peers.pem") == "not heard", "without a certificate"
        assert answer("peers.pem", "node1.pem", "node1.key") == "not heard", "with one of the other authority"
        assert answer("ca.pem", "node1.peer.pem", "node1.peer.key") == "another authority's"

    def test_a_node_that_is_broken_into_cannot_show_another_s_name(self, shell: Shell) -> None:
        found = shell.run(f"{COMPOSE} exec -T node1 find /secure /access -type f -printf '%f '").stdout.split()
        own = {"node1.pem", "node1.key", "node1.peer.pem", "node1.peer.key"}
        assert set(found) == {*own, "ca.pem", "peers.pem", "access.toml"}

    async def test_the_client_inside_the_network_has_what_it_needs(self, shell: Shell) -> None:
        head = (shell.folder / "deploy/compose.secure.yaml").read_text()
        (line,) = [line for line in head.splitlines() if " run --rm " in line]
        said = line.removeprefix("#").strip().replace("docker-compose -f … -f …", COMPOSE)
        ran = shell.run(said)
        assert (ran.returncode, "whole" in ran.stdout) == (0, True), ran.stdout + ran.stderr

    async def test_principals_are_added_and_certificates_renewed_while_the_nodes_run(self, shell: Shell) -> None:
        add = "ringpost token new --principal shop --access-file deploy/secure/access/access.toml --file shop"
        assert shell.ringpost(f"{add} --publish 'orders.>'").returncode == 0
        permitted = (
            "for n in $(seq 60); do RINGPOST_TOKEN_FILE=shop ringpost pub orders.eu again && exit; sleep 0.5; done"
        )
        assert "orders.eu" in shell.ringpost(permitted).stdout
        denied = shell.ringpost("RINGPOST_TOKEN_FILE=shop ringpost pub answers no")
        assert (denied.returncode, "lacks the permission publish" in denied.stderr) == (1, True)
        (certs,) = [command for command in commands() if command.startswith("ringpost certs")]
        assert shell.ringpost(certs).returncode == 1, "they are there"
        assert shell.ringpost(f"{certs} --renew").returncode == 0
        for node, address in zip(NODES, ADDRESSES, strict=True):
            host, _, port = address.partition(":")
            served = ssl.get_server_certificate((host, int(port)))
            assert served == (shell.folder / f"deploy/secure/{node}/{node}.pem").read_text()
        assert shell.ringpost("ringpost pub orders.eu renewed").returncode == 0
