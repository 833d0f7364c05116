"""Access as the node has it: who calls, files that change under it, keys that are fetched."""

import asyncio
import io
import json
import logging
import os
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from ringpost.node import log
from ringpost.node.access.access import Access, AccessError
from ringpost.node.access.caller import ANYONE
from ringpost.node.access.grants import Verb
from ringpost.node.access.tokens import token_hash
from ringpost.node.errors import Unauthenticated, Unavailable
from tests.certificates import Authority
from tests.node.access.issuing import Issuer


def call(*headers: str, name: str = "authorization") -> Any:
    """The context of a call with these values of `authorization`."""
    return SimpleNamespace(invocation_metadata=lambda: [(name, one) for one in headers], peer=lambda: "ipv4:1.2.3.4:5")


def principal(name: str, token: str, publish: str = ">") -> str:
    return f'[principals.{name}]\ntokens = ["sha256:{token_hash(token)}"]\npublish = ["{publish}"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(principal("shop", "one"))
    return path


def write(path: Path, text: str) -> None:
    """The file as it is at first."""
    path.write_text(text)


def rewrite(path: Path, text: str) -> None:
    """A newer file in its place, as a deployment does it."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)


async def test_without_a_file_everybody_is_anyone() -> None:
    access = Access("")
    assert (access.on, await access.authenticate(call())) == (False, ANYONE)
    assert access.verify("") is ANYONE
    assert not await access.renew()


async def test_a_node_without_a_file_passes_tokens_on_to_nodes_that_have_one() -> None:
    caller = await Access("").authenticate(call("Bearer one"))
    assert (caller.token, caller.may(Verb.ADMIN)) == ("one", True)
    assert (await Access("").authenticate(call(f"Bearer {'x' * 9_000}"))) is ANYONE


async def test_a_bearer_token_shows_who_calls(file: Path) -> None:
    access = Access(str(file))
    assert (await access.authenticate(call("Bearer one"))).name == "shop"
    assert (await access.authenticate(call("bearer  one "))).name == "shop"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [((), "NO_TOKEN"), (("one",), "NO_TOKEN"), (("Basic one",), "NO_TOKEN"), (("Bearer two",), "TOKEN_INVALID")],
)
async def test_who_shows_none_or_another_is_refused_and_counted(
    file: Path, headers: tuple[str, ...], reason: str
) -> None:
    access = Access(str(file))
    with pytest.raises(Unauthenticated) as raised:
        await access.authenticate(call(*headers))
    assert (raised.value.reason, access.denied) == (reason, {reason: 1})


async def test_two_tokens_in_one_call_are_none(file: Path) -> None:
    with pytest.raises(Unauthenticated):
        await Access(str(file)).authenticate(call("Bearer one", "Bearer one"))


async def test_a_file_that_changes_counts_from_then_on_for_what_stands_too(file: Path) -> None:
    access = Access(str(file))
    before = access.verify("one")
    assert access.renewed(before) is before
    rewrite(file, principal("shop", "one", "orders.>"))
    assert await access.renew()
    after = access.renewed(before)
    assert (before.may(Verb.PUBLISH, "other"), after.may(Verb.PUBLISH, "other")) == (True, False)
    rewrite(file, principal("shop", "two"))
    assert await access.renew()
    with pytest.raises(Unauthenticated):
        access.renewed(after)
    assert access.verify("two").name == "shop"


async def test_a_file_that_became_wrong_changes_nothing_until_it_is_right_again(file: Path) -> None:
    access = Access(str(file))
    rewrite(file, "[principals.shop]\nread = 1")
    assert not await access.renew()
    assert access.verify("one").name == "shop"
    os.unlink(file)
    assert not await access.renew()
    rewrite(file, principal("shop", "two"))
    assert await access.renew()
    with pytest.raises(Unauthenticated):
        access.verify("one")


async def test_a_key_set_that_comes_after_the_file_that_names_it_is_taken_up(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    access, issuer = Access(str(file)), Issuer(tmp_path / "late.json")
    issuer.add("k1")
    rewrite(file, issuer.section())
    for _ in range(3):
        assert not await access.renew()
    assert [record.message for record in caplog.records].count("access.not_renewed") == 1, "told once"
    issuer.publish()
    assert await access.renew()
    assert access.verify(issuer.token("k1")).name == "corp:alice"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[principals.shop]\nread = 1", "principals.shop.read"),
        ("[issuers.a]\nissuer='i'\naudience='a'\njwks='/none/there.json'", "/none/there.json"),
    ],
)
def test_a_node_does_not_start_with_a_wrong_file(file: Path, text: str, told: str) -> None:
    write(file, text)
    with pytest.raises(AccessError) as raised:
        Access(str(file))
    assert str(raised.value).startswith(f"access_file: {file}: ")
    assert told in str(raised.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"none\.toml: No such file"):
        Access(str(tmp_path / "none.toml"))


async def test_a_signed_token_ends_by_the_nodes_clock(file: Path, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys.json")
    issuer.add("k1")
    issuer.publish()
    write(file, issuer.section())
    now = time.time()
    access = Access(str(file), clock=lambda: now)
    caller = access.verify(issuer.token("k1", lives_s=60))
    now += 60
    assert access.renewed(caller) is caller
    now += 30
    for look in (lambda: access.renewed(caller), lambda: access.verify(caller.token)):
        with pytest.raises(Unauthenticated) as raised:
            look()
        assert raised.value.reason == "TOKEN_EXPIRED"


async def test_a_key_set_in_a_file_is_taken_up_when_it_changes(file: Path, tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "keys.json")
    issuer.add("k1")
    issuer.publish()
    write(file, issuer.section())
    access = Access(str(file))
    old = access.verify(issuer.token("k1"))
    issuer.keys.clear()
    issuer.add("k2")
    issuer.publish()
    assert await access.renew()
    assert access.verify(issuer.token("k2")).name == "corp:alice"
    with pytest.raises(Unauthenticated):
        access.renewed(old)


async def test_no_flood_of_good_tokens_takes_memory_without_end(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringpost.node.access.access.CALLERS_MAX", 20)
    monkeypatch.setattr("ringpost.node.access.access.USAGES_MAX", 20)
    issuer = Issuer(tmp_path / "keys.json")
    issuer.add("k1")
    issuer.publish()
    write(file, issuer.section())
    access = Access(str(file))
    first = access.verify(issuer.token("k1", "first"))
    first.usage.open_stream()
    for number in range(60):
        access.verify(issuer.token("k1", f"user{number}"))
    assert len(access._callers) <= 20
    assert len(access._usages) <= 21
    assert access.verify(first.token).usage is first.usage, "what is in use is counted on"


class KeyServer:
    """An issuer's key set over https."""

    def __init__(self, folder: Path, issuer: Issuer) -> None:
        self.authority = Authority(folder / "tls")
        cert, key = self.authority.issue("localhost")
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                body = issuer.key_set()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"https://localhost:{self._server.server_port}/keys"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Issuer, KeyServer]]:
    issuer = Issuer(tmp_path / "unused.json")
    issuer.add("k1")
    server = KeyServer(tmp_path, issuer)
    monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(server.authority.file))
    yield issuer, server
    server.close()


