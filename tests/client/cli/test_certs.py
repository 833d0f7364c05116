"""Certificates that `certs new` makes, and a node that uses them."""

import asyncio
import datetime
import os
import shutil
import ssl
import stat
import subprocess
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from cryptography import x509

from ringpost.client import Denied, Options, Unavailable, connect, token_file
from ringpost.client.cli import main
from ringpost.client.cli.authority import Authority
from tests.client.cli.conftest import Ran
from tests.integration.broker import Node

AUTHORITIES = ("ca.key", "ca.pem", "peers.key", "peers.pem")


def cli(*arguments: str) -> Ran:
    done = CliRunner().invoke(main, arguments)
    return Ran(done.exit_code, done.stdout, done.stderr)


def certs(folder: Path, *arguments: str) -> Ran:
    return cli("certs", "new", "--dir", str(folder / "c"), *arguments)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(cert: x509.Certificate) -> list[str]:
    return [str(one.value) for one in cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- what is made -----------------------------------------------------------------------------------------------------


def test_a_certificate_is_for_the_names_of_its_node_and_of_the_right_authority(tmp_path: Path) -> None:
    wide = ("--clients-host", "mq.example", "--clients-host", "*.mq.example")
    made = certs(tmp_path, "--node", "n1=n1.example,10.0.0.1", "--node", "n2", *wide, "--days", "30")
    assert made.code == 0, made.err
    assert "n1, n2" in made.err
    folder, local = tmp_path / "c", ["localhost", "127.0.0.1", "::1"]
    assert names(read(folder / "n1.pem")) == ["n1", "n1.example", "10.0.0.1", "mq.example", "*.mq.example", *local]
    assert names(read(folder / "n2.pem")) == ["n2", "mq.example", "*.mq.example", *local]
    assert names(read(folder / "n1.peer.pem")) == ["n1"], "whoever shows another name would count as that node, too"
    clients, peers = read(folder / "ca.pem"), read(folder / "peers.pem")
    read(folder / "n1.pem").verify_directly_issued_by(clients)
    read(folder / "n1.peer.pem").verify_directly_issued_by(peers)
    with pytest.raises(ValueError):
        read(folder / "n1.peer.pem").verify_directly_issued_by(clients)
    now = datetime.datetime.now(datetime.UTC)
    assert 29 <= (read(folder / "n1.pem").not_valid_after_utc - now).days <= 30
    assert (clients.not_valid_after_utc - now).days >= 3649


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on the PATH to check certificates with")
def test_programs_that_check_strictly_take_the_certificates(tmp_path: Path) -> None:
    certs(tmp_path, "--node", "n1")
    for authority, cert in (("ca.pem", "n1.pem"), ("peers.pem", "n1.peer.pem")):
        for purpose in ("sslserver", "sslclient"):
            check = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", authority, cert]
            checked = subprocess.run(check, cwd=tmp_path / "c", check=False, capture_output=True, text=True)
            assert checked.returncode == 0, checked.stderr


def test_keys_are_for_their_owner_only_unless_containers_must_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    before = os.umask(0o077)
    try:
        certs(tmp_path, "--node", "n1")
        keys = sorted(path.name for path in folder.glob("*.key"))
        assert keys == ["ca.key", "n1.key", "n1.peer.key", "peers.key"]
        assert {mode(folder / key) for key in keys} == {0o600}
        assert mode(folder) == 0o700
        certs(tmp_path, "--node", "n2", "--readable")
    finally:
        os.umask(before)
    modes = {name: mode(folder / name) for name in ("n2.key", "n2.peer.key", "n2.pem", "ca.pem", "ca.key", "peers.key")}
    readable = dict.fromkeys(("n2.key", "n2.peer.key", "n2.pem", "ca.pem"), 0o644)
    assert modes == {**readable, "ca.key": 0o600, "peers.key": 0o600}
    assert mode(folder) == 0o755, "or nobody could read what is in it"


def test_a_node_s_folder_has_all_that_it_needs_and_nothing_of_another(tmp_path: Path) -> None:
    both, folder = ("--node", "n1", "--node", "n2", "--folders"), tmp_path / "c"
    before = os.umask(0o077)
    try:
        assert certs(tmp_path, *both, "--readable").code == 0
    finally:
        os.umask(before)
    assert {path.name for path in folder.iterdir()} == {*AUTHORITIES, "n1", "n2"}
    for node in ("n1", "n2"):
        own = {f"{node}.pem", f"{node}.key", f"{node}.peer.pem", f"{node}.peer.key"}
        assert set(contents(folder / node)) == {*own, "ca.pem", "peers.pem"}
        assert {mode(path) for path in (folder / node).iterdir()} == {0o644}
        assert mode(folder / node) == 0o755
        for authority, cert in (("ca.pem", f"{node}.pem"), ("peers.pem", f"{node}.peer.pem")):
            assert (folder / node / authority).read_bytes() == (folder / authority).read_bytes()
            read(folder / node / cert).verify_directly_issued_by(read(folder / authority))
    first = contents(folder / "n1")
    assert certs(tmp_path, *both).code == 1, "they are there"
    assert certs(tmp_path, *both, "--renew").code == 0
    assert {name for name, content in contents(folder / "n1").items() if first[name] == content} == {
        "ca.pem",
        "peers.pem",
    }


# -- what is there already --------------------------------------------------------------------------------------------


def test_what_is_there_stays_unless_it_is_to_be_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    certs(tmp_path, "--node", "n1")
    before = contents(folder)
    refused = certs(tmp_path, "--node", "n2", "--node", "n1")
    assert (refused.code, "n1.pem is there already; --renew" in refused.err) == (1, True)
    assert contents(folder) == before, "nor is n2's made"
    assert certs(tmp_path, "--node", "n2").code == 0, "one more node"
    more = contents(folder)
    assert {name: more[name] for name in before} == before
    assert certs(tmp_path, "--node", "n1", "--renew").code == 0
    changed = {name for name, content in contents(folder).items() if content != more[name]}
    assert changed == {"n1.pem", "n1.key", "n1.peer.pem", "n1.peer.key"}
    read(folder / "n1.pem").verify_directly_issued_by(read(folder / "ca.pem"))


@pytest.mark.parametrize("away", [("ca.key",), ("peers.key",), ("peers.pem",), ("ca.key", "ca.pem"), AUTHORITIES])
@pytest.mark.parametrize("arguments", [("n2",), ("n1", "--renew")])
def test_an_authority_whose_key_is_kept_elsewhere_is_not_replaced(
    tmp_path: Path, away: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    folder = tmp_path / "c"
    certs(tmp_path, "--node", "n1")
    for name in away:
        (folder / name).rename(tmp_path / name)
    before = contents(folder)
    refused = certs(tmp_path, "--node", *arguments)
    assert (refused.code, "bring back what is kept elsewhere" in refused.err) == (1, True)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
@pytest.mark.parametrize("with_", ["nonsense", "peers"])
def test_an_authority_of_files_that_do_not_fit_is_refused(tmp_path: Path, name: str, with_: str) -> None:
    folder = tmp_path / "c"
    certs(tmp_path, "--node", "n1")
    other = folder / name.replace("ca", "peers")
    (folder / name).write_bytes(other.read_bytes() if with_ == "peers" else b"nonsense")
    refused = certs(tmp_path, "--node", "n2")
    assert refused.code == 1
    assert "ca.key" in refused.err
    assert not (folder / "n2.pem").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--dir", "/proc/none", "--node", "n1"), "cannot be written"),
        (("--dir", "x"), "--node"),
        (("--dir", "x", "--node", "n1", "--days", "0"), "1<=x"),
        (("--dir", "x", "--node", "n1", "--renew"), "lacks ca.pem, ca.key and peers.pem, peers.key"),
        (("--dir", "x", "--node", "ca"), "call the node something else"),
        (("--dir", "x", "--node", "n1", "--node", "n1.peer"), "call the node something else"),
        (("--dir", "x", "--node", "n1", "--node", "n1=a"), "is there twice"),
        (("--dir", "x", "--node", "../n1"), "is no node's id"),
        (("--dir", "x", "--node", "=a"), "is no node's id"),
        (("--dir", "x", "--node", "n" * 64), "is no node's id"),
        (("--dir", "x", "--node", "n1=a:7400"), "ports do not belong here"),
        (("--dir", "x", "--node", "n1", "--clients-host", "a b"), "no name and no address"),
    ],
)
def test_what_cannot_be_made_says_why(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    ran = cli("certs", "new", *(str(tmp_path / "x") if one == "x" else one for one in arguments))
    assert ran.code != 0
    assert told in " ".join(ran.err.split())
    assert not (tmp_path / "x").exists()


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    certs(tmp_path, "--node", "n1")
    # In place of an authority of which little is left.
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=40)
    cert, key = Authority.new("old", 1).issue("old", ("old",), end)
    (folder / "ca.pem").write_bytes(cert)
    (folder / "ca.key").write_bytes(key)
    before = contents(folder)
    refused = certs(tmp_path, "--node", "n2", "--days", "41")
    assert (refused.code, "give fewer --days" in refused.err) == (1, True)
    assert contents(folder) == before
    assert certs(tmp_path, "--node", "n2", "--days", "39").code == 0


