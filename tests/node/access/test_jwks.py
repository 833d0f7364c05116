"""An issuer's keys: sets that are odd, and servers that are worse."""

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ringpost.node.access.access import Access
from ringpost.node.access.jwks import SAME_ID_MAX, JwksError, parse_keys
from ringpost.node.errors import Unauthenticated, Unavailable
from tests.certificates import Authority
from tests.node.access.issuing import AUDIENCE, ISSUER, Issuer

# -- sets -------------------------------------------------------------------------------------------------------------


def entry(key: Any, **more: str) -> dict[str, Any]:
    kind: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), **more}


def signed(key: Any, algorithm: str, key_id: str | None = None) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": time.time() + 60}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": key_id} if key_id else None)


def node_with(folder: Path, *entries: dict[str, Any]) -> Access:
    issuer = Issuer(folder / "keys.json")
    issuer.file.write_text(json.dumps({"keys": entries}))
    (folder / "access.toml").write_text(issuer.section())
    return Access(str(folder / "access.toml"))


def test_of_keys_without_an_id_each_counts(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    old = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    access = node_with(tmp_path, entry(keys[0]), entry(old), entry(keys[1]), entry(keys[2], kid="k"))
    for token in (signed(keys[0], "ES256"), signed(keys[1], "ES256"), signed(old, "RS256")):
        assert access.verify(token).name == "corp:alice"
    assert access.verify(signed(keys[2], "ES256", "k")).name == "corp:alice"
    with pytest.raises(Unauthenticated, match="does not count"):
        access.verify(signed(ec.generate_private_key(ec.SECP256R1()), "ES256"))


def test_a_token_that_one_of_them_signed_is_refused_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    access = node_with(tmp_path, *map(entry, keys))
    claims = {"iss": ISSUER, "aud": "another", "sub": "alice", "exp": time.time() + 60}
    for key in keys:
        with pytest.raises(Unauthenticated, match="Audience"):
            access.verify(jwt.encode(claims, key, algorithm="ES256"))


def test_nobody_makes_a_node_try_keys_without_end(tmp_path: Path) -> None:
    keys = [entry(ec.generate_private_key(ec.SECP256R1())) for _ in range(SAME_ID_MAX + 1)]
    with pytest.raises(JwksError, match=f"has {SAME_ID_MAX + 1} keys without a kid; allowed are up to {SAME_ID_MAX}"):
        parse_keys(json.dumps({"keys": keys}).encode(), "here")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_private_key_among_public_ones_is_left_out_with_a_word_in_the_log(
    tmp_path: Path, algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may read the set could sign by it."""
    good, shown = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private: Any = jwt.algorithms.ECAlgorithm.to_jwk(shown, as_dict=True)
    if algorithm == "RS256":
        shown = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)  # type: ignore[assignment]
        private = jwt.algorithms.RSAAlgorithm.to_jwk(shown, as_dict=True)  # type: ignore[arg-type]
    access = node_with(tmp_path, {**private, "kid": "shown"}, entry(good, kid="good"))
    assert access.verify(signed(good, "ES256", "good")).name == "corp:alice"
    (told,) = [record for record in caplog.records if record.message == "access.key_left_out"]
    assert told.__dict__["ringpost_facts"]["kid"] == "shown"
    assert private["d"] not in str(told.__dict__)
    with pytest.raises(JwksError, match="no public key"):
        parse_keys(json.dumps({"keys": [private]}).encode(), "here")


def test_a_key_that_is_damaged_does_not_take_the_good_ones_with_it(tmp_path: Path) -> None:
    good, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    damaged = {**entry(good, kid="damaged"), "x": entry(other)["x"]}
    access = node_with(tmp_path, damaged, entry(good, kid="good"))
    assert access.verify(signed(good, "ES256", "good")).name == "corp:alice"


# -- servers ----------------------------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Speaks TLS unless `tls` is None, and then does as `answer` says."""

    def __init__(self, tls: ssl.SSLContext | None, answer: Answer) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                try:
                    answer(self)
                except OSError:
                    return  # whoever asked has had enough

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server: HTTPServer = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"{'http' if tls is None else 'https'}://localhost:{self._server.server_port}/keys"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class World:
    """An issuer, and the servers that a test wants."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder / "tls")
        self.ca = authority.file
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(*authority.issue("localhost"))
        self.issuer = Issuer(folder / "unused.json")
        self.issuer.add("k1")
        self.over = Event()
        self.servers: list[Server] = []
        self._file = folder / "access.toml"

    def server(self, answer: Answer, *, tls: bool = True) -> Server:
        self.servers.append(Server(self.tls if tls else None, answer))
        return self.servers[-1]

    def keys(self, handler: BaseHTTPRequestHandler) -> None:
        """As a good server answers."""
        body = self.issuer.key_set()
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    async def ask(self, url: str) -> str:
        """Whom a node that has its keys from there takes a good token for."""
        self._file.write_text(self.issuer.section(jwks=url))
        shown = [("authorization", f"Bearer {self.issuer.token('k1')}")]
        context: Any = SimpleNamespace(invocation_metadata=lambda: shown, peer=lambda: "p")
        return (await Access(str(self._file)).authenticate(context)).name


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(made.ca))
    yield made
    made.over.set()
    for server in made.servers:
        server.close()


def to(url: str) -> Answer:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", url)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return redirect


async def test_keys_behind_a_redirect_are_taken_from_https_only(world: World) -> None:
    """Who sits on the way would otherwise let in whom he likes."""
    plain, good = world.server(world.keys, tls=False), world.server(world.keys)
    assert await world.ask(world.server(to(good.url)).url) == "corp:alice"
    with pytest.raises(Unavailable):
        await world.ask(world.server(to(plain.url)).url)
    assert plain.asked == 0


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nabc",
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9_000,
    ],
)
async def test_a_server_that_answers_nonsense_makes_calls_wait_and_is_named_in_the_log(
    world: World, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = world.server(lambda handler: void(handler.wfile.write(said)))
    with pytest.raises(Unavailable) as raised:
        await world.ask(server.url)
    assert raised.value.retry_after_ms > 0
    (told,) = [record for record in caplog.records if record.message == "access.keys_not_renewed"]
    assert server.url in told.__dict__["ringpost_facts"]["problem"]


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
async def test_a_server_that_drips_holds_nobody_and_no_thread(
    world: World, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringpost.node.access.jwks.FETCH_S", 1.0)
    ended = Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(begun)
        try:
            while not world.over.wait(0.1):
                handler.wfile.write(b" ")
        except OSError:
            ended.set()

    began = time.monotonic()
    with pytest.raises(Unavailable):
        await world.ask(world.server(drip).url)
    assert time.monotonic() - began < 4
    assert ended.wait(5), "the connection is given up, and so the thread"


async def test_a_fetch_that_hangs_where_no_time_counts_holds_no_caller(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking up a name cannot be ended from outside."""
    monkeypatch.setattr("ringpost.node.access.jwks.WAIT_S", 0.2)
    monkeypatch.setattr("ringpost.node.access.jwks.fetch", lambda *_, **__: (world.over.wait(3), b"")[1])
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await world.ask("https://localhost:1/keys")
    assert time.monotonic() - began < 2
    world.over.set()


def void(_: object) -> None:
    """For what only counts by what it does."""
