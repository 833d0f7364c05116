"""Contexts: a name for a cluster, its addresses and what TLS needs, against a node that wants certificates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.client.cli.conftest import Ran, run_cli
from tests.integration.broker import Node


class Tls:
    """A node with TLS that wants clients' certificates, and a home of the command line."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "tls")
        cert, key = self.authority.issue("localhost", as_="server")
        self.cert, self.key = self.authority.issue("client")
        ca = str(self.authority.file)
        self.node = Node(
            folder / "n", "--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-client-ca-file", ca
        )
        self.home = folder / "home"

    def files(self) -> tuple[str, ...]:
        return ("--ca", str(self.authority.file), "--cert", str(self.cert), "--key", str(self.key))

    def run(self, *arguments: str, **environment: str) -> Ran:
        return run_cli(*arguments, addr="", home=self.home, environment=environment)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    made = Tls(tmp_path_factory.mktemp("contexts"))
    with made.node:
        yield made


def test_commands_use_the_context_and_its_certificates(tls: Tls) -> None:
    assert tls.run("pub", "orders", "a", "--addr", tls.node.address).code == 3, "plain text is not what it speaks"
    added = tls.run("context", "add", "prod", "--addr", tls.node.address, *tls.files())
    assert (added.code, "with TLS" in added.err) == (0, True)
    assert tls.run("pub", "orders", "a").code == 0
    assert tls.run("sub", "orders", "--from", "earliest", "--count", "1", "--text").out == "a\n"
    assert tls.run("check").code == 0
    assert tls.run("verify", "--seconds", "1", "--rate", "100").code == 0
    assert tls.run("node", "info", "-o", "json").json["state"] == "serving"


def test_one_is_in_use_and_others_are_known(tls: Tls) -> None:
    tls.run("context", "add", "prod", "--addr", tls.node.address, *tls.files())
    tls.run("context", "add", "other", "--addr", "127.0.0.1:9")
    rows = {row["name"]: row for row in tls.run("context", "ls", "-o", "json").json}
    assert [rows[name]["in_use"] for name in ("prod", "other")] == [False, True], "the newest is in use"
    assert rows["prod"]["ca"] == str(tls.authority.file)
    assert tls.run("pub", "orders", "b").code == 3
    assert tls.run("pub", "orders", "b", RINGPOST_CONTEXT="prod").code == 0
    assert tls.run("context", "use", "prod").code == 0
    assert tls.run("pub", "orders", "b").code == 0
    assert tls.run("context", "rm", "other").code == 0
    assert tls.run("context", "use", "none").code == 0
    assert [row["in_use"] for row in tls.run("context", "ls", "-o", "json").json] == [False]


def test_the_environment_names_the_files_without_a_context(tls: Tls) -> None:
    tls.run("context", "use", "none")
    files = {"RINGPOST_CA": str(tls.authority.file), "RINGPOST_CERT": str(tls.cert), "RINGPOST_KEY": str(tls.key)}
    assert tls.run("pub", "orders", "c", "--addr", tls.node.address, **files).code == 0
    lacking = tls.run("pub", "orders", "c", "--addr", tls.node.address, **{**files, "RINGPOST_KEY": ""})
    assert (lacking.code, "needs its key" in lacking.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("context", "use", "nobody"), 1, "There is no context nobody"),
        (("context", "rm", "nobody"), 1, "There is no context nobody"),
        (("context", "add", "x"), 2, "--addr"),
        (("context", "add", "x", "--addr", "a:1", "--ca", "/no/such/file"), 2, "does not exist"),
        (("context", "add", "x", "--addr", "a:1", "--cert", __file__), 2, "add --ca"),
        (("context", "add", "x", "--addr", "127.0.0.1:1,a:1", "--token-file", __file__), 2, "to a:1 in plain text"),
        (("context", "add", "x", "--addr", "a:1", "--ca", __file__, "--cert", __file__), 1, "needs its key"),
    ],
)
def test_what_is_wrong_is_said(tls: Tls, arguments: tuple[str, ...], code: int, told: str) -> None:
    ran = tls.run(*arguments)
    assert (ran.code, told in ran.err) == (code, True), ran


def test_a_token_goes_to_other_machines_in_plain_text_only_where_somebody_said_so(tls: Tls, tmp_path: Path) -> None:
    (file := tmp_path / "token").write_text("rp_x")
    remote, shown = "broker.invalid:7400", {"RINGPOST_TOKEN_FILE": str(file)}
    tls.run("context", "use", "none")
    refused = tls.run("pub", "orders", "a", "--addr", remote, **shown)
    assert (refused.code, "would go to broker.invalid:7400 in plain text" in refused.err) == (1, True)
    assert tls.run("pub", "orders", "a", "--addr", remote, **shown, RINGPOST_INSECURE="true").code == 3, "it tried"
    assert tls.run("pub", "orders", "a", "--addr", tls.node.address, **shown).code == 3, "this machine is no other"
    add = ("context", "add", "far", "--addr", remote, "--token-file", str(file))
    assert tls.run(*add, "--insecure").code == 0
    assert tls.run("pub", "orders", "a").code == 3
    assert tls.run(*add, "--ca", str(tls.authority.file)).code == 0
    assert tls.run("pub", "orders", "a").code == 3
    assert tls.run("context", "add", "near", "--addr", "localhost:9", "--token-file", str(file)).code == 0
    tls.run("context", "use", "none")


def test_a_damaged_file_is_named(tls: Tls, tmp_path: Path) -> None:
    (tmp_path / "contexts.json").write_text("{")
    ran = run_cli("context", "ls", addr="", home=tmp_path)
    assert (ran.code, "contexts.json cannot be read" in ran.err) == (1, True)
    assert run_cli("context", "ls", addr="", home=tmp_path, environment={"RINGPOST_CONTEXT": "x"}).code == 1
