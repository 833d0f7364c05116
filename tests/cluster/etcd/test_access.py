"""etcd with a user and a password, and behind TLS with certificates in both directions."""

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.kv import KvError, OutcomeUnknown, Put
from tests.cluster.kv_support import Ear, until
from tests.etcd_server import EtcdServer

Make = Callable[..., EtcdServer]
Connect = Callable[..., EtcdKv]


@pytest.fixture
def guarded(make_etcd: Make) -> EtcdServer:
    """User `ringpost` may use what is below /ringpost/."""
    server = make_etcd()
    for command in (
        "user add root:secret",
        "user grant-role root root",
        "role add broker",
        "role grant-permission broker readwrite /ringpost/ --prefix=true",
        "user add ringpost:word",
        "user grant-role ringpost broker",
        "auth enable",
    ):
        server.ctl(*command.split())
    return server


async def test_user_and_password(guarded: EtcdServer, connect: Connect) -> None:
    kv, ear = connect(*guarded.endpoints, user="ringpost", password="word", progress_interval_s=0.5), Ear()
    lease = await kv.grant(10)
    assert (await kv.txn([], [Put("/ringpost/a", b"1", lease)])).succeeded
    await ear.listen(kv, "/ringpost/")
    assert await kv.keep_alive(lease) > 0
    # Tokens are forgotten with a restart: calls, the watch and the lease's stream ask for new ones.
    (member,) = guarded.members
    member.kill()
    member.start()
    async with asyncio.timeout(10):
        while True:
            try:
                await kv.txn([], [Put("/ringpost/b", b"2", lease)])
                break
            except KvError:
                await asyncio.sleep(0.05)
    await ear.hears({"/ringpost/a": b"1", "/ringpost/b": b"2"})
    assert await kv.keep_alive(lease) > 0


async def test_a_token_that_ran_out_is_renewed(guarded: EtcdServer, connect: Connect) -> None:
    kv = connect(*guarded.endpoints, user="ringpost", password="word")
    await kv.txn([], [Put("/ringpost/a", b"1")])
    for call in (kv.txn([], [Put("/ringpost/a", b"2")]), kv.range("/ringpost/")):
        kv._caller._token = "forgotten.12"
        await call
    assert [item.value for item in (await kv.range("/ringpost/")).items] == [b"2"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "user name is empty"),
        ({"user": "ringpost", "password": "wrong"}, "authentication failed"),
        ({"user": "ringpost", "password": "word"}, "permission denied"),
    ],
)
async def test_who_may_not_is_told_so(guarded: EtcdServer, connect: Connect, options: dict, says: str) -> None:
    kv = connect(*guarded.endpoints, **options)
    for attempt in (kv.txn([], [Put("/other", b"")]), kv.range("/other")):
        with pytest.raises(KvError, match=says) as raised:
            await attempt
        assert not isinstance(raised.value, OutcomeUnknown)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, the server's and a client's certificate, made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH to make certificates with")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "strange-ca"):
        subject = ("-subj", f"/CN={authority}", "-days", "2")
        openssl("req", "-x509", *curve, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", *subject)
    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    for name in ("server", "client"):
        openssl("req", "-new", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return folder


async def test_tls_with_a_client_certificate(make_etcd: Make, connect: Connect, certificates: Path) -> None:
    server = make_etcd(tls=certificates)
    ca, cert, key, strange = (
        certificates.joinpath(name).read_bytes() for name in ("ca.pem", "client.pem", "client.key", "strange-ca.pem")
    )
    kv, ear = connect(*server.endpoints, ca=ca, cert=cert, key=key), Ear()
    lease = await kv.grant(10)
    await ear.listen(kv, "/tls/")
    assert kv.name.startswith("etcd 3.")
    await kv.txn([], [Put("/tls/k", b"1", lease)])
    await until(lambda: ear.changes)
    assert await kv.keep_alive(lease) > 0
    for wrong in ({"ca": ca}, {"ca": strange, "cert": cert, "key": key}, {}):
        with pytest.raises(KvError):
            await connect(*server.endpoints, **wrong).range("/tls/")
