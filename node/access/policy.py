"""The access file: TOML, checked as a whole before any of it counts. Pure.

[roles.writer]                       # what may be given to several
publish = ["orders.>"]               # patterns; also consume, manage
cluster = "view"                     # or "admin"; nothing by default

[principals.shop]                    # somebody with a token of this file (`ringpost token new`)
tokens = ["sha256:…"]                # several, while one takes another's place
roles = ["writer"]
consume = ["answers.shop"]           # its own, beside its roles'
quota = { streams = 100, messages_per_s = 5000, bytes_per_s = 10_000_000 }

[issuers.corp]                       # somebody whose token (JWT) another system signs
issuer = "https://id.example.com"    # `iss`
audience = "ringpost"                # `aud`
jwks = "/etc/ringpost/jwks.json"     # or an https:// address
algorithms = ["RS256"]
roles_claim = "roles"                # names of roles above; others are passed over
roles = []                           # what everybody of the issuer has
quota = { streams = 20 }             # of each of its principals
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ringpost.cluster.patterns import Patterns, pattern_problem
from ringpost.node.access.grants import CHANNEL_VERBS, Grants, Quota, Verb, joined

# Signed by a key of which this node knows the public half only.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_HASH = re.compile(r"sha256:[0-9a-f]{64}").fullmatch
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,127}").fullmatch
_CLUSTER = {"": frozenset[Verb](), "view": frozenset({Verb.VIEW}), "admin": frozenset({Verb.VIEW, Verb.ADMIN})}


class PolicyError(Exception):
    """The access file cannot be used; the message names the place in it and what is allowed."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with tokens of the file."""

    name: str
    grants: Grants
    quota: Quota


@dataclass(frozen=True, slots=True)
class Issuer:
    """A system whose signed tokens count. Its principals are called `label:sub`."""

    label: str
    issuer: str
    audience: str
    jwks: str
    algorithms: tuple[str, ...]
    roles_claim: str
    base: Grants
    quota: Quota


@dataclass(frozen=True, slots=True)
class Policy:
    """What an access file says. `by_hash`: SHA-256 of a token in hex digits → whose it is."""

    roles: Mapping[str, Grants] = field(default_factory=dict)
    by_hash: Mapping[str, Principal] = field(default_factory=dict)
    issuers: Mapping[str, Issuer] = field(default_factory=dict)

    def of_roles(self, names: object, base: Grants) -> Grants:
        """What a token's roles permit beside `base`; a role that the file does not have permits nothing."""
        if isinstance(names, str):
            names = names.split()
        texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        known = [self.roles[name] for name in texts if name in self.roles]
        return joined((base, *known))


