"""Access to a node: the access file in force, taken up anew when it changes, and who each call is from."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringpost.node import log
from ringpost.node.access.caller import ANYONE, Caller, Known, Usage
from ringpost.node.access.jwks import Jwks, JwksError
from ringpost.node.access.policy import Policy, PolicyError, parse
from ringpost.node.access.tokens import TOKEN_BYTES_MAX, UnknownKey, identify
from ringpost.node.errors import RingpostError, Unauthenticated, Unavailable

CALLERS_MAX = 10_000
USAGES_MAX = 10_000
METADATA_KEY = "authorization"
_SCHEME = "bearer "
_Stamp = tuple[tuple[int, int, int], ...]


class AccessError(Exception):
    """The access file cannot be used; the message names the file and the place in it."""


class Access:
    """One a node. `path` "": everybody may do everything.

    Tokens that were good are remembered with what they permit, until the file or a key set changes.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        """Raises AccessError. Keys that must be fetched are fetched by `renew`, and meanwhile lacking."""
        self.generation = 0
        self.denied: dict[str, int] = {}
        self._path = Path(path) if path else None
        self._clock = clock
        self._policy = Policy()
        self._keys: dict[str, Jwks] = {}
        self._callers: dict[str, Caller] = {}
        self._known: Known = {}
        self._usages: dict[str, Usage] = {}
        self._stamp: _Stamp = ()
        self._seen: tuple[int, ...] = ()  # versions of the key sets
        self._problem = ""
        if self._path is not None:
            self._adopt(*_read(self._path, {}))

    @property
    def on(self) -> bool:
        """Whether there is an access file."""
        return self._path is not None

    @property
    def problem(self) -> str:
        """Why the file, or one that it names, cannot be taken up; "" when it can."""
        return self._problem

    # -- who calls --------------------------------------------------------------------------------------------------

    async def authenticate(self, context: Any, method: str = "", peer: str = "") -> Caller:
        """Who makes a gRPC call. Raises Unauthenticated, which is logged, or Unavailable while keys are lacking.

        `peer`: who that is, beside the address.
        """
        if self._path is None:
            return _anyone(context)
        keys = ""
        try:
            token = _bearer(context)
            try:
                return self._caller(token)
            except UnknownKey as unknown:
                newest = await unknown.keys.refresh(time.monotonic())
            try:
                return self._caller(token)
            except UnknownKey as unknown:
                if not newest:
                    raise _keys_lacking(unknown) from None
                keys = unknown.keys.source
                raise _no_key() from None
        except Unauthenticated as error:
            self._note("audit.unauthenticated", error, {"peer": peer or context.peer(), "method": method, "keys": keys})
            raise

    def verify(self, token: str) -> Caller:
        """Whose token another node has passed on. Raises Unauthenticated, or Unavailable while its key is lacking.

        Nothing is definite of a key that is not here: the other node may have newer ones.
        """
        if self._path is None:
            return ANYONE
        if not token:
            raise Unauthenticated("the node that passed this on showed no token of its client", reason="NO_TOKEN")
        try:
            return self._caller(token)
        except UnknownKey as unknown:
            unknown.keys.refresh_soon(time.monotonic())
            raise _keys_lacking(unknown) from None

    def _caller(self, token: str) -> Caller:
        now = self._clock()
        known = self._callers.get(token)
        if known is not None:
            if known.expires_at is None or now <= known.expires_at:
                return known
            del self._callers[token]
        identity = identify(token, self._policy, self._keys, now)
        caller = Caller(
            identity.name,
            identity.grants,
            self._usage(identity.name, identity.quota),
            token=token,
            expires_at=identity.expires_at,
            generation=self.generation,
            known=self._known,
        )
        if len(self._callers) >= CALLERS_MAX:
            del self._callers[next(iter(self._callers))]
        self._callers[token] = caller
        return caller

    def _usage(self, name: str, quota: Any) -> Usage:
        usage = self._usages.get(name)
        if usage is None:
            if len(self._usages) >= USAGES_MAX:
                self._usages = {key: one for key, one in self._usages.items() if one.streams}
            usage = self._usages[name] = Usage(name, quota)
        elif usage.quota != quota:
            usage.limit(quota)
        return usage

    def renewed(self, caller: Caller) -> Caller:
        """The same token by the rules of now: for what lasts longer than a call. Raises Unauthenticated."""
        if caller.generation == self.generation and (caller.expires_at is None or self._clock() <= caller.expires_at):
            return caller
        if caller is ANYONE:
            return caller
        try:
            return self._caller(caller.token)
        except UnknownKey:
            raise _no_key() from None

    # -- the audit log ----------------------------------------------------------------------------------------------

    def note_denial(self, error: RingpostError, *, caller: str = "", peer: str = "", method: str = "") -> None:
        """Counts and logs that something was denied to somebody who is known. Never the token."""
        self._note("audit.denied", error, {"principal": caller, "peer": peer, "method": method})

    def _note(self, event: str, error: RingpostError, facts: dict[str, str]) -> None:
        """What strangers cause has an event, and so a burst, of its own: they cannot drown the others."""
        self.denied[error.reason] = self.denied.get(error.reason, 0) + 1
        shown = {name: value for name, value in {**facts, **error.metadata}.items() if value}
        log.audit(event, True, reason=error.reason, message=error.message, **shown)

    def note_act(self, caller: Caller, facts: Mapping[str, object], *, peer: str, method: str, outcome: str) -> None:
        """Logs what somebody has done to channels, groups or the cluster, or tried. `facts`: to which."""
        if self.on:
            log.audit("audit.act", principal=caller.name, peer=peer, method=method, **facts, outcome=outcome)

    # -- the files --------------------------------------------------------------------------------------------------

    async def renew(self) -> bool:
        """Takes up files that have changed, and other keys of issuers; whether rules have changed."""
        if self._path is None:
            return False
        now = time.monotonic()
        for keys in self._keys.values():
            if keys.remote and keys.due(now):
                keys.refresh_soon(now)
        try:
            stamp = await asyncio.to_thread(_look, self._path, self._keys)
            if (stamp, _versions(self._keys)) == (self._stamp, self._seen):
                return False
            self._adopt(*await asyncio.to_thread(_read, self._path, self._keys))
        except AccessError as error:
            self._stamp = ()  # a file that it names may come later
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("access.not_renewed", problem=self._problem)
            return False
        self._problem = ""
        log.info("access.renewed", principals=len(self._policy.by_hash), issuers=len(self._policy.issuers))
        return True

    def _adopt(self, policy: Policy, keys: dict[str, Jwks], stamp: _Stamp) -> None:
        self._policy, self._keys, self._stamp = policy, keys, stamp
        self._seen = _versions(keys)
        self._callers.clear()
        self._known.clear()
        self.generation += 1


