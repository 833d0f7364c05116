"""gRPC channels to the nodes, and raw streams on them. Everything of gRPC's that needs care is here."""

import asyncio
import ipaddress
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from ringpost.client.checks import refused
from ringpost.client.errors import InvalidRequest, Precondition, RingpostError, Unavailable, from_rpc_error

_log = logging.getLogger(__name__)
DEFAULT_PORT: Final = 7400
_NOT_IN_A_TOKEN: Final = re.compile(r"[^!-~]").search
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it, gRPC would put all roles on one connection again.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_RENEWED_S = 60.0  # so long after its renewal a stream may still end because of the token before
_HOPELESS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)


# What a client shows as who it is: fixed, or asked for at each call and stream, such as `token_file`.
Token = str | Callable[[], str]


def token_file(path: str | Path) -> Callable[[], str]:
    """A token that is read from a file whenever it has changed, so that it can be renewed under a client that runs.

    Raises `InvalidRequest` when the file cannot be read at first; later the token before stays.
    """
    file = Path(path)
    seen: tuple[int, str] | None = None

    def read() -> str:
        nonlocal seen
        try:
            stamp = file.stat().st_mtime_ns
            if seen is None or seen[0] != stamp:
                seen = stamp, file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            if seen is None:
                raise InvalidRequest(f"token: {file} cannot be read: {error}") from None
        return seen[1]

    read()
    return read


def check_token(token: object) -> None:
    """Raises `InvalidRequest` for what no header may hold; its text is not in the error."""
    if not isinstance(token, str):
        raise refused("token", f"must be a str, not {type(token).__name__}")
    if (found := _NOT_IN_A_TOKEN(token)) is not None:
        raise refused(
            "token", f"may hold printable ASCII without spaces only; at {found.start()} of {len(token)} it has another"
        )


