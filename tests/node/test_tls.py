"""Certificates from files: what is refused, what is taken up anew, what stays in use."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from ringpost.node.config import Config, ConfigError, load_config
from ringpost.node.tls import Certificate, Dialer, TlsError, certificates, peer_name
from tests.certificates import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def certificate(authority: Authority, name: str) -> tuple[Certificate, Path, Path]:
    cert, key = authority.issue(name)
    return Certificate("tls_cert_file", str(cert), str(key), str(authority.file)), cert, key


def test_files_that_cannot_be_used_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("one")
    other, _ = authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for files, told in (
        ((tmp_path / "none.pem", key), "tls_cert_file: cannot read .*none.pem: No such file"),
        ((other, key), "tls_cert_file: .*other.pem.* cannot be used: KEY_VALUES_MISMATCH"),
        ((empty, key), "tls_cert_file: .*empty.pem.* cannot be used"),
        ((cert, key, empty), "tls_cert_file: .*empty.pem.* cannot be used"),
    ):
        with pytest.raises(TlsError, match=told):
            Certificate("tls_cert_file", *map(str, files))


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(authority: Authority) -> None:
    one, cert, key = certificate(authority, "renewed")
    assert not one.renew(), "nothing has changed"
    before = one.chain
    authority.issue("renewed")
    assert one.renew()
    assert (one.version, one.chain != before, one.chain) == (2, True, cert.read_bytes())
    good = one.chain
    key.write_text("no key")
    assert not one.renew()
    assert not one.renew(), "it is told once"
    assert (one.version, one.chain) == (2, good), "the one before stays in use"
    authority.issue("renewed")
    assert one.renew()
    assert one.version == 3


async def test_connections_show_the_newest_certificate(authority: Authority) -> None:
    one, _, _ = certificate(authority, "dialer")
    dialer = Dialer(one)
    assert dialer.version == 1
    authority.issue("dialer")
    assert dialer.version == 2
    channel = dialer.dial("n1", "127.0.0.1:1", ())
    assert isinstance(channel, grpc.aio.Channel)
    await channel.close()
    assert Dialer().version == 0, "plain text"


async def test_the_log_names_the_node_whose_certificate_calls(authority: Authority) -> None:
    async def told(_request: bytes, context: Any) -> bytes:
        return peer_name(context).encode()

    server = grpc.aio.server()
    methods: Any = {"Who": grpc.unary_unary_rpc_method_handler(told)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", methods),))
    shown, _, _ = certificate(authority, "n1")
    secure = server.add_secure_port("127.0.0.1:0", shown.server(mutual=True))
    plain = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    names = []
    for caller, port in ((Dialer(certificate(authority, "n2")[0]), secure), (Dialer(), plain)):
        async with caller.dial("n1", f"127.0.0.1:{port}", ()) as channel:
            who: Any = channel.unary_unary("/t/Who")
            names.append((await who(b"", timeout=10)).decode().partition(":")[0])
    await server.stop(None)
    assert names == ["node 127.0.0.1, n2 at ipv4", "node ? at ipv4"]


def test_without_files_there_is_plain_text() -> None:
    assert certificates(Config()) == (None, None)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("tls_cert_file", "tls_cert_file: needs tls_key_file beside it"),
        ("tls_key_file", "tls_key_file: needs tls_cert_file"),
        ("tls_client_ca_file", "tls_client_ca_file: needs tls_cert_file"),
        ("peer_tls_cert_file", "needs peer_tls_key_file and peer_tls_ca_file"),
        ("peer_tls_ca_file", "needs peer_tls_cert_file"),
    ],
)
def test_files_that_do_not_come_alone(given: str, told: str) -> None:
    with pytest.raises(TlsError, match=told):
        certificates(Config(**{given: "file"}))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--listen", "0.0.0.0:1"), "--listen: .*0.0.0.0:1 is open to other machines.*set tls_cert_file"),
        (("--peer-listen", "0.0.0.0:1", "--coordination", "etcd"), "--peer-listen: .*set peer_tls_cert_file"),
    ],
)
def test_plain_text_for_other_machines_is_refused(flags: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(flags, {})


def test_with_a_certificate_a_node_may_listen_to_other_machines() -> None:
    flags = ("--listen", "0.0.0.0:7400", "--tls-cert-file", "c", "--tls-key-file", "k")
    assert load_config(flags, {}).tls_cert_file == "c"
    assert load_config(("--peer-listen", "0.0.0.0:7401"), {}).coordination == "embedded", "nobody listens there"
