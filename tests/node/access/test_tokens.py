"""Tokens: whose they are, and every way in which one does not count."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from ringpost.node.access.grants import Verb
from ringpost.node.access.jwks import Jwks, JwksError, parse_keys
from ringpost.node.access.policy import Policy, parse
from ringpost.node.access.tokens import LEEWAY_S, TOKEN_BYTES_MAX, Identity, UnknownKey, identify, token_hash
from ringpost.node.errors import Unauthenticated
from tests.node.access.issuing import ISSUER, Issuer

ROLES = f"""
[roles.writer]
publish = ["orders.>"]
[principals.shop]
tokens = ["sha256:{token_hash("static")}"]
publish = ["shop.>"]
"""


class Rig:
    """A policy with one issuer whose keys are in a file."""

    def __init__(self, folder: Path) -> None:
        self.issuer = Issuer(folder / "jwks.json")
        self.issuer.add("k1")
        self.issuer.add("k2", "RS256")
        self.issuer.publish()
        self.policy: Policy = parse(ROLES + self.issuer.section())
        self.keys = {ISSUER: Jwks(str(self.issuer.file))}
        self.keys[ISSUER].load()

    def identify(self, token: str, now: float | None = None) -> Identity:
        return identify(token, self.policy, self.keys, time.time() if now is None else now)

    def refusal(self, token: str, now: float | None = None) -> Unauthenticated:
        with pytest.raises(Unauthenticated) as raised:
            self.identify(token, now)
        return raised.value


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_static_token_is_known_by_its_hash_and_does_not_expire(rig: Rig) -> None:
    found = rig.identify("static")
    assert (found.name, found.expires_at) == ("shop", None)
    assert found.grants.on_channel(Verb.PUBLISH, "shop.a")
    assert rig.refusal("Static").reason == "TOKEN_INVALID"


@pytest.mark.parametrize("key", ["k1", "k2"])
def test_a_signed_token_names_its_principal_with_the_issuer_and_has_its_roles(rig: Rig, key: str) -> None:
    found = rig.identify(rig.issuer.token(key, roles=["writer"]))
    assert found.name == "corp:alice"
    assert found.grants.on_channel(Verb.PUBLISH, "orders.eu")
    assert not rig.identify(rig.issuer.token(key)).grants.on_channel(Verb.PUBLISH, "orders.eu")


def test_a_token_counts_until_it_expires_and_a_little_longer_for_clocks_that_differ(rig: Rig) -> None:
    now = time.time()
    token = rig.issuer.token("k1", lives_s=100)
    assert rig.identify(token, now + 100 + LEEWAY_S - 1).name == "corp:alice"
    assert rig.refusal(token, now + 100 + LEEWAY_S + 1).reason == "TOKEN_EXPIRED"
    early = rig.issuer.token("k1", nbf=now + 50)
    assert "yet" in rig.refusal(early, now).message
    assert rig.identify(early, now + 50).name == "corp:alice"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example.com"},
        {"iss": None},
        {"iss": ["https://id.example.com"]},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": 1e300},
        {"exp": True},
        {"nbf": "yesterday"},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": 7},
        {"sub": "x" * 256},
    ],
)
def test_claims_that_do_not_fit_are_refused(rig: Rig, claims: dict[str, Any]) -> None:
    assert rig.refusal(_signed_raw(rig, claims)).reason == "TOKEN_INVALID"


def _signed_raw(rig: Rig, claims: dict[str, Any]) -> str:
    """Signed without the library's own look at the claims."""
    _, key = rig.issuer.keys["k1"]
    said = {"iss": ISSUER, "aud": "ringpost", "sub": "alice", "exp": time.time() + 60, **claims}
    payload = json.dumps({name: value for name, value in said.items() if value is not None}).encode()
    return jwt.api_jws.encode(payload, key, algorithm="ES256", headers={"kid": "k1"})


def test_nobody_signs_with_what_is_public(rig: Rig) -> None:
    """The public key as a shared secret, no signature at all, another algorithm of the same key's: all old tricks."""
    claims = {"iss": ISSUER, "aud": "ringpost", "sub": "mallory", "exp": time.time() + 60}
    public = json.loads(rig.issuer.key_set())["keys"][0]
    secret = base64.urlsafe_b64decode(public["x"] + "==")
    for key, algorithm in ((secret, "HS256"), (None, "none")):
        forged = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "k1"})  # type: ignore[arg-type]
        assert rig.refusal(forged).reason == "TOKEN_INVALID"
    good = rig.issuer.token("k1")
    head, _, signature = good.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    assert rig.refusal(f"{head}.{body}.{signature}").reason == "TOKEN_INVALID"


def test_another_issuers_key_of_the_same_id_does_not_count(rig: Rig, tmp_path: Path) -> None:
    other = Issuer(tmp_path / "other.json")
    other.add("k1")
    assert rig.refusal(other.token("k1")).reason == "TOKEN_INVALID"


def test_a_key_that_is_not_known_is_no_refusal_yet_but_a_reason_to_look_again(rig: Rig) -> None:
    rig.issuer.add("k3")
    token = rig.issuer.token("k3")
    with pytest.raises(UnknownKey):
        rig.identify(token)
    rig.issuer.publish()
    rig.keys[ISSUER].load()
    assert rig.identify(token).name == "corp:alice"


@pytest.mark.parametrize("token", ["", "a.b.c", "..", "x" * (TOKEN_BYTES_MAX + 1), "é.é.é", "eyJ.eyJ.x"])
def test_what_is_no_token_is_refused(rig: Rig, token: str) -> None:
    assert rig.refusal(token).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("where", ["header", "payload"])
def test_a_token_that_is_nested_without_end_is_refused_as_any_other(rig: Rig, where: str) -> None:
    def part(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    parts = {"header": part('{"alg": "ES256", "kid": "k1"}'), "payload": part("{}")}
    parts[where] = part('{"a":' + "[" * 4_000)
    assert rig.refusal(f"{parts['header']}.{parts['payload']}.AA").reason == "TOKEN_INVALID"


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"keys": 3}', b'{"keys": []}', b'{"keys": [{"kty": "odd"}]}'])
def test_what_is_no_key_set_says_from_where(text: bytes) -> None:
    with pytest.raises(JwksError, match="from-here"):
        parse_keys(text, "from-here")


def test_a_secret_among_public_keys_is_left_out() -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}
    with pytest.raises(JwksError):
        parse_keys(json.dumps({"keys": [secret]}).encode(), "here")