def is_local(address: str) -> bool:
    """Whether what goes to the address stays on this machine. A name other than localhost may lead anywhere."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = re.sub(r"^(?:dns|ipv4|ipv6):(?:///?)?", "", address)
    host = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Backoff:
    """Jittered delays that double from 50 ms to 2 s until `reset`."""

    _FIRST_S = 0.05
    _LAST_S = 2.0

    def __init__(self, rng: random.Random | None = None) -> None:
        self._random = rng or random.Random()
        self._bound = self._FIRST_S

    def next_delay(self) -> float:
        """Seconds to wait now: between half of the bound and the bound."""
        delay = self._random.uniform(self._bound / 2, self._bound)
        self._bound = min(self._LAST_S, self._bound * 2)
        return delay

    def reset(self) -> None:
        self._bound = self._FIRST_S


class Stream:
    """One bidirectional call with raw bytes both ways.

    One task reads, one writes. To stop either, `cancel` the call and await the task; never cancel the task: a cancelled
    read or write leaks inside gRPC.
    """

    def __init__(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", address: str) -> None:
        self._call = call
        self._cancelled = False
        self._begun = False
        self.address = address

    async def read(self) -> bytes | None:
        """The next message; None when the server ended the call with OK. Raises `RingpostError`."""
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            raise self._ended() from None
        return data if isinstance(data, bytes) else None

    async def write(self, data: bytes) -> None:
        """Returns when gRPC can take more. Raises `RingpostError` when the call is over."""
        try:
            if not self._begun:
                await self._begin()
            await self._call.write(data)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.InvalidStateError:
            raise Unavailable("the node ended the stream", outcome_open=True) from None
        except asyncio.CancelledError:
            raise self._ended() from None

    async def half_close(self) -> None:
        """Says that no more will be written."""
        try:
            await self._call.done_writing()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except grpc.aio.BaseError:
            raise Unavailable("the node ended the stream", outcome_open=True) from None
        except asyncio.CancelledError:
            raise self._ended() from None

    async def _begin(self) -> None:
        """Until writes may begin. gRPC's own first write waits for ever when its call ends before that."""
        over = asyncio.Event()
        self._call.add_done_callback(lambda _: over.set())
        waits = [asyncio.ensure_future(self._call.wait_for_connection()), asyncio.ensure_future(over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._begun = True

    def cancel(self) -> None:
        """Ends the call now. Always called: an abandoned call is never collected."""
        self._cancelled = True
        self._call.cancel()

    def _ended(self) -> BaseException:
        task = asyncio.current_task()
        if not self._cancelled or (task is not None and task.cancelling()):
            return asyncio.CancelledError()
        return Unavailable("the client ended the stream", outcome_open=True)


class Connections:
    """Channels to nodes, one for each role and address that is asked for, made when first used."""

    def __init__(
        self, addresses: Sequence[str], credentials: grpc.ChannelCredentials | None, token: Token | None
    ) -> None:
        # Those that were given; there may be more nodes.
        self.addresses = list(addresses)
        self._token = token
        self._shown = ""
        self._renewed_at = float("-inf")
        self._credentials = credentials
        self._warned = credentials is not None or not token
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def check_loop(self) -> None:
        """Whoever asks first decides for the event loop; raises `Precondition` in any other, or in none."""
        running: asyncio.AbstractEventLoop | None
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop and running is not None:
            return
        if running is None or self._loop is not None:
            text = "a client works only in the event loop (and its thread) in which it was connected"
            raise Precondition(
                f"{text}; from another thread use asyncio.run_coroutine_threadsafe", reason="WRONG_EVENT_LOOP"
            )
        self._loop = running

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call shows of its caller: the token of now. Raises `InvalidRequest` where none could be sent."""
        token = self._token() if callable(self._token) else self._token or ""
        if token != self._shown:
            check_token(token)
            self._renewed_at = time.monotonic() if self._shown else self._renewed_at
            self._shown = token
        return (("authorization", f"Bearer {token}"),) if token else ()

    def is_hopeless(self, error: RingpostError) -> bool:
        """Whether opening the same stream again would end the same way; not if there is, or will be, another token."""
        if error.code is grpc.StatusCode.UNAUTHENTICATED and callable(self._token):
            lately = time.monotonic() - self._renewed_at < _RENEWED_S
            return not (error.reason == "TOKEN_EXPIRED" or lately or self._token() != self._shown)
        return error.code in _HOPELESS

    def channel(self, role: str, address: str) -> grpc.aio.Channel:
        """The role's channel to the address."""
        channel = self._channels.get((role, address))
        if channel is None:
            channel = self._channels[role, address] = self._dial(address)
        return channel

    def _dial(self, address: str) -> grpc.aio.Channel:
        if not self._warned and not is_local(address):
            self._warned = True
            _log.warning(
                "the token goes to %s in plain text: whoever is on the way can use it; give credentials", address
            )
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._credentials, options=_CHANNEL_OPTIONS)

    def open_stream(self, role: str, path: str, address: str) -> Stream:
        """Starts a call; it connects when first written to or read from."""
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.channel(role, address).stream_stream(path)
        return Stream(method(metadata=self.metadata), address)

    async def close(self) -> None:
        """Ends every call that is left, and the connections."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


def parse_targets(target: str | Sequence[str] | None, default: str) -> list[str]:
    """Addresses from a string (comma-separated), a list, or the default; port 7400 where none is given.

    Raises `InvalidRequest` when there is none.
    """
    given = [target or default] if target is None or isinstance(target, str) else list(target)
    addresses = [part.strip() for text in given for part in text.split(",") if part.strip()]
    if not addresses:
        raise InvalidRequest("target: at least one address, such as localhost:7400")
    return [_with_port(address) for address in addresses]


def _with_port(address: str) -> str:
    # "unix:…" and "dns:///…" are gRPC's own forms; "[::1]" is an address without a port.
    if "/" in address or address.startswith("unix:"):
        return address
    if address.endswith("]") or ":" not in address:
        return f"{address}:{DEFAULT_PORT}"
    return address