# -- with a node ------------------------------------------------------------------------------------------------------


async def test_a_node_with_them_and_a_principal_of_token_new(tmp_path: Path) -> None:
    folder, access, token = tmp_path / "c", tmp_path / "access.toml", tmp_path / "shop.token"
    certs(tmp_path, "--node", "n1")
    made = cli(
        *("token", "new", "--access-file", str(access), "--principal", "shop", "--file", str(token)),
        *("--publish", "orders.>", "--consume", "answers"),
    )
    assert made.out.startswith("sha256:")
    assert mode(token) == 0o600
    files = ("--tls-cert-file", str(folder / "n1.pem"), "--tls-key-file", str(folder / "n1.key"))
    with Node(tmp_path / "n", *files, "--access-file", str(access)) as node:
        tls = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
        async with connect(node.address, credentials=tls, token=token_file(token)) as mq:
            await mq.publish("orders.eu", "a")
            with pytest.raises(Denied):
                await mq.publish("answers", "b")
        with pytest.raises(Denied):
            await connect(node.address, credentials=tls)
        with pytest.raises(Unavailable):
            await connect(node.address, options=Options(connect_timeout=2.0))
        for arguments in (("--cluster", "view"), ()):
            name = f"second{len(arguments)}"
            cli("token", "new", "--access-file", str(access), "--principal", name, *arguments)
        async with asyncio.timeout(10):
            while "access.renewed" not in node.stderr:
                await asyncio.sleep(0.05)


async def test_a_node_takes_up_what_was_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    certs(tmp_path, "--node", "n1")
    with Node(
        tmp_path / "n", "--tls-cert-file", str(folder / "n1.pem"), "--tls-key-file", str(folder / "n1.key")
    ) as node:
        host, port = node.address.split(":")

        def met() -> bytes:
            pem = ssl.get_server_certificate((host, int(port)), ca_certs=str(folder / "ca.pem"))
            return ssl.PEM_cert_to_DER_cert(pem)

        first = await asyncio.to_thread(met)
        assert certs(tmp_path, "--node", "n1", "--renew").code == 0
        second = await asyncio.to_thread(met)
        assert second != first
        assert second == ssl.PEM_cert_to_DER_cert((folder / "n1.pem").read_text())
        tls = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
        async with connect(node.address, credentials=tls) as mq:
            assert (await mq.publish("orders", "a")).offset == 0