def parse(text: str) -> Policy:
    """Raises PolicyError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"is not TOML: {error}") from error
    root = _Table("", data, {"roles", "principals", "issuers"})
    roles = {name: _grants(table) for name, table in root.tables("roles", _ROLE)}
    by_hash: dict[str, Principal] = {}
    for name, table in root.tables("principals", _ROLE | {"tokens", "roles", "quota"}):
        grants = joined((_grants(table), *_roles(table, roles)))
        principal = Principal(name, grants, _quota(table))
        for token in table.texts("tokens"):
            if not _HASH(token):
                raise table.wrong(
                    "tokens", "has one that is not sha256: and 64 hex digits; `ringpost token new` makes one"
                )
            if token.removeprefix("sha256:") in by_hash:
                raise table.wrong("tokens", "has one that is somebody's already")
            by_hash[token.removeprefix("sha256:")] = principal
    issuers: dict[str, Issuer] = {}
    for label, table in root.tables("issuers", _ISSUER):
        issuer = _issuer(label, table, roles)
        if issuer.issuer in issuers:
            raise table.wrong("issuer", f"{issuer.issuer!r} is there twice")
        issuers[issuer.issuer] = issuer
    return Policy(roles, by_hash, issuers)


_ROLE = {*map(str, CHANNEL_VERBS), "cluster"}
_ISSUER = {"issuer", "audience", "jwks", "algorithms", "roles_claim", "roles", "quota"}


class _Table:
    """A table of the file, which has the keys `allowed` and no others; None: any."""

    def __init__(self, place: str, data: object, allowed: set[str] | None = None) -> None:
        self.place = place
        if not isinstance(data, dict):
            raise PolicyError(f"{place}: must be a table")
        self._data: dict[str, Any] = data
        if allowed is not None and (strangers := sorted(data.keys() - allowed)):
            raise self.wrong(strangers[0], f"is not known here; allowed are {', '.join(sorted(allowed))}")

    def wrong(self, name: str, problem: str) -> PolicyError:
        """The error about one of its keys."""
        return PolicyError(f"{self.place}.{name}: {problem}" if self.place else f"{name}: {problem}")

    def tables(self, name: str, allowed: set[str]) -> list[tuple[str, "_Table"]]:
        """The tables under a key, by name."""
        under = _Table(name, self._data.get(name, {}))
        for one in under._data:
            if not _NAME(one):
                raise under.wrong(one, "is no name; allowed are 1 to 127 of A-Z a-z 0-9 _ . @ -")
        return [(one, _Table(f"{name}.{one}", data, allowed)) for one, data in under._data.items()]

    def table(self, name: str, allowed: set[str]) -> "_Table":
        """The table under a key; an empty one where there is none."""
        return _Table(f"{self.place}.{name}", self._data.get(name, {}), allowed)

    def text(self, name: str, default: str | None = None) -> str:
        """A text; must be there where there is no default."""
        value = self._data.get(name, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.wrong(name, "must be a text")
        return value

    def texts(self, name: str, default: tuple[str, ...] = ()) -> list[str]:
        """A list of texts."""
        value = self._data.get(name, list(default))
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "must be a list of texts")
        return value

    def number(self, name: str) -> int:
        """A whole number, 0 where there is none."""
        value = self._data.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(name, f"must be a whole number from 0, got {value!r}")
        return value


def _grants(table: _Table) -> Grants:
    channels = {}
    for verb in CHANNEL_VERBS:
        patterns = table.texts(verb)
        if (problem := next(filter(None, map(pattern_problem, patterns)), None)) is not None:
            raise table.wrong(verb, problem)
        channels[verb] = Patterns(patterns)
    cluster = table.text("cluster", "")
    if cluster not in _CLUSTER:
        raise table.wrong("cluster", f"must be view or admin, got {cluster!r}")
    return Grants(channels, _CLUSTER[cluster])


def _roles(table: _Table, roles: Mapping[str, Grants]) -> list[Grants]:
    names = table.texts("roles")
    if unknown := [name for name in names if name not in roles]:
        raise table.wrong("roles", f"there is no role {unknown[0]!r}")
    return [roles[name] for name in names]


def _quota(table: _Table) -> Quota:
    names = ("streams", "messages_per_s", "bytes_per_s")
    inner = table.table("quota", set(names))
    return Quota(**{name: inner.number(name) for name in names})


def _issuer(label: str, table: _Table, roles: Mapping[str, Grants]) -> Issuer:
    algorithms = tuple(table.texts("algorithms", ("RS256", "ES256")))
    if wrong := [one for one in algorithms if one not in ALGORITHMS]:
        raise table.wrong("algorithms", f"has {wrong[0]!r}; allowed are {', '.join(ALGORITHMS)}")
    if not algorithms:
        raise table.wrong("algorithms", "is empty")
    jwks = table.text("jwks")
    if jwks.startswith("http://"):
        raise table.wrong("jwks", "must be a file or begin with https://: whoever changes it on its way is let in")
    if "\0" in jwks:
        raise table.wrong("jwks", "has a zero byte, which no file's path may have")
    return Issuer(
        label,
        table.text("issuer"),
        table.text("audience"),
        jwks,
        algorithms,
        table.text("roles_claim", "roles"),
        joined(_roles(table, roles)),
        _quota(table),
    )
