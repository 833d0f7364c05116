"""A token's text → whose it is: one of the access file's, by its hash, or one that an issuer has signed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from ringpost.node.access.grants import Grants, Quota
from ringpost.node.access.jwks import Jwks
from ringpost.node.access.policy import Issuer, Policy
from ringpost.node.errors import Unauthenticated

LEEWAY_S = 10
TOKEN_BYTES_MAX = 8 << 10


@dataclass(frozen=True, slots=True)
class Identity:
    """What a good token says. `expires_at`: seconds since 1970, leeway included; None: never."""

    name: str
    grants: Grants
    quota: Quota
    expires_at: float | None


class UnknownKey(Exception):
    """The token is signed by a key that is not among the issuer's, as far as is known here."""

    def __init__(self, keys: Jwks) -> None:
        super().__init__(keys.source)
        self.keys = keys


def token_hash(token: str) -> str:
    """How the access file keeps a token. They are random and long, so a slow hash would guard nothing more."""
    return hashlib.sha256(token.encode()).hexdigest()


def shown_token(encoded: bytes) -> str:
    """The text of a token that another node has shown. What is no UTF-8, or too long, becomes one that is nobody's."""
    return encoded[: TOKEN_BYTES_MAX + 1].decode("utf-8", "replace")


def identify(token: str, policy: Policy, keys: Mapping[str, Jwks], now: float) -> Identity:
    """Whose token it is. Raises Unauthenticated (TOKEN_INVALID, TOKEN_EXPIRED) or UnknownKey.

    `keys`: by issuer. `now`: seconds since 1970.
    """
    if len(token) > TOKEN_BYTES_MAX:
        raise Unauthenticated(f"the token is longer than {TOKEN_BYTES_MAX} bytes")
    if (principal := policy.by_hash.get(token_hash(token))) is not None:
        return Identity(principal.name, principal.grants, principal.quota, None)
    if policy.issuers and token.count(".") == 2:
        return _signed(token, policy, keys, now)
    raise Unauthenticated("the token is not one that this cluster knows")


def _signed(token: str, policy: Policy, keys: Mapping[str, Jwks], now: float) -> Identity:
    try:
        header = jwt.get_unverified_header(token)
        unverified = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"the token is no JWT: {error}") from error
    except RecursionError as error:
        raise Unauthenticated("the token is no JWT: it is nested too deeply") from error
    named = unverified.get("iss")
    issuer = policy.issuers.get(named) if isinstance(named, str) else None
    if issuer is None:
        raise Unauthenticated("the token's issuer is not one that this cluster knows")
    key_id = header.get("kid")
    candidates = keys[issuer.issuer].candidates(key_id if isinstance(key_id, str) else None)
    if not candidates:
        raise UnknownKey(keys[issuer.issuer])
    return _identity(_verified(token, candidates, issuer, now), policy, issuer)


def _verified(token: str, candidates: Sequence[jwt.PyJWK], issuer: Issuer, now: float) -> dict[str, Any]:
    """The claims. The times are looked at here: PyJWT knows no clock but the machine's."""
    *others, last = candidates
    claims = next(filter(None, (_signed_by(key, token, issuer) for key in others)), None)
    try:
        claims = claims or _decoded(token, last, issuer)
    except (jwt.PyJWTError, TypeError, ValueError) as error:
        raise Unauthenticated(f"the token does not count: {error}") from error
    for name in ("exp", "nbf"):
        value = claims.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value < 1e12:
            raise Unauthenticated(f"the token does not count: {name} is not a time")
    if now > claims["exp"] + LEEWAY_S:
        raise Unauthenticated("the token has expired", reason="TOKEN_EXPIRED")
    if now < claims.get("nbf", 0) - LEEWAY_S:
        raise Unauthenticated("the token does not count yet (nbf)")
    return claims


def _signed_by(key: jwt.PyJWK, token: str, issuer: Issuer) -> dict[str, Any] | None:
    """The claims, or None where another key may have signed them: this one has not, or is of another algorithm."""
    try:
        return _decoded(token, key, issuer)
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError, TypeError, ValueError):
        return None
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"the token does not count: {error}") from error


def _decoded(token: str, key: jwt.PyJWK, issuer: Issuer) -> dict[str, Any]:
    unclocked = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    options: Any = {"require": ["exp", "iss", "aud", "sub"], **unclocked}
    claims: dict[str, Any] = jwt.decode(
        token,
        key.key,
        algorithms=list(issuer.algorithms),
        audience=issuer.audience,
        issuer=issuer.issuer,
        options=options,
    )
    return claims


def _identity(claims: dict[str, Any], policy: Policy, issuer: Issuer) -> Identity:
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise Unauthenticated("the token does not count: sub is not 1 to 255 printable characters")
    grants = policy.of_roles(claims.get(issuer.roles_claim), issuer.base)
    return Identity(f"{issuer.label}:{subject}", grants, issuer.quota, claims["exp"] + LEEWAY_S)