def _versions(keys: Mapping[str, Jwks]) -> tuple[int, ...]:
    return tuple(one.version for one in keys.values())


def _look(path: Path, keys: Mapping[str, Jwks]) -> _Stamp:
    """What tells other files from the same ones. Raises AccessError. Blocks."""
    try:
        return tuple(_stamp(one) for one in (path, *(Path(one.source) for one in keys.values() if not one.remote)))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> AccessError:
    return AccessError(f"access_file: {path}: cannot read {error.filename}: {error.strerror}")


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path, before: Mapping[str, Jwks]) -> tuple[Policy, dict[str, Jwks], _Stamp]:
    """The file with its key sets; of `before` those that are fetched from the same place go on. Raises AccessError.

    Blocks. A file that changes meanwhile is looked at again, since its stamp is that from before it was read.
    """
    try:
        stamps = [_stamp(path)]
        policy = parse(path.read_text("utf-8"))
        keys: dict[str, Jwks] = {}
        for issuer in policy.issuers.values():
            known = before.get(issuer.issuer)
            if known is not None and known.remote and known.source == issuer.jwks:
                keys[issuer.issuer] = known
                continue
            keys[issuer.issuer] = made = Jwks(issuer.jwks)
            if not made.remote:
                stamps.append(_stamp(Path(made.source)))
                made.load()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (PolicyError, JwksError, ValueError) as error:  # ValueError: not UTF-8, or a zero byte in the path
        raise AccessError(f"access_file: {path}: {error}") from error
    except RecursionError as error:
        raise AccessError(f"access_file: {path}: is not TOML that can be used: it is nested too deeply") from error
    return policy, keys, tuple(stamps)


def _anyone(context: Any) -> Caller:
    """Anyone, with the token that it shows: while access is being restricted, other nodes may want one already."""
    try:
        token = _bearer(context)
    except Unauthenticated:
        return ANYONE
    return Caller(ANYONE.name, None, ANYONE.usage, token=token) if len(token) <= TOKEN_BYTES_MAX else ANYONE


def _bearer(context: Any) -> str:
    found = [value for key, value in context.invocation_metadata() or () if key == METADATA_KEY]
    if len(found) != 1 or not isinstance(found[0], str) or not found[0].lower().startswith(_SCHEME):
        raise Unauthenticated(
            "this cluster wants a token: send it once as metadata `authorization: Bearer TOKEN`", reason="NO_TOKEN"
        )
    return found[0][len(_SCHEME) :].strip()


def _no_key() -> Unauthenticated:
    return Unauthenticated("the token is signed by a key that its issuer does not have")


def _keys_lacking(unknown: UnknownKey) -> Unavailable:
    return Unavailable(
        "the token is signed by a key that is not known here yet; its issuer's keys are asked for again",
        reason="NOT_APPENDED",
        retry_after_ms=unknown.keys.wait_ms(time.monotonic()),
    )
