"""An issuer's public keys: a JSON Web Key Set from a file or an https address."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jwt

from ringpost.node import log
from ringpost.node.access.fetch import FetchError, fetch

REFRESH_S = 300.0
RETRY_S = 10.0  # between two fetches, whoever asks
BYTES_MAX = 1 << 20
SAME_ID_MAX = 8  # a token is tried with each, and anybody may send one
FETCH_S = 5.0  # all of it
WAIT_S = FETCH_S + 1  # a caller, also where the thread that fetches hangs in looking up a name
_SOON_MS = 200
Keys = dict[str, tuple[jwt.PyJWK, ...]]


class JwksError(Exception):
    """The keys cannot be had; the message says from where and why."""


def parse_keys(text: bytes, source: str) -> Keys:
    """Keys by their ids ("" for those without). Those of a kind that is not known are left out. Raises JwksError."""
    keys: Keys = {}
    try:
        for entry in json.loads(text)["keys"]:
            key = _public(entry, source)
            if key is not None:
                name = key.key_id if isinstance(key.key_id, str) else ""
                keys[name] = (*keys.get(name, ()), key)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JwksError(f"{source}: is not a JSON Web Key Set ({error})") from error
    except RecursionError as error:
        raise JwksError(f"{source}: is not a JSON Web Key Set (it is nested too deeply)") from error
    if not keys:
        raise JwksError(f"{source}: has no public key that could verify a signature")
    for name, found in keys.items():
        if len(found) > SAME_ID_MAX:
            which = f"with the kid {name!r}" if name else "without a kid"
            raise JwksError(f"{source}: has {len(found)} keys {which}; allowed are up to {SAME_ID_MAX}")
    return keys


def _public(entry: dict[str, Any], source: str) -> jwt.PyJWK | None:
    """The key, if it may verify signatures. With a secret in the set everybody could sign who may read it."""
    if entry.get("kty") == "oct" or "d" in entry:
        log.error("access.key_left_out", source=source, kid=entry.get("kid"), problem="it is no public key: replace it")
        return None
    if entry.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK.from_dict(entry)
    except jwt.PyJWTError:
        return None


class Jwks:
    """The keys of one issuer. `load` may run on any thread, the rest is the loop's. `version` grows with other keys."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.version = 0
        self._text = b""
        self._keys: Keys = {}
        self._tried = float("-inf")
        self._refreshing: asyncio.Task[bool] | None = None

    @property
    def remote(self) -> bool:
        """Whether it is fetched."""
        return self.source.startswith("https://")

    def candidates(self, key_id: str | None) -> tuple[jwt.PyJWK, ...]:
        """The keys that a token with that id may be signed by; without an id those without, or the only one."""
        if key_id is not None:
            return self._keys.get(key_id, ())
        return self._keys.get("") or (next(iter(self._keys.values())) if len(self._keys) == 1 else ())

    def load(self) -> None:
        """Reads or fetches the keys now. Raises JwksError; the keys before stay then."""
        text = self._fetched() if self.remote else self._read()
        if len(text) > BYTES_MAX:
            raise JwksError(f"{self.source}: is longer than {BYTES_MAX} bytes")
        if text != self._text:
            self._keys = parse_keys(text, self.source)
            self._text = text
            self.version += 1

    def _read(self) -> bytes:
        try:
            with Path(self.source).open("rb") as file:
                return file.read(BYTES_MAX + 1)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise JwksError(f"{self.source}: cannot be read: {why}") from error

    def _fetched(self) -> bytes:
        try:
            return fetch(self.source, BYTES_MAX + 1, within_s=FETCH_S)  # https only: see the policy
        except FetchError as error:
            raise JwksError(f"{self.source}: cannot be fetched: {error}") from error

    def may_ask(self, now: float) -> bool:
        """Whether the last try is long enough ago for another one."""
        return now - self._tried >= RETRY_S

    def due(self, now: float) -> bool:
        """Whether it is time to look for other keys."""
        return now - self._tried >= (REFRESH_S if self._keys else RETRY_S)

    def wait_ms(self, now: float) -> int:
        """After how long a token whose key is not known may be tried again."""
        if self._refreshing is not None:
            return _SOON_MS
        return max(_SOON_MS, round((self._tried + RETRY_S - now) * 1000))

    async def refresh(self, now: float) -> bool:
        """Looks for other keys, unless that was done only just now; callers at the same time share one try.

        True: they are as the issuer has them now. Somebody may always have asked just before the keys changed, so
        False says nothing of a key that is not here.
        """
        self.refresh_soon(now)
        refreshing = self._refreshing
        if refreshing is None:
            return False
        await asyncio.wait({refreshing}, timeout=WAIT_S)
        return refreshing.done() and refreshing.result()

    def refresh_soon(self, now: float) -> None:
        """Begins to look for other keys where that may be done; nobody waits for them."""
        if self._refreshing is None and self.may_ask(now):
            self._tried = now
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> bool:
        try:
            await asyncio.to_thread(self.load)
        except JwksError as error:
            log.error("access.keys_not_renewed", problem=str(error))
            return False
        finally:
            self._refreshing = None
        return True