async def test_keys_are_fetched_when_a_token_needs_them_and_not_for_every_wrong_one(
    file: Path, remote: tuple[Issuer, KeyServer]
) -> None:
    issuer, server = remote
    write(file, issuer.section(jwks=server.url))
    access = Access(str(file))
    assert server.asked == 0, "a node starts while its issuer is away"
    assert (await access.authenticate(call(f"Bearer {issuer.token('k1')}"))).name == "corp:alice"
    assert server.asked == 1
    other = Issuer(file.with_name("other.json"))
    other.add("k2")
    for _ in range(5):
        with pytest.raises(Unavailable, match="is not known here yet") as raised:
            await access.authenticate(call(f"Bearer {other.token('k2')}"))
        assert 5_000 < raised.value.retry_after_ms <= 10_000
    assert server.asked == 1, "looked a moment ago"


async def test_a_key_that_the_issuer_surely_does_not_have_is_a_definite_no_that_tells_nothing_of_it(
    file: Path, remote: tuple[Issuer, KeyServer], caplog: pytest.LogCaptureFixture
) -> None:
    _, server = remote
    other = Issuer(file.with_name("other.json"))
    other.add("k2")
    write(file, other.section(jwks=server.url))
    access = Access(str(file))
    with pytest.raises(Unauthenticated, match="a key that its issuer does not have") as raised:
        await access.authenticate(call(f"Bearer {other.token('k2')}"))
    assert (raised.value.reason, raised.value.metadata) == ("TOKEN_INVALID", {})
    (denied,) = [record for record in caplog.records if record.message == "audit.unauthenticated"]
    assert denied.__dict__["ringpost_facts"]["keys"] == server.url, "who runs the node is told"


async def test_good_tokens_of_a_new_key_get_no_definite_no_whatever_strangers_send(
    file: Path, remote: tuple[Issuer, KeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's forged token has just made the node ask, and then the issuer changes its key."""
    issuer, server = remote
    write(file, issuer.section(jwks=server.url))
    access = Access(str(file))
    stranger = Issuer(file.with_name("other.json"))
    stranger.add("k2")
    with pytest.raises(Unauthenticated):
        await access.authenticate(call(f"Bearer {stranger.token('k2')}"))
    issuer.add("k2")
    good = call(f"Bearer {issuer.token('k2')}")
    for _ in range(3):
        with pytest.raises(Unavailable) as raised:
            await access.authenticate(good)
        assert (raised.value.reason, raised.value.retry_after_ms > 0) == ("NOT_APPENDED", True)
        with pytest.raises(Unavailable):
            access.verify(issuer.token("k2"))
    monkeypatch.setattr("ringpost.node.access.jwks.RETRY_S", 0.0)
    assert (await access.authenticate(good)).name == "corp:alice", "when it may ask again"


async def test_a_token_that_another_node_passes_on_waits_while_keys_are_fetched(
    file: Path, remote: tuple[Issuer, KeyServer]
) -> None:
    issuer, server = remote
    write(file, issuer.section(jwks=server.url))
    access = Access(str(file))
    token = issuer.token("k1")
    with pytest.raises(Unavailable) as raised:
        access.verify(token)
    assert (raised.value.reason, raised.value.retry_after_ms > 0) == ("NOT_APPENDED", True)
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.02)
            try:
                assert access.verify(token).name == "corp:alice"
                break
            except Unavailable:
                continue


async def test_an_issuer_that_cannot_be_reached_lets_nobody_in_and_stops_nothing(file: Path) -> None:
    issuer = Issuer(file.with_name("none.json"))
    issuer.add("k1")
    section = issuer.section(jwks="https://127.0.0.1:1/keys")
    write(file, principal("shop", "one") + section)
    access = Access(str(file))
    with pytest.raises(Unavailable):
        await access.authenticate(call(f"Bearer {issuer.token('k1')}"))
    assert access.verify("one").name == "shop"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"keys": ' + "[" * 100_000])
async def test_a_key_set_that_is_nested_without_end_is_one_that_cannot_be_used(file: Path, text: str) -> None:
    issuer = Issuer(file.with_name("keys.json"))
    issuer.add("k1")
    issuer.publish()
    write(file, issuer.section())
    access = Access(str(file))
    issuer.file.write_text(text)
    assert not await access.renew()
    assert access.verify(issuer.token("k1")).name == "corp:alice", "the keys before stay"
    with pytest.raises(AccessError, match="nested too deeply"):
        Access(str(file))


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "[issuers.a]\nissuer='i'\naudience='a'\njwks=\"/a\\u0000b\""])
async def test_no_access_file_is_so_wrong_that_no_other_is_taken_up_any_more(file: Path, text: str) -> None:
    access = Access(str(file))
    rewrite(file, text)
    assert not await access.renew()
    rewrite(file, principal("shop", "two"))
    assert await access.renew()


@pytest.fixture
def quiet() -> Iterator[None]:
    """The logs of before come back after the test."""
    root = logging.getLogger()
    handlers, levels = root.handlers[:], (root.level, log.LOGGER.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    log.LOGGER.setLevel(levels[1])


@pytest.mark.usefixtures("quiet")
async def test_strangers_have_an_event_of_their_own_and_all_are_told_at_every_level(
    file: Path,
) -> None:
    """A flood of calls without a token would leave no room in the burst for the denials of those who are known."""
    stream = io.StringIO()
    log.configure("error", "json", stream)
    access = Access(str(file))
    for _ in range(100):
        with pytest.raises(Unauthenticated):
            await access.authenticate(call())
    shop = access.verify("one")
    access.note_denial(shop.denial(Verb.MANAGE, "orders"), caller=shop.name)
    access.note_act(shop, {"channel": "orders"}, peer="p", method="m", outcome="done")
    told = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert told == ["audit.unauthenticated"] * log.BURST + ["audit.denied", "audit.act"]
